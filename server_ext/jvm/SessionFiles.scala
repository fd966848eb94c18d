// What a run keeps of the session that submits it, as of the submit: user, settings, files. The files and archives that a session brought (`addArtifacts`), as of a run's submit: kept for the run, whatever becomes of the session, by a clone of
// it. Spark puts them beside the run's tasks as it does for a query's; RankTask.scala tells the ranks where.
package org.apache.spark.sql.connect.sparkgap

import java.io.File

import org.apache.spark.SparkFiles
import org.apache.spark.sql.classic.SparkSession
import org.apache.spark.sql.connect.service.SessionHolder

/** Where they lie in an executor, below Spark's folder for files; `archives` are imported from, packed as they are. */
final case class SessionFolder(uuid: String, archives: Seq[String]) {
  /** For sys.path; in a task. Standalone executors name the folder relative to their own. */
  def pythonPath: Seq[String] = {
    val folder = new File(SparkFiles.getRootDirectory(), uuid).getAbsoluteFile.toPath.normalize
    folder.toString +: archives.map(folder.resolve(_).toString)
  }
}

final class SessionFiles private (copy: SparkSession) {
  val folder: SessionFolder = SessionFolder(copy.sessionUUID, copy.artifactManager.getPythonIncludes)

  /** Spark takes a job's files from the thread that submits it. */
  def during(body: => Unit): Unit = try copy.artifactManager.withResources(body) finally close()

  def close(): Unit = copy.artifactManager.close()
}

object SessionFiles {
  /** None, and no cost, for a session that brought none. */
  def of(session: SessionHolder): Option[SessionFiles] =
    Option.when(Predict.hasFiles(session))(new SessionFiles(session.session.cloneSession()))

  def during(files: Option[SessionFiles])(body: => Unit): Unit = files.fold(body)(_.during(body))
}

/** The session that submits a run. `conf` are its own settings, those that it does not share with the server; `files` are copied when they are asked for. */
final class SubmittingSession(val user: String, val conf: Map[String, String], copied: => Option[SessionFiles]) {
  def files: Option[SessionFiles] = copied
}

object SubmittingSession {
  def of(session: SessionHolder): SubmittingSession = {
    val spark = session.session
    val server = spark.sparkContext.conf
    val own = spark.conf.getAll.filterNot { case (key, value) => server.getOption(key).contains(value) }
    new SubmittingSession(session.userId, own, SessionFiles.of(session))
  }
}
