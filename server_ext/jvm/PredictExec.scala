// The direct way of a prediction: tasks of the JVM hand batches to the model host themselves, through shared memory.
package org.apache.spark.sql.connect.sparkgap

import scala.jdk.CollectionConverters._

import org.apache.spark.{SparkEnv, TaskContext}
import org.apache.spark.api.python.PythonBroadcast
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{Attribute, AttributeSet, Expression, JoinedRow, PythonUDF, UnsafeProjection, UnsafeRow}
import org.apache.spark.sql.execution.{SparkPlan, UnaryExecNode}
import org.apache.spark.sql.execution.metric.{SQLMetric, SQLMetrics}
import org.apache.spark.sql.execution.python.RowQueues
import org.apache.spark.sql.types.{DataType, StructField, StructType}

import Schema._

/** The rows of its child with a prediction each, of their columns those in `kept`. */
case class PredictExec(udf: PythonUDF, result: Attribute, kept: Seq[Attribute], child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = kept :+ result
  override def producedAttributes: AttributeSet = AttributeSet(result)
  override protected def withNewChildInternal(newChild: SparkPlan): PredictExec = copy(child = newChild)
  override def nodeName: String = s"Predict ${udf.name}"

  override lazy val metrics: Map[String, SQLMetric] = Map(
    "numOutputRows" -> SQLMetrics.createMetric(sparkContext, "number of output rows"),
    "batches" -> SQLMetrics.createMetric(sparkContext, "number of batches"),
    "bytesSent" -> SQLMetrics.createSizeMetric(sparkContext, "bytes to the model"),
    "bytesReceived" -> SQLMetrics.createSizeMetric(sparkContext, "bytes from the model"),
    "modelTime" -> SQLMetrics.createNanoTimingMetric(sparkContext, "time in the model"),
    "waitingTime" -> SQLMetrics.createNanoTimingMetric(sparkContext, "time waiting for the model"),
    "sharedMemory" -> SQLMetrics.createSizeMetric(sparkContext, "memory shared with the model, of the tasks' execution memory"),
    "loadTime" -> SQLMetrics.createNanoTimingMetric(sparkContext, "time loading the model"))

  override protected def doExecute(): RDD[InternalRow] = {
    val payload = udf.func.broadcastVars.asScala.headOption
    val task = PredictTask(Predict.planOf(udf).get.toByteArray, payload, udf.children, udf.dataType, kept, child.output, conf.sessionLocalTimeZone, metrics)
    child.execute().mapPartitionsWithIndexInternal((partition, rows) => task.predict(rows, partition))
  }
}

/** What a task needs; travels in the closure. */
private final case class PredictTask(
    plan: Array[Byte],
    payload: Option[Broadcast[PythonBroadcast]],
    arguments: Seq[Expression],
    returns: DataType,
    kept: Seq[Attribute],
    input: Seq[Attribute],
    timeZone: String,
    metrics: Map[String, SQLMetric]) {

  /** Ordinals of the arguments, if all of them are columns of the input. */
  def ordinals: Option[Array[Int]] = {
    val found = arguments.map { case column: Attribute => input.indexWhere(_.exprId == column.exprId); case _ => -1 }
    Option.when(!found.contains(-1))(found.toArray)
  }

  def predict(rows: Iterator[InternalRow], partition: Int): Iterator[InternalRow] = if (!rows.hasNext) Iterator.empty else {
    val message = Schema.parse("PredictPlan", plan)
    val context = TaskContext.get()
    val columns = StructType(arguments.zipWithIndex.map { case (each, index) => StructField(index.toString, each.dataType, each.nullable) })
    val conversation = new ModelConversation(message, payload, columns, returns, timeZone, new Settings(SparkEnv.get.conf).maxBatchBytes, metrics)
    context.addTaskCompletionListener[Unit](_ => conversation.close())
    val queue = Option.when(kept.nonEmpty)(RowQueues.create(context.taskMemoryManager(), kept.length))
    queue.foreach(each => context.addTaskCompletionListener[Unit](_ => each.close()))
    val predictions = new Predictions(new Input(this, rows, partition, queue), conversation, message.int("batch_size"), metrics("numOutputRows"))
    val toResult = UnsafeProjection.create((kept.map(_.dataType) :+ returns).toArray)
    queue.fold(predictions.map(toResult(_))) { waiting =>
      val joined = new JoinedRow
      predictions.map(prediction => toResult(joined(waiting.remove(), prediction)))
    }
  }
}

/** The rows of a partition on their way into batches; what is kept of each goes into Spark's own queue, which spills. */
private final class Input(task: PredictTask, rows: Iterator[InternalRow], partition: Int, queue: Option[RowQueues.Queue]) {
  private val direct = task.ordinals
  private val ordinals = direct.getOrElse(task.arguments.indices.toArray)
  private val toArguments = Option.when(direct.isEmpty)(UnsafeProjection.create(task.arguments, task.input))
  toArguments.foreach(_.initialize(partition)) // for random expressions
  private val toKept = UnsafeProjection.create(task.kept, task.input)
  private val keepsAll = task.kept == task.input

  def hasNext: Boolean = rows.hasNext

  /** Up to `limit` rows. */
  def fill(columns: Array[ColumnEncoder], limit: Int): Unit = {
    var filled = 0
    while (filled < limit && rows.hasNext) {
      val row = rows.next()
      if (queue.isDefined) queue.get.add(row match {
        case unsafe: UnsafeRow if keepsAll => unsafe
        case other => toKept(other)
      })
      val arguments = if (toArguments.isEmpty) row else toArguments.get(row)
      var index = 0
      while (index < columns.length) {
        columns(index).add(arguments, ordinals(index))
        index += 1
      }
      filled += 1
    }
  }
}

/** One row a prediction, valid until the next. At most two chunks are under way: the next one is filled while the model computes. */
private final class Predictions(from: Input, conversation: ModelConversation, batchSize: Int, counted: SQLMetric) extends Iterator[InternalRow] {
  private val pace = new Pace(batchSize, conversation.maxBytes)
  private var predicted: Iterator[InternalRow] = Iterator.empty

  override def hasNext: Boolean = predicted.hasNext || {
    while (conversation.underWay < 2 && from.hasNext) {
      from.fill(conversation.begin(), pace.rows)
      pace.sent(conversation.send())
    }
    if (conversation.underWay == 0) false
    else {
      predicted = conversation.receive()
      pace.took(conversation.modelSeconds)
      predicted.hasNext
    }
  }

  override def next(): InternalRow = {
    if (!hasNext) throw new NoSuchElementException
    counted += 1
    predicted.next()
  }
}

/** How many rows go to the host at once: one batch, or several where batches are so small and fast that the way there would cost more than the model. */
private[sparkgap] final class Pace(batchSize: Int, limitBytes: Long) {
  private val maxBytes = math.min(Pace.MaxBytes, limitBytes / 4)
  private var batches = 1
  private var bytes = 0L

  def rows: Int = batches * batchSize

  def sent(chunkBytes: Long): Unit = bytes = chunkBytes

  def took(seconds: Double): Unit =
    if (seconds > Pace.SlowSeconds && batches > 1) batches /= 2
    else if (seconds < Pace.FastSeconds && 2L * rows <= Pace.MaxRows && 2 * bytes <= maxBytes) batches *= 2
}

/** A chunk is small enough to be cancelled soon, and to be wasted by a LIMIT. The worker's chunks follow the same figures. */
private[sparkgap] object Pace {
  val FastSeconds = 0.001
  val SlowSeconds = 0.01
  val MaxRows = 4096L
  val MaxBytes: Long = 4L << 20
}
