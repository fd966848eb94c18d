// Lets a prediction stand wherever Spark takes a function, and be computed once all the same. Analysis is told that predictions are deterministic (by
// Predict.scala), or it would refuse them inside aggregates and join conditions. The optimizer has to be told the opposite, or it would copy them.
// Pullout runs in between: it moves predictions into Projects, equal ones of a node as one, and makes them non-deterministic; then comes Savings.scala.
package org.apache.spark.sql.connect.sparkgap

import java.util

import scala.annotation.tailrec
import scala.collection.mutable

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.api.python.PythonFunction
import org.apache.spark.sql.catalyst.expressions._
import org.apache.spark.sql.catalyst.expressions.SubExprUtils.containsOuter
import org.apache.spark.sql.catalyst.expressions.aggregate.AggregateExpression
import org.apache.spark.sql.catalyst.plans.InnerLike
import org.apache.spark.sql.catalyst.plans.logical._
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.catalyst.trees.TreePattern.PYTHON_UDF

import Schema._

object Pullout extends Rule[LogicalPlan] {
  override def apply(plan: LogicalPlan): LogicalPlan = if (plan.containsPattern(PYTHON_UDF)) new Pullout().from(plan) else plan
}

private final class Pullout extends PredicateHelper {
  private val models = new util.IdentityHashMap[PythonFunction, Option[DynamicMessage]]()

  def from(plan: LogicalPlan): LogicalPlan = {
    val moved = plan.transformUpWithSubqueriesAndPruning(_.containsPattern(PYTHON_UDF)) {
      case project: Project => fromProject(project)
      case aggregate: Aggregate => fromAggregate(aggregate)
      case join: Join => fromJoin(join)
      case node: UnaryNode => fromUnary(node)
    }
    moved.transformAllExpressionsWithSubqueries { case Prediction(udf) => udf.copy(udfDeterministic = false) }
  }

  /** What makes two predictions the same one. Names are for people, and the digest stands for the function. */
  private type Identity = (DynamicMessage, Seq[Expression], Option[ExprId])

  private def identity(udf: PythonUDF): Identity =
    (model(udf).get, udf.children.map(_.canonicalized), Option.when(!udf.children.forall(_.deterministic))(udf.resultId))

  private def model(udf: PythonUDF): Option[DynamicMessage] = models.computeIfAbsent(udf.func, _ =>
    Predict.planOf(udf).filterNot(_.bool("deterministic")).map(_.without("make_predict_fn").without("argument_names").without("name")))

  private object Prediction {
    /** One of ours whose arguments come from its own query. With those of a subquery that depend on the query around it, Spark itself has to deal. */
    def unapply(expression: Expression): Option[PythonUDF] = expression match {
      case udf: PythonUDF if model(udf).isDefined && !udf.children.exists(containsOuter) => Some(udf)
      case _ => None
    }
  }

  private def predictions(expressions: Seq[Expression]): Seq[PythonUDF] = expressions.flatMap(_.collect { case Prediction(udf) => udf })

  /** Predictions that a Project above `child` can compute: those whose arguments hold no further one. */
  private def computable(expressions: Seq[Expression], child: LogicalPlan): Seq[PythonUDF] = predictions(expressions).filter { udf =>
    predictions(udf.children).isEmpty && udf.references.subsetOf(child.outputSet) && !udf.exists(_.isInstanceOf[AggregateExpression])
  }

  private def pull(expressions: Seq[Expression], child: LogicalPlan): Pulled = new Pulled(computable(expressions, child), child)

  /** Predictions that a child hands on together with their arguments, such as those of SELECT below its ORDER BY. */
  private def known(child: LogicalPlan): Map[Identity, Attribute] = projected(child).collect {
    case alias @ Alias(Prediction(udf), _) if child.outputSet.contains(alias.toAttribute) && udf.references.subsetOf(child.outputSet) =>
      identity(udf) -> alias.toAttribute
  }.toMap

  private def projected(plan: LogicalPlan): Seq[NamedExpression] = plan match {
    case Project(list, child) => list ++ projected(child)
    case node: UnaryNode => projected(node.child)
    case _ => Nil
  }

  private final class Pulled(udfs: Seq[PythonUDF], child: LogicalPlan) {
    private lazy val found = known(child)
    private lazy val added = udfs.map(udf => identity(udf) -> udf).distinctBy(_._1)
      .collect { case (key, udf) if !found.contains(key) => key -> Alias(udf, udf.name)() }
    private lazy val attributes = found ++ added.map { case (key, alias) => key -> alias.toAttribute }

    def isEmpty: Boolean = udfs.isEmpty

    def replaceIn[E <: Expression](expression: E): E = if (isEmpty) expression else expression.transformDown {
      case Prediction(udf) if attributes.contains(identity(udf)) => attributes(identity(udf))
    }.asInstanceOf[E]

