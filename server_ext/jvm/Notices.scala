// What the ranks of an attempt leave to be known of them: Run.scala collects it for the status that clients read.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.mutable

import org.sparkproject.connect.protobuf.DynamicMessage

import Schema._

/** The texts of the first ranks; of the others only how many there are, as their lines have the texts too. Run's lock is held. */
final class Notices {
  private val Most = 4
  private val MostCharacters = 4000
  private val texts = mutable.TreeMap.empty[Int, String]
  private val ranks = mutable.HashSet.empty[Int]

  def add(notice: DynamicMessage): Unit = {
    val (rank, text) = (notice.int("rank"), notice.string("text"))
    ranks += rank
    texts(rank) = texts.get(rank).fold(text)(before => s"$before; $text").take(MostCharacters)
    if (texts.size > Most) texts -= texts.lastKey
  }

  def clear(): Unit = { texts.clear(); ranks.clear() }

  /** All in one, after what there is to say of the run itself. */
  def after(ofRun: String): String = {
    val others = ranks.size - texts.size
    val more = if (others > 0) Seq(s"there is something to say of $others more rank${if (others > 1) "s" else ""}, in their output") else Nil
    (Seq(ofRun).filter(_.nonEmpty) ++ texts.map { case (rank, text) => s"rank $rank $text" } ++ more).mkString("; ")
  }
}
