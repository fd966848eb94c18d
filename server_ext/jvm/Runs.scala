// The registry of training runs, in the driver. A run is owned by the server: it starts on a thread of its own and ends when its barrier job ends,
// whatever becomes of the client, its operation or its session. Where a RunStore is configured, it is told of everything, and knows ended runs longer.
package org.apache.spark.sql.connect.sparkgap

import java.security.MessageDigest
import java.util
import java.util.concurrent.ConcurrentHashMap

import scala.collection.mutable
import scala.jdk.CollectionConverters._
import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.{SparkContext, SparkException}
import org.apache.spark.internal.Logging
import org.apache.spark.scheduler.{SparkListener, SparkListenerExecutorRemoved}

import Schema._

object Runs extends Logging {
  val Stopping = "the server is stopping"
  private val StopMillis = 5000L
  private val runs = new ConcurrentHashMap[RunKey, Run]()
  private var sc: SparkContext = _
  private var settings: Settings = _
  private var store: Option[RunStore] = None

  /** The extension classes are loaded by Connect, this by `spark.plugins`: one without the other cannot work. */
  def unlessPlugged(): Unit = if (sc == null) throw Refused.resources("the server has sparkgap's extensions but not its plugin: add " +
    s"${classOf[SparkgapPlugin].getName} to spark.plugins and restart it")

  def start(context: SparkContext, conf: Settings): Unit = {
    sc = context
    settings = conf
    store = conf.runsDirectory.map(new RunStore(_, sc.hadoopConfiguration, conf))
    store.foreach(_.start())
    sc.addSparkListener(new SparkListener {
      override def onExecutorRemoved(event: SparkListenerExecutorRemoved): Unit = Nodes.forget(event.executorId)
    })
  }

  def stop(): Unit = {
    val alive = runs.values.asScala.filterNot(_.ended).toSeq
    alive.foreach(_.cancel(Stopping))
    store.foreach { kept =>
      alive.foreach(_.awaitEnd(StopMillis))
      kept.stop()
    }
  }

  /** Of the runs of this server's memory: for the plugin's RPC thread, which never waits for a filesystem. */
  def find(key: RunKey): Option[Run] = Option(runs.get(key))

  def apply(key: RunKey): AnyRun = find(key).orElse(stored(_.find(key)).flatten).getOrElse(throw Refused.unknownRun(key.id))

  /** A user's runs, the newest first. */
  def list(user: String): Seq[DynamicMessage] = {
    val kept = stored(_.list(user)).toSeq.flatten.map(_.status(complete = false)) // before the memory: what is forgotten there is here
    val here = runs.values.asScala.filter(_.key.user == user).map(_.status(complete = false))
    (kept ++ here).map(each => each.string("run_id") -> each).toMap.values.toSeq.map(_.without("failures")).sortBy(-_.long("submitted_at"))
  }

  /** Runs of all users that have not ended, and how many of them wait in the queue. */
  def counts: (Int, Int) = {
    val alive = runs.values.asScala.filterNot(_.ended).map(_.status(complete = false).choiceOf("state")).toSeq
    (alive.size, alive.count(_ == RunState.Queued))
  }

  private def stored[T](ask: RunStore => T): Option[T] = try store.map(ask) catch {
    case NonFatal(failure) if !failure.isInstanceOf[Refused] =>
      throw Refused.resources(s"spark.sparkgap.runs.dir, where the server keeps its runs, cannot be read: $failure")
  }

  /** The run with this plan's id: a new one, or the one that an earlier request with the same plan has started. */
  def submit(user: String, plan: DynamicMessage, sessionFiles: => Option[SessionFiles]): AnyRun = {
    unlessPlugged()
    val key = RunKey(user, plan.string("run_id"))
    val digest = MessageDigest.getInstance("SHA-256").digest(plan.toByteArray).toSeq
    def known: Option[AnyRun] = find(key).orElse(earlier(key)).map { run =>
      if (run.planDigest != digest) throw Refused.plan(s"run id ${key.id} is taken by a run with another plan: choose another id")
      run
    }
    known.getOrElse {
      val gang = new Admission(sc, settings).admit(key, plan)
      val run = new Run(key, plan.string("name"), plan.int("num_processes"), digest, settings.maxEventBytes, store)
      val files = sessionFiles
      Option(runs.putIfAbsent(key, run)) match {
        case Some(_) =>
          files.foreach(_.close())
          known.get
        case None =>
          launch(run, gang.copy(files = files.map(_.folder)), files)
          run
      }
    }
  }

  /** Of another life of the server. A filesystem that fails keeps nobody from training. */
  private def earlier(key: RunKey): Option[AnyRun] = try store.flatMap { kept =>
    val found = kept.find(key)
    if (found.isEmpty) kept.clear(key)
    found
  } catch { case NonFatal(failure) =>
    logWarning(s"spark.sparkgap.runs.dir cannot tell whether it has run ${key.id} of ${key.user} already; it is taken for a new one", failure)
    None
  }

