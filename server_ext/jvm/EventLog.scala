// What the ranks of a run have said, the newest of it up to a number of bytes: Run.scala holds an EventLog and its lock, StoredRun.scala pages through what
// RunStore.scala has read.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.{mutable, IndexedSeq}

import Schema._

/** A serialized RunEvent, numbered as it came. It tells of `lines` lines, those that the rank could not pass on counted, after `linesBefore`. */
final case class Kept(sequence: Long, linesBefore: Long, lines: Long, event: Array[Byte]) {
  def isLog: Boolean = lines > 0
  def nextLine: Long = linesBefore + lines
}

object Kept {
  def of(sequence: Long, linesBefore: Long, event: Array[Byte]): Kept = Kept(sequence, linesBefore, linesIn(event), event)

  def linesIn(event: Array[Byte]): Long = {
    val parsed = Schema.parse("RunEvent", event)
    if (parsed.has("log")) parsed.message("log").count("lines") + parsed.message("log").long("dropped") else 0L
  }
}

/** Events of a run from a cursor on; the next page begins at `next`, before which `nextLine` lines were printed. */
final case class Page(events: Seq[Kept], dropped: Long, next: Long, nextLine: Option[Long])

object Page {
  /** The first ones, until they reach this size. */
  def upTo[T](bytes: Long, all: Iterator[T])(size: T => Int): Seq[T] = {
    var left = bytes
    all.takeWhile { one => val fits = left > 0; left -= size(one); fits }.toSeq
  }

  /** `kept` are all events from the cursor `from` on that there still are, in their order; `end` is the number that the next event gets. */
  def of(from: Long, maxBytes: Long, kept: Iterator[Kept], end: Long, endLine: Option[Long]): Page = {
    val taken = upTo(maxBytes, kept)(_.event.length)
    val (next, nextLine) = taken.lastOption.fold((math.max(from, end), endLine))(newest => (newest.sequence + 1, Some(newest.nextLine)))
    Page(taken, next - from - taken.size, next, nextLine)
  }

  /** Index of the first event that is not before the cursor. */
  def indexOf(from: Long, events: IndexedSeq[Kept]): Int = {
    var (low, high) = (0, events.size)
    while (low < high) {
      val middle = (low + high) >>> 1
      if (events(middle).sequence < from) low = middle + 1 else high = middle
    }
    low
  }
}

/** The newest events up to a number of bytes. Lines make room first, the oldest before the others; reports and the like only where they alone take more
  * than half. */
final class KeptEvents(maxBytes: Long) {
  private val lines = mutable.ArrayDeque.empty[Kept]
  private val others = mutable.ArrayDeque.empty[Kept]
  private var lineBytes = 0L
  private var otherBytes = 0L

  def bytes: Long = lineBytes + otherBytes
  def size: Int = lines.size + others.size
  def isEmpty: Boolean = size == 0

  /** Of what is no line, everything before this is forgotten. */
  def oldestReport: Option[Long] = others.headOption.map(_.sequence)

  def add(kept: Kept): Unit = {
    if (kept.isLog) { lines.append(kept); lineBytes += kept.event.length } else { others.append(kept); otherBytes += kept.event.length }
    while (bytes > maxBytes) if (lines.nonEmpty && otherBytes <= maxBytes / 2) dropLine() else dropOther()
  }

  def dropThrough(sequence: Long): Unit = {
    while (lines.headOption.exists(_.sequence <= sequence)) dropLine()
    while (others.headOption.exists(_.sequence <= sequence)) dropOther()
  }

  private def dropLine(): Unit = lineBytes -= lines.removeHead().event.length
  private def dropOther(): Unit = otherBytes -= others.removeHead().event.length

  /** In their order. */
  def since(cursor: Long): Iterator[Kept] = {
    val (some, more) = (lines.iterator.drop(Page.indexOf(cursor, lines)).buffered, others.iterator.drop(Page.indexOf(cursor, others)).buffered)
    new Iterator[Kept] {
      override def hasNext: Boolean = some.hasNext || more.hasNext
      override def next(): Kept = if (!more.hasNext || some.hasNext && some.head.sequence < more.head.sequence) some.next() else more.next()
    }
  }
}

/** The same with their numbers, as they come. */
final class EventLog(maxBytes: Long) {
  private val kept = new KeptEvents(maxBytes)
  private var end = 0L
  private var endLine = 0L

  def bytes: Long = kept.bytes

  /** The sequence number that the next event gets. */
  def next: Long = end

  def oldestReport: Long = kept.oldestReport.getOrElse(end)

  def add(event: Array[Byte], itsLines: Long): Kept = {
    val one = Kept(end, endLine, itsLines, event)
    end += 1
    endLine += itsLines
    kept.add(one)
    one
  }

  def page(from: Long, maxBytes: Long): Page = Page.of(from, maxBytes, kept.since(from), end, Some(endLine))
}
