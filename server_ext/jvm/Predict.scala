// Turns a PredictPlan into a Python UDF over Arrow batches. The UDF's pickle is written here by hand and names an installed function, so nothing of the
// user's is unpickled in the driver.
package org.apache.spark.sql.connect.sparkgap

import java.io.ByteArrayOutputStream
import java.nio.{ByteBuffer, ByteOrder}
import java.nio.charset.StandardCharsets.UTF_8
import java.security.MessageDigest
import java.util

import scala.collection.immutable.ArraySeq
import scala.jdk.CollectionConverters._

import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.SparkEnv
import org.apache.spark.api.python.{PythonBroadcast, PythonEvalType, SimplePythonFunction}
import org.apache.spark.broadcast.Broadcast
import org.apache.spark.sql.catalyst.expressions.{Expression, PythonUDF}
import org.apache.spark.sql.connect.service.SessionHolder
import org.apache.spark.sql.types._

import Schema._

object Predict {
  private val Module = "sparkgap_server.predict.worker"

  /** `payload` is the broadcast of an uploaded make_predict_fn, as `payloadOf` gives it. */
  def expression(plan: DynamicMessage, payload: => Option[Broadcast[PythonBroadcast]], arguments: => Seq[Expression], session: SessionHolder): Expression = {
    val settings = new Settings(SparkEnv.get.conf)
    val returns = check(plan)
    val columns = arguments
    val python = plan.message("make_predict_fn").string("python")
    val includes = session.artifactManager.getPythonIncludes
    val key = modelKey(plan.string("digest"), session)
    val broadcast = payload
    val conf = session.session.sessionState.conf
    val resolved = plan.without("arguments").copy("return_type" -> returns.json, "digest" -> key, "session_files" -> hasFiles(session),
      "time_zone" -> conf.sessionLocalTimeZone, "unchecked_casts" -> !conf.arrowSafeTypeConversion).copy(broadcast.map("broadcast" -> _.id).toSeq: _*)
    val function = new SimplePythonFunction(ArraySeq.unsafeWrapArray(command(resolved.toByteArray, returns)), new util.HashMap[String, String](), includes.asJava,
      settings.python, python, new util.ArrayList[Broadcast[PythonBroadcast]](broadcast.toSeq.asJava), null)
    PythonUDF(plan.string("name"), function, returns, columns, PythonEvalType.SQL_SCALAR_ARROW_ITER_UDF, plan.bool("deterministic") || pulledOut(session))
  }

  def payloadOf(plan: DynamicMessage, session: SessionHolder): Option[Broadcast[PythonBroadcast]] =
    Payloads.of(plan, modelKey(plan.string("digest"), session), session)

  /** Refuses a plan that cannot work on this server, after PlanCheck has found it sound; gives the type of its predictions. */
  def check(plan: DynamicMessage): DataType = {
    Runs.unlessPlugged()
    Nodes.unlessOpenable(plan.message("make_predict_fn"), new Settings(SparkEnv.get.conf).startTimeoutMillis)
    val returns = PlanCheck.returnType(plan.string("return_type"))
    unlessUnsupported(returns)
    returns
  }

  /** Whether Pullout.scala sees the plan after its analysis; otherwise only Spark's refusals keep predictions from being computed twice. */
  private def pulledOut(session: SessionHolder): Boolean = session.session.sessionState.planNormalizationRules.contains(Pullout)

  /** What columns.py makes of predictions; refused here, so that no model is loaded in vain. */
  private def unlessUnsupported(returns: DataType): Unit = {
    def leaf(kind: DataType): DataType = kind match {
      case ArrayType(element, _) => leaf(element)
      case other => other
    }
    def check(kind: DataType, where: String): Unit = leaf(kind) match {
      case _: CharType | _: VarcharType => refuse(kind, where)
      case ByteType | ShortType | IntegerType | LongType | FloatType | DoubleType | BooleanType | _: StringType | BinaryType | DateType |
          TimestampType | TimestampNTZType =>
      case _ => refuse(kind, where)
    }
    def refuse(kind: DataType, where: String): Nothing = throw Refused.plan(
      s"Unsupported return type ${kind.simpleString}$where: a prediction is a number, a boolean, a string, a binary, a date or a timestamp, an array " +
        "of these, or a struct with such fields")
    returns match {
      case struct: StructType => struct.fields.foreach(field => check(field.dataType, s" of field '${field.name}'"))
      case other => check(other, "")
    }
  }

  /** Models belong to a user. A session that brought files of its own shares no model with others: the same bytes may import or read others there. */
  def modelKey(digest: String, session: SessionHolder): String = {
    val hash = MessageDigest.getInstance("SHA-256")
    (Seq(session.userId, digest) ++ Option.when(hasFiles(session))(session.sessionId)).foreach { part =>
      hash.update(part.getBytes(UTF_8))
      hash.update(0.toByte)
    }
    hash.digest().map(byte => f"$byte%02x").mkString
  }

  def hasFiles(session: SessionHolder): Boolean = {
    val (spark, artifacts) = (session.session.sparkContext, session.session.sessionUUID)
    spark.addedFiles.contains(artifacts) || spark.addedArchives.contains(artifacts) // getPythonIncludes lists archives only
  }

  def isPrediction(udf: PythonUDF): Boolean = udf.func.command.startsWith(CommandStart)

  /** The plan inside a UDF that `expression` has made, or None for anybody else's. */
  def planOf(udf: PythonUDF): Option[DynamicMessage] = {
    val command = udf.func.command.toArray
    Option.when(command.startsWith(CommandStart)) {
      val length = ByteBuffer.wrap(command, CommandStart.length + 1, 4).order(ByteOrder.LITTLE_ENDIAN).getInt
      val begin = CommandStart.length + 5
      Schema.parse("PredictPlan", command.slice(begin, begin + length))
    }
  }

  private val CommandStart: Array[Byte] = Array[Byte](0x80.toByte, 3) ++ s"cfunctools\npartial\n(c$Module\npredict\n".getBytes(UTF_8)

  /** Pickle of (functools.partial(Module.predict, plan), return type). */
  private def command(plan: Array[Byte], returns: DataType): Array[Byte] = {
    val out = new ByteArrayOutputStream()
    def text(value: String): Unit = out.write(value.getBytes(UTF_8))
    def sized(opcode: Char, value: Array[Byte]): Unit = {
      out.write(opcode)
      out.write(ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(value.length).array())
      out.write(value)
    }
    out.write(CommandStart)
    sized('B', plan)
    text("tRcpyspark.sql.types\n_parse_datatype_json_string\n(")
    sized('X', returns.json.getBytes(UTF_8))
    text("tR")
    out.write(0x86)
    text(".")
    out.toByteArray
  }
}
