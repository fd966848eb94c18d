// The only file that touches Spark Connect's private planner. Connect creates one object of each class and offers it every extension message; what is
// not ours is declined, so that other plugins see it.
package org.apache.spark.sql.connect.sparkgap

import java.util
import java.util.Optional

import scala.jdk.CollectionConverters._

import org.sparkproject.connect.grpc.stub.StreamObserver
import org.sparkproject.connect.protobuf.{Any => ProtoAny, DynamicMessage, InvalidProtocolBufferException}

import org.apache.spark.connect.proto
import org.apache.spark.sql.catalyst.expressions.Expression
import org.apache.spark.sql.connect.planner.SparkConnectPlanner
import org.apache.spark.sql.connect.plugin.{CommandPlugin, ExpressionPlugin, GetStatusPlugin}
import org.apache.spark.sql.connect.service.{ExecuteHolder, SessionHolder}

import Schema._

/** `spark.connect.extensions.command.classes` */
class SparkgapCommands extends CommandPlugin {
  override def process(bytes: Array[Byte], planner: SparkConnectPlanner): Boolean = {
    lazy val replies = new Replies(planner.executeHolderOpt.get)
    try Schema.extension(ProtoAny.parseFrom(bytes), "Command") match {
      case None => false
      case Some(command) => carryOut(command, planner.sessionHolder, replies); true
    } catch { case refused: Refused => replies.send(refused.toReply); true }
  }

  private def carryOut(command: DynamicMessage, session: SessionHolder, replies: Replies): Unit = {
    val user = session.userId
    Refused.unlessSpoken(command.int("protocol"), command.string("client"))
    command.choice("kind") match {
      case Some("submit") =>
        val submit = command.message("submit")
        val run = Runs.submit(SubmittingSession.of(session), submit.message("plan"), submit.string("submission"))
        if (submit.has("follow")) replies.follow(run, submit.message("follow")) else replies.status(run, complete = false)
      case Some("follow") =>
        val follow = command.message("follow")
        replies.follow(Runs(RunKey(user, follow.string("run_id"))), follow)
      case Some("cancel") =>
        val cancel = command.message("cancel")
        val (key, submission, reason) = (RunKey(user, cancel.string("run_id")), cancel.string("submission"), cancel.string("reason"))
        if (submission.nonEmpty) replies.send(Schema.build("Reply")("status" -> Runs.takeBack(key, submission, reason)))
        else {
          val run = Runs(key)
          run.cancel(reason)
          replies.status(run, complete = false)
        }
      case Some("register") =>
        val register = command.message("register")
        Functions.register(register.string("name"), PlanCheck.prediction(register.message("plan"), arguments = false), session)
      case _ => throw Refused.plan("the command asks for nothing that this server knows")
    }
  }
}

/** The response stream of one operation. The observer keeps unread responses in memory, so one operation sends one page. */
private final class Replies(execution: ExecuteHolder) {
  private lazy val settings = new Settings(execution.sessionHolder.session.sparkContext.conf)
  private val PageBytes = 16L << 20
  private val MessageBytes = 1L << 20
  private val WaitMillis = 1000L

  // By reflection: the Scala signature of the observer names gRPC's unrelocated types, which are not on the class path.
  private val observer = classOf[ExecuteHolder].getMethod("responseObserver").invoke(execution).asInstanceOf[StreamObserver[proto.ExecutePlanResponse]]

  def send(reply: DynamicMessage): Unit = observer.onNext(proto.ExecutePlanResponse.newBuilder().setSessionId(execution.sessionHolder.sessionId)
    .setServerSideSessionId(execution.sessionHolder.serverSessionId).setOperationId(execution.operationId).setExtension(Schema.pack(reply)).build())

  def status(run: AnyRun, complete: Boolean): Unit = send(Schema.build("Reply")("status" -> run.status(complete)))

  /** Spark interrupts an operation when a client asks for it (`interruptAll`, `interruptTag`, `interruptOperation`), and also when it closes one whose
   *  client or session is gone. Only the first is meant for the run. */
  def follow(run: AnyRun, request: DynamicMessage): Unit =
    try send(run, request)
    catch { case interrupt: InterruptedException =>
      if (request.bool("cancel_on_interrupt") && execution.getExecuteInfo.closedTimeNs.isEmpty) run.cancel("its client was interrupted through Spark")
      throw interrupt
    }

