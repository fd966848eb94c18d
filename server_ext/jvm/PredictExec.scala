// The direct way of a prediction: Spark has pulled our UDF out of whatever expression it stood in, and planned a node that runs it in Python workers;
// the rule here exchanges that node for one whose tasks hand batches to the model host themselves, through shared memory.
package org.apache.spark.sql.connect.sparkgap

import org.apache.spark.TaskContext
import org.apache.spark.rdd.RDD
import org.apache.spark.sql.SparkSessionExtensions
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions._
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.execution.{ColumnarRule, SparkPlan, UnaryExecNode}
import org.apache.spark.sql.execution.metric.{SQLMetric, SQLMetrics}
import org.apache.spark.sql.execution.python.{ArrowEvalPythonExec, RowQueues}
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types.{DataType, StructField, StructType}

import Schema._

/** `spark.sql.extensions` */
class SparkgapRules extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = {
    extensions.injectPlanNormalizationRule(_ => Pullout)
    extensions.injectOptimizerRule(_ => FilterFirst)
    extensions.injectOptimizerRule(_ => SelectFiltered)
    extensions.injectColumnar(_ => new ColumnarRule { override def preColumnarTransitions: Rule[SparkPlan] = DirectPrediction })
  }
}

object DirectPrediction extends Rule[SparkPlan] {
  /** Session setting; false leaves predictions to Spark's Python workers, with the same results. */
  val Setting = "spark.sparkgap.predict.direct"

  override def apply(plan: SparkPlan): SparkPlan =
    if (!SQLConf.get.getConfString(Setting, "true").toBoolean) plan
    else plan.transformUp {
      case node: ArrowEvalPythonExec if node.udfs.size == 1 && !node.udfs.head.children.exists(_.exists(_.isInstanceOf[PythonUDF])) =>
        Predict.planOf(node.udfs.head).filterNot(_.bool("session_files"))
          .fold[SparkPlan](node)(_ => PredictExec(node.udfs.head, node.resultAttrs.head, node.child))
    }
}

case class PredictExec(udf: PythonUDF, result: Attribute, child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = child.output :+ result
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
    "loadTime" -> SQLMetrics.createNanoTimingMetric(sparkContext, "time loading the model"))

  override protected def doExecute(): RDD[InternalRow] = {
    val task = PredictTask(Predict.planOf(udf).get.toByteArray, udf.name, udf.children, udf.dataType, child.output, conf.sessionLocalTimeZone, metrics)
    child.execute().mapPartitionsInternal(rows => if (rows.hasNext) task.predict(rows) else Iterator.empty)
  }
}

/** What a task needs; travels in the closure. */
private final case class PredictTask(
    plan: Array[Byte],
    name: String,
    arguments: Seq[Expression],
    returns: DataType,
    input: Seq[Attribute],
    timeZone: String,
    metrics: Map[String, SQLMetric]) {

  def predict(rows: Iterator[InternalRow]): Iterator[InternalRow] = {
    val message = Schema.parse("PredictPlan", plan)
    val context = TaskContext.get()
    val columns = StructType(arguments.zipWithIndex.map { case (each, index) => StructField(index.toString, each.dataType, each.nullable) })
    val conversation = new ModelConversation(message, columns, StructType(Seq(StructField("prediction", returns))), timeZone, metrics)
    val queue = RowQueues.create(context.taskMemoryManager(), input.length)
    context.addTaskCompletionListener[Unit] { _ => conversation.close(); queue.close() }
    new Predictions(rows, queue, conversation, message.int("batch_size"))
  }

  /** Rows wait in Spark's own queue, which spills, while their batch is with the model; at most two batches are under way. */
  private final class Predictions(rows: Iterator[InternalRow], queue: RowQueues.Queue, conversation: ModelConversation, batchSize: Int)
      extends Iterator[InternalRow] {
    private val toUnsafe = UnsafeProjection.create(input, input)
    private val bound = BindReferences.bindReferences(arguments, input).toArray
    bound.foreach(_.foreach {
      case random: Nondeterministic => random.initialize(TaskContext.get().partitionId())
      case _ =>
    })
    private val joined = new JoinedRow
    private val toResult = UnsafeProjection.create((input.map(_.dataType) :+ returns).toArray)
    private var predicted: Iterator[InternalRow] = Iterator.empty

    override def hasNext: Boolean = predicted.hasNext || {
      while (conversation.underWay < 2 && rows.hasNext) fill()
      if (conversation.underWay == 0) false
      else {
        predicted = conversation.receive()
        predicted.hasNext
      }
    }

    override def next(): InternalRow = {
      if (!hasNext) throw new NoSuchElementException
      metrics("numOutputRows") += 1
      toResult(joined(queue.remove(), predicted.next()))
    }

    private def fill(): Unit = {
      val batch = conversation.begin()
      while (batch.rows < batchSize && rows.hasNext) {
        val row = rows.next() match {
          case unsafe: UnsafeRow => unsafe
          case other => toUnsafe(other)
        }
        queue.add(row)
        batch.add(row, bound)
      }
      conversation.send(batch)
    }
  }
}
