// Predictions that SQL calls by name; Connect.scala hands over what a client registers. Spark asks the builder here anew for each call that it finds.
package org.apache.spark.sql.connect.sparkgap

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.api.python.PythonBroadcast
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.sql.catalyst.FunctionIdentifier
import org.apache.spark.sql.catalyst.analysis.FunctionRegistry
import org.apache.spark.sql.catalyst.expressions.{Expression, NamedArgumentExpression}
import org.apache.spark.sql.connect.service.SessionHolder

import Schema._

object Functions {
  private val NameCharacters = 80
  private val Name = "[A-Za-z_][A-Za-z0-9_]*"

  def register(name: String, plan: DynamicMessage, session: SessionHolder): Unit = {
    if (!name.matches(Name)) throw Refused.plan(s"'$name' is no name for a function: letters, digits and '_' are needed, no digit first")
    if (FunctionRegistry.builtin.functionExists(FunctionIdentifier(name)))
      throw Refused.plan(s"$name is a function of Spark's own, which SQL would go on calling: choose another name")
    Predict.check(plan)
    val named = plan.without("argument_names").copy("name" -> name) // as pyspark does, columns and errors are named after the function
    val payload = Predict.payloadOf(plan, session) // held by the session's registry, whatever Payloads forgets
    session.session.sessionState.functionRegistry.createOrReplaceTempFunction(name, call(name, named, payload, session), "python_udf")
  }

  private def call(name: String, plan: DynamicMessage, payload: Option[Broadcast[PythonBroadcast]], session: SessionHolder)(
      arguments: Seq[Expression]): Expression = {
    if (arguments.isEmpty) throw Refused.plan(s"$name() was called without columns")
    arguments.foreach {
      case named: NamedArgumentExpression => throw Refused.plan(s"$name() has no argument ${named.key}: it takes its columns by position")
      case _ =>
    }
    PlanCheck.unlessNestedTooDeep(name, arguments)
    Predict.expression(plan.copy("argument_names" -> arguments.map(_.sql.take(NameCharacters))), payload, arguments, session)
  }
}
