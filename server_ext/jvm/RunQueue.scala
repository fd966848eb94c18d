// Lets gangs into Spark one after the other, so that a large one is not starved by small ones and nobody holds slots that it cannot use yet. Runs.scala
// makes it, each run's thread waits here. Behind it Spark starts a barrier job as soon as all its slots are free at once; its other work goes on meanwhile.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.mutable

import org.apache.spark.SparkContext
import org.apache.spark.resource.ResourceProfile
import org.apache.spark.scheduler.TaskSchedulerImpl

import Schema.plural

/** What a gang takes of the cluster while it runs: so many tasks of this profile, each with so many cores and GPUs. */
final case class Demand(tasks: Int, cpusPerTask: Int, gpusPerTask: Int, profile: ResourceProfile) {
  def cpus: Int = tasks * cpusPerTask
  def gpus: Int = tasks * gpusPerTask

  override def toString: String = {
    val each = Option.when(cpusPerTask > 1)(plural(cpusPerTask, "core")) ++ Option.when(gpusPerTask > 0)(plural(gpusPerTask, "GPU"))
    plural(tasks, "task slot") + (if (tasks > 1) " at the same time" else "") + (if (each.isEmpty) "" else s", ${each.mkString(" and ")} each")
  }
}

/** How many tasks of a profile the whole cluster could run at once, and how many tasks of any kind it runs now. */
trait Capacity {
  def slots(profile: ResourceProfile): Int
  def running: Int
}

final class ClusterCapacity(sc: SparkContext) extends Capacity {
  override def slots(profile: ResourceProfile): Int = sc.maxNumConcurrentTasks(profile)
  override def running: Int = sc.taskScheduler match {
    case scheduler: TaskSchedulerImpl => scheduler.runningTasksByExecutors.values.sum
    case _ => 0
  }
}

/** A run's place in the queue. */
final class Ticket(val user: String, val demand: Demand, val since: Long) {
  private[sparkgap] var held = false // let into Spark
  private[sparkgap] var started = false // Spark runs its tasks
}

/** `position` is 0 for a run that is not in the queue, because it is in Spark's hands. */
final case class Place(position: Int, waitingFor: String)

/** The first of those that wait goes as soon as the slots that other runs leave are enough for it. Users with fewer slots come first, then those
  * whose last turn is longer ago, then who has come first. A smaller run may pass one that does not fit yet, but not for ever: after `patienceMillis`
  * what becomes free is kept for the one that waits. */
final class RunQueue(capacity: Capacity, patienceMillis: Long, maxWaiting: Int) {
  private val CheckMillis = 1000L // executors come and go, and nobody tells
  private val RememberedUsers = 1000
  private val tickets = mutable.LinkedHashSet.empty[Ticket] // in the order in which they have come
  private val turns = mutable.LinkedHashMap.empty[String, Long] // of users, by the number of the turn; the oldest first
  private var turn = 0L
  private var checked = 0L

  def enter(user: String, demand: Demand): Ticket = synchronized {
    val ticket = entered(user, demand)
    advance()
    ticket
  }

  /** Lets the run in at once, or refuses it. */
  def enterNow(user: String, demand: Demand): Ticket = synchronized {
    advance()
    val ticket = entered(user, demand)
    val others = otherTasks
    if (!next.contains(ticket) || slots(demand) - taken(demand, ticket) - others < demand.tasks) {
      tickets -= ticket
      throw Refused.resources(s"the run needs $demand, and ${shares(ticket, others)}. It was not to wait for them (wait=False), so nothing was started")
    }
    let(ticket)
    ticket
  }

  private def entered(user: String, demand: Demand): Ticket = {
    val waiting = tickets.count(!_.held)
    if (waiting >= maxWaiting) throw Refused.resources(s"$waiting runs wait for their slots already, spark.sparkgap.queue.max allows no more: try again later")
    val ticket = new Ticket(user, demand, System.currentTimeMillis())
    tickets += ticket
    ticket
  }

