// `spark.plugins`: Spark creates one SparkgapPlugin in the driver and in each executor. The driver's half collects what the executors report, the
// executors' half keeps a nursery.
package org.apache.spark.sql.connect.sparkgap

import java.io.File
import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.{Files, Path, StandardCopyOption}
import java.util
import java.util.Collections

import org.apache.spark.SparkContext
import org.apache.spark.api.plugin.{DriverPlugin, ExecutorPlugin, PluginContext, SparkPlugin}
import org.apache.spark.internal.Logging
import org.apache.spark.sql.connect.service.SparkConnectService
import org.apache.spark.util.ShutdownHookManager

class SparkgapPlugin extends SparkPlugin {
  override def driverPlugin(): DriverPlugin = new SparkgapDriver
  override def executorPlugin(): ExecutorPlugin = new SparkgapExecutor
}

class SparkgapDriver extends DriverPlugin with Logging {
  override def init(sc: SparkContext, context: PluginContext): util.Map[String, String] = {
    val settings = new Settings(sc.conf)
    Runs.start(sc, settings)
    settings.readyFile.foreach(file => background("sparkgap-ready")(announce(Path.of(file))))
    settings.launcherFolder.foreach(folder => background("sparkgap-standard-input") {
      while (System.in.read() >= 0) {}
      logInfo("standard input has ended: stopping the server")
      ShutdownHookManager.registerShutdownDeleteDir(new File(folder))
      System.exit(0)
    })
    Collections.emptyMap()
  }

  /** Runs on one thread for the whole cluster: nothing here may wait or do I/O. */
  override def receive(message: Object): Object = message match {
    case Placed(key, attempt) => Runs.find(key).foreach(_.placed(attempt)); null
    case RankEvent(key, attempt, event, lines) => Runs.find(key).foreach(_.append(attempt, event, lines)); null
    case RankNoticed(key, attempt, notice) => Runs.find(key).foreach(_.noticed(attempt, notice)); null
    case RankFailed(key, attempt, failure) => Runs.find(key).foreach(_.failed(attempt, failure)); Flush.toString
    case CauseKnown(key, attempt) => Boolean.box(Runs.find(key).forall(_.causeKnown(attempt)))
    case MeetHere(key, attempt, point) => Runs.find(key).foreach(_.meetAt(attempt, point)); null
    case WhereToMeet(key, attempt) => Runs.find(key).flatMap(_.meetingPoint(attempt)).getOrElse(Array.emptyByteArray)
    case NodeUp(executor, report) => Nodes.up(executor, report); null
    case NodeDown(executor, reason) => Nodes.down(executor, reason); null
    case Flush => Flush.toString
    case other => throw new IllegalArgumentException(s"unknown message ${other.getClass.getName}")
  }

  override def shutdown(): Unit = Runs.stop()

  private def announce(file: Path): Unit = {
    while (!SparkConnectService.started) Thread.sleep(20) // Spark has no hook for this
    val unfinished = file.resolveSibling(s"${file.getFileName}.unfinished")
    Files.write(unfinished, s"${SparkConnectService.localPort}\n".getBytes(UTF_8))
    Files.move(unfinished, file, StandardCopyOption.ATOMIC_MOVE)
  }

  private def background(name: String)(body: => Unit): Unit = {
    val thread = new Thread(() => body, name)
    thread.setDaemon(true)
    thread.start()
  }
}

class SparkgapExecutor extends ExecutorPlugin {
  override def init(context: PluginContext, extra: util.Map[String, String]): Unit = Nursery.start(context)
  override def shutdown(): Unit = Nursery.stop()
}
