// The barrier task, in the executor's JVM: asks the nursery for this task's ranks, lets them meet, passes their events to the driver, and returns
// the values of its ranks. Spark's kill of the task closes the sockets, and a closed socket ends its rank.
package org.apache.spark.sql.connect.sparkgap

import java.util.concurrent.{LinkedBlockingQueue, TimeUnit}
import java.util.concurrent.atomic.AtomicLong

import scala.collection.mutable
import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.{BarrierTaskContext, SparkException, TaskContext}
import org.apache.spark.util.TaskInterruptListener

import Schema._

object RankTask {
  /** The chunks of this task's values, in the order of the ranks; all but rank 0's are empty unless the plan asks for all. */
  def run(gang: Gang): Iterator[Array[Byte]] = {
    val context = BarrierTaskContext.get()
    val ranks = new RankTask(gang, context)
    // The interrupt listener runs on an RPC thread, also when Spark kills without interrupting the task's thread.
    context.addTaskCompletionListener[Unit]((_: TaskContext) => ranks.close())
    context.addTaskInterruptListener(new TaskInterruptListener { def onTaskInterrupted(task: TaskContext, reason: String): Unit = ranks.finish() })
    ranks.run().iterator
  }
}

private sealed trait Signal
private final case class ReadyToMeet(point: Array[Byte]) extends Signal
private final case class RankFailure(failure: DynamicMessage) extends Signal
private final case class RankEnded(rank: Int, exit: DynamicMessage, value: Option[Seq[Array[Byte]]]) extends Signal
private final case class RankLost(rank: Int, how: String) extends Signal

/** With one rank's keeper; `reader` ends when the keeper does. */
private final case class Conversation(connection: NurseryConnection, reader: Thread)

private final class RankTask(gang: Gang, context: BarrierTaskContext) extends AutoCloseable {
  private val rpc = Nursery.rpc
  private val host = {
    val address = context.getTaskInfos()(context.partitionId()).address
    address.take(address.lastIndexOf(':')) // an IPv6 address has colons of its own
  }
  private val firstRank = context.partitionId() * gang.ranksPerTask
  private val localRanks = math.min(gang.ranksPerTask, gang.worldSize - firstRank)
  private val signals = new LinkedBlockingQueue[Signal]()
  private val conversations = mutable.ArrayBuffer.empty[Conversation]
  private val resultBytes = new AtomicLong()
  private val LeaveMillis = 3500L // a keeper needs 2 s where a rank ignores SIGTERM
  private val GoneMillis = 5000L
  private var finished = false

  def run(): Seq[Array[Byte]] = {
    rpc.send(Placed(gang.run, gang.attempt))
    (firstRank until firstRank + localRanks).foreach(open)
    meet()
    val values = mutable.Map.empty[Int, Seq[Array[Byte]]]
    while (values.size < localRanks) signals.take() match {
      case RankEnded(rank, exit, Some(value)) if exit.int("status") == 0 => values(rank) = value
      case other => handle(other)
    }
    rpc.ask(Flush)
    values.toSeq.sortBy(_._1).flatMap(_._2)
  }

  /** Says that nobody waits for the ranks any more, which ends them; returns at once. */
  def finish(): Unit = synchronized {
    finished = true
    conversations.foreach(_.connection.finish())
  }

  /** Ends the ranks and waits until they are gone: the task's slot and GPUs are nobody else's before. A keeper that does not end them, since it is
    * stopped for example, is killed through the nursery. Spark may interrupt this thread at any moment, and it waits all the same. */
  override def close(): Unit = {
    finish()
    val began = System.nanoTime()
    val all = synchronized(conversations.toSeq)
    var interrupted = Thread.interrupted()
    def awaitAll(millis: Long): Unit = {
      def left: Long = millis - (System.nanoTime() - began) / 1000000L
      all.foreach(each => while (each.reader.isAlive && left > 0)
        try each.reader.join(math.max(1L, left)) catch { case _: InterruptedException => interrupted = true })
    }
    awaitAll(LeaveMillis)
    if (all.exists(_.reader.isAlive)) {
      Nursery.endKeeper(gang.id)
      awaitAll(GoneMillis)
    }
    all.foreach(each => try each.connection.close() catch { case NonFatal(_) => })
    if (interrupted) Thread.currentThread().interrupt()
  }

