// What the ranks of a run have said, each a serialized RunEvent, the newest of them up to a number of bytes; Run.scala holds one and its lock.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.mutable

import Schema._

/** Events of a run from a cursor on: the first has sequence number `first`, and `firstLine` lines were printed before it. */
final case class Page(first: Long, events: Seq[Array[Byte]], dropped: Long, firstLine: Option[Long])

object Page {
  /** The first ones, until they reach this size. */
  def upTo(bytes: Long, events: Iterator[Array[Byte]]): Seq[Array[Byte]] = {
    var left = bytes
    events.takeWhile { event => val fits = left > 0; left -= event.length; fits }.toSeq
  }
}

object EventLog {
  /** Lines that an event tells of, those that the rank could not pass on counted. */
  def linesIn(event: Array[Byte]): Long = {
    val parsed = Schema.parse("RunEvent", event)
    if (parsed.has("log")) parsed.message("log").count("lines") + parsed.message("log").long("dropped") else 0L
  }
}

final class EventLog(maxBytes: Long) {
  private final case class Kept(event: Array[Byte], linesBefore: Long)

  private val events = mutable.ArrayDeque.empty[Kept]
  private var firstKept = 0L
  private var held = 0L
  private var lines = 0L

  def bytes: Long = held

  /** The sequence number that the next event gets. */
  def next: Long = firstKept + events.size

  def add(event: Array[Byte], itsLines: Long): Unit = {
    events.append(Kept(event, lines))
    lines += itsLines
    held += event.length
    while (held > maxBytes) {
      held -= events.removeHead().event.length
      firstKept += 1
    }
  }

  def page(from: Long, maxBytes: Long): Page = {
    val first = math.max(from, firstKept)
    val index = (first - firstKept).toInt
    val linesBefore = if (index < events.size) events(index).linesBefore else lines
    Page(first, Page.upTo(maxBytes, (index until events.size).iterator.map(events(_).event)), first - from, Some(linesBefore))
  }
}
