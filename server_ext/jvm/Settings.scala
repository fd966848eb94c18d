// Every `spark.sparkgap.*` setting, with its default. deploy/spark-defaults.conf documents them for the operator.
package org.apache.spark.sql.connect.sparkgap

import org.apache.spark.{SparkConf, SparkContext}
import org.apache.spark.util.Utils

final class Settings(conf: SparkConf) {
  /** The Python of ranks, model hosts and prediction workers; on each node the same path. */
  def python: String = conf.getOption("spark.sparkgap.python").orElse(conf.getOption("spark.pyspark.python"))
    .orElse(sys.env.get("PYSPARK_PYTHON")).getOrElse("python3")

  /** Written with the port once the Connect server accepts connections; for launchers that asked for port 0. */
  def readyFile: Option[String] = conf.getOption("spark.sparkgap.readyFile")

  /** A launcher's folder. The launcher holds the other end of standard input; when that ends, so does the server, and removes the folder in its stead. */
  def launcherFolder: Option[String] = conf.getOption("spark.sparkgap.launcherFolder")

  /** How long a submit waits for executors that are still registering. */
  def slotsTimeoutMillis: Long = conf.getTimeAsMs("spark.sparkgap.slots.timeout", "5s")

  /** How long a task waits for its ranks to start and meet; covers a nursery that is still importing torch. */
  def startTimeoutMillis: Long = conf.getTimeAsMs("spark.sparkgap.start.timeout", "120s")

  /** How long a training function's threads are awaited once it has returned. */
  def threadSeconds: Int = math.min(conf.getTimeAsSeconds("spark.sparkgap.threads.timeout", "10min"), Int.MaxValue).toInt

  /** How long one operation follows a run; its client then goes on with another one. */
  def followMillis: Long = conf.getTimeAsMs("spark.sparkgap.follow.maxDuration", "60s")

  /** How long a run that waits for its slots lets smaller ones pass it. */
  def queuePatienceMillis: Long = conf.getTimeAsMs("spark.sparkgap.queue.patience", "60s")

  /** How many runs may wait for their slots; one more is refused. */
  def maxQueued: Int = conf.getInt("spark.sparkgap.queue.max", 1000)

  def maxResultBytes: Long = conf.getSizeAsBytes("spark.sparkgap.result.maxBytes", "256m")
  def maxEventBytes: Long = conf.getSizeAsBytes("spark.sparkgap.events.maxBytes", "16m")
  def maxPlanBytes: Long = conf.getSizeAsBytes("spark.sparkgap.plan.maxBytes", "120m")

  /** What make_predict_fn may carry; while it is handed on, it lies in the driver's heap twice. */
  def maxModelBytes: Long = conf.getSizeAsBytes("spark.sparkgap.model.maxBytes", s"${Runtime.getRuntime.maxMemory() / 4}b")

  /** What the driver keeps of it for later queries, on disk and in Spark's storage memory. */
  def keptModelBytes: Long = conf.getSizeAsBytes("spark.sparkgap.model.keptBytes", "4g")

  /** Ended runs are forgotten, the oldest first, beyond this number or this many bytes of events and values together. */
  def keptRuns: Int = conf.getInt("spark.sparkgap.runs.kept", 1000)
  def keptBytes: Long = conf.getSizeAsBytes("spark.sparkgap.runs.keptBytes", "512m")

  /** Where runs are kept beyond the life of the server, on any filesystem that Hadoop knows; in memory only if unset. */
  def runsDirectory: Option[String] = conf.getOption("spark.sparkgap.runs.dir").filter(_.nonEmpty)

  /** Ended runs are forgotten after this time, in memory and in the directory. */
  def maxRunAgeMillis: Long = conf.getTimeAsMs("spark.sparkgap.runs.maxAge", "30d")

  /** Ended runs are removed from the directory, the oldest first, beyond this many bytes together. */
  def maxStoredBytes: Long = conf.getSizeAsBytes("spark.sparkgap.runs.maxBytes", "10g")

  /** A batch with its predictions in shared memory may have this many bytes; a task has two. A mapping of the JVM ends at 2 GiB. */
  def maxBatchBytes: Long = math.min(conf.getSizeAsBytes("spark.sparkgap.batch.maxBytes", "2g"), Int.MaxValue)

  /** An idle model host ends after this time. */
  def hostIdleSeconds: Long = conf.getTimeAsSeconds("spark.sparkgap.host.idleTimeout", "30min")

  /** Train where spark.ssl.enabled promises encryption, although the ranks talk in the clear. pyspark's name for it cannot be set on a server, because
   *  spark-submit drops settings that do not begin with "spark.". */
  def ignoreSsl: Boolean = conf.getBoolean("spark.sparkgap.ignoreSsl", defaultValue = false)

  /** Executors can be cut into tasks of other sizes than spark.task.* says: everywhere but where tasks run in the driver. */
  def hasTaskProfiles: Boolean = !Utils.isLocalMaster(conf)

  /** GPUs of an executor, or None where none are configured. */
  def executorGpus: Option[Int] = conf.getOption("spark.executor.resource.gpu.amount").map(_.toInt)

  def taskCpus: Int = conf.getInt("spark.task.cpus", 1)

  /** GPUs that one task is assigned, or None where none are configured. */
  def taskGpus: Option[Double] = conf.getOption("spark.task.resource.gpu.amount").map(_.toDouble)

  /** Cores of one executor: what the tasks of this JVM may use together. */
  def executorCores: Int = {
    if (Utils.isLocalMaster(conf)) SparkContext.numDriverCores(conf.get("spark.master"), conf)
    else conf.getInt("spark.executor.cores", Runtime.getRuntime.availableProcessors())
  }
}
