// Pickles that are too large for a plan. A client uploads one as a cached artifact of its session; the driver takes it from there once for each content and
// hands it to executors as a broadcast file, which both ways of a prediction pass on to the model host by its path. Nothing is unpickled here.
package org.apache.spark.sql.connect.sparkgap

import java.lang.ref.Cleaner
import java.nio.file.{Files, Path}
import java.nio.file.attribute.PosixFilePermissions
import java.util.concurrent.ConcurrentHashMap

import scala.jdk.CollectionConverters._

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.SparkEnv
import org.apache.spark.api.python.PythonBroadcast
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.internal.Logging
import org.apache.spark.sql.connect.service.SessionHolder
import org.apache.spark.storage.{BlockData, CacheId}

import Schema._

object Payloads extends Logging {
  private final class Kept(val broadcast: Broadcast[PythonBroadcast], file: Path, val bytes: Long) {
    @volatile var lastUsed: Long = System.nanoTime()
    def sound: Boolean = Files.exists(file) // or somebody has tidied up under Spark's folders
  }

  /** By model key, so by user. */
  private val kept = new ConcurrentHashMap[String, Kept]()
  private val cleaner = Cleaner.create()

  /** The way that this payload has to go: a value of PayloadAnswer.Way. */
  def way(query: DynamicMessage, session: SessionHolder): String = {
    val digest = query.string("digest")
    if (SparkEnv.get.conf.getBoolean("spark.io.encryption.enabled", defaultValue = false)) "INLINE" // our file would lie unencrypted on disks
    else {
      unlessTooLarge(query.string("name"), query.long("bytes"))
      val found = Option(kept.get(Predict.modelKey(digest, session))).filter(_.sound)
      found.foreach(_.lastUsed = System.nanoTime()) // the plan is on its way
      if (found.nonEmpty || artifact(digest, session).nonEmpty) "HELD" else "UPLOAD"
    }
  }

  /** The broadcast of a plan's payload, or None for one that stands in the plan. The first call for a content copies it, 1 s for 100 MB. */
  def of(plan: DynamicMessage, key: String, session: SessionHolder): Option[Broadcast[PythonBroadcast]] = {
    Option.when(plan.message("make_predict_fn").long("uploaded_bytes") > 0) {
      val found = kept.compute(key, (_, known) => if (known != null && known.sound) known else take(plan, session))
      found.lastUsed = System.nanoTime()
      forgetOldest(key)
      found.broadcast
    }
  }

  /** What is forgotten stays as long as a plan holds it, a view's for example; then Spark removes the blocks, and the cleaner the file. */
  private def forgetOldest(besides: String): Unit = {
    val limit = settings.keptModelBytes
    val newestFirst = kept.asScala.toSeq.sortBy(-_._2.lastUsed)
    newestFirst.zip(newestFirst.scanLeft(0L)(_ + _._2.bytes).tail).foreach { case ((key, _), withNewer) =>
      if (withNewer > limit && key != besides) kept.remove(key)
    }
  }

  /** Connect has checked the artifact's length and checksums as it arrived. */
  private def take(plan: DynamicMessage, session: SessionHolder): Kept = {
    val manager = SparkEnv.get.blockManager
    val file = Files.createTempFile(folder, "payload-", "") // 0600
    try {
      val block = artifact(plan.string("digest"), session).getOrElse(throw lost(plan))
      val data = manager.getLocalBytes(block).getOrElse(throw lost(plan))
      try copy(data, plan.string("name"), file) finally manager.releaseLockAndDispose(block, data)
      val bytes = Files.size(file)
      val broadcast = session.session.sparkContext.broadcast(new PythonBroadcast(file.toString))
      cleaner.register(broadcast, () => Files.deleteIfExists(file))
      logInfo(s"the model ${plan.string("name")} of ${session.userId}, $bytes bytes, is broadcast ${broadcast.id}")
      new Kept(broadcast, file, bytes)
    } catch { case failure: Throwable => Files.deleteIfExists(file); throw failure }
  }

  private def copy(data: BlockData, name: String, file: Path): Unit = {
    unlessTooLarge(name, data.size)
    val (in, out) = (data.toInputStream(), Files.newOutputStream(file))
    try in.transferTo(out) finally { in.close(); out.close() }
  }

  private def artifact(digest: String, session: SessionHolder): Option[CacheId] =
    session.session.artifactManager.getCachedBlockId(digest).filter(SparkEnv.get.blockManager.getStatus(_).nonEmpty)

  /** Inside Spark's own, which goes with the server; private for itself, as an operator may have opened the one above. */
  private lazy val folder: Path = Files.createTempDirectory(SparkEnv.get.blockManager.diskBlockManager.localDirs.head.toPath, "sparkgap-payloads-",
    PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")))

  private def settings: Settings = new Settings(SparkEnv.get.conf)

  private def unlessTooLarge(name: String, bytes: Long): Unit = if (bytes > settings.maxModelBytes) throw Refused.plan(
    s"make_predict_fn ($name) carries $bytes bytes, this server takes ${settings.maxModelBytes} (spark.sparkgap.model.maxBytes): " +
      "write large values to storage and carry their path, or raise the setting")

  private def lost(plan: DynamicMessage): Refused = Refused.plan(
    s"what make_predict_fn (${plan.string("name")}) carries is not on the server (any more): run the query again from the client, which sends it again")
}