  private def open(rank: Int): Unit = {
    val connection = Nursery.open(Schema.build("OpenRank")("run_id" -> gang.run.id, "rank" -> rank, "gang" -> gang.id))
    val reader = new Thread(() => read(rank, connection), s"sparkgap-${gang.run.id}-rank-$rank")
    reader.setDaemon(true)
    synchronized {
      conversations += Conversation(connection, reader)
      if (finished) connection.finish()
    }
    val placement = Schema.build("RankPlacement")("run_id" -> gang.run.id, "attempt" -> gang.attempt, "rank" -> rank,
      "local_rank" -> (rank - firstRank), "world_size" -> gang.worldSize, "local_world_size" -> localRanks, "node_rank" -> context.partitionId(),
      "num_nodes" -> gang.tasks, "host" -> host, "gpus" -> gpus, "cpus" -> math.max(1, context.cpus() / localRanks),
      "max_result_bytes" -> gang.maxResultBytes, "python_path" -> gang.files.toSeq.flatMap(_.pythonPath), "max_failures" -> gang.maxFailures,
      "thread_seconds" -> gang.threadSeconds, "session_conf" -> sessionConf)
    connection.tell(FrameKind.Placement, placement.toByteArray)
    reader.start()
  }

  private lazy val sessionConf: Seq[DynamicMessage] =
    gang.sessionConf.toSeq.sorted.map { case (key, value) => Schema.build("Setting")("key" -> key, "value" -> value) }

  private def gpus: Seq[String] = if (gang.useGpu) context.resources().get("gpu").toSeq.flatMap(_.addresses) else Nil

  /** One thread a rank: events go straight to the driver, what concerns the task goes to its queue. */
  private def read(rank: Int, connection: NurseryConnection): Unit = {
    val value = mutable.ArrayBuffer.empty[Array[Byte]]
    val window = new Window(gang.windowBytes, () => rpc.ask(Flush))
    var returned = false
    var exited = false
    try Iterator.continually(if (exited) None else connection.receive()).takeWhile(_.isDefined).flatten.foreach {
      case Frame(FrameKind.Event, event) =>
        rpc.send(RankEvent(gang.run, gang.attempt, event, Kept.linesIn(event)))
        window.sent(event.length)
      case Frame(FrameKind.PlanWanted, _) => connection.tell(FrameKind.TrainPlan, gang.plan)
      case Frame(FrameKind.Notice, notice) => rpc.send(RankNoticed(gang.run, gang.attempt, notice))
      case Frame(FrameKind.Result, chunk) =>
        returned = true
        if (resultBytes.addAndGet(chunk.length) > gang.maxResultBytes) signals.put(RankFailure(failureOf(rank, gang.tooManyResultBytes)))
        else if (chunk.nonEmpty) value += chunk
      case Frame(FrameKind.Address, point) => signals.put(ReadyToMeet(point))
      case Frame(FrameKind.Failure, failure) => signals.put(RankFailure(Schema.parse("RankFailure", failure)))
      case Frame(FrameKind.Refused, refusal) =>
        exited = true
        signals.put(RankLost(rank, s"the executor's nursery could not start it: ${Schema.parse("Refused", refusal).string("message")}"))
      case Frame(FrameKind.Exit, exit) =>
        exited = true
        signals.put(RankEnded(rank, Schema.parse("RankExit", exit), Option.when(returned)(value.toSeq)))
      case Frame(kind, _) => throw new SparkException(s"a rank sent a frame of unknown kind $kind")
    } catch { case NonFatal(problem) =>
      exited = true
      signals.put(RankLost(rank, s"its task could not go on: $problem"))
    } finally if (!exited) signals.put(RankLost(rank, if (synchronized(finished)) "its task has ended" else Nursery.endOfKeeper(gang.id)))
  }

