// The reports of one rank that one event holds, by columns, as Curves.scala puts them together and thins them.
package org.apache.spark.sql.connect.sparkgap

import java.io.ByteArrayOutputStream

import scala.collection.mutable

import org.sparkproject.connect.protobuf.{CodedInputStream, CodedOutputStream}

/** Values of one metric, where `has` says so; a value may be NaN. */
final class MetricValues(val values: Array[Double], val has: Array[Boolean])

/** In the order in which the rank has made them. `dropped` were left out by the rank, `thinned` here. */
final class Reports(val attempt: Int, val rank: Int, val steps: Array[Long], val times: Array[Long], val totals: Array[Long],
    val metrics: Seq[(String, MetricValues)], val dropped: Long, val thinned: Long) {
  def size: Int = steps.length

  /** A RunEvent at the time of the newest report. */
  def toEvent: Array[Byte] = {
    val newest = size - 1
    val report = message { out =>
      out.writeInt64(1, steps(newest))
      out.writeInt64(2, totals(newest))
      metrics.foreach { case (name, column) => if (column.has(newest)) out.writeByteArray(3, message { entry =>
        entry.writeString(1, name)
        entry.writeDouble(2, column.values(newest))
      }) }
      out.writeUInt64(4, dropped)
      if (newest > 0) out.writeByteArray(5, earlier(newest))
      out.writeUInt64(6, thinned)
    }
    message { out =>
      out.writeUInt32(1, attempt)
      out.writeUInt32(2, rank)
      out.writeInt64(3, times(newest))
      out.writeByteArray(6, report)
    }
  }

  private def earlier(newest: Int): Array[Byte] = message { out =>
    def differences(first: Long, numbers: Array[Long]): Array[Byte] = message { into =>
      var before = first
      var at = 0
      while (at < newest) { into.writeSInt64NoTag(numbers(at) - before); before = numbers(at); at += 1 }
    }
    out.writeByteArray(1, differences(0, steps))
    out.writeByteArray(2, differences(times(newest), times))
    if (totals.exists(_ != totals(newest))) out.writeByteArray(3, message(into => totals.iterator.take(newest).foreach(into.writeInt64NoTag)))
    metrics.foreach { case (name, column) =>
      var count, at = 0
      while (at < newest) { if (column.has(at)) count += 1; at += 1 }
      if (count > 0) out.writeByteArray(4, message { into =>
        into.writeString(1, name)
        into.writeTag(2, 2)
        into.writeUInt32NoTag(8 * count)
        at = 0
        while (at < newest) { if (column.has(at)) into.writeDoubleNoTag(column.values(at)); at += 1 }
        if (count < newest) into.writeByteArray(3, message { positions =>
          (0 until newest).foreach(each => if (column.has(each)) positions.writeUInt32NoTag(each))
        })
      })
    }
  }

  private def message(fill: CodedOutputStream => Unit): Array[Byte] = {
    val bytes = new ByteArrayOutputStream()
    val out = CodedOutputStream.newInstance(bytes)
    fill(out)
    out.flush()
    bytes.toByteArray
  }

  /** About `most` of them, evenly, among them the newest and, of each stretch, those with the smallest and the largest value of each metric. The more
    * metrics there are, the longer are the stretches; more metrics than `most / 2` have extremes left out. */
  def thinnedTo(most: Int): Reports = if (size <= most) this else {
    val stretches = math.max(1, most / (4 * math.max(1, metrics.size)))
    val keep = new Array[Boolean](size)
    (0 until stretches).foreach { at =>
      val (begin, end) = ((1L * size * at / stretches).toInt, (1L * size * (at + 1) / stretches).toInt)
      val quota = math.max(1, (1L * most * (at + 1) / stretches - 1L * most * at / stretches).toInt)
      var kept = 0
      def take(position: Int): Unit = if (position >= 0 && kept < quota && !keep(position)) { keep(position) = true; kept += 1 }
      metrics.foreach { case (_, column) => extremes(column, begin, end).foreach(take) }
      val more = quota - kept
      (0 until more).foreach(each => take(begin + ((each + 0.5) * (end - begin) / more).toInt))
    }
    keep(size - 1) = true
    val positions = keep.indices.filter(keep(_)).toArray
    new Reports(attempt, rank, positions.map(steps), positions.map(times), positions.map(totals), metrics.map { case (name, column) =>
      name -> new MetricValues(positions.map(column.values), positions.map(column.has))
    }, dropped, thinned + size - positions.length)
  }

  private def extremes(column: MetricValues, begin: Int, end: Int): Seq[Int] = {
    var (least, most) = (-1, -1)
    var at = begin
    while (at < end) {
      val value = column.values(at)
      if (column.has(at) && !value.isNaN) {
        if (least < 0 || value < column.values(least)) least = at
        if (most < 0 || value > column.values(most)) most = at
      }
      at += 1
    }
    Seq(least, most)
  }
}

/** Reads and writes RunEvents without Schema.scala's messages, whose every number is an object: a cluster may report some 100,000 times a second. */
object Reports {
  private final class Column(val name: String, val values: Array[Double], val positions: Array[Long])

