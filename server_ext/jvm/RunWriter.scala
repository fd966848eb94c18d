// Writes what runs do into the store, on one thread: Run hands everything to its Journal, which only remembers it, so that neither a rank nor the
// plugin's RPC thread ever waits for a filesystem.
package org.apache.spark.sql.connect.sparkgap

import java.util

import scala.collection.mutable
import scala.jdk.CollectionConverters._
import scala.util.control.NonFatal

import org.apache.hadoop.fs.{FileAlreadyExistsException, Path}
import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.internal.Logging

final class RunWriter(store: RunStore, settings: Settings) extends Logging {
  private val PauseMillis = 1000L
  private val BeatMillis = 10000L
  private val StopMillis = 5000L

  private val lock = new Object
  private val waiting = mutable.LinkedHashSet.empty[Journal]
  private val open = mutable.LinkedHashSet.empty[Journal]
  private var urgent = false
  private var closing = false
  private var lastBeat = 0L
  private val thread = new Thread(null, () => work(), "sparkgap-run-writer", 0, false)

  def start(): Unit = { thread.setDaemon(true); thread.start() }

  def stop(): Unit = {
    lock.synchronized { closing = true; lock.notifyAll() }
    thread.join(StopMillis)
    if (thread.isAlive) logWarning(s"spark.sparkgap.runs.dir took more than ${StopMillis / 1000} s for what the last runs left to write")
  }

  /** A journal of a new run. `status` tells how the run is now and `standingFor` what it remembers of events, `trouble` is told once, when the
    * filesystem fails. */
  def journal(key: RunKey, planDigest: Seq[Byte], status: () => DynamicMessage, standingFor: Seq[Kept] => Seq[Kept], trouble: String => Unit): Journal = {
    val one = new Journal(store, this, key, planDigest, settings.maxEventBytes, status, standingFor, trouble)
    lock.synchronized(open += one)
    wake(one, now = true)
    one
  }

  /** The folders that are still written to. */
  def busy: Set[Path] = lock.synchronized(open.iterator.map(each => store.plain(each.folder)).toSet)

  def wake(journal: Journal, now: Boolean): Unit = lock.synchronized {
    waiting += journal
    urgent ||= now
    if (now || waiting.size == 1) lock.notifyAll()
  }

  private def work(): Unit = {
    var stopping = false
    while (!stopping) {
      val journals = lock.synchronized {
        if (waiting.isEmpty && !closing) lock.wait(BeatMillis)
        if (!urgent && !closing) lock.wait(PauseMillis) // gathers what comes meanwhile into one segment
        urgent = false
        stopping = closing
        val taken = waiting.toSeq
        waiting.clear()
        taken
      }
      // A run waits for its first segment before it starts.
      journals.sortBy(!_.fresh).foreach { each =>
        each.flush()
        if (each.settled) lock.synchronized { open -= each; waiting -= each; store.sweepSoon() }
        else if (each.unwritten) lock.synchronized(waiting += each)
      }
      if (lock.synchronized(open.nonEmpty) && System.currentTimeMillis() - lastBeat >= BeatMillis) {
        lastBeat = System.currentTimeMillis()
        try store.beat() catch { case NonFatal(failure) => logWarning("spark.sparkgap.runs.dir cannot be told that the server is alive", failure) }
      }
    }
  }
}

