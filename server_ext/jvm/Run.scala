// One training run, in the driver: a thread of its own takes it through its attempts, ranks report to it through the plugin's RPC thread, and clients
// read it. Runs.scala keeps them.
package org.apache.spark.sql.connect.sparkgap

import java.util.UUID

import scala.collection.mutable
import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.{SparkContext, SparkException, SparkThrowable}
import org.apache.spark.internal.Logging

import Schema._

object RunState {
  val Queued = "QUEUED"
  val Starting = "STARTING"
  val Running = "RUNNING"
  val Retrying = "RETRYING"
  val Succeeded = "SUCCEEDED"
  val Failed = "FAILED"
  val Cancelled = "CANCELLED"
  val Final: Set[String] = Set(Succeeded, Failed, Cancelled)

  /** Alive when its server ended; only a RunStore says so. */
  val Lost = "LOST"
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

  /** What a run that has not started waits for. */
  def place: Option[Place]
}

/** What a plan says of its run. */
final case class RunPlan(key: RunKey, name: String, worldSize: Int, maxFailures: Int, digest: Seq[Byte], submission: String)

final class Run(plan: RunPlan, queue: RunQueue, ticket: Ticket, maxEventBytes: Long, store: Option[RunStore]) extends AnyRun with Logging {
  private val RecordMillis = 5000L
  private val FirstPauseMillis = 1000L // before a second attempt; then twice as long each time
  private val LongestPauseMillis = 30000L

  val key: RunKey = plan.key
  private val submittedAt = now()
  private val group = s"sparkgap-run-${key.user}-${key.id}-$submittedAt" // Spark remembers cancelled groups, and an id may come again
  private var startedAt = 0L
  private var state = RunState.Queued
  private var reason = ""
  @volatile private var cancelReason: Option[String] = None
  private var context: Option[SparkContext] = None
  private var attempt = 0
  @volatile var endedAt = 0L

  private val events = new EventLog(maxEventBytes)
  private val failures = mutable.ArrayBuffer.empty[DynamicMessage]
  private var meeting: Option[Array[Byte]] = None
  private var result: Seq[Array[Byte]] = Nil
  private var notice = ""
  private val notices = new Notices
  private var journal: Option[Journal] = None // from `execute` on, so that a run that another submit has overtaken has none

  // ---- From the ranks, through the plugin's RPC thread ----

  /** Spark has started a task of the gang. */
  def placed(from: Int): Unit = {
    queue.started(ticket)
    synchronized {
      if (from == attempt) {
        if (startedAt == 0) startedAt = now()
        if (state == RunState.Queued) become(RunState.Starting)
      }
    }
  }

  def append(from: Int, event: Array[Byte], lines: Long): Unit = synchronized {
    if (from == attempt) {
      if (state != RunState.Running && !RunState.Final(state)) become(RunState.Running)
      keep(event, lines)
    }
  }

  def failed(from: Int, failure: Array[Byte]): Unit = synchronized {
    if (from == attempt) failures += Schema.parse("RankFailure", failure)
  }

  def noticed(from: Int, notice: Array[Byte]): Unit = synchronized {
    if (from == attempt) {
      notices.add(Schema.parse("RankNotice", notice))
      journal.foreach(_.change())
    }
  }

  def causeKnown(from: Int): Boolean = synchronized(from != attempt || failures.exists(!_.bool("in_collective")))

  def meetAt(from: Int, point: Array[Byte]): Unit = synchronized { if (from == attempt) meeting = Some(point) }

  def meetingPoint(from: Int): Option[Array[Byte]] = synchronized(if (from == attempt) meeting else None)

  private def become(next: String): Unit = {
    state = next
    journal.foreach(_.change())
    notifyAll()
  }

  private def keep(event: Array[Byte], lines: Long): Unit = {
    val kept = events.add(event, lines)
    journal.foreach(_.event(kept))
    notifyAll()
  }

  // ---- The run's own thread ----

  def execute(sc: SparkContext, gang: Gang): Unit = {
    // Nothing runs that a later life of the server would not know of, as long as the filesystem works.
    val writing = synchronized {
      context = Some(sc)
      journal = store.map(_.writer.journal(key, planDigest, () => status(complete = false), gone => synchronized(events.standingFor(gone)),
        why => synchronized { notice = why }))
      journal
    }
    writing.foreach(_.awaitRecorded(RecordMillis))
    try while (!ended) try {
      queue.await(ticket, over = cancelReason.isDefined)
      runGang(sc, gang.copy(id = UUID.randomUUID().toString, attempt = attempt))
    } catch { case NonFatal(failure) => afterwards(sc, failure) }
    catch { case fatal: Throwable => end(RunState.Failed, fatal.toString, Nil); throw fatal }
    finally queue.leave(ticket)
  }

