// Each plan of a client passes here before something is built on it: Connect.scala hands over each PredictPlan as it came, Admission.scala each
// TrainPlan. What can never work is refused with its name, so that no task meets it; limits are looked at before anything is parsed.
package org.apache.spark.sql.connect.sparkgap

import scala.jdk.CollectionConverters._
import scala.util.control.NonFatal

import org.sparkproject.connect.protobuf.{Descriptors, DynamicMessage}

import org.apache.spark.sql.catalyst.expressions.{Expression, PythonUDF}
import org.apache.spark.sql.types._

import Schema._

object PlanCheck {
  val MostNestedPredictions = 32
  val MostTypeCharacters = 1000000
  val MostTypeDepth = 100
  private val MostNameCharacters = 10000
  private val MostInputs = 100000
  private val Dtypes = (Set("bool", "float16", "float32", "float64") ++ Seq(8, 16, 32, 64).flatMap(bits => Seq(s"int$bits", s"uint$bits")))

  /** Of a PredictPlan. What a client puts there would be believed further on. */
  private val SetByTheServer = Seq("session_files", "time_zone", "broadcast", "payload_file", "unchecked_casts")

  private val nested = ThreadLocal.withInitial[Int](() => 0)

  // ---- Predictions ----

  /** The plan without what only the server sets. `arguments` says whether it brings its columns along, as all but those for SQL do. */
  def prediction(plan: DynamicMessage, arguments: Boolean): DynamicMessage = {
    Refused.unlessSpoken(plan.int("protocol"), plan.string("client"))
    unlessUnknownChoices(plan)
    val name = plan.string("name")
    if (name.isEmpty || name.length > MostNameCharacters)
      throw Refused.plan(s"the name of a model has 1 to $MostNameCharacters characters, this one ${name.length}")
    if (plan.int("batch_size") < 1) throw Refused.plan(s"batch_size is ${Integer.toUnsignedString(plan.int("batch_size"))}: at least 1 row is needed" +
      s", and at most ${Int.MaxValue}")
    if (plan.string("digest").isEmpty || plan.string("digest").length > 128) throw Refused.plan(s"the plan of $name has no digest of make_predict_fn")
    unlessNoPickle(plan, "make_predict_fn")
    if (arguments) {
      if (plan.count("arguments") == 0) throw Refused.plan(s"$name was called without columns")
      if (plan.count("argument_names") != plan.count("arguments")) throw Refused.plan(s"the plan of $name has " +
        s"${plural(plan.count("arguments"), "argument")} and ${plural(plan.count("argument_names"), "name")} for them: one each is needed")
    }
    inputs(plan, "input_shapes", "shapes").foreach { each =>
      each.longs("dimensions").find(size => size < 1 || size > Int.MaxValue).foreach(size => throw Refused.plan(
        s"input_tensor_shapes of $name has a dimension of $size: positive sizes are needed, up to ${Int.MaxValue}"))
    }
    inputs(plan, "input_dtypes", "dtypes").map(_.string("name")).find(dtype => dtype.nonEmpty && !Dtypes(dtype)).foreach(dtype => throw Refused.plan(
      s"input_dtypes of $name has '${dtype.take(80)}': bool, int8 to int64, uint8 to uint64, float16, float32 or float64 is needed"))
    returnType(plan.string("return_type"))
    SetByTheServer.foldLeft(plan)(_.without(_))
  }

  private def inputs(plan: DynamicMessage, option: String, entries: String): Seq[DynamicMessage] = {
    val given = plan.message(option)
    val found = given.messages(entries)
    if (given.bool("sparse")) {
      val positions = found.map(each => Integer.toUnsignedLong(each.int("index")))
      positions.find(_ >= MostInputs).foreach(far => throw Refused.plan(s"$option has an entry for input $far: a model has at most $MostInputs inputs"))
      positions.diff(positions.distinct).headOption.foreach(twice => throw Refused.plan(s"$option has two entries for input $twice"))
    } else if (found.length > MostInputs) throw Refused.plan(s"$option has ${found.length} entries: a model has at most $MostInputs inputs")
    found
  }

