// The executor's half of the nursery: starts the Python process beside the executor, starts it again if it has died, and opens connections to it.
package org.apache.spark.sql.connect.sparkgap

import java.io.{BufferedReader, EOFException, InputStreamReader, IOException}
import java.net.{SocketException, StandardProtocolFamily, UnixDomainSocketAddress}
import java.nio.{ByteBuffer, ByteOrder}
import java.nio.channels.{ClosedChannelException, SocketChannel}
import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.{Files, Path}
import java.nio.file.attribute.PosixFilePermissions
import java.util.concurrent.TimeUnit

import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.SparkEnv
import org.apache.spark.api.plugin.PluginContext
import org.apache.spark.internal.Logging
import org.apache.spark.util.{ThreadUtils, Utils}

import Schema._

object Nursery extends Logging {
  /** File in the executor's first local directory that tells Spark's Python workers where the nursery listens. */
  private val PointerName = "sparkgap-nursery"
  private var context: PluginContext = _
  private var process: Process = _
  private var socket: Path = _
  private var stopped = false
  private var lastEnd: Option[String] = None
  private val AnswerSeconds = 5L
  private lazy val deadlines = ThreadUtils.newDaemonSingleThreadScheduledExecutor("sparkgap-deadlines")

  def rpc: PluginContext = context

  /** Never throws and never waits: an exception here would end the executor. */
  def start(plugin: PluginContext): Unit = synchronized {
    context = plugin
    stopped = false
    try launch()
    catch { case NonFatal(failure) => report(NodeDown(plugin.executorID(), failure.toString)) }
  }

  def stop(): Unit = synchronized {
    stopped = true
    if (process != null) {
      process.getOutputStream.close() // its standard input: the nursery ends everything and itself
      if (!process.waitFor(5, TimeUnit.SECONDS)) process.destroyForcibly()
      process = null
    }
  }

  /** A connection whose first frame has been sent. A nursery that has died is started again. */
  def open(request: DynamicMessage): NurseryConnection = {
    val path = synchronized {
      if (stopped || context == null) throw new IOException("this executor is shutting down")
      if (process == null || !process.isAlive) {
        logWarning("the nursery is not running: starting it again")
        if (process != null) noteEnd(process.exitValue())
        launch()
      }
      socket
    }
    val channel = SocketChannel.open(StandardProtocolFamily.UNIX)
    try {
      connect(channel, path)
      val connection = new NurseryConnection(channel)
      connection.send(FrameKind.Open, Schema.build("Open")(request.getDescriptorForType.getName match {
        case "OpenRank" => "rank" -> request
        case "OpenModel" => "model" -> request
        case "OpenKeeper" => "keeper" -> request
      }).toByteArray)
      connection
    } catch { case failure: Throwable => channel.close(); throw failure } // an interrupt, too
  }

  /** Has the keeper of a gang killed, whatever state it is in, with its ranks and all their descendants; returns at once. */
  def endKeeper(gang: String): Unit = {
    val thread = new Thread(() => try askAboutKeeper(gang, end = true) catch { case NonFatal(failure) => logWarning(s"cannot end gang $gang", failure) },
      "sparkgap-end-keeper")
    thread.setDaemon(true)
    thread.start()
  }

  /** Why the connections of a gang have ended without the end of a rank, for the run's error. */
  def endOfKeeper(gang: String): String = {
    val end = try askAboutKeeper(gang, end = false) catch { case NonFatal(failure) =>
      logWarning(s"the nursery cannot be asked about gang $gang", failure)
      None
    }
    end.filterNot(_.bool("unknown")) match {
      case Some(known) => known.string("words") match {
        case "" => s"the process that watched over it died: its keeper ${howEnded(known.int("status"))}"
        case words => s"the process that watched over it, its keeper, has failed. This is a fault of sparkgap:\n$words"
      }
      case None => s"the process that watched over it died: the nursery of its executor ${synchronized(lastEnd).getOrElse("does not answer")}"
    }
  }

  private def askAboutKeeper(gang: String, end: Boolean): Option[DynamicMessage] = {
    val connection = open(Schema.build("OpenKeeper")("gang" -> gang, "end" -> end))
    val deadline = deadlines.schedule((() => connection.close()): Runnable, AnswerSeconds, TimeUnit.SECONDS)
    try connection.receive().collect { case Frame(FrameKind.KeeperEnd, body) => Schema.parse("KeeperEnd", body) } finally {
      deadline.cancel(false)
      connection.close()
    }
  }

  private def noteEnd(status: Int): Unit = lastEnd = Some(howEnded(if (status > 128) 128 - status else status)) // Java's number of a signal

  /** By an exit status, or the negative number of a signal. */
  private def howEnded(status: Int): String =
    if (status < 0) s"was killed by signal ${-status} from outside, as the kernel does when memory runs out"
    else s"ended with status $status; its errors are in the executor's stderr"

  /** The socket appears some milliseconds after the process; connecting before that fails at once. */
  private def connect(channel: SocketChannel, path: Path): Unit = {
    val deadline = System.nanoTime() + 10000000000L
    while (!Files.exists(path) && System.nanoTime() < deadline && process.isAlive) Thread.sleep(5)
    if (!Files.exists(path)) throw new IOException(s"the nursery did not open its socket $path within 10 s; its errors are in this executor's stderr")
    channel.connect(UnixDomainSocketAddress.of(path))
  }

