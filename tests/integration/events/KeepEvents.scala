// For test_kept_reports.py: keeps the events of a file as the driver keeps those of a run, and writes what is left of them into another.
package org.apache.spark.sql.connect.sparkgap

import java.io.{DataInputStream, DataOutputStream}
import java.nio.file.{Files, Path}

object KeepEvents {
  /** A number of bytes, and two files of events, each after its length. Prints the microseconds of CPU time that an event has taken. */
  def main(arguments: Array[String]): Unit = {
    val clock = java.lang.management.ManagementFactory.getThreadMXBean
    val log = new EventLog(arguments(0).toLong)
    val in = new DataInputStream(new java.io.ByteArrayInputStream(Files.readAllBytes(Path.of(arguments(1)))))
    var (nanos, longest) = (0L, 0L)
    while (in.available() > 0) {
      val event = in.readNBytes(in.readInt())
      val lines = Kept.linesIn(event)
      val began = clock.getCurrentThreadCpuTime
      log.add(event, lines)
      val passed = clock.getCurrentThreadCpuTime - began
      nanos += passed
      longest = math.max(longest, passed)
      if (log.bytes > arguments(0).toLong) throw new IllegalStateException(s"${log.bytes} bytes are kept")
    }
    val out = new DataOutputStream(Files.newOutputStream(Path.of(arguments(2))))
    var cursor = 0L
    var lost = 0L
    while (cursor < log.next) {
      val page = log.page(cursor, 1 << 20)
      page.events.foreach { each => out.writeInt(each.event.length); out.write(each.event) }
      lost += page.dropped
      cursor = page.next
    }
    out.close()
    println(s"${log.next} $lost ${log.bytes} ${nanos / 1000.0 / math.max(1, log.next)} ${longest / 1000.0}")
  }
}
