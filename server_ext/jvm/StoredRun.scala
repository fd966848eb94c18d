// Runs.scala answers with these where RunStore.scala has found a run that is not in the driver's memory.
package org.apache.spark.sql.connect.sparkgap

import java.lang.ref.SoftReference

import org.apache.hadoop.fs.Path
import org.sparkproject.connect.protobuf.DynamicMessage

import Schema._

/** A run of an earlier life of the server, or one that the driver's memory has no room for. Its events and value are read when they are asked for, and
  * kept as long as the driver's heap has room. */
final class StoredRun(store: RunStore, folder: Path, newest: DynamicMessage) extends AnyRun {
  /** Events without a gap; `linesBefore` has one number more than there are events. */
  private final case class Block(first: Long, events: Seq[Array[Byte]], linesBefore: Seq[Long])
  private final case class Content(blocks: Seq[Block], result: Seq[Array[Byte]])

  private val last = newest.message("status")
  private var content = new SoftReference[Content](null)

  val id: String = last.string("run_id")
  override val planDigest: Seq[Byte] = newest.bytes("plan_digest").toSeq
  override def ended: Boolean = true
  override def cancel(why: String): Unit = ()
  override def place: Option[Place] = None
  override def await(cursor: Long, millis: Long): Unit = ()
  override def status(complete: Boolean): DynamicMessage = last.copy("complete" -> complete)

  /** Segments that could not be written, or be read, leave gaps. */
  override def page(from: Long, maxBytes: Long): Page = loaded.blocks.find(block => block.first + block.events.size > from) match {
    case Some(block) =>
      val first = math.max(from, block.first)
      val index = (first - block.first).toInt
      Page(first, Page.upTo(maxBytes, block.events.iterator.drop(index)), first - from, Some(block.linesBefore(index)))
    case None =>
      val next = math.max(from, last.long("next_sequence"))
      Page(next, Nil, next - from, firstLine = None)
  }

  override def resultChunks: Seq[Array[Byte]] = {
    val found = loaded.result.map(_.length.toLong).sum
    if (found != last.long("result_bytes")) throw Refused.resources(s"of the value of run $id, which has ${last.long("result_bytes")} bytes, $found can be " +
      s"read in $folder: files are missing or damaged there")
    loaded.result
  }

  private def block(segment: DynamicMessage): Block = {
    val events = segment.byteArrays("events")
    Block(segment.long("first_sequence"), events, events.map(EventLog.linesIn).scanLeft(segment.long("first_line"))(_ + _).toVector)
  }

  private def loaded: Content = synchronized {
    Option(content.get).getOrElse {
      val segments = store.numbers(folder).flatMap(store.read(folder, _))
      val all = Content(segments.map(block).filter(_.events.nonEmpty),
        if (newest.bool("last")) segments.flatMap(_.byteArrays("result")) else Nil)
      content = new SoftReference(all)
      all
    }
  }
}
