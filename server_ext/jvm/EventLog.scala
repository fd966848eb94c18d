// What the ranks of a run have said, the newest of it up to a number of bytes: Run.scala holds an EventLog and its lock, StoredRun.scala pages through what
// RunStore.scala has read.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.{mutable, IndexedSeq}

import org.sparkproject.connect.protobuf.CodedInputStream

import Schema._

/** A serialized RunEvent, numbered as it came. It tells of `lines` lines, those that the rank could not pass on counted, after `linesBefore`. One
  * with reports may hold those of `merged` others of its rank too, the oldest of which had the number `first`. */
final case class Kept(sequence: Long, linesBefore: Long, lines: Long, kind: Int, attempt: Int, rank: Int, event: Array[Byte], first: Long, merged: Long) {
  def isLog: Boolean = kind == Kept.Log
  def isReport: Boolean = kind == Kept.Reports
  def nextLine: Long = linesBefore + lines
}

object Kept {
  private val Log = 5 // the numbers of RunEvent's fields
  private val Reports = 6

  def of(sequence: Long, linesBefore: Long, event: Array[Byte]): Kept = of(sequence, linesBefore, linesIn(event), event)

  /** Reads no more of the event than the RPC thread has time for. */
  def of(sequence: Long, linesBefore: Long, lines: Long, event: Array[Byte]): Kept = {
    val in = CodedInputStream.newInstance(event)
    var (kind, attempt, rank) = (0, 0, 0)
    var tag = in.readTag()
    while (tag != 0) {
      tag >>> 3 match {
        case 1 => attempt = in.readUInt32()
        case 2 => rank = in.readUInt32()
        case field => if (field > 3) kind = field; in.skipField(tag)
      }
      tag = in.readTag()
    }
    Kept(sequence, linesBefore, lines, kind, attempt, rank, event, sequence, 0)
  }

  def linesIn(event: Array[Byte]): Long = {
    val parsed = Schema.parse("RunEvent", event)
    if (parsed.has("log")) parsed.message("log").count("lines") + parsed.message("log").long("dropped") else 0L
  }

  /** In their order, without those whose reports another one holds too. */
  def latest(all: Seq[Kept]): Vector[Kept] = {
    val (reports, others) = all.partition(_.isReport)
    val standing = reports.groupBy(each => (each.attempt, each.rank)).values.flatMap { mine =>
      var through = -1L
      mine.sortBy(each => (each.first, -each.sequence, -each.event.length)).filter { each =>
        val isNew = each.sequence > through
        through = math.max(through, each.sequence)
        isNew
      }
    }
    (others.distinctBy(_.sequence) ++ standing).sortBy(_.sequence).toVector
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

  /** `kept` are all events from the cursor `from` on that there still are, in their order; `end` is the number that the next event gets. `lostFrom` tells
    * how many events from a cursor on are lost. */
  def of(from: Long, maxBytes: Long, kept: Iterator[Kept], end: Long, endLine: Option[Long])(lostFrom: Long => Long): Page = {
    val taken = upTo(maxBytes, kept)(_.event.length)
    val (next, nextLine) = taken.lastOption.fold((math.max(from, end), endLine))(newest => (newest.sequence + 1, Some(newest.nextLine)))
    Page(taken, lostFrom(from) - lostFrom(next), next, nextLine)
  }

  /** Index of the first event that is not before the cursor. */
  def indexOf(from: Long, events: IndexedSeq[Kept]): Int = indexOf(from, events.size)(events(_).sequence)

  def indexOf(from: Long, size: Int)(sequence: Int => Long): Int = {
    var (low, high) = (0, size)
    while (low < high) {
      val middle = (low + high) >>> 1
      if (sequence(middle) < from) low = middle + 1 else high = middle
    }
    low
  }
}

/** Events up to a number of bytes: reports, which take half of it at most and are thinned; lines, of which the oldest go; and others, for which lines
  * make room. */
final class KeptEvents(maxBytes: Long) {
  private val lines = mutable.ArrayDeque.empty[Kept]
  private val others = mutable.ArrayDeque.empty[Kept]
  private val curves = new Curves(maxBytes / 2)
  private var lineBytes = 0L
  private var otherBytes = 0L
  private var lost = 0L
  private var lostThrough = -1L

  def bytes: Long = lineBytes + otherBytes + curves.bytes
  def size: Int = lines.size + others.size + curves.size
  def isEmpty: Boolean = size == 0

  def add(kept: Kept): Unit = {
    if (kept.isReport) curves.add(kept)
    else if (kept.isLog) { lines.append(kept); lineBytes += kept.event.length }
    else { others.append(kept); otherBytes += kept.event.length }
    while (bytes > maxBytes && lines.size + others.size > 0) {
      val gone = if (lines.nonEmpty) dropLine() else dropOther()
      lost += 1
      lostThrough = math.max(lostThrough, gone.sequence)
    }
  }

  /** How many events from the cursor on are lost; for a cursor among them it is a bound. */
  def lostFrom(cursor: Long): Long = if (cursor == 0) lost else math.max(0L, math.min(lost, lostThrough + 1 - cursor))

  /** What holds now what these events held. */
  def standingFor(gone: Seq[Kept]): Seq[Kept] = {
    val here = others.iterator.map(_.sequence).toSet
    gone.flatMap(each => if (each.isReport) curves.standingFor(each) else Option.when(here(each.sequence))(each)).distinctBy(_.sequence)
  }

  def dropThrough(sequence: Long): Unit = {
    while (lines.headOption.exists(_.sequence <= sequence)) dropLine()
    while (others.headOption.exists(_.sequence <= sequence)) dropOther()
    curves.dropThrough(sequence)
  }

  private def dropLine(): Kept = { val gone = lines.removeHead(); lineBytes -= gone.event.length; gone }
  private def dropOther(): Kept = { val gone = others.removeHead(); otherBytes -= gone.event.length; gone }

  /** In their order. */
  def since(cursor: Long): Iterator[Kept] = {
    def from(events: IndexedSeq[Kept]): Iterator[Kept] = events.iterator.drop(Page.indexOf(cursor, events))
    val sources = Seq(from(lines), from(others), curves.since(cursor)).map(_.buffered)
    new Iterator[Kept] {
      override def hasNext: Boolean = sources.exists(_.hasNext)
      override def next(): Kept = sources.filter(_.hasNext).minBy(_.head.sequence).next()
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

  def standingFor(gone: Seq[Kept]): Seq[Kept] = kept.standingFor(gone)

  def add(event: Array[Byte], itsLines: Long): Kept = {
    val one = Kept.of(end, endLine, itsLines, event)
    end += 1
    endLine += itsLines
    kept.add(one)
    one
  }

  def page(from: Long, maxBytes: Long): Page = Page.of(from, maxBytes, kept.since(from), end, Some(endLine))(kept.lostFrom)
}