  /** Spark's inheritable thread-locals tie a job to the operation that submits it; this thread inherits none of them. */
  private def launch(run: Run, gang: Gang, files: Option[SessionFiles]): Unit = {
    val body: Runnable = () => try SessionFiles.during(files)(run.execute(sc, gang)) finally forgetOldest()
    val thread = new Thread(null, body, s"sparkgap-run-${run.key.id}", 0, false)
    thread.setContextClassLoader(getClass.getClassLoader)
    thread.setDaemon(true)
    thread.start()
  }

  /** The newest one stays whatever its size, so that its client can fetch its value. */
  private def forgetOldest(): Unit = {
    val oldest = (System.currentTimeMillis() - settings.maxRunAgeMillis) * 1000L
    runs.values.asScala.filter(run => run.ended && run.endedAt < oldest).foreach(run => runs.remove(run.key))
    val newestFirst = runs.values.asScala.filter(_.settled).toSeq.sortBy(-_.endedAt)
    val bytesWithNewer = newestFirst.scanLeft(0L)(_ + _.keptBytes).tail
    newestFirst.zip(bytesWithNewer).zipWithIndex.drop(1).foreach { case ((run, bytes), newer) =>
      if (newer >= settings.keptRuns || bytes > settings.keptBytes) runs.remove(run.key)
    }
  }
}

object RunState {
  val Queued = "QUEUED"
  val Starting = "STARTING"
  val Running = "RUNNING"
  val Succeeded = "SUCCEEDED"
  val Failed = "FAILED"
  val Cancelled = "CANCELLED"
  val Final: Set[String] = Set(Succeeded, Failed, Cancelled)

  /** Alive when its server ended; only a RunStore says so. */
  val Lost = "LOST"
}

/** Events of a run from a cursor on: the first has sequence number `first`. */
final case class Page(first: Long, events: Seq[Array[Byte]], dropped: Long)

object Page {
  /** The first ones, until they reach this size. */
  def upTo(bytes: Long, events: Iterator[Array[Byte]]): Seq[Array[Byte]] = {
    var left = bytes
    events.takeWhile { event => val fits = left > 0; left -= event.length; fits }.toSeq
  }
}

/** What a client may ask of a run, in memory (Run) or not (StoredRun). */
trait AnyRun {
  def planDigest: Seq[Byte]
  def ended: Boolean
  def cancel(why: String): Unit
  def page(from: Long, maxBytes: Long): Page

  /** Until there is an event at the cursor, the run has ended, or the time is over. */
  def await(cursor: Long, millis: Long): Unit
  def resultChunks: Seq[Array[Byte]]
  def status(complete: Boolean): DynamicMessage
}