  private def launch(): Unit = {
    val settings = new Settings(SparkEnv.get.conf)
    Option(socket).foreach(old => Utils.deleteRecursively(old.getParent.toFile)) // of a nursery that was killed
    val folder = Files.createTempDirectory(temporary, "sparkgap-", PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")))
    socket = folder.resolve("nursery")
    val builder = new ProcessBuilder(settings.python, "-m", "sparkgap_server.nursery", "--folder", folder.toString,
      "--cores", settings.executorCores.toString, "--host-idle-seconds", settings.hostIdleSeconds.toString)
    builder.environment().remove("SPARK_CONNECT_AUTHENTICATE_TOKEN")
    builder.redirectError(ProcessBuilder.Redirect.INHERIT)
    process = builder.start()
    listen(process)
    writePointer()
  }

  /** Unix socket paths end at 107 bytes, so a long java.io.tmpdir is no place for one. */
  private def temporary: Path = {
    val configured = Path.of(System.getProperty("java.io.tmpdir"))
    if (configured.toString.length <= 70) configured else Path.of("/tmp")
  }

  private def writePointer(): Unit = {
    val file = SparkEnv.get.blockManager.diskBlockManager.localDirs.head.toPath.resolve(PointerName)
    Files.deleteIfExists(file)
    Files.createFile(file, PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")))
    Files.write(file, socket.toString.getBytes(UTF_8))
  }

  private def listen(started: Process): Unit = {
    val thread = new Thread(() => {
      val lines = new BufferedReader(new InputStreamReader(started.getInputStream, UTF_8))
      var spoke = false
      Iterator.continually(lines.readLine()).takeWhile(_ != null).foreach { line => spoke = true; report(NodeUp(context.executorID(), line)) }
      ended(started, spoke, started.waitFor())
    }, "sparkgap-nursery")
    thread.setDaemon(true)
    thread.start()
  }

  /** One that has spoken was killed from outside and is started again at once; one that never spoke cannot work here, so the driver has to know. */
  private def ended(dead: Process, spoke: Boolean, status: Int): Unit = synchronized {
    noteEnd(status)
    if (!stopped && (process eq dead)) {
      val what = s"the nursery process (${new Settings(SparkEnv.get.conf).python} -m sparkgap_server.nursery) ended with status $status"
      if (!spoke) report(NodeDown(context.executorID(), s"$what; its errors are in this executor's stderr"))
      else {
        logWarning(s"$what: starting it again")
        try launch()
        catch { case NonFatal(failure) => report(NodeDown(context.executorID(), failure.toString)) }
      }
    }
  }

  private def report(message: Rpc): Unit =
    try context.send(message)
    catch { case NonFatal(failure) => logWarning(s"cannot tell the driver $message", failure) }
}

/** Numbers of the enum FrameKind in node.proto. */
object FrameKind {
  val Open = 1
  val Placement = 2
  val TrainPlan = 3
  val MeetingPoint = 4
  val Address = 5
  val Event = 6
  val Result = 7
  val Failure = 8
  val Exit = 9
  val PredictPlan = 10
  val PlanWanted = 13
  val ModelReady = 14
  val ModelFailure = 16
  val Schema = 17
  val ColumnBatch = 18
  val PredictedColumn = 19
  val Refused = 20
  val TaskContext = 21
  val KeeperEnd = 22
  val Notice = 23
}

final case class Frame(kind: Int, body: Array[Byte])

/** Frames over one Unix socket: a byte of kind, four bytes of little-endian length, the body. Closing or finishing it ends the process at the other end. */
final class NurseryConnection(channel: SocketChannel) extends AutoCloseable {
  private val header = ByteBuffer.allocate(5).order(ByteOrder.LITTLE_ENDIAN)

  def send(kind: Int, body: Array[Byte]): Unit = {
    val frame = ByteBuffer.allocate(5 + body.length).order(ByteOrder.LITTLE_ENDIAN).put(kind.toByte).putInt(body.length).put(body).flip()
    while (frame.hasRemaining) channel.write(frame)
  }

  /** To whom may have gone already: what he has said before, that he refuses for example, or his end is received next, and tells more than this failure. */
  def tell(kind: Int, body: Array[Byte]): Unit = try send(kind, body) catch { case _: IOException => }

  /** The next frame, or None at the end of the stream. */
  def receive(): Option[Frame] =
    try {
      fill(header.clear())
      val (kind, length) = (header.get(0).toInt, header.getInt(1))
      if (length < 0 || length > NurseryConnection.MaxFrameBytes) throw new IOException(s"a frame of $length bytes on the nursery's socket")
      val body = ByteBuffer.allocate(length)
      fill(body)
      Some(Frame(kind, body.array()))
    } catch { case _: EOFException | _: ClosedChannelException | _: SocketException => None } // reset: it died with something unread

  private def fill(buffer: ByteBuffer): Unit = while (buffer.hasRemaining) if (channel.read(buffer) < 0) throw new EOFException

  /** The other end reads the end of the stream, which ends it; what it still has to say can be received. */
  def finish(): Unit = try channel.shutdownOutput() catch { case _: IOException => } // it has ended already

  override def close(): Unit = channel.close()
}

object NurseryConnection { val MaxFrameBytes: Int = 64 << 20 }