  private def send(run: AnyRun, request: DynamicMessage): Unit = {
    val waits = !request.bool("no_wait")
    val deadline = System.nanoTime() + settings.followMillis * 1000000L // a client that has gone away unnoticed does not ask again
    var cursor = request.long("from_sequence")
    var sent = 0L
    var complete = false
    var told = Option.empty[Place]
    while (!complete && sent < PageBytes && System.nanoTime() < deadline) {
      val ended = run.ended // before the events are read, or the last ones could be missed
      val page = run.page(cursor, MessageBytes)
      if (page.events.nonEmpty || page.dropped > 0) {
        val events = Schema.build("RunEvents")("sequences" -> page.events.map(_.sequence), "dropped" -> page.dropped, "next_sequence" -> page.next,
          "events" -> page.events.map(each => Schema.parse("RunEvent", each.event))).copy(page.nextLine.map("next_line" -> _).toSeq: _*)
        send(Schema.build("Reply")("events" -> events))
        cursor = page.next
        sent += page.events.map(_.event.length.toLong).sum
      } else if (ended || !waits) complete = true
      else {
        run.await(cursor, WaitMillis)
        val now = run.place
        if (now.isDefined && now != told) status(run, complete = false)
        told = now
      }
    }
    if (complete && request.bool("with_result")) run.resultChunks.foreach { chunk =>
      send(Schema.build("Reply")("result" -> Schema.build("ResultChunk")("data" -> chunk)))
    }
    status(run, complete)
  }
}

/** `spark.connect.extensions.getStatus.classes`. Connect only logs an exception here, so errors are replies. */
class SparkgapStatus extends GetStatusPlugin {
  override def processRequestExtensions(session: SessionHolder, requests: util.List[ProtoAny]): Optional[util.List[ProtoAny]] =
    answers(session, requests)

  override def processOperationExtensions(operation: String, session: SessionHolder, requests: util.List[ProtoAny]): Optional[util.List[ProtoAny]] =
    Optional.empty()

  private def answers(session: SessionHolder, requests: util.List[ProtoAny]): Optional[util.List[ProtoAny]] = {
    val ours = requests.asScala.toSeq.flatMap { any =>
      try Schema.extension(any, "Query").map(answer(session, _))
      catch { case refused: Refused => Some(refused.toReply) }
    }
    if (ours.isEmpty) Optional.empty() else Optional.of(ours.map(Schema.pack).asJava)
  }

  private def answer(session: SessionHolder, query: DynamicMessage): DynamicMessage = {
    if (query.choice("kind").contains("hello"))
      return Schema.build("Reply")("hello" -> Schema.build("Hello")("protocol" -> Schema.Protocol, "spark" -> org.apache.spark.SPARK_VERSION))
    Refused.unlessSpoken(query.int("protocol"), query.string("client"))
    query.choice("kind") match {
      case Some("run") => Schema.build("Reply")("status" -> Runs(RunKey(session.userId, query.message("run").string("run_id"))).status(complete = false))
      case Some("list") => Schema.build("Reply")("list" -> Schema.build("RunList")("runs" -> Runs.list(session.userId)))
      case Some("server") => Schema.build("Reply")("server" -> Report.of(session))
      case Some("payload") => Schema.build("Reply")("payload" -> Schema.build("PayloadAnswer")("way" -> Payloads.way(query.message("payload"), session)))
      case _ => throw Refused.plan("the query asks for nothing that this server knows")
    }
  }
}

/** `spark.connect.extensions.expression.classes` */
class SparkgapExpressions extends ExpressionPlugin {
  override def transform(bytes: Array[Byte], planner: SparkConnectPlanner): Optional[Expression] =
    Schema.extension(ProtoAny.parseFrom(bytes), "PredictPlan") match {
      case None => Optional.empty()
      case Some(received) =>
        val plan = PlanCheck.prediction(received, arguments = true)
        def arguments: Seq[Expression] = plan.messages("arguments").zipWithIndex.map { case (any, index) =>
          val argument = try ProtoAny.parseFrom(any.toByteArray).unpack(classOf[proto.Expression])
            catch { case damage: InvalidProtocolBufferException => throw Refused.plan(s"the PredictPlan is damaged: argument $index: ${damage.getMessage}") }
          planner.transformExpression(argument)
        }
        Optional.of(PlanCheck.nestedIn(plan.string("name")) {
          Predict.expression(plan, Predict.payloadOf(plan, planner.sessionHolder), arguments, planner.sessionHolder)
        })
    }
}