/** What a run has done and the store does not have yet. */
final class Journal(store: RunStore, writer: RunWriter, key: RunKey, planDigest: Seq[Byte], maxEventBytes: Long, status: () => DynamicMessage,
    standingFor: Seq[Kept] => Seq[Kept], trouble: String => Unit) extends Logging {
  private val SegmentBytes = 4L << 20
  private val UrgentBytes = 1L << 20
  private val MaxTries = 60 // a second apart, once the run has ended

  lazy val folder: Path = store.folder(key)
  private val events = new KeptEvents(maxEventBytes) // no more, where the filesystem fails or is too slow
  private val chunks = new util.ArrayDeque[Array[Byte]]()
  private var changed = true
  private var over = false
  private var done = false
  private var recorded = false

  // Of the writer's thread.
  private var number = 0
  private var failures = 0
  private var told = false
  private val onlyEvents = mutable.Queue.empty[(Int, Long)]
  private var keptEventBytes = 0L
  private val writtenAgain = mutable.Map.empty[(Long, Long), Int] // events by the first and last number that they stand for, and their newest segment

  // ---- For the run; all return at once ----

  def event(kept: Kept): Unit = synchronized {
    if (!done) {
      val before = events.bytes
      events.add(kept)
      if (before == 0) writer.wake(this, now = false)
      if (events.bytes >= UrgentBytes && before < UrgentBytes) writer.wake(this, now = true)
    }
  }

  def change(): Unit = synchronized { changed = true; writer.wake(this, now = false) }

  def end(result: Seq[Array[Byte]]): Unit = synchronized {
    chunks.addAll(result.asJava)
    over = true
    changed = true
    writer.wake(this, now = true)
  }

  /** Until the store knows of the run, or can't be told so soon. */
  def awaitRecorded(millis: Long): Unit = synchronized {
    val deadline = System.nanoTime() + millis * 1000000L
    while (!recorded && System.nanoTime() < deadline) wait(math.max(1L, (deadline - System.nanoTime()) / 1000000L))
    if (!recorded) recorded = true
  }

  /** Nothing more will be written. */
  def settled: Boolean = synchronized(done)
  def unwritten: Boolean = synchronized(!done && (changed || !events.isEmpty))
  def fresh: Boolean = number == 0

  // ---- The writer's thread ----

  def flush(): Unit = {
    var more = true
    while (more) take() match {
      case Some(part) => more = write(part)
      case None => more = false
    }
  }

  private final case class Part(events: Seq[Kept], result: Seq[Array[Byte]], last: Boolean)

  private def take(): Option[Part] = synchronized {
    if (done || !changed && events.isEmpty) None
    else {
      changed = false
      val some = Page.upTo(SegmentBytes, events.since(0L))(_.event.length)
      val value = if (some.size == events.size) Page.upTo(SegmentBytes, chunks.iterator.asScala)(_.length) else Nil
      Some(Part(some, value, over && some.size == events.size && value.size == chunks.size))
    }
  }

  private def write(part: Part): Boolean = try {
    if (failures > 0 || number == 0) store.prepare(folder)
    number += 1
    val outlived = tooOld(bytesOf(part.events))
    val again = standingFor(outlived.flatMap { case (old, _) => othersIn(old) })
      .filterNot(each => writtenAgain.get((each.first, each.sequence)).exists(at => !outlived.exists(_._1 == at)))
    val all = again ++ part.events
    store.write(folder, number - 1, Schema.build("RunSegment")("user" -> key.user, "plan_digest" -> planDigest.toArray, "server" -> store.server,
      "written_at" -> System.currentTimeMillis() * 1000L, "status" -> status(), "sequences" -> all.map(_.sequence), "lines_before" -> all.map(_.linesBefore),
      "events" -> all.map(_.event), "first_sequences" -> all.map(_.first), "merged" -> all.map(_.merged), "result" -> part.result, "last" -> part.last))
    failures = 0
    written(part)
    outlived.foreach { case (old, bytes) => onlyEvents.dequeue(); keptEventBytes -= bytes; store.remove(folder, old) }
    writtenAgain.filterInPlace((_, at) => !outlived.exists(_._1 == at))
    all.filter(each => each.merged > 0 || each.sequence < part.events.headOption.fold(Long.MaxValue)(_.sequence))
      .foreach(each => writtenAgain((each.first, each.sequence)) = number - 1)
    keptEventBytes += bytesOf(all)
    if (number > 1 && part.result.isEmpty && !part.last) onlyEvents.enqueue((number - 1, bytesOf(all)))
    true
  } catch { case failure @ (NonFatal(_) | _: LinkageError) =>
    failures += 1
    tell(failure)
    val hopeless = failure.isInstanceOf[FileAlreadyExistsException] && number == 1
    synchronized {
      changed = true
      recorded = true
      if (hopeless || over && failures >= MaxTries) done = true
      notifyAll()
    }
    false
  }

  private def written(part: Part): Unit = synchronized {
    part.events.lastOption.foreach(newest => events.dropThrough(newest.sequence))
    part.result.foreach(_ => chunks.poll())
    changed ||= over && !part.last
    done = part.last
    recorded = true
    notifyAll()
  }

  private def bytesOf(some: Seq[Kept]): Long = some.map(_.event.length.toLong).sum

  /** Segments of events alone that go once so many more bytes are written: the directory keeps as much of a run's events as the memory does. */
  private def tooOld(more: Long): Seq[(Int, Long)] = {
    var left = keptEventBytes + more
    onlyEvents.iterator.takeWhile { case (_, bytes) => val over = left - bytes >= maxEventBytes; left -= bytes; over }.toSeq
  }

  /** What the memory still has of a segment that goes is written again, as the memory has it: lines make room for reports, not the other way round. */
  private def othersIn(old: Int): Seq[Kept] = store.read(folder, old).toSeq.flatMap(store.eventsOf).filterNot(_.isLog)

  private def tell(failure: Throwable): Unit = if (!told) {
    told = true
    val text = s"spark.sparkgap.runs.dir cannot be written, so that the run may not outlive the server: $failure"
    logWarning(s"run ${key.id} of ${key.user}: $text", failure)
    trouble(text)
  }
}
