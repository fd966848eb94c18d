// What clients have taken back (CancelRun with a submission) before it was here: a SubmitRun may be on its way still, or may wait in Admission for
// executors. Runs.scala asks here after it has registered a run, and looks for the run after it has told this; so one of the two sees the other.
package org.apache.spark.sql.connect.sparkgap

import java.util.LinkedHashMap
import java.util.Map.Entry

/** The newest `most` of them, for so long: a client sends a request again for ten minutes. */
final class Withdrawals(most: Int, millis: Long) {
  private final case class Withdrawn(reason: String, at: Long)

  private val known = new LinkedHashMap[(RunKey, String), Withdrawn]() {
    override def removeEldestEntry(eldest: Entry[(RunKey, String), Withdrawn]): Boolean = size > most || isOver(eldest.getValue)
  }

  private def isOver(withdrawn: Withdrawn): Boolean = System.currentTimeMillis() - withdrawn.at > millis

  def add(key: RunKey, submission: String, reason: String): Unit =
    synchronized { known.put((key, submission), Withdrawn(reason.take(1000), System.currentTimeMillis())) }

  /** Why this submission is not to run. */
  def reason(key: RunKey, submission: String): Option[String] = synchronized {
    Option(known.get((key, submission))).filterNot(isOver).map(_.reason)
  }
}
