// Optimizer rules that spare the model rows. Pullout.scala has made predictions non-deterministic, so Spark itself moves no filter past one and never
// takes two for the same. That they run in the optimizer means that Spark has put in before what is cached.
package org.apache.spark.sql.connect.sparkgap

import org.apache.spark.sql.catalyst.expressions._
import org.apache.spark.sql.catalyst.plans.logical.{Filter, LogicalPlan, Project}
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.catalyst.trees.TreePattern.{FILTER, PYTHON_UDF}

/** What a filter drops by other columns is not predicted. */
object FilterFirst extends Rule[LogicalPlan] with PredicateHelper {
  override def apply(plan: LogicalPlan): LogicalPlan = plan.transformWithPruning(_.containsAllPatterns(PYTHON_UDF, FILTER)) {
    case filter @ Filter(condition, project @ Project(list, child)) if list.exists(!_.deterministic) && list.forall(randomOnlyByPredictions) =>
      val plain = AttributeSet(list.filter(_.deterministic).map(_.toAttribute))
      val (before, after) = splitConjunctivePredicates(condition).partition { each =>
        each.deterministic && each.references.subsetOf(plain) && !becomesJoin(each)
      }
      if (before.isEmpty) filter
      else {
        val filtered = project.copy(child = Filter(replaceAlias(before.reduce(And), getAliasMap(project)), child))
        after.reduceOption(And).fold[LogicalPlan](filtered)(Filter(_, filtered))
      }
  }

  private def becomesJoin(condition: Expression): Boolean = condition.exists {
    case scalar: ScalarSubquery => scalar.isCorrelated
    case other => other.isInstanceOf[SubqueryExpression]
  }

  private def randomOnlyByPredictions(expression: Expression): Boolean = expression.deterministic || (expression match {
    case udf: PythonUDF if Predict.isPrediction(udf) => udf.children.forall(randomOnlyByPredictions)
    case _: Nondeterministic | _: UserDefinedExpression => false
    case other => other.children.forall(randomOnlyByPredictions)
  })
}

/** `SELECT predict(x) FROM t WHERE predict(x) > 0` predicts for its condition only, and selects the same prediction. */
object SelectFiltered extends Rule[LogicalPlan] {
  override def apply(plan: LogicalPlan): LogicalPlan = plan.transformUpWithPruning(_.containsAllPatterns(PYTHON_UDF, FILTER)) {
    case project: Project => predictions(project.projectList).foldLeft(project) { (changed, udf) =>
      handUp(udf, changed.child).fold(changed) { case (child, known) =>
        Project(changed.projectList.map(_.transformDown { case other: PythonUDF if same(other, udf) => known }.asInstanceOf[NamedExpression]), child)
      }
    }
  }

  private def predictions(list: Seq[NamedExpression]): Seq[PythonUDF] = list.flatMap(_.collect {
    case udf: PythonUDF if Predict.isPrediction(udf) && !udf.udfDeterministic && udf.children.forall(_.deterministic) => udf
  })

  private def same(one: PythonUDF, other: PythonUDF): Boolean =
    one.children.map(_.canonicalized) == other.children.map(_.canonicalized) && one.func.command == other.func.command

  /** The plan with the prediction in its output, where a Project below computes it from the same columns. */
  private def handUp(udf: PythonUDF, plan: LogicalPlan): Option[(LogicalPlan, Attribute)] = plan match {
    case Project(list, child) if udf.references.subsetOf(child.outputSet) =>
      list.collectFirst { case alias @ Alias(other: PythonUDF, _) if same(other, udf) => (plan, alias.toAttribute) }
        .orElse(handUp(udf, child).map { case (below, known) => (Project((list :+ known).distinct, below), known) })
    case filter: Filter => handUp(udf, filter.child).map { case (below, known) => (filter.copy(child = below), known) }
    case _ => None
  }
}
