// Looks at a training plan before anything starts: what can never run, or cannot run on this cluster, is refused with what was asked, what was found
// and what to do. Spark itself would retry a barrier job without enough slots for ten minutes.
package org.apache.spark.sql.connect.sparkgap

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.SparkContext
import org.apache.spark.resource.ResourceProfile
import org.apache.spark.util.Utils

import Schema._

/** Everything that a barrier task needs to know; travels with the task's closure. */
final case class Gang(
    run: RunKey,
    attempt: Int,
    worldSize: Int,
    tasks: Int,
    ranksPerTask: Int,
    useGpu: Boolean,
    maxResultBytes: Long,
    startTimeoutMillis: Long,
    plan: Array[Byte],
    files: Option[SessionFolder] = None) {
  def tooManyResultBytes: String = s"the values of the ranks have more than $maxResultBytes bytes together (spark.sparkgap.result.maxBytes): write large " +
    "values to storage and return their paths"
}

final class Admission(sc: SparkContext, settings: Settings) {
  def admit(key: RunKey, plan: DynamicMessage): Gang = {
    val size = plan.int("num_processes")
    if (!key.id.matches("[A-Za-z0-9._-]{1,128}")) throw Refused.plan(s"run id '${key.id.take(200)}': 1 to 128 letters, digits, '.', '_' and '-' are allowed")
    if (size < 1) throw Refused.plan(s"num_processes is $size: at least 1 rank is needed")
    if (plan.choice("body").isEmpty) throw Refused.plan("the plan has neither a function nor a script")
    val bytes = plan.toByteArray
    if (bytes.length > settings.maxPlanBytes) throw Refused.plan(s"the plan has ${bytes.length} bytes, spark.sparkgap.plan.maxBytes allows " +
      s"${settings.maxPlanBytes}: write large arguments to storage and pass their path")
    if (plan.has("function")) Nodes.unlessOpenable(plan.message("function").string("python"), settings.startTimeoutMillis)
    unlessUnsafe()
    val (tasks, ranksPerTask) = layout(plan, size)
    unlessTooFewSlots(tasks, size)
    Gang(key, attempt = 0, size, tasks, ranksPerTask, plan.bool("use_gpu"), settings.maxResultBytes, settings.startTimeoutMillis, bytes)
  }

  private def unlessUnsafe(): Unit = {
    if (Utils.isDynamicAllocationEnabled(sc.conf)) throw Refused.resources("spark.dynamicAllocation.enabled is true on the server, and Spark runs no " +
      "barrier stage with it: set it to false and give the server a fixed number of executors (spark.executor.instances)")
    if (sc.conf.getBoolean("spark.ssl.enabled", defaultValue = false) && !settings.ignoreSsl) throw Refused.resources("spark.ssl.enabled promises encryption, which " +
      "torch.distributed does not give between ranks: set spark.sparkgap.ignoreSsl to true on the server to train without it")
  }

  /** Number of barrier tasks and of ranks in each: one task for each GPU share, for each CPU rank, or for the whole gang in local mode. */
  private def layout(plan: DynamicMessage, size: Int): (Int, Int) = {
    val local = plan.bool("local_mode")
    if (!plan.bool("use_gpu")) return if (local) (1, size) else (size, 1)
    val share = settings.taskGpus.getOrElse(throw Refused.resources("use_gpu=True, but the cluster's tasks have no GPUs: spark.task.resource.gpu.amount is " +
      "not set on the server. Set it, with spark.executor.resource.gpu.amount and a discovery script, or pass use_gpu=False"))
    if (share < 1 || share != share.floor) throw Refused.resources(s"spark.task.resource.gpu.amount is $share: a rank needs whole GPUs, so set a whole number")
    if (!local) ((size + share.toInt - 1) / share.toInt, math.min(size, share.toInt))
    else if (share >= size) (1, size)
    else throw Refused.resources(s"local_mode=True puts all $size ranks into one task, but spark.task.resource.gpu.amount gives a task ${share.toInt} GPUs: " +
      s"set it to at least $size, or pass local_mode=False")
  }

  private def unlessTooFewSlots(tasks: Int, size: Int): Unit = {
    def found: Int = sc.maxNumConcurrentTasks(ResourceProfile.getOrCreateDefaultProfile(sc.conf))
    val deadline = System.nanoTime() + settings.slotsTimeoutMillis * 1000000L
    while (found < tasks && System.nanoTime() < deadline) Thread.sleep(50) // executors register one by one; Spark has no call to wait for them
    val slots = found
    if (slots < tasks) throw Refused.resources(s"$size ranks need $tasks task slots at the same time, the cluster has $slots: lower num_processes, " +
      "pass local_mode=True to put all ranks into one task, or give the server more (" + (
        if (Utils.isLocalMaster(sc.conf)) s"--master local[$tasks]"
        else "spark.executor.instances, spark.executor.cores or spark.cores.max; a task takes spark.task.cpus cores"
      ) + ")")
  }
}
