// What executors tell and ask the driver through Spark's plugin RPC. It goes one way, from executor to driver, and answers are plain types: an
// executor's RPC layer is older than the class loader that knows ours.
package org.apache.spark.sql.connect.sparkgap

/** A run belongs to the user of the session that submitted it. */
final case class RunKey(user: String, id: String)

sealed trait Rpc extends Serializable

/** The nursery of an executor speaks: `report` is the JSON of its hello line. */
final case class NodeUp(executor: String, report: String) extends Rpc

/** The nursery of an executor could not be started. */
final case class NodeDown(executor: String, reason: String) extends Rpc

/** Spark has started a task of the gang. */
final case class Placed(run: RunKey, attempt: Int) extends Rpc

/** A serialized RunEvent, and how many lines it tells of, lost ones counted. */
final case class RankEvent(run: RunKey, attempt: Int, event: Array[Byte], lines: Long) extends Rpc

/** A serialized RankNotice. */
final case class RankNoticed(run: RunKey, attempt: Int, notice: Array[Byte]) extends Rpc

/** A serialized RankFailure. Answered when it is recorded. */
final case class RankFailed(run: RunKey, attempt: Int, failure: Array[Byte]) extends Rpc

/** Answers whether a failure is known that was not raised in a collective, and so is no mere consequence of another. */
final case class CauseKnown(run: RunKey, attempt: Int) extends Rpc

/** Rank 0 listens at this serialized MeetingPoint. */
final case class MeetHere(run: RunKey, attempt: Int, point: Array[Byte]) extends Rpc

/** Answers with rank 0's MeetingPoint, or an empty array while it is not known. */
final case class WhereToMeet(run: RunKey, attempt: Int) extends Rpc

/** Answered after everything that the same executor sent before. */
case object Flush extends Rpc
