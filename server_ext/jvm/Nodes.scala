// What the driver knows of each executor's nursery, from their reports. Admission asks here before anything starts.
package org.apache.spark.sql.connect.sparkgap

import java.util.concurrent.ConcurrentHashMap

import scala.jdk.CollectionConverters._

import com.fasterxml.jackson.databind.ObjectMapper
import org.sparkproject.connect.protobuf.DynamicMessage

import Schema._

/** What a nursery has said of itself, or why there is none; texts are empty where they are not known. */
final case class Node(python: String = "", sparkgap: String = "", torch: String = "", failure: String = "")

object Nodes {
  private val nurseries = new ConcurrentHashMap[String, Node]()
  private val failures = new ConcurrentHashMap[String, String]()
  private val json = new ObjectMapper()

  def up(executor: String, report: String): Unit = {
    val said = json.readTree(report)
    def version(name: String): String = Option(said.get(name)).map(_.asText()).getOrElse("")
    nurseries.put(executor, Node(version("python"), version("sparkgap"), version("torch")))
    failures.remove(executor)
    synchronized(notifyAll())
  }

  def down(executor: String, reason: String): Unit = {
    failures.put(executor, reason)
    nurseries.remove(executor)
    synchronized(notifyAll())
  }

  def forget(executor: String): Unit = {
    nurseries.remove(executor)
    failures.remove(executor)
  }

  def of(executor: String): Node =
    Option(nurseries.get(executor)).getOrElse(Node(failure = Option(failures.get(executor)).getOrElse("")))

  /** Refuses a payload that the workers could not open, before any task starts. Waits for the first executor of a server that has just started. */
  def unlessOpenable(payload: DynamicMessage, timeoutMillis: Long): Unit = {
    val deadline = System.nanoTime() + timeoutMillis * 1000000L
    synchronized {
      while (nurseries.isEmpty && failures.isEmpty && System.nanoTime() < deadline) wait(math.max(1L, (deadline - System.nanoTime()) / 1000000L))
    }
    val found = nurseries.values.asScala.map(_.python).toSet
    if (found.isEmpty) throw Refused.resources(failures.asScala.headOption match {
      case Some((executor, reason)) => s"executor $executor cannot run Python processes: $reason"
      case None => s"no executor has registered after ${timeoutMillis / 1000} s: check that workers run and have free cores and memory"
    })
    val python = payload.string("python")
    if (!payload.bool("portable")) (found - python).foreach { other =>
      throw Refused.version(s"the client runs Python $python, the workers run Python $other: what the function carries holds bytecode, which needs the " +
        s"same minor version on both sides. Move the code into a module or a script, which travel as source, start the client with Python $other, or set " +
        s"spark.sparkgap.python on the server to a Python $python that has sparkgap[server]")
    }
  }
}
