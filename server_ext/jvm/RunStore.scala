// The memory of runs that outlives the server: Runs.scala gives each run a Journal, whose writer thread puts segments into the directory
// spark.sparkgap.runs.dir, and looks here for runs of earlier lives of the server. Only mkdirs, create, list, open and delete are asked of the
// filesystem, and no file is ever changed, so object stores serve as well as disks.
package org.apache.spark.sql.connect.sparkgap

import java.io.{DataInputStream, DataOutputStream, FileNotFoundException, IOException}
import java.nio.charset.StandardCharsets.UTF_8
import java.security.MessageDigest
import java.util.concurrent.ConcurrentHashMap
import java.util.zip.CRC32C

import scala.util.control.NonFatal

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FSDataOutputStream, FileStatus, FileSystem, Path}
import org.apache.hadoop.fs.permission.FsPermission
import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.internal.Logging

import Schema._

/** Files and folders: `DIR/USER/RUN/NUMBER`, and `DIR/servers/SERVER.MILLIS`, an empty file whose name says when that server was last alive. */
final class RunStore(directory: String, hadoop: Configuration, settings: Settings) extends Logging {
  /** This life of the server. */
  val server: String = f"${System.currentTimeMillis()}%d-${java.util.UUID.randomUUID().toString.take(8)}"

  lazy val root: Path = fs.makeQualified(new Path(directory))
  lazy val servers = new Path(root, "servers")
  private val summaries = new ConcurrentHashMap[Path, StoredRun]()

  // An instance of our own: the setting below must not reach Spark's. A segment has its own checksum.
  lazy val fs: FileSystem = {
    val own = FileSystem.newInstance(new Path(directory).toUri, hadoop)
    own.setWriteChecksum(false)
    own
  }

  val writer = new RunWriter(this, settings)
  private val sweeper = new RunSweeper(this, settings)

  def start(): Unit = { writer.start(); sweeper.start() }

  /** Waits some seconds for what is still to be written. */
  def stop(): Unit = { sweeper.stop(); writer.stop() }

  def sweepSoon(): Unit = sweeper.soon()

  // ---- Where things lie ----

  def folder(key: RunKey): Path = new Path(userFolder(key.user), RunStore.fileName(key.id))
  private def userFolder(user: String): Path = new Path(root, RunStore.fileName(user))
  private def segment(folder: Path, number: Int): Path = new Path(folder, f"$number%08d")

  // ---- Writing ----

  /** Intermediate folders that a filesystem makes by itself would be open to others. */
  def prepare(folder: Path): Unit = Seq(root, folder.getParent, folder).foreach { each =>
    if (!fs.mkdirs(each, RunStore.PrivateFolder)) throw new IOException(s"the folder $each could not be made")
  }

  def write(folder: Path, number: Int, content: DynamicMessage): Unit = {
    val file = segment(folder, number)
    val bytes = content.toByteArray
    val sum = new CRC32C
    sum.update(bytes)
    val out = new DataOutputStream(create(file))
    try {
      try {
        out.writeInt(RunStore.Magic)
        out.writeInt(bytes.length)
        out.writeInt(sum.getValue.toInt)
        out.write(bytes)
      } finally out.close()
    } catch { case NonFatal(failure) =>
      try fs.delete(file, false) catch { case NonFatal(_) => } // it is unreadable, and readers pass over it
      throw failure
    }
  }

  def remove(folder: Path, number: Int): Unit = fs.delete(segment(folder, number), false)

  def create(file: Path): FSDataOutputStream =
    fs.create(file, RunStore.PrivateFile, false, 1 << 16, fs.getDefaultReplication(file), fs.getDefaultBlockSize(file), null)

  def beat(): Unit = {
    val former = beats.filter(_._1 == server)
    prepare(servers)
    create(new Path(servers, s"$server.${System.currentTimeMillis()}")).close()
    former.foreach { case (_, _, file) => fs.delete(file, false) }
  }

  // ---- Reading ----

  /** A run that is not in memory.
    * @throws java.io.IOException the filesystem cannot tell */
  def find(key: RunKey): Option[StoredRun] = find(folder(key))

  /** For a new run under this id: what a dead server or a half-done removal left there, and nobody can read, goes. */
  def clear(key: RunKey): Unit = fs.delete(folder(key), true)

  def list(user: String): Seq[StoredRun] =
    statuses(userFolder(user)).filter(_.isDirectory).flatMap(each => find(each.getPath))

