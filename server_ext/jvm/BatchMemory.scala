// The memory of one batch: a file of the model host, mapped here, in which columns get regions. Spark's task memory is told how much is mapped.
package org.apache.spark.sql.connect.sparkgap

import java.nio.channels.FileChannel
import java.nio.file.{Path, StandardOpenOption}

import org.apache.spark.memory.{MemoryConsumer, TaskMemoryManager}
import org.apache.spark.storage.StorageUtils
import org.apache.spark.unsafe.Platform

/** What a task has mapped counts as execution memory, so that Spark gives the rest of the task less and lets caches go. It is outside the heap whatever
  * Spark grants, so a refusal is no reason to fail. */
private[sparkgap] final class MappedBytes(memory: TaskMemoryManager) extends MemoryConsumer(memory, memory.getTungstenMemoryMode) {
  override def spill(size: Long, trigger: MemoryConsumer): Long = 0
  def close(): Unit = freeMemory(getUsed)
}

/** Grows at its end by being mapped longer, up to `limit` bytes; so addresses hold until the next `allocate`, offsets until `clear`. */
private[sparkgap] final class BatchMemory(file: Path, limit: Long, accounted: MappedBytes) extends AutoCloseable {
  private val channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)
  private var mapped = try map(channel.size()) catch { case failure: Throwable => channel.close(); throw failure }
  private var end = 0L

  /** Where offset 0 lies. */
  var address: Long = addressOf(mapped)

  def used: Long = end

  /** Bytes that may still be allocated. */
  def room: Long = limit - end

  def clear(): Unit = end = 0

  /** Offset of fresh bytes, of whatever content. */
  def allocate(bytes: Long): Long = {
    val start = BatchMemory.aligned(end)
    ensure(start + bytes)
    end = start + bytes
    start
  }

  /** Lengthens what was allocated last. */
  def extend(bytes: Long): Unit = {
    ensure(end + bytes)
    end += bytes
  }

  /** Maps at least `bytes` bytes; the host may have grown the file already. */
  def ensure(bytes: Long): Unit = if (bytes > mapped.capacity()) {
    if (bytes > limit) throw new IllegalArgumentException(s"a batch needs $bytes bytes, $limit are allowed (spark.sparkgap.batch.maxBytes): lower batch_size")
    val old = mapped.capacity()
    StorageUtils.dispose(mapped)
    mapped = map(math.max(channel.size(), math.min(bytes + bytes / 4, limit)), old)
    address = addressOf(mapped)
  }

  override def close(): Unit = {
    StorageUtils.dispose(mapped)
    channel.close()
  }

  private def map(bytes: Long, before: Long = 0) = {
    accounted.acquireMemory(bytes - before)
    channel.map(FileChannel.MapMode.READ_WRITE, 0, bytes)
  }

  private def addressOf(buffer: java.nio.MappedByteBuffer): Long = buffer.asInstanceOf[sun.nio.ch.DirectBuffer].address()
}

private[sparkgap] object BatchMemory {
  private val Alignment = 64L

  def aligned(offset: Long): Long = (offset + Alignment - 1) / Alignment * Alignment
}

/** One buffer of a column. Its capacity is kept from batch to batch, so that only the first batch moves it about. */
private[sparkgap] final class Region(private var capacity: Long) {
  private var memory: BatchMemory = _
  private var offset = 0L
  private var filled = 0L

  def begin(into: BatchMemory): Unit = {
    memory = into
    offset = memory.allocate(capacity)
    filled = 0
  }

  def size: Long = filled

  /** Address of `bytes` more bytes; earlier addresses are no longer valid. */
  def reserve(bytes: Long): Long = {
    if (filled + bytes > capacity) grow(filled + bytes)
    val place = memory.address + offset + filled
    filled += bytes
    place
  }

  /** To twice the size, or less where the limit is near. */
  private def grow(needed: Long): Unit = {
    val isLast = offset + capacity == memory.used
    val larger = math.max(needed, math.min(2 * capacity, (if (isLast) capacity else 0) + memory.room / 2))
    if (isLast) memory.extend(larger - capacity)
    else {
      val moved = memory.allocate(larger)
      Platform.copyMemory(null, memory.address + offset, null, memory.address + moved, filled)
      offset = moved
    }
    capacity = larger
  }

  /** Offset and length, as the host wants them. */
  def place: Seq[Long] = Seq(offset, filled)
}