  /** A rank's process may have written anything: what does not fit together is left out. */
  def of(event: Array[Byte]): Reports = {
    var attempt, rank = 0
    var time, step, total, dropped, thinned = 0L
    var steps, times, totals = Array.emptyLongArray
    val newest = mutable.LinkedHashMap.empty[String, Double]
    val columns = mutable.ArrayBuffer.empty[Column]
    val in = CodedInputStream.newInstance(event)
    fields(in) {
      case 1 => attempt = in.readUInt32()
      case 2 => rank = in.readUInt32()
      case 3 => time = in.readInt64()
      case 6 => inside(in)(fields(in) {
        case 1 => step = in.readInt64()
        case 2 => total = in.readInt64()
        case 3 => inside(in) { val (name, value) = entry(in); newest(name) = value }
        case 4 => dropped = in.readUInt64()
        case 5 => inside(in)(fields(in) {
          case 1 => steps = numbers(in)(in.readSInt64())
          case 2 => times = numbers(in)(in.readSInt64())
          case 3 => totals = numbers(in)(in.readInt64())
          case 4 => inside(in) { columns += column(in) }
        })
        case 6 => thinned = in.readUInt64()
      })
    }
    val count = math.min(steps.length, times.length)
    val metrics = mutable.LinkedHashMap.empty[String, MetricValues]
    def metric(name: String): MetricValues =
      metrics.getOrElseUpdate(name, new MetricValues(new Array[Double](count + 1), new Array[Boolean](count + 1)))
    columns.foreach { each =>
      val into = metric(each.name)
      each.values.indices.foreach { at =>
        val position = if (each.positions.isEmpty) at else if (at < each.positions.length) each.positions(at) else -1
        if (position >= 0 && position < count) { into.values(position.toInt) = each.values(at); into.has(position.toInt) = true }
      }
    }
    newest.foreach { case (name, value) => val into = metric(name); into.values(count) = value; into.has(count) = true }
    new Reports(attempt, rank, summed(0, steps, count) :+ step, summed(time, times, count) :+ time,
      (if (totals.length >= count) totals.take(count) else Array.fill(count)(total)) :+ total, metrics.toSeq, dropped, thinned)
  }

  private def summed(first: Long, differences: Array[Long], count: Int): Array[Long] = {
    val sums = differences.take(count)
    var at = 0
    while (at < count) { sums(at) += (if (at == 0) first else sums(at - 1)); at += 1 }
    sums
  }

  /** Up to the end of the message; fields that are not asked for are skipped. */
  private def fields(in: CodedInputStream)(read: PartialFunction[Int, Unit]): Unit = {
    var tag = in.readTag()
    while (tag != 0) {
      if (read.isDefinedAt(tag >>> 3)) read(tag >>> 3) else in.skipField(tag)
      tag = in.readTag()
    }
  }

  private def inside(in: CodedInputStream)(read: => Unit): Unit = {
    val limit = in.pushLimit(in.readRawVarint32())
    read
    in.popLimit(limit)
  }

  private def numbers(in: CodedInputStream)(next: => Long): Array[Long] = {
    val found = new mutable.ArrayBuilder.ofLong
    inside(in) { while (in.getBytesUntilLimit > 0) found += next }
    found.result()
  }

  private def entry(in: CodedInputStream): (String, Double) = {
    var (name, value) = ("", 0.0)
    fields(in) { case 1 => name = in.readString(); case 2 => value = in.readDouble() }
    (name, value)
  }

  private def column(in: CodedInputStream): Column = {
    var name = ""
    var values = Array.emptyDoubleArray
    var positions = Array.emptyLongArray
    fields(in) {
      case 1 => name = in.readString()
      case 2 => inside(in) {
        values = new Array[Double](in.getBytesUntilLimit / 8)
        var at = 0
        while (at < values.length) { values(at) = in.readDouble(); at += 1 }
      }
      case 3 => positions = numbers(in)(in.readUInt32() & 0xFFFFFFFFL)
    }
    new Column(name, values, positions)
  }

  /** Of the same rank and attempt, in their order. */
  def joined(parts: Seq[Reports]): Reports = if (parts.length == 1) parts.head else {
    val size = parts.map(_.size).sum
    val columns = mutable.LinkedHashMap.empty[String, MetricValues]
    var begin = 0
    parts.foreach { part =>
      part.metrics.foreach { case (name, column) =>
        val into = columns.getOrElseUpdate(name, new MetricValues(new Array[Double](size), new Array[Boolean](size)))
        System.arraycopy(column.values, 0, into.values, begin, part.size)
        System.arraycopy(column.has, 0, into.has, begin, part.size)
      }
      begin += part.size
    }
    new Reports(parts.head.attempt, parts.head.rank, Array.concat(parts.map(_.steps): _*), Array.concat(parts.map(_.times): _*),
      Array.concat(parts.map(_.totals): _*), columns.toSeq, parts.map(_.dropped).sum, parts.map(_.thinned).sum)
  }
}