  /** Rank 0 listens first and keeps its socket; every task learns from the driver where. */
  private def meet(): Unit = {
    val deadline = System.nanoTime() + gang.startTimeoutMillis * 1000000L
    def left: Long = math.max(0L, (deadline - System.nanoTime()) / 1000000L)
    var point = Array.emptyByteArray
    var pause = 2L
    while (point.isEmpty) {
      if (left == 0) throw new SparkException(s"rank 0 of run ${gang.run.id} was not ready to meet the others after ${gang.startTimeoutMillis / 1000} s " +
        "(spark.sparkgap.start.timeout)")
      if (firstRank == 0) Option(signals.poll(left, TimeUnit.MILLISECONDS)).foreach {
        case ReadyToMeet(bound) => point = bound; if (gang.tasks > 1) rpc.ask(MeetHere(gang.run, gang.attempt, bound))
        case other => handle(other)
      } else {
        point = rpc.ask(WhereToMeet(gang.run, gang.attempt)).asInstanceOf[Array[Byte]]
        if (point.isEmpty) Option(signals.poll(pause, TimeUnit.MILLISECONDS)).foreach(handle)
        pause = math.min(pause * 2, 50L)
      }
    }
    synchronized(conversations.toSeq).foreach(_.connection.tell(FrameKind.MeetingPoint, point))
  }

  private def handle(signal: Signal): Unit = signal match {
    case RankFailure(failure) => fail(failure.copy("host" -> host))
    case RankEnded(rank, exit, value) if exit.int("status") != 0 || value.isEmpty => fail(endedEarly(rank, exit))
    case RankEnded(_, _, _) | ReadyToMeet(_) => // of no consequence here: only the last ranks' ends are waited for
    case RankLost(rank, how) =>
      context.killTaskIfInterrupted()
      fail(failureOf(rank, how))
  }

  private def endedEarly(rank: Int, exit: DynamicMessage): DynamicMessage = {
    val status = exit.int("status")
    val how = if (status < 0) s"ended by signal ${-status}" else s"exited with status $status before it returned a value"
    failureOf(rank, how).copy("pid" -> exit.int("pid"), "exit_code" -> math.max(status, 0), "signal" -> math.max(-status, 0),
      "last_lines" -> exit.strings("last_lines"))
  }

  private def failureOf(rank: Int, message: String): DynamicMessage = Schema.build("RankFailure")("rank" -> rank, "host" -> host, "message" -> message,
    "time" -> System.currentTimeMillis() * 1000L)

  /** Tells the driver and ends the task. Ending it at once would end its other ranks, so those that fail at the same time have a moment to say so, and
   *  a failure inside a collective waits longer for the one that caused it. */
  private def fail(failure: DynamicMessage): Nothing = {
    def record(one: DynamicMessage): Unit = rpc.ask(RankFailed(gang.run, gang.attempt, one.toByteArray))
    record(failure)
    val began = System.nanoTime()
    var heard = began
    val told = mutable.Set(failure.int("rank"))
    def since(moment: Long): Long = (System.nanoTime() - moment) / 1000000L
    def othersAwaited: Boolean = told.size < localRanks && since(heard) < 200
    def causeAwaited: Boolean = failure.bool("in_collective") && !rpc.ask(CauseKnown(gang.run, gang.attempt)).asInstanceOf[Boolean]
    while (since(began) < 1000 && (othersAwaited || causeAwaited)) Option(signals.poll(20, TimeUnit.MILLISECONDS)).foreach {
      case RankFailure(another) => heard = System.nanoTime(); told += another.int("rank"); record(another.copy("host" -> host))
      case RankEnded(rank, exit, _) if exit.int("status") < 0 => told += rank; record(endedEarly(rank, exit))
      case RankEnded(rank, exit, value) if (exit.int("status") != 0 || value.isEmpty) && !told(rank) => told += rank; record(endedEarly(rank, exit))
      case RankEnded(rank, _, _) => told += rank
      case _ =>
    }
    throw new SparkException(s"rank ${failure.int("rank")} failed: ${failure.string("exception")} ${failure.string("message")}")
  }
}

/** Bounds what one rank has under way to the driver, whose inbox has no bound of its own: after so many bytes the sender waits until all is taken. */
private final class Window(bytes: Long, awaitTaken: () => Unit) {
  private var open = 0L

  def sent(count: Int): Unit = {
    open += count
    if (open > bytes) { awaitTaken(); open = 0L }
  }
}
