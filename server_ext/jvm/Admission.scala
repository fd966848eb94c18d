// Looks at a training plan before anything starts: what can never run, or cannot run on this cluster, is refused with what was asked, what was found
// and what to do. Spark itself would retry a barrier job without enough slots for ten minutes.
package org.apache.spark.sql.connect.sparkgap

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.{SparkContext, SparkException}
import org.apache.spark.resource.{ResourceProfile, ResourceProfileBuilder, TaskResourceRequests}
import org.apache.spark.util.Utils

import Schema._

/** Everything that a barrier task needs to know; travels with the task's closure. */
final case class Gang(
    run: RunKey,
    id: String, // of this attempt alone
    attempt: Int,
    worldSize: Int,
    tasks: Int,
    ranksPerTask: Int,
    useGpu: Boolean,
    maxFailures: Int,
    maxResultBytes: Long,
    startTimeoutMillis: Long,
    threadSeconds: Int,
    sessionConf: Map[String, String],
    plan: Array[Byte],
    files: Option[SessionFolder] = None) {
  def tooManyResultBytes: String = s"the values of the ranks have more than $maxResultBytes bytes together (spark.sparkgap.result.maxBytes): write large " +
    "values to storage and return their paths"

  /** How much of what one rank says may be under way to the driver: all ranks together some 16 MiB. */
  def windowBytes: Long = math.max(64L << 10, math.min(1L << 20, (16L << 20) / worldSize))

  def pool: Option[String] = sessionConf.get("spark.scheduler.pool")
}

final class Admission(sc: SparkContext, settings: Settings, sessionConf: Map[String, String]) {
  private val MaxConfBytes = 1L << 20

  def admit(key: RunKey, plan: DynamicMessage): (Gang, Demand) = {
    val size = plan.int("num_processes")
    PlanCheck.training(plan)
    val bytes = plan.toByteArray
    if (bytes.length > settings.maxPlanBytes) throw Refused.plan(s"the plan has ${bytes.length} bytes, spark.sparkgap.plan.maxBytes allows " +
      s"${settings.maxPlanBytes}: write large arguments to storage and pass their path")
    val confBytes = sessionConf.map { case (name, value) => 1L * name.length + value.length }.sum
    if (confBytes > MaxConfBytes) throw Refused.plan(s"the session's own settings have $confBytes characters, $MaxConfBytes may travel with a run")
    if (plan.has("function")) Nodes.unlessOpenable(plan.message("function"), settings.startTimeoutMillis)
    unlessUnsafe()
    val (demand, ranksPerTask) = layout(plan, size)
    unlessTooFewSlots(demand, size)
    (Gang(key, id = "", attempt = 0, size, demand.tasks, ranksPerTask, plan.bool("use_gpu"), plan.int("max_failures"), settings.maxResultBytes,
      settings.startTimeoutMillis, settings.threadSeconds, sessionConf, bytes), demand)
  }

  private def unlessUnsafe(): Unit = {
    if (Utils.isDynamicAllocationEnabled(sc.conf)) throw Refused.resources("spark.dynamicAllocation.enabled is true on the server, and Spark runs no " +
      "barrier stage with it: set it to false and give the server a fixed number of executors (spark.executor.instances)")
    // pyspark's name for it reaches a session, but never a server: spark-submit drops settings that do not begin with "spark.".
    val ignored = settings.ignoreSsl || sessionConf.get("pytorch.spark.distributor.ignoreSsl").contains("true")
    if (sc.conf.getBoolean("spark.ssl.enabled", defaultValue = false) && !ignored) throw Refused.resources("spark.ssl.enabled promises encryption, which " +
      "torch.distributed does not give between ranks: set spark.sparkgap.ignoreSsl to true on the server, or pytorch.spark.distributor.ignoreSsl in " +
      "the session, to train without it")
  }

  /** The tasks of the gang and the ranks in each: one task for the whole gang in local mode, else one for each rank, or for as many ranks as a task of the
    * cluster has GPUs. Tasks are as spark.task.* cuts them; where that does not fit and the cluster can cut them otherwise, with a profile of their own. */
  private def layout(plan: DynamicMessage, size: Int): (Demand, Int) = {
    val local = plan.bool("local_mode")
    val useGpu = plan.bool("use_gpu")
    val asked = plan.message("resources")
    val gpus = if (useGpu) math.max(1, asked.int("gpus")) else 0
    if (useGpu && settings.executorGpus.isEmpty && settings.taskGpus.isEmpty) throw Refused.resources("use_gpu=True, but the cluster's executors have no " +
      "GPUs: spark.executor.resource.gpu.amount is not set on the server. Set it with a discovery script, and spark.task.resource.gpu.amount, or pass " +
      "use_gpu=False")
    asConfigured(local, size, gpus, asked).getOrElse {
      val ranks = if (local) size else 1
      if (local && useGpu) unlessTooFewGpusForOneTask(size, gpus)
      (inTasksOfTheirOwn(size / ranks, ranks, if (asked.int("cpus") > 0) asked.int("cpus") * ranks else settings.taskCpus, gpus * ranks), ranks)
    }
  }

