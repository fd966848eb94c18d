// The registry of training runs, in the driver. A run (Run.scala) is owned by the server: it starts on a thread of its own and ends when its barrier job
// ends, whatever becomes of the client, its operation or its session. Where a RunStore is configured, it is told of everything, and knows ended runs longer.
package org.apache.spark.sql.connect.sparkgap

import java.security.MessageDigest
import java.util.concurrent.ConcurrentHashMap

import scala.jdk.CollectionConverters._
import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.SparkContext
import org.apache.spark.internal.Logging
import org.apache.spark.scheduler.{SparkListener, SparkListenerExecutorRemoved}

import Schema._

object Runs extends Logging {
  val Stopping = "the server is stopping"
  private val StopMillis = 5000L
  private val withdrawals = new Withdrawals(most = 10000, millis = 30 * 60 * 1000L)
  private val runs = new ConcurrentHashMap[RunKey, Run]()
  private var sc: SparkContext = _
  private var settings: Settings = _
  private var store: Option[RunStore] = None
  private var queue: RunQueue = _

  /** The extension classes are loaded by Connect, this by `spark.plugins`: one without the other cannot work. */
  def unlessPlugged(): Unit = if (sc == null) throw Refused.resources("the server has sparkgap's extensions but not its plugin: add " +
    s"${classOf[SparkgapPlugin].getName} to spark.plugins and restart it")

  def start(context: SparkContext, conf: Settings): Unit = {
    sc = context
    settings = conf
    queue = new RunQueue(new ClusterCapacity(sc), settings.queuePatienceMillis, settings.maxQueued)
    store = conf.runsDirectory.map(new RunStore(_, sc.hadoopConfiguration, conf))
    store.foreach(_.start())
    sc.addSparkListener(new SparkListener {
      override def onExecutorRemoved(event: SparkListenerExecutorRemoved): Unit = Nodes.forget(event.executorId)
    })
  }

  def stop(): Unit = {
    val alive = runs.values.asScala.filterNot(_.ended).toSeq
    alive.foreach(_.cancel(Stopping))
    store.foreach { kept =>
      alive.foreach(_.awaitEnd(StopMillis))
      kept.stop()
    }
  }

  /** Of the runs of this server's memory: for the plugin's RPC thread, which never waits for a filesystem. */
  def find(key: RunKey): Option[Run] = Option(runs.get(key))

  def apply(key: RunKey): AnyRun = find(key).getOrElse {
    val kept = stored(_.find(key)).flatten
    find(key).orElse(kept).getOrElse(throw Refused.unknownRun(key.id))
  }

  /** A user's runs, the newest first. */
  def list(user: String): Seq[DynamicMessage] = {
    val kept = stored(_.list(user)).toSeq.flatten.map(_.status(complete = false)) // before the memory: what is forgotten there is here
    val here = runs.values.asScala.filter(_.key.user == user).map(_.status(complete = false))
    (kept ++ here).map(each => each.string("run_id") -> each).toMap.values.toSeq.map(_.without("failures")).sortBy(-_.long("submitted_at"))
  }

  /** How many runs of all users are alive, and how many of these wait for their slots. */
  def counts: (Int, Int) = {
    val alive = runs.values.asScala.filterNot(_.ended).toSeq
    (alive.size, alive.count(_.queued))
  }

  private def stored[T](ask: RunStore => T): Option[T] = try store.map(ask) catch {
    case NonFatal(failure) if !failure.isInstanceOf[Refused] =>
      throw Refused.resources(s"spark.sparkgap.runs.dir, where the server keeps its runs, cannot be read: $failure")
  }