  private def find(folder: Path): Option[StoredRun] = Option(summaries.get(plain(folder))).filter(_ => present(folder)).orElse {
    val newest = numbers(folder).reverseIterator.flatMap(read(folder, _)).nextOption()
    newest.map { segment =>
      val complete = segment.bool("last")
      val run = new StoredRun(this, folder, if (complete) segment else lost(folder, segment))
      if (complete || segment.string("server") != server) summaries.put(plain(folder), run)
      run
    }
  }

  def forget(folder: Path): Unit = summaries.remove(plain(folder))

  private def present(folder: Path): Boolean = numbers(folder).nonEmpty
  /** Whatever filesystem and host the path names. */
  def plain(folder: Path): Path = new Path(folder.toUri.getPath)

  /** Numbers of the run's segments, none where the run is being removed. */
  def numbers(folder: Path): Seq[Int] = {
    val names = statuses(folder).map(_.getPath.getName)
    if (names.contains(RunStore.Removed)) Nil else names.filter(_.matches("[0-9]{8}")).map(_.toInt).sorted
  }

  /** None for one that is cut off or damaged, as the last one of a server that died while it wrote. */
  def read(folder: Path, number: Int): Option[DynamicMessage] = {
    val file = segment(folder, number)
    try {
      val size = fs.getFileStatus(file).getLen
      val in = new DataInputStream(fs.open(file))
      try {
        if (size < RunStore.HeaderBytes || in.readInt() != RunStore.Magic) return None
        val length = in.readInt()
        val expected = in.readInt()
        if (length < 0 || length > size - RunStore.HeaderBytes) return None
        val bytes = new Array[Byte](length)
        in.readFully(bytes)
        val sum = new CRC32C
        sum.update(bytes)
        Option.when(sum.getValue.toInt == expected)(Schema.parse("RunSegment", bytes))
      } finally in.close()
    } catch {
      case _: java.io.EOFException | _: FileNotFoundException => None
      case damaged: Refused => logWarning(s"$file: ${damaged.getMessage}"); None
    }
  }

  def eventsOf(segment: DynamicMessage): Seq[Kept] = {
    val events = segment.longs("sequences").lazyZip(segment.longs("lines_before")).lazyZip(segment.byteArrays("events")).map(Kept.of(_, _, _)).toSeq
    if (segment.count("merged") == 0) events
    else events.lazyZip(segment.longs("first_sequences")).lazyZip(segment.longs("merged")).map((each, first, merged) => each.copy(first = first, merged = merged))
  }

  private def lost(folder: Path, newest: DynamicMessage): DynamicMessage = {
    val status = newest.message("status")
    val mine = newest.string("server") == server
    val alive = (beats.collect { case (of, millis, _) if of == newest.string("server") => millis * 1000L } :+ newest.long("written_at")).max
    val when = java.time.Instant.ofEpochMilli(alive / 1000L).truncatedTo(java.time.temporal.ChronoUnit.SECONDS)
    val why = if (mine) "its end could not be written to spark.sparkgap.runs.dir" else s"the server ended while the run was alive; it was last alive at $when"
    newest.copy("status" -> status.copy("state" -> RunState.Lost, "reason" -> why, "ended_at" -> alive, "result_bytes" -> 0L,
      "queue_position" -> 0, "waiting_for" -> ""))
  }

  private def beats: Seq[(String, Long, Path)] = statuses(servers).flatMap { each =>
    each.getPath.getName.split('.') match {
      case Array(of, millis) => millis.toLongOption.map((of, _, each.getPath))
      case _ => None
    }
  }

  private def statuses(folder: Path): Seq[FileStatus] = try fs.listStatus(folder).toSeq catch { case _: FileNotFoundException => Nil }
}

object RunStore {
  val Magic = 0x53475231 // "SGR1"
  val HeaderBytes = 12
  val Removed = "removed"
  val PrivateFile = new FsPermission("600")
  val PrivateFolder = new FsPermission("700")

  /** A name that no user and no id can choose freely: readable as far as it goes, told apart by its digest. */
  def fileName(word: String): String = {
    val digest = MessageDigest.getInstance("SHA-256").digest(word.getBytes(UTF_8)).take(16).map(each => f"$each%02x").mkString
    word.take(40).map(each => if (each < 128 && each.isLetterOrDigit || each == '-') each else '_') + "-" + digest
  }
}
