// Answers a ServerQuery, for `sparkgap doctor`: what Spark knows of the cluster, what the nurseries have said, and the settings that bear on either.
package org.apache.spark.sql.connect.sparkgap

import java.io.FileNotFoundException
import java.util.concurrent.{CompletableFuture, ExecutionException, TimeoutException, TimeUnit}

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.fs.{FileStatus, FileSystem, Path}
import org.apache.hadoop.fs.permission.FsAction

import org.apache.spark.{SPARK_VERSION, SparkContext}
import org.apache.spark.resource.ResourceProfile
import org.apache.spark.scheduler.TaskSchedulerImpl
import org.apache.spark.sql.connect.service.SessionHolder
import org.apache.spark.util.Utils

object Report {
  private val DirectorySeconds = 3L

  def of(session: SessionHolder): DynamicMessage = {
    val sc = session.session.sparkContext
    val running = runningTasks(sc)
    val slots = sc.maxNumConcurrentTasks(ResourceProfile.getOrCreateDefaultProfile(sc.conf))
    val (active, queued) = Runs.counts
    Schema.build("ServerReport")("protocol" -> Schema.Protocol, "spark" -> SPARK_VERSION, "java" -> System.getProperty("java.version"), "master" -> sc.master,
      "slots" -> slots, "busy_slots" -> math.min(slots, running.values.sum), "active_runs" -> active, "queued_runs" -> queued,
      "executors" -> executors(sc, running), "settings" -> settings(sc), "runs_dir_problem" -> directoryProblem(sc).getOrElse(""),
      "session_files" -> Predict.hasFiles(session))
  }

  private def runningTasks(sc: SparkContext): Map[String, Int] = sc.taskScheduler match {
    case scheduler: TaskSchedulerImpl => scheduler.runningTasksByExecutors
    case _ => Map.empty
  }

  /** On a local master the driver is the only executor; elsewhere Spark lists it without cores. */
  private def executors(sc: SparkContext, running: Map[String, Int]): Seq[DynamicMessage] =
    sc.statusStore.executorList(true).filter(_.totalCores > 0).map(each => (Utils.parseHostPort(each.hostPort)._1, each))
      .sortBy { case (host, each) => (host, each.id.length, each.id) }.map { case (host, each) =>
        val node = Nodes.of(each.id)
        Schema.build("ExecutorReport")("id" -> each.id, "host" -> host, "cores" -> each.totalCores, "running_tasks" -> running.getOrElse(each.id, 0),
          "gpus" -> each.resources.get("gpu").map(_.addresses.toSeq).getOrElse(Nil), "python" -> node.python, "sparkgap" -> node.sparkgap,
          "torch" -> node.torch, "failure" -> node.failure)
      }

  // ---- Settings ----

  private val Told = Set("spark.master", "spark.task.cpus", "spark.executor.cores", "spark.executor.instances", "spark.cores.max", "spark.executor.memory",
    "spark.executor.memoryOverhead", "spark.dynamicAllocation.enabled", "spark.ssl.enabled", "spark.scheduler.mode", "spark.sql.extensions", "spark.plugins",
    "spark.io.encryption.enabled")
  private val ToldBegins = Seq("spark.task.resource.gpu.", "spark.executor.resource.gpu.", "spark.connect.extensions.", "spark.sparkgap.")

  /** The launcher's own, which say nothing to a client. */
  private val Untold = Set("spark.sparkgap.readyFile", "spark.sparkgap.launcherFolder")
  private val Credentials = "://[^/@]*@".r

  private def settings(sc: SparkContext): Seq[DynamicMessage] = {
    val told = sc.conf.getAll.toSeq.filter { case (key, _) => !Untold(key) && (Told(key) || ToldBegins.exists(key.startsWith)) }
    Utils.redact(sc.conf, told).sorted.map { case (key, value) =>
      Schema.build("Setting")("key" -> key, "value" -> Credentials.replaceAllIn(value, "://…@"))
    }.toSeq
  }

  // ---- The directory of runs ----

  /** Asked on a thread of its own: a filesystem that does not answer must not hold the question up for long. */
  private def directoryProblem(sc: SparkContext): Option[String] = new Settings(sc.conf).runsDirectory.flatMap { directory =>
    val found = CompletableFuture.supplyAsync[Option[String]](() => unusable(new Path(directory), sc.hadoopConfiguration))
    try found.get(DirectorySeconds, TimeUnit.SECONDS)
    catch {
      case failure: ExecutionException => Some(Credentials.replaceAllIn(failure.getCause.toString, "://…@"))
      case _: TimeoutException => Some(s"its filesystem has not answered within $DirectorySeconds s")
    }
  }

  /** The server makes the directory for its first run; until then the folder above counts. */
  private def unusable(directory: Path, hadoop: Configuration): Option[String] = {
    val fs = directory.getFileSystem(hadoop)
    val existing = Iterator.iterate(fs.makeQualified(directory))(_.getParent).takeWhile(_ != null).flatMap(status(fs, _)).nextOption()
    existing.flatMap { folder =>
      if (!folder.isDirectory) Some(s"${folder.getPath.toUri.getPath} is no folder")
      else { fs.access(folder.getPath, FsAction.ALL); None }
    }
  }

  private def status(fs: FileSystem, path: Path): Option[FileStatus] =
    try Some(fs.getFileStatus(path)) catch { case _: FileNotFoundException => None }
}
