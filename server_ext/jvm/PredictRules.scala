// Puts the direct way into a query's plan: Spark has pulled our UDF out of whatever expression it stood in, and planned a node that runs it in Python
// workers; the rules here exchange that node for PredictExec.
package org.apache.spark.sql.connect.sparkgap

import org.apache.spark.sql.SparkSessionExtensions
import org.apache.spark.sql.catalyst.expressions.{AttributeSet, PythonUDF}
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.execution.{ColumnarRule, FilterExec, ProjectExec, SparkPlan}
import org.apache.spark.sql.execution.python.ArrowEvalPythonExec
import org.apache.spark.sql.internal.SQLConf

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
          .fold[SparkPlan](node)(_ => PredictExec(node.udfs.head, node.resultAttrs.head, node.child.output, node.child))
    }.transformDown { case project: ProjectExec => project.withNewChildren(Seq(keeping(project.child, project.references))) }

  /** Rows wait while their batch is with the model: they wait with no more columns than the nodes above them read. */
  private def keeping(plan: SparkPlan, wanted: AttributeSet): SparkPlan = plan match {
    case filter: FilterExec => filter.withNewChildren(Seq(keeping(filter.child, wanted ++ filter.references)))
    case node: PredictExec => node.copy(kept = node.kept.filter(wanted.contains), child = keeping(node.child, wanted ++ node.udf.references))
    case other => other
  }
}
