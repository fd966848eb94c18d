// The reports of all ranks of a run, up to a number of bytes: a part of KeptEvents in EventLog.scala. The newer half of the bytes is as the ranks sent
// it. The older half is thinned where it has to be, and what is left of it is even over its time.
package org.apache.spark.sql.connect.sparkgap

import java.util.TreeMap

import scala.collection.mutable
import scala.jdk.CollectionConverters._

/** `add` runs on the driver's one RPC thread; its work is in proportion to the bytes that have come, over time. */
final class Curves(maxBytes: Long) {
  private val StretchReports = 512
  private val MostRecent = 4096 // events: slow reports come one to an event, and many small events are slow to read
  private val half = maxBytes / 2
  private val mostStretchBytes = maxBytes / 8

  /** Reports of one rank and attempt that were put together; `level` tells how often they were thinned by half. */
  private final case class Stretch(kept: Kept, reports: Int, level: Int)

  private final class Curve {
    val past = mutable.ArrayBuffer.empty[Stretch]
    val recent = mutable.ArrayDeque.empty[Kept]
  }

  private val all = new TreeMap[java.lang.Long, Kept]()
  private val curves = mutable.LinkedHashMap.empty[(Int, Int), Curve]
  private var recentBytes = 0L
  private var recentCount = 0
  private var pastBytes = 0L

  def bytes: Long = recentBytes + pastBytes
  def size: Int = all.size

  def since(cursor: Long): Iterator[Kept] = all.tailMap(cursor, true).values.iterator.asScala

  def add(kept: Kept): Unit = {
    all.put(kept.sequence, kept)
    curves.getOrElseUpdate((kept.attempt, kept.rank), new Curve).recent.append(kept)
    recentBytes += kept.event.length
    recentCount += 1
    while (recentBytes > half || recentCount > MostRecent) fold()
    while (pastBytes > half) squeeze()
  }

  /** What holds the reports of this event now, if it came to be kept here. */
  def standingFor(gone: Kept): Option[Kept] = curves.get((gone.attempt, gone.rank)).flatMap { curve =>
    val (inPast, inRecent) = (Page.indexOf(gone.sequence, curve.past.size)(curve.past(_).kept.sequence), Page.indexOf(gone.sequence, curve.recent))
    curve.past.lift(inPast).map(_.kept).orElse(curve.recent.lift(inRecent)).filter(_.first <= gone.first)
  }

  def dropThrough(sequence: Long): Unit = {
    curves.values.foreach { curve =>
      while (curve.past.headOption.exists(_.kept.sequence <= sequence)) removePast(curve, 0)
      while (curve.recent.headOption.exists(_.sequence <= sequence)) takeRecent(curve)
    }
    curves.filterInPlace((_, curve) => curve.past.nonEmpty || curve.recent.nonEmpty)
  }

  /** The oldest of what is recent joins the past, with what follows it of the same rank. */
  private def fold(): Unit = {
    val (_, curve) = curves.iterator.filter(_._2.recent.nonEmpty).minBy(_._2.recent.head.sequence)
    val oldest = curve.recent.head.sequence
    val horizon = oldest + (all.lastKey - oldest) / 2 // a rank that reports seldom does not give its newest
    val taken = mutable.ArrayBuffer.empty[Kept]
    val parts = mutable.ArrayBuffer.empty[Reports]
    var (reports, bytes) = (0, 0L)
    while (taken.isEmpty || reports < StretchReports && bytes < mostStretchBytes && curve.recent.headOption.exists(_.sequence <= horizon)) {
      taken += takeRecent(curve)
      parts += Reports.of(taken.last.event)
      reports += parts.last.size
      bytes += taken.last.event.length
    }
    curve.past.lastOption.filter(last => last.level == 0 && last.reports + reports <= StretchReports).foreach { last =>
      removePast(curve, curve.past.size - 1)
      taken.prepend(last.kept)
      parts.prepend(Reports.of(last.kept.event))
    }
    insertPast(curve, curve.past.size, taken.toSeq, Reports.joined(parts.toSeq), level = 0)
  }

  /** Two neighbours of the same rank become one of half their reports: those that were thinned least, the oldest first, so that the past stays even. */
  private def squeeze(): Unit = {
    val pairs = for { curve <- curves.valuesIterator; at <- (0 until curve.past.size - 1).iterator } yield (curve, at)
    pairs.minByOption { case (curve, at) =>
      val (older, newer) = (curve.past(at), curve.past(at + 1))
      (older.level != newer.level, math.max(older.level, newer.level), older.kept.sequence)
    } match {
      case Some((curve, at)) =>
        val (older, newer) = (removePast(curve, at), removePast(curve, at))
        val joined = Reports.joined(Seq(Reports.of(older.kept.event), Reports.of(newer.kept.event)))
        val level = math.max(older.level, newer.level)
        val fits = joined.size <= StretchReports
        insertPast(curve, at, Seq(older.kept, newer.kept), if (fits) joined else joined.thinnedTo(joined.size / 2), if (fits) level else level + 1)
      case None =>
        val curve = curves.valuesIterator.filter(_.past.nonEmpty).maxBy(_.past.head.kept.event.length)
        val only = removePast(curve, 0)
        val reports = Reports.of(only.kept.event)
        if (reports.size > 1) insertPast(curve, 0, Seq(only.kept), reports.thinnedTo(reports.size / 2), only.level + 1)
    }
  }

  private def takeRecent(curve: Curve): Kept = {
    val kept = curve.recent.removeHead()
    all.remove(kept.sequence)
    recentBytes -= kept.event.length
    recentCount -= 1
    kept
  }

  private def removePast(curve: Curve, at: Int): Stretch = {
    val stretch = curve.past.remove(at)
    all.remove(stretch.kept.sequence)
    pastBytes -= stretch.kept.event.length
    stretch
  }

  private def insertPast(curve: Curve, at: Int, of: Seq[Kept], reports: Reports, level: Int): Unit = {
    val kept = if (of.length == 1 && level == 0) of.head
      else of.last.copy(event = reports.toEvent, first = of.head.first, merged = of.map(_.merged + 1).sum - 1)
    curve.past.insert(at, Stretch(kept, reports.size, level))
    all.put(kept.sequence, kept)
    pastBytes += kept.event.length
  }
}