  /** As the cluster's setting for tasks has it, or None where that is not what is asked for. */
  private def asConfigured(local: Boolean, size: Int, gpus: Int, asked: DynamicMessage): Option[(Demand, Int)] = {
    val share = if (gpus > 0) settings.taskGpus.getOrElse(0.0) else 0.0
    val chosen = asked.int("gpus") > 0
    val ranks = if (local) size else if (gpus > 0 && !chosen) math.min(size, math.max(1, share.toInt)) else 1
    val fits = gpus == 0 || share == share.floor && share >= ranks * gpus && (!chosen || share == ranks * gpus)
    val rightCpus = asked.int("cpus") == 0 || asked.int("cpus") * ranks == settings.taskCpus
    Option.when(fits && rightCpus) {
      (Demand((size + ranks - 1) / ranks, settings.taskCpus, share.toInt, sc.resourceProfileManager.defaultResourceProfile), ranks)
    }
  }

  /** pyspark lowers num_processes here and logs a warning. A run of another world size has another batch size and learning rate than the one asked for,
    * and a program that counts on its number of devices waits for ever for the others, so this asks the user. */
  private def unlessTooFewGpusForOneTask(ranks: Int, gpus: Int): Unit = {
    val (who, held, setting) = if (settings.hasTaskProfiles) ("an executor", settings.executorGpus.getOrElse(0), "spark.executor.resource.gpu.amount")
      else ("a task", settings.taskGpus.fold(0)(_.toInt), "spark.task.resource.gpu.amount")
    val most = held / gpus
    if (0 < most && most < ranks) throw Refused.resources(s"local_mode=True puts all ${plural(ranks, "rank")} into one task, which needs " +
      s"${plural(ranks * gpus, "GPU")}, and $who has $held ($setting): pass num_processes=$most, the most for which there are GPUs, local_mode=False to " +
      "use those of other tasks too, or use_gpu=False")
  }

  private def inTasksOfTheirOwn(tasks: Int, ranks: Int, cpus: Int, gpus: Int): Demand = {
    if (!settings.hasTaskProfiles) throw Refused.resources(s"a task of ${plural(ranks, "rank")} needs ${asSettings(cpus, Option.when(gpus > 0)(gpus.toDouble))}, " +
      s"the server has ${asSettings(settings.taskCpus, settings.taskGpus)}, and with master ${sc.master} Spark cuts all tasks alike, a rank's GPUs being whole " +
      "ones: set that on the server, pass local_mode=False, or leave resources out")
    settings.executorGpus.filter(_ < gpus).foreach(held => throw Refused.resources(s"a task of ${plural(ranks, "rank")} needs ${plural(gpus, "GPU")}, an " +
      s"executor has $held (spark.executor.resource.gpu.amount): pass local_mode=False, lower num_processes or resources, or give executors more"))
    val request = new TaskResourceRequests().cpus(cpus)
    if (gpus > 0) request.resource("gpu", gpus)
    Demand(tasks, cpus, gpus, registered(new ResourceProfileBuilder().require(request).build()))
  }

  /** Spark forgets no profile, so equal ones are one. */
  private def registered(profile: ResourceProfile): ResourceProfile = sc.resourceProfileManager.getEquivalentProfile(profile).getOrElse {
    try sc.resourceProfileManager.addResourceProfile(profile)
    catch { case refusal: SparkException => throw Refused.resources(s"Spark cannot cut such tasks here: ${refusal.getMessage}") }
    profile
  }

  private def asSettings(cpus: Int, gpus: Option[Double]): String =
    (Seq(s"spark.task.cpus=$cpus") ++ gpus.map(amount => f"spark.task.resource.gpu.amount=$amount%.6f".replaceAll("\\.?0+$", ""))).mkString(" and ")

  private def unlessTooFewSlots(demand: Demand, size: Int): Unit = {
    def found: Int = sc.maxNumConcurrentTasks(demand.profile)
    val deadline = System.nanoTime() + settings.slotsTimeoutMillis * 1000000L
    while (found < demand.tasks && System.nanoTime() < deadline) Thread.sleep(50) // executors register one by one; Spark has no call to wait for them
    val slots = found
    if (slots < demand.tasks) throw Refused.resources(s"$size ranks need $demand, the cluster has $slots: lower num_processes, pass " +
      "local_mode=True to put all ranks into one task, or give the server more (" + (
        if (Utils.isLocalMaster(sc.conf)) s"--master local[${demand.tasks}]"
        else "spark.executor.instances, spark.executor.cores or spark.cores.max; a task takes spark.task.cpus cores"
      ) + ")")
  }
}