final class Run(val key: RunKey, name: String, worldSize: Int, override val planDigest: Seq[Byte], maxEventBytes: Long, store: Option[RunStore])
    extends AnyRun with Logging {
  private val group = s"sparkgap-run-${key.user}-${key.id}"
  private val submittedAt = now()
  private var startedAt = 0L
  private var state = RunState.Queued
  private var reason = ""
  private var cancelReason: Option[String] = None
  private var context: Option[SparkContext] = None
  private val attempt = 0
  @volatile var endedAt = 0L

  private val events = new util.ArrayDeque[Array[Byte]]()
  private var firstKept = 0L
  private var eventBytes = 0L
  private val failures = mutable.ArrayBuffer.empty[DynamicMessage]
  private var meeting: Option[Array[Byte]] = None
  private var result: Seq[Array[Byte]] = Nil
  private var notice = ""
  private val RecordMillis = 5000L
  private var journal: Option[Journal] = None // from `execute` on, so that a run that another submit has overtaken has none

  // ---- From the ranks, through the plugin's RPC thread ----

  def append(from: Int, event: Array[Byte]): Unit = synchronized {
    if (from == attempt) {
      if (state == RunState.Starting) { state = RunState.Running; journal.foreach(_.change()) }
      events.add(event)
      journal.foreach(_.event(event))
      eventBytes += event.length
      while (eventBytes > maxEventBytes) {
        eventBytes -= events.poll().length
        firstKept += 1
      }
      notifyAll()
    }
  }

  def failed(from: Int, failure: Array[Byte]): Unit = synchronized {
    if (from == attempt) failures += Schema.parse("RankFailure", failure)
  }

  def causeKnown(from: Int): Boolean = synchronized(from != attempt || failures.exists(!_.bool("in_collective")))

  def meetAt(from: Int, point: Array[Byte]): Unit = synchronized { if (from == attempt) meeting = Some(point) }

  def meetingPoint(from: Int): Option[Array[Byte]] = synchronized(if (from == attempt) meeting else None)

  // ---- The run's own thread ----

  def execute(sc: SparkContext, gang: Gang): Unit = {
    // Nothing runs that a later life of the server would not know of, as long as the filesystem works.
    val writing = synchronized {
      journal = store.map(_.writer.journal(key, planDigest, () => status(complete = false), why => synchronized { notice = why }))
      journal
    }
    writing.foreach(_.awaitRecorded(RecordMillis))
    val proceed = synchronized {
      context = Some(sc)
      startedAt = now()
      if (cancelReason.isEmpty) state = RunState.Starting
      journal.foreach(_.change())
      cancelReason.isEmpty
    }
    try {
      if (!proceed) throw new SparkException("cancelled before it started")
      sc.setJobGroup(group, s"sparkgap run ${key.id}: $name", interruptOnCancel = true)
      val chunks = sc.parallelize(0 until gang.tasks, gang.tasks).barrier().mapPartitions(_ => RankTask.run(gang)).collect()
      if (chunks.map(_.length.toLong).sum > gang.maxResultBytes) end(RunState.Failed, gang.tooManyResultBytes, Nil)
      else end(RunState.Succeeded, "", chunks.toSeq)
    } catch {
      case NonFatal(failure) => synchronized(cancelReason) match {
        case Some(why) => end(RunState.Cancelled, why, Nil)
        case None if sc.isStopped => end(RunState.Cancelled, Runs.Stopping, Nil) // Spark ends its jobs before it tells its plugins
        case None => end(RunState.Failed, explain(failure), Nil)
      }
      case fatal: Throwable => end(RunState.Failed, fatal.toString, Nil); throw fatal
    }
  }

  private def explain(failure: Throwable): String = synchronized(causes.headOption) match {
    case Some(first) => s"rank ${first.int("rank")} failed: ${first.string("exception")}: ${first.string("message")}"
    case None =>
      val killed = Option(failure.getMessage).getOrElse(failure.toString)
      s"Spark ended the barrier job: $killed"
  }

  private def end(last: String, why: String, chunks: Seq[Array[Byte]]): Unit = synchronized {
    state = last
    reason = why
    result = chunks
    endedAt = now()
    journal.foreach(_.end(chunks))
    logInfo(s"run ${key.id} of ${key.user} ended: $last $why")
    notifyAll()
  }

  // ---- For clients ----

  override def ended: Boolean = synchronized(RunState.Final(state))

  /** Has ended, and its journal is written as far as it can be. */
  def settled: Boolean = synchronized(RunState.Final(state) && journal.forall(_.settled))

  def awaitEnd(millis: Long): Unit = synchronized {
    val deadline = System.nanoTime() + millis * 1000000L
    while (!RunState.Final(state) && System.nanoTime() < deadline) wait(math.max(1L, (deadline - System.nanoTime()) / 1000000L))
  }

  override def cancel(why: String): Unit = {
    val job = synchronized {
      if (!RunState.Final(state) && cancelReason.isEmpty) cancelReason = Some(why)
      if (RunState.Final(state)) None else context
    }
    job.foreach(_.cancelJobGroupAndFutureJobs(group, why))
  }

  override def page(from: Long, maxBytes: Long): Page = synchronized {
    val first = math.max(from, firstKept)
    Page(first, Page.upTo(maxBytes, events.iterator.asScala.drop((first - firstKept).toInt)), first - from)
  }

  override def await(cursor: Long, millis: Long): Unit = synchronized {
    if (next <= cursor && !RunState.Final(state)) wait(millis)
  }

  def keptBytes: Long = synchronized(eventBytes + result.map(_.length.toLong).sum)

  override def resultChunks: Seq[Array[Byte]] = synchronized(result)

  override def status(complete: Boolean): DynamicMessage = synchronized {
    Schema.build("RunStatus")("run_id" -> key.id, "name" -> name, "state" -> state, "num_processes" -> worldSize,
      "attempt" -> attempt, "submitted_at" -> submittedAt, "started_at" -> startedAt, "ended_at" -> endedAt, "reason" -> reason, "failures" -> causes,
      "next_sequence" -> next, "result_bytes" -> result.map(_.length.toLong).sum, "complete" -> complete, "notice" -> notice)
  }

  private def next: Long = firstKept + events.size

  /** A rank that fails inside a collective usually fails because another one has ended. */
  private def causes: Seq[DynamicMessage] = failures.toSeq.sortBy(each => (each.bool("in_collective"), each.long("time")))

  private def now(): Long = {
    val instant = java.time.Instant.now()
    instant.getEpochSecond * 1000000L + instant.getNano / 1000L
  }
}