  /** The run with this plan's id: a new one, or the one that an earlier request with the same plan has started. */
  def submit(session: SubmittingSession, plan: DynamicMessage, submission: String): AnyRun = {
    unlessPlugged()
    unlessTooLong(submission)
    val key = RunKey(session.user, plan.string("run_id"))
    val digest = MessageDigest.getInstance("SHA-256").digest(plan.toByteArray).toSeq
    def same(run: AnyRun): AnyRun = {
      if (run.planDigest != digest) throw Refused.plan(s"run id ${key.id} is taken by a run with another plan: choose another id")
      run
    }
    find(key).orElse(earlier(key)).map(same).getOrElse {
      val (gang, demand) = new Admission(sc, settings, session.conf).admit(key, plan)
      val ticket = if (plan.bool("refuse_to_wait")) queue.enterNow(key.user, demand) else queue.enter(key.user, demand)
      val whatFor = RunPlan(key, plan.string("name"), gang.worldSize, plan.int("max_failures"), digest, submission)
      val run = new Run(whatFor, queue, ticket, settings.maxEventBytes, store)
      try {
        val files = session.files
        Option(runs.putIfAbsent(key, run)) match {
          case None =>
            withdrawals.reason(key, submission).foreach(run.cancel)
            launch(run, gang.copy(files = files.map(_.folder)), files)
          case Some(_) => files.foreach(_.close())
        }
      } finally if (!find(key).contains(run)) queue.leave(ticket)
      same(find(key).get)
    }
  }

  /** Ends the run that comes from this submission, or will come from it. */
  def takeBack(key: RunKey, submission: String, reason: String): DynamicMessage = {
    PlanCheck.runId(key.id)
    unlessTooLong(submission)
    withdrawals.add(key, submission, reason)
    find(key).filter(_.comesFrom(submission)) match {
      case Some(run) => run.cancel(reason); run.status(complete = false)
      case None => Schema.build("RunStatus")("run_id" -> key.id, "state" -> RunState.Cancelled, "reason" -> reason)
    }
  }

  private def unlessTooLong(submission: String): Unit =
    if (submission.length > 64) throw Refused.plan(s"the submission's name has ${submission.length} characters, 64 are allowed")

  /** Of another life of the server. A filesystem that fails keeps nobody from training. */
  private def earlier(key: RunKey): Option[AnyRun] = {
    val kept = try store.flatMap(_.find(key)) catch { case NonFatal(failure) =>
      logWarning(s"spark.sparkgap.runs.dir cannot tell whether it has run ${key.id} of ${key.user} already; it is taken for a new one", failure)
      None
    }
    find(key).orElse(kept) // another submit may have started it meanwhile, and what the directory has of it is no run of another life
  }

  private def clearLeftOvers(key: RunKey): Unit = try store.foreach(_.clear(key)) catch { case NonFatal(failure) =>
    logWarning(s"what is left of an earlier run ${key.id} of ${key.user} cannot be removed from spark.sparkgap.runs.dir", failure)
  }

  /** Spark's inheritable thread-locals tie a job to the operation that submits it; this thread inherits none of them. */
  private def launch(run: Run, gang: Gang, files: Option[SessionFiles]): Unit = {
    val body: Runnable = () => try {
      clearLeftOvers(run.key)
      SessionFiles.during(files)(run.execute(sc, gang))
    } finally forgetOldest()
    val thread = new Thread(null, body, s"sparkgap-run-${run.key.id}", 0, false)
    thread.setContextClassLoader(getClass.getClassLoader)
    thread.setDaemon(true)
    thread.start()
  }

  /** The newest one stays whatever its size, so that its client can fetch its value. */
  private def forgetOldest(): Unit = {
    val oldest = (System.currentTimeMillis() - settings.maxRunAgeMillis) * 1000L
    runs.values.asScala.filter(run => run.ended && run.endedAt < oldest).foreach(run => runs.remove(run.key))
    val newestFirst = runs.values.asScala.filter(_.settled).toSeq.sortBy(-_.endedAt)
    val bytesWithNewer = newestFirst.scanLeft(0L)(_ + _.keptBytes).tail
    newestFirst.zip(bytesWithNewer).zipWithIndex.drop(1).foreach { case ((run, bytes), newer) =>
      if (newer >= settings.keptRuns || bytes > settings.keptBytes) runs.remove(run.key)
    }
  }
}