    def below: LogicalPlan = if (isEmpty || added.isEmpty) child else insert(added.map(_._2), child)
  }

  private def insert(aliases: Seq[Alias], child: LogicalPlan): LogicalPlan = child match {
    // ROLLUP and CUBE repeat each row, but not its prediction
    case expand: Expand if aliases.forall(_.references.subsetOf(unchanged(expand))) =>
      val attributes = aliases.map(_.toAttribute)
      expand.copy(projections = expand.projections.map(_ ++ attributes), output = expand.output ++ attributes, child = insert(aliases, expand.child))
    case _ => Project(child.output ++ aliases, child)
  }

  private def unchanged(expand: Expand): AttributeSet = AttributeSet(expand.output.zipWithIndex.collect {
    case (attribute, index) if expand.projections.forall(_(index).semanticEquals(attribute)) => attribute
  })

  /** A Project computes predictions itself, except one that it needs several times or inside another. */
  @tailrec
  private def fromProject(project: Project): Project = {
    val all = predictions(project.projectList)
    lazy val nested = predictions(all.flatMap(_.children)).map(identity).toSet
    lazy val counts = all.groupMapReduce(identity)(_ => 1)(_ + _)
    lazy val elsewhere = nested ++ known(project.child).keys ++ counts.collect { case (key, count) if count > 1 => key }
    val pulled = new Pulled(computable(project.projectList, project.child).filter(udf => elsewhere(identity(udf))), project.child)
    if (pulled.isEmpty) project else fromProject(Project(project.projectList.map(pulled.replaceIn(_)), pulled.below))
  }

  private def fromUnary(node: UnaryNode): LogicalPlan = {
    val pulled = pull(node.expressions, node.child)
    if (pulled.isEmpty) node
    else {
      val rest = node.mapExpressions(pulled.replaceIn(_)).withNewChildren(Seq(pulled.below)).asInstanceOf[UnaryNode]
      Project(node.output, fromUnary(rest))
    }
  }

  /** Predictions inside aggregate functions and grouping expressions go below the aggregate, those of its results above it. */
  private def fromAggregate(aggregate: Aggregate): LogicalPlan = {
    val functions = aggregate.aggregateExpressions.flatMap(_.collect { case function: AggregateExpression => function })
    val pulled = pull(aggregate.groupingExpressions ++ functions, aggregate.child)
    if (pulled.isEmpty) {
      if (predictions(aggregate.aggregateExpressions).isEmpty) aggregate else splitResults(aggregate)
    } else fromAggregate(aggregate.copy(
      groupingExpressions = aggregate.groupingExpressions.map(pulled.replaceIn(_)),
      aggregateExpressions = aggregate.aggregateExpressions.map(_.transformDown {
        case each if computedBy(aggregate, each) => pulled.replaceIn(each)
      }.asInstanceOf[NamedExpression]),
      child = pulled.below))
  }

  private def computedBy(aggregate: Aggregate, expression: Expression): Boolean =
    expression.isInstanceOf[AggregateExpression] || aggregate.groupingExpressions.exists(_.semanticEquals(expression))

  private def splitResults(aggregate: Aggregate): LogicalPlan = {
    val computed = mutable.LinkedHashMap[Expression, NamedExpression]()
    val results = aggregate.aggregateExpressions.map(_.transformDown {
      case each if computedBy(aggregate, each) => computed.getOrElseUpdate(each.canonicalized, each match {
        case named: NamedExpression => named
        case other => Alias(other, "aggregate")()
      }).toAttribute
    }.asInstanceOf[NamedExpression])
    fromProject(Project(results, aggregate.copy(aggregateExpressions = computed.values.toSeq)))
  }

  private def fromJoin(join: Join): LogicalPlan = {
    val left = pull(join.condition.toSeq, join.left)
    val half = join.condition.map(left.replaceIn(_))
    val right = pull(half.toSeq, join.right)
    if (left.isEmpty && right.isEmpty) filterAbove(join)
    else Project(join.output, fromJoin(join.copy(
      left = left.below,
      right = right.below,
      condition = half.map(right.replaceIn(_)))))
  }

  /** A prediction from columns of both sides is computed for each pair. Of an outer join Spark refuses it, with a text of its own. */
  private def filterAbove(join: Join): LogicalPlan = {
    val (predicted, rest) = join.condition.toSeq.flatMap(splitConjunctivePredicates).partition(each => predictions(Seq(each)).nonEmpty)
    if (predicted.isEmpty || !join.joinType.isInstanceOf[InnerLike]) join
    else fromUnary(Filter(predicted.reduce(And), join.copy(condition = rest.reduceOption(And))))
  }
}