  /** Returns when the run may go to Spark, or `over` says that it has no business there any more. */
  def await(ticket: Ticket, over: => Boolean): Unit = synchronized {
    while (!over && !(ticket.held && slots(ticket.demand) >= ticket.demand.tasks)) {
      wait(CheckMillis)
      if (System.currentTimeMillis() - checked >= CheckMillis) advance()
    }
  }

  /** For runs whose `over` may have changed. */
  def wake(): Unit = synchronized(notifyAll())

  /** Before another attempt: its slots have stayed its own. */
  def again(ticket: Ticket): Unit = synchronized { ticket.started = false }

  def started(ticket: Ticket): Unit = synchronized { ticket.started = true }

  def leave(ticket: Ticket): Unit = synchronized { tickets -= ticket; advance() }

  def place(ticket: Ticket): Option[Place] = synchronized {
    if (ticket.started || !tickets.contains(ticket)) None
    else {
      val needs = s"${ticket.demand}; ${shares(ticket, otherTasks)}"
      Some(if (ticket.held) Place(0, needs) else Place(order.indexOf(ticket) + 1, needs))
    }
  }

  // ---- Who comes next ----

  private def advance(): Unit = {
    checked = System.currentTimeMillis()
    var going = next
    while (going.isDefined) { let(going.get); going = next }
  }

  private def let(ticket: Ticket): Unit = {
    ticket.held = true
    turn += 1
    turns.remove(ticket.user)
    turns(ticket.user) = turn
    if (turns.size > RememberedUsers) turns.remove(turns.head._1)
    notifyAll()
  }

  private def next: Option[Ticket] = {
    val slotsOf = mutable.Map.empty[Int, Int] // Spark is asked once for each profile
    def fits(ticket: Ticket): Boolean = {
      val demand = ticket.demand
      slotsOf.getOrElseUpdate(demand.profile.id, slots(demand)) - taken(demand, ticket) >= demand.tasks
    }
    order.takeWhile(each => !overdue(each) || fits(each)).find(fits)
  }

  private def order: Seq[Ticket] = {
    val slotsOf = held.groupMapReduce(_.user)(_.demand.tasks)(_ + _)
    val (late, others) = tickets.toSeq.filter(!_.held).partition(overdue)
    late ++ others.sortBy(each => (slotsOf.getOrElse(each.user, 0), turns.getOrElse(each.user, 0L)))
  }

  private def overdue(ticket: Ticket): Boolean = System.currentTimeMillis() - ticket.since >= patienceMillis

  private def held: Seq[Ticket] = tickets.toSeq.filter(_.held)

  // ---- What there is ----

  private def slots(demand: Demand): Int = capacity.slots(demand.profile)

  /** Slots of this kind that other runs have been let in for, be their tasks running or not. */
  private def taken(demand: Demand, but: Ticket): Int = {
    val others = held.filter(_ ne but).map(_.demand)
    val byCpus = ceiling(others.map(_.cpus).sum, demand.cpusPerTask)
    if (demand.gpusPerTask > 0) math.max(byCpus, ceiling(others.map(_.gpus).sum, demand.gpusPerTask)) else byCpus
  }

  /** Running tasks of Spark's other work. */
  private def otherTasks: Int = math.max(0, capacity.running - tickets.toSeq.filter(_.started).map(_.demand.tasks).sum)

  private def shares(ticket: Ticket, others: Int): String = {
    val runs = held.count(_ ne ticket)
    val byRuns = taken(ticket.demand, ticket)
    val parts = Option.when(byRuns > 0)(s"${plural(runs, "other run")} ${if (runs == 1) "takes" else "take"} $byRuns") ++
      Option.when(others > 0)(s"other work of Spark takes $others")
    s"the cluster has ${slots(ticket.demand)}" + (if (parts.isEmpty) "" else s", of which ${parts.mkString(" and ")}")
  }

  private def ceiling(amount: Int, per: Int): Int = (amount + per - 1) / math.max(1, per)
}
