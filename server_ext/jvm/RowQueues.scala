// Spark's queue for rows that wait for Python is private to its package; this passes it on, and nothing else.
package org.apache.spark.sql.execution.python

import java.io.File

import org.apache.spark.SparkEnv
import org.apache.spark.memory.TaskMemoryManager
import org.apache.spark.sql.catalyst.expressions.UnsafeRow
import org.apache.spark.util.Utils

object RowQueues {
  trait Queue {
    def add(row: UnsafeRow): Unit
    def remove(): UnsafeRow
    def close(): Unit
  }

  def create(memory: TaskMemoryManager, fields: Int): Queue = new Queue {
    private val queue = HybridRowQueue(memory, new File(Utils.getLocalDir(SparkEnv.get.conf)), fields)
    override def add(row: UnsafeRow): Unit = queue.add(row)
    override def remove(): UnsafeRow = queue.remove()
    override def close(): Unit = queue.close()
  }
}
