// What the ranks of a run have said, each a serialized RunEvent, the newest of them up to a number of bytes; Run.scala holds one and its lock.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.mutable

/** Events of a run from a cursor on: the first has sequence number `first`. */
final case class Page(first: Long, events: Seq[Array[Byte]], dropped: Long)

object Page {
  /** The first ones, until they reach this size. */
  def upTo(bytes: Long, events: Iterator[Array[Byte]]): Seq[Array[Byte]] = {
    var left = bytes
    events.takeWhile { event => val fits = left > 0; left -= event.length; fits }.toSeq
  }
}

final class EventLog(maxBytes: Long) {
  private val events = mutable.ArrayDeque.empty[Array[Byte]]
  private var firstKept = 0L
  private var held = 0L

  def bytes: Long = held

  /** The sequence number that the next event gets. */
  def next: Long = firstKept + events.size

  def add(event: Array[Byte]): Unit = {
    events.append(event)
    held += event.length
    while (held > maxBytes) {
      held -= events.removeHead().length
      firstKept += 1
    }
  }

  def page(from: Long, maxBytes: Long): Page = {
    val first = math.max(from, firstKept)
    Page(first, Page.upTo(maxBytes, ((first - firstKept).toInt until events.size).iterator.map(events)), first - from)
  }
}