  /** Spark's parsers go down one level of Java's stack, or more, for each level of a type, and some take seconds for a hundred thousand of them. */
  def returnType(text: String): DataType = {
    if (text.length > MostTypeCharacters) throw Refused.plan(s"return_type has ${text.length} characters: at most $MostTypeCharacters are allowed")
    val depth = text.iterator.map(each => if ("<({[".indexOf(each) >= 0) 1 else if (">)}]".indexOf(each) >= 0) -1 else 0).scanLeft(0)(_ + _).max
    if (depth > MostTypeDepth) throw Refused.plan(s"return_type '${text.take(80)}…' is nested $depth deep: at most $MostTypeDepth levels are allowed")
    try if (text.startsWith("{") || text.startsWith("\"")) DataType.fromJson(text) else DataType.fromDDL(text)
    catch { case NonFatal(failure) => throw Refused.plan(s"return_type '$text' is no Spark type: ${failure.getMessage}") }
  }

  /** Around everything that is done for the arguments of a prediction, on the thread that does it. */
  def nestedIn[T](name: String)(body: => T): T = {
    if (nested.get >= MostNestedPredictions) throw tooDeep(name)
    nested.set(nested.get + 1)
    try body finally nested.set(nested.get - 1)
  }

  /** Of predictions that SQL calls by name, Spark has built the arguments already. */
  def unlessNestedTooDeep(name: String, arguments: Seq[Expression]): Unit = {
    def depth(expression: Expression): Int = {
      val inside = expression.children.map(depth).maxOption.getOrElse(0)
      expression match {
        case udf: PythonUDF if Predict.isPrediction(udf) => inside + 1
        case _ => inside
      }
    }
    if (arguments.map(depth).maxOption.exists(_ >= MostNestedPredictions)) throw tooDeep(name)
  }

  private def tooDeep(name: String): Refused = Refused.plan(
    s"$name is given a prediction of a prediction, more than $MostNestedPredictions deep: make columns of the inner ones first, with withColumn")

  // ---- Training ----

  def training(plan: DynamicMessage): Unit = {
    unlessUnknownChoices(plan)
    runId(plan.string("run_id"))
    if (plan.string("name").length > MostNameCharacters)
      throw Refused.plan(s"the name of a run has at most $MostNameCharacters characters, this one ${plan.string("name").length}")
    if (plan.int("num_processes") < 1) throw Refused.plan(s"num_processes is ${plan.int("num_processes")}: at least 1 rank is needed")
    if (plan.int("max_failures") < 0) throw Refused.plan("max_failures is more than a server counts to")
    Seq("cpus", "gpus").filter(plan.message("resources").int(_) < 0).foreach(each =>
      throw Refused.plan(s"resources has more $each than a server counts to"))
    plan.choice("body") match {
      case Some("function") => unlessNoPickle(plan, "function")
      case Some("script") => if (plan.message("script").string("name").isEmpty) throw Refused.plan("the plan's script has no name")
      case _ => throw Refused.plan("the plan has neither a function nor a script")
    }
  }

  def runId(id: String): Unit = if (!id.matches("[A-Za-z0-9._-]{1,128}"))
    throw Refused.plan(s"run id '${id.take(200)}': 1 to 128 letters, digits, '.', '_' and '-' are allowed")

  // ---- Both ----

  private def unlessNoPickle(plan: DynamicMessage, field: String): Unit = {
    val payload = plan.message(field)
    if (payload.bytes("data").isEmpty && payload.long("uploaded_bytes") == 0) throw Refused.plan(s"the plan's $field is empty")
    if (payload.long("uploaded_bytes") < 0) throw Refused.plan(s"the plan's $field has more bytes than a server counts to")
  }

  /** Numbers of enums that only a newer client knows. */
  private def unlessUnknownChoices(message: DynamicMessage): Unit = message.getAllFields.asScala.foreach {
    case (field, value: Descriptors.EnumValueDescriptor) if value.getIndex < 0 =>
      throw Refused.plan(s"the plan's ${field.getName} is ${value.getNumber}, which this server does not know: install the same sparkgap release on " +
        "both sides")
    case _ =>
  }
}
