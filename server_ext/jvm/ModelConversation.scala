// A task's side of the talk with its executor's model host: loads the model if nobody has, fills batches in shared memory, and reads predictions there.
package org.apache.spark.sql.connect.sparkgap

import java.io.{ByteArrayOutputStream, IOException}
import java.nio.channels.Channels
import java.nio.file.{NoSuchFileException, Path}

import scala.collection.mutable
import scala.jdk.CollectionConverters._

import org.apache.arrow.vector.ipc.WriteChannel
import org.apache.arrow.vector.ipc.message.MessageSerializer
import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.{SparkException, TaskContext}
import org.apache.spark.api.python.{PythonBroadcast, PythonException}
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.execution.metric.SQLMetric
import org.apache.spark.sql.types.{DataType, StructType}
import org.apache.spark.sql.util.ArrowUtils
import org.apache.spark.sql.vectorized.ColumnarBatch
import org.apache.spark.util.TaskInterruptListener

import Schema._

private[sparkgap] final class ModelConversation(
    plan: DynamicMessage,
    payload: Option[Broadcast[PythonBroadcast]],
    columns: StructType,
    returns: DataType,
    timeZone: String,
    val maxBytes: Long,
    metrics: Map[String, SQLMetric]) extends AutoCloseable {

  private val name = plan.string("name")
  private val batchSize = plan.int("batch_size")
  private val encoders = columns.fields.map(ColumnEncoder(_, timeZone))
  private val accounted = new MappedBytes(TaskContext.get().taskMemoryManager())
  private var connection: NurseryConnection = _
  private val slots = mutable.ArrayBuffer.empty[BatchMemory]
  private val waiting = mutable.Queue.empty[Int] // slots that are with the model
  private var reading = -1 // slot whose predictions are being read
  private var filling = -1 // slot of the batch that is being filled
  private var lastSeconds = 0.0
  private var closed = false
  TaskContext.get().addTaskInterruptListener(new TaskInterruptListener {
    def onTaskInterrupted(task: TaskContext, reason: String): Unit = hangUp()
  })

  def underWay: Int = waiting.size

  /** Inside the predict function, for what `receive` gave last. */
  def modelSeconds: Double = lastSeconds

  /** Columns of the next batch, to be filled equally long, once the predictions that `receive` gave last are no longer read; the first batch makes the
    * connection. */
  def begin(): Array[ColumnEncoder] = {
    reading = -1
    if (connection == null) connect()
    filling = slots.indices.find(!waiting.contains(_)).get
    slots(filling).clear()
    encoders.foreach(_.begin(slots(filling)))
    encoders
  }

  /** Number of bytes sent. */
  def send(): Long = {
    val rows = encoders.head.length
    val layouts = encoders.toSeq.map { encoder =>
      val layout = new Layout
      encoder.finish(layout)
      layout
    }
    val bytes = layouts.map(_.bytes).sum
    metrics("bytesSent") += bytes
    metrics("batches") += (rows + batchSize - 1) / batchSize
    val message = Schema.build("ColumnBatch")("rows" -> rows, "length" -> slots(filling).used, "columns" -> layouts.map(_.toMessage), "slot" -> filling)
    connection.tell(FrameKind.ColumnBatch, message.toByteArray)
    waiting.enqueue(filling)
    bytes
  }

  /** The predictions of the oldest batch under way; valid until the next call. */
  def receive(): Iterator[InternalRow] = {
    val began = System.nanoTime()
    val answer = Schema.parse("PredictedColumn", expect(FrameKind.PredictedColumn))
    metrics("waitingTime") += System.nanoTime() - began
    lastSeconds = answer.double("model_seconds")
    metrics("modelTime") += (lastSeconds * 1e9).toLong
    reading = waiting.dequeue()
    val memory = slots(reading)
    memory.ensure(answer.long("length"))
    val column = answer.message("column")
    val (nodes, buffers) = (column.longs("nodes"), column.longs("buffers"))
    metrics("bytesReceived") += buffers.grouped(2).map(_.last).sum
    val predicted = new PredictedColumn(returns, new Places(memory.address, nodes.iterator, buffers.iterator))
    new ColumnarBatch(Array(predicted), predicted.length).rowIterator().asScala
  }

  override def close(): Unit = {
    hangUp()
    encoders.foreach(_.close())
    slots.foreach(_.close())
    metrics("sharedMemory") += accounted.getUsed
    accounted.close()
  }

  private def hangUp(): Unit = synchronized {
    closed = true
    if (connection != null) connection.close()
  }

  /** A host that ends may take a connection down with it before the task has its memories: because it was idle, could not load, or another task's
    * batch has killed it. */
  private def connect(): Unit = slots ++= Iterator.continually(greet()).take(ModelConversation.OpenAttempts).collectFirst { case Some(both) => both }
    .getOrElse(throw died(s"ended ${ModelConversation.OpenAttempts} times before it could load the model"))

  /** The two memories that a host shares, or None where it has ended. */
  private def greet(): Option[Seq[BatchMemory]] =
    open().flatMap(ready => map(body(ready, FrameKind.ModelReady))).flatMap { first =>
      val second = try { connection.tell(FrameKind.Schema, schemaBytes); hear().flatMap(ready => map(body(ready, FrameKind.ModelReady))) }
        catch { case failure: Throwable => first.close(); throw failure }
      if (second.isEmpty) first.close()
      TaskContext.get().killTaskIfInterrupted()
      second.map(Seq(first, _))
    }

  /** The host's answer once it has the model, or None where it ended before. A connection that did not get so far is closed by the next one, or by the
    * end of the conversation. */
  private def open(): Option[Frame] = {
    val opened = Nursery.open(Schema.build("OpenModel")("key" -> plan.string("digest"), "name" -> name))
    synchronized {
      if (connection != null) connection.close()
      connection = opened
      if (closed) opened.close()
    }
    val began = System.nanoTime()
    connection.tell(FrameKind.TaskContext, ServedTask.of(TaskContext.get()).toByteArray)
    connection.tell(FrameKind.PredictPlan, plan.without("make_predict_fn").toByteArray)
    val answer = hear() match {
      case Some(Frame(FrameKind.PlanWanted, _)) => connection.tell(FrameKind.PredictPlan, wholePlan.toByteArray); hear()
      case other => other
    }
    metrics("loadTime") += System.nanoTime() - began
    TaskContext.get().killTaskIfInterrupted()
    answer
  }

  private def hear(): Option[Frame] = try connection.receive() catch { case _: IOException => None }

  /** Reading the broadcast's value is what brings an uploaded payload to this executor. */
  private def wholePlan: DynamicMessage = payload.fold(plan)(uploaded => plan.copy("payload_file" -> uploaded.value.path))

  private def schemaBytes: Array[Byte] = {
    val out = new ByteArrayOutputStream()
    MessageSerializer.serialize(new WriteChannel(Channels.newChannel(out)), ArrowUtils.toArrowSchema(columns, timeZone, true, false))
    out.toByteArray
  }

  private def map(ready: Array[Byte]): Option[BatchMemory] = {
    val message = Schema.parse("ModelReady", ready)
    try Some(new BatchMemory(Path.of(s"/proc/${message.int("pid")}/fd/${message.int("descriptor")}"), maxBytes, accounted))
    catch { case _: NoSuchFileException => None }
  }

  private def expect(kind: Int): Array[Byte] = body(receiveFrame(), kind)

  private def body(frame: Frame, kind: Int): Array[Byte] = frame match {
    case Frame(`kind`, bytes) => bytes
    case Frame(FrameKind.ModelFailure, bytes) => throw raised(Schema.parse("ModelFailure", bytes))
    case Frame(FrameKind.Refused, bytes) =>
      throw pythonException(s"HostRefused: the nursery could not start the model host of $name: ${Schema.parse("Refused", bytes).string("message")}")
    case Frame(other, _) => throw new SparkException(s"the model host of $name sent a frame of kind $other where $kind was expected")
  }

  private def receiveFrame(): Frame = connection.receive().getOrElse {
    TaskContext.get().killTaskIfInterrupted()
    throw died("died while it predicted")
  }

  /** The exception that Spark's own Python workers raise, with the text that ours would have. */
  private def raised(failure: DynamicMessage): Throwable = {
    val what = if (failure.bool("loading")) "make_predict_fn raised" else "the prediction of a batch raised"
    val text = s"${failure.string("shown")}: ${failure.string("message")}\n\n$name: $what in the model host:\n${failure.string("traceback")}"
    pythonException(text)
  }

  private def died(when: String): Throwable = pythonException(s"HostDied: the model host of $name $when. Was it killed for memory? " +
    "Hosts count against spark.executor.memoryOverhead; their errors are in the executor's stderr")

  private def pythonException(text: String): Throwable =
    new PythonException("PYTHON_EXCEPTION", Map("msg" -> "An exception was thrown from the model host", "traceback" -> text), null)
}

private object ModelConversation { val OpenAttempts = 3 }

/** What `pyspark.TaskContext.get()` shows in the model host: the same as in Spark's own Python workers. */
private object ServedTask {
  def of(task: TaskContext): DynamicMessage = Schema.build("TaskContext")(
    "stage_id" -> task.stageId(),
    "partition_id" -> task.partitionId(),
    "attempt_number" -> task.attemptNumber(),
    "task_attempt_id" -> task.taskAttemptId(),
    "cpus" -> task.cpus(),
    "resources" -> task.resources().toSeq.map { case (name, found) =>
      Schema.build("TaskResource")("name" -> name, "addresses" -> found.addresses.toSeq)
    },
    "local_properties" -> task.getLocalProperties.asScala.toSeq.map { case (key, value) => Schema.build("Setting")("key" -> key, "value" -> value) })
}