  private def runGang(sc: SparkContext, gang: Gang): Unit = {
    if (cancelReason.isDefined) throw new SparkException("cancelled before it started")
    sc.setJobGroup(group, s"sparkgap run ${key.id}: ${plan.name}", interruptOnCancel = true)
    gang.pool.foreach(sc.setLocalProperty("spark.scheduler.pool", _))
    val ranks = sc.parallelize(0 until gang.tasks, gang.tasks).barrier().mapPartitions(_ => RankTask.run(gang))
    val profile = ticket.demand.profile
    val chunks = (if (profile.id == sc.resourceProfileManager.defaultResourceProfile.id) ranks else ranks.withResources(profile)).collect()
    if (chunks.map(_.length.toLong).sum > gang.maxResultBytes) end(RunState.Failed, gang.tooManyResultBytes, Nil)
    else end(RunState.Succeeded, "", chunks.toSeq)
  }

  private def afterwards(sc: SparkContext, failure: Throwable): Unit = cancelReason match {
    case Some(why) => end(RunState.Cancelled, why, Nil)
    case None if sc.isStopped => end(RunState.Cancelled, Runs.Stopping, Nil) // Spark ends its jobs before it tells its plugins
    case None if killedThroughSpark(failure) => end(RunState.Cancelled, s"its job was ended through Spark: ${failure.getMessage}", Nil)
    case None if synchronized(attempt) < plan.maxFailures => retry(explain(failure))
    case None => end(RunState.Failed, explain(failure), Nil)
  }

  /** From Spark's web UI, for example. A job that fails by itself has another condition. */
  private def killedThroughSpark(failure: Throwable): Boolean = failure match {
    case named: SparkThrowable => named.getCondition == "SPARK_JOB_CANCELLED"
    case _ => false
  }

  /** Another attempt: the failure goes into the log of events, and nothing else of the last attempt counts any more. */
  private def retry(why: String): Unit = {
    val pause = synchronized {
      val cause = causes.headOption.getOrElse(Schema.build("RankFailure")("message" -> why, "time" -> now()))
      keep(Schema.build("RunEvent")("attempt" -> attempt, "rank" -> cause.int("rank"), "time" -> now(), "failure" -> cause).toByteArray, lines = 0)
      logInfo(s"attempt $attempt of run ${key.id} of ${key.user} failed, ${plan.maxFailures - attempt} more may: $why")
      reason = why
      failures.clear()
      notices.clear()
      meeting = None
      attempt += 1
      become(RunState.Retrying)
      math.min(LongestPauseMillis, FirstPauseMillis << math.min(10, attempt - 1))
    }
    awaitUntil(pause)(cancelReason.isDefined)
    queue.again(ticket)
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

  override def planDigest: Seq[Byte] = plan.digest

  def comesFrom(submission: String): Boolean = plan.submission == submission

  override def ended: Boolean = synchronized(RunState.Final(state))

  /** Waits for its slots, before its first attempt. */
  def queued: Boolean = synchronized(state == RunState.Queued)

  /** Has ended, and its journal is written as far as it can be. */
  def settled: Boolean = synchronized(RunState.Final(state) && journal.forall(_.settled))

  def awaitEnd(millis: Long): Unit = awaitUntil(millis)(RunState.Final(state))

  private def awaitUntil(millis: Long)(met: => Boolean): Unit = synchronized {
    val deadline = System.nanoTime() + millis * 1000000L
    while (!met && System.nanoTime() < deadline) wait(math.max(1L, (deadline - System.nanoTime()) / 1000000L))
  }

  override def cancel(why: String): Unit = {
    val job = synchronized {
      if (!RunState.Final(state) && cancelReason.isEmpty) cancelReason = Some(why)
      notifyAll()
      if (RunState.Final(state)) None else context
    }
    queue.wake()
    job.foreach(_.cancelJobGroupAndFutureJobs(group, why))
  }

  override def page(from: Long, maxBytes: Long): Page = synchronized(events.page(from, maxBytes))

  override def await(cursor: Long, millis: Long): Unit = synchronized {
    if (events.next <= cursor && !RunState.Final(state)) wait(millis)
  }

  def keptBytes: Long = synchronized(events.bytes + result.map(_.length.toLong).sum)

  override def resultChunks: Seq[Array[Byte]] = synchronized(result)

  override def place: Option[Place] = if (ended) None else queue.place(ticket)

  override def status(complete: Boolean): DynamicMessage = {
    val waiting = place // not inside the lock below: the queue has one of its own
    synchronized {
      Schema.build("RunStatus")("run_id" -> key.id, "name" -> plan.name, "state" -> state, "num_processes" -> plan.worldSize,
        "attempt" -> attempt, "submitted_at" -> submittedAt, "started_at" -> startedAt, "ended_at" -> endedAt, "reason" -> reason, "failures" -> causes,
        "next_sequence" -> events.next, "result_bytes" -> result.map(_.length.toLong).sum, "complete" -> complete, "notice" -> notices.after(notice),
        "queue_position" -> waiting.fold(0)(_.position), "waiting_for" -> waiting.fold("")(_.waitingFor), "max_failures" -> plan.maxFailures)
    }
  }

  /** A rank that fails inside a collective usually fails because another one has ended. */
  private def causes: Seq[DynamicMessage] = failures.toSeq.sortBy(each => (each.bool("in_collective"), each.long("time")))

  private def now(): Long = {
    val instant = java.time.Instant.now()
    instant.getEpochSecond * 1000000L + instant.getNano / 1000L
  }
}
