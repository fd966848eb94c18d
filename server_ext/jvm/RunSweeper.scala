// Retention in the directory of runs: on a thread of its own, after the start, after the end of a run, and now and then.
package org.apache.spark.sql.connect.sparkgap

import java.io.FileNotFoundException
import java.util.concurrent.{LinkedBlockingQueue, TimeUnit}

import scala.collection.mutable
import scala.util.control.NonFatal

import org.apache.hadoop.fs.Path

import org.apache.spark.internal.Logging

final class RunSweeper(store: RunStore, settings: Settings) extends Logging {
  private val PauseSeconds = 600L
  private val wishes = new LinkedBlockingQueue[Unit]()
  private val thread = new Thread(null, () => work(), "sparkgap-run-sweeper", 0, false)

  def start(): Unit = { thread.setDaemon(true); thread.start() }
  def stop(): Unit = thread.interrupt()
  def soon(): Unit = wishes.put(())

  private def work(): Unit = try while (true) {
    try sweep() catch {
      case interrupted: InterruptedException => throw interrupted
      case NonFatal(failure) => logWarning("runs in spark.sparkgap.runs.dir could not be looked through for old ones; the next time is in ten minutes", failure)
    }
    wishes.poll(PauseSeconds, TimeUnit.SECONDS)
    wishes.clear()
  } catch { case _: InterruptedException => }

  /** Removes runs beyond the age and, the oldest first, beyond the bytes that all may have together; the newest stays whatever its size. */
  private def sweep(): Unit = {
    val oldest = System.currentTimeMillis() - settings.maxRunAgeMillis
    val folders = mutable.Map.empty[Path, (Long, Long)].withDefaultValue((0L, 0L))
    val files = try store.fs.listFiles(store.root, true) catch { case _: FileNotFoundException => return }
    while (files.hasNext) {
      val file = files.next()
      val parent = file.getPath.getParent
      if (parent.getName == store.servers.getName) { if (file.getModificationTime < oldest) store.fs.delete(file.getPath, false) }
      else {
        val (bytes, newest) = folders(parent)
        folders(parent) = (bytes + file.getLen, math.max(newest, file.getModificationTime))
      }
    }
    val newestFirst = folders.toSeq.sortBy { case (_, (_, modified)) => -modified }
    val bytesWithNewer = newestFirst.scanLeft(0L) { case (sum, (_, (bytes, _))) => sum + bytes }.tail
    newestFirst.zip(bytesWithNewer).zipWithIndex.foreach { case (((folder, (_, modified)), bytes), newer) =>
      val over = modified < oldest || newer > 0 && bytes > settings.maxStoredBytes
      if (over && !store.writer.busy.contains(store.plain(folder))) remove(folder)
    }
  }

  /** Readers take the run for gone as soon as the mark is there, so none sees half of it. */
  private def remove(folder: Path): Unit = {
    val mark = new Path(folder, RunStore.Removed)
    if (!store.fs.exists(mark)) store.create(mark).close()
    store.fs.delete(folder, true)
    store.forget(folder)
  }
}
