// Runs.scala answers with these where RunStore.scala has found a run that is not in the driver's memory.
package org.apache.spark.sql.connect.sparkgap

import java.lang.ref.SoftReference

import org.apache.hadoop.fs.Path
import org.sparkproject.connect.protobuf.DynamicMessage

import Schema._

/** A run of an earlier life of the server, or one that the driver's memory has no room for. Its events and value are read when they are asked for, and
  * kept as long as the driver's heap has room. */
final class StoredRun(store: RunStore, folder: Path, newest: DynamicMessage) extends AnyRun {
  private final case class Content(events: Vector[Kept], result: Seq[Array[Byte]])

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
  override def page(from: Long, maxBytes: Long): Page = {
    val events = loaded.events
    val end = last.long("next_sequence")
    val endLine = events.lastOption.filter(_.sequence == end - 1).map(_.nextLine)
    def lost: Long = math.max(0L, end - events.map(_.merged + 1).sum)
    Page.of(from, maxBytes, events.iterator.drop(Page.indexOf(from, events)), end, endLine)(cursor => if (cursor == 0) lost else 0L)
  }

  override def resultChunks: Seq[Array[Byte]] = {
    val found = loaded.result.map(_.length.toLong).sum
    if (found != last.long("result_bytes")) throw Refused.resources(s"of the value of run $id, which has ${last.long("result_bytes")} bytes, $found can be " +
      s"read in $folder: files are missing or damaged there")
    loaded.result
  }

  private def loaded: Content = synchronized {
    Option(content.get).getOrElse {
      val segments = store.numbers(folder).flatMap(store.read(folder, _))
      val all = Content(Kept.latest(segments.flatMap(store.eventsOf)),
        if (newest.bool("last")) segments.flatMap(_.byteArrays("result")) else Nil)
      content = new SoftReference(all)
      all
    }
  }
}
