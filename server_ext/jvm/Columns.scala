// Columns in the host's shared memory, in Arrow's layout: numbers and arrays of numbers are copied in bulk, everything else goes through Spark's writer.
package org.apache.spark.sql.connect.sparkgap

import java.nio.channels.FileChannel
import java.nio.file.{Path, StandardOpenOption}

import scala.jdk.CollectionConverters._

import org.apache.arrow.vector.VectorUnloader
import org.apache.arrow.vector.VectorSchemaRoot
import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{GenericInternalRow, UnsafeArrayData}
import org.apache.spark.sql.catalyst.util.ArrayData
import org.apache.spark.sql.execution.arrow.ArrowWriter
import org.apache.spark.sql.types._
import org.apache.spark.sql.util.ArrowUtils
import org.apache.spark.storage.StorageUtils
import org.apache.spark.unsafe.Platform

/** The host's memory file, mapped; grows by being mapped longer. */
private[sparkgap] final class HostMemory(file: Path) extends AutoCloseable {
  private val channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)
  private var mapped = channel.map(FileChannel.MapMode.READ_WRITE, 0, channel.size())

  def address: Long = mapped.asInstanceOf[sun.nio.ch.DirectBuffer].address()

  def ensure(bytes: Long): Unit = if (bytes > mapped.capacity()) {
    if (bytes > Int.MaxValue) throw new IllegalArgumentException(s"a batch of $bytes bytes: at most ${Int.MaxValue} fit, lower batch_size")
    StorageUtils.dispose(mapped)
    mapped = channel.map(FileChannel.MapMode.READ_WRITE, 0, math.max(channel.size(), math.min(bytes * 2, Int.MaxValue.toLong)))
  }

  override def close(): Unit = {
    StorageUtils.dispose(mapped)
    channel.close()
  }
}

private[sparkgap] final case class Written(nodes: Seq[Long], buffers: Seq[Long], end: Long) {
  def toMessage: DynamicMessage = Schema.build("Column")("nodes" -> nodes, "buffers" -> buffers)
}

/** Collects one column of one batch. */
private[sparkgap] trait ColumnEncoder extends AutoCloseable {
  def add(value: Any): Unit
  def clear(): Unit

  /** Upper bound of what `write` takes, padding included. */
  def bytes: Long

  def write(memory: HostMemory, offset: Long): Written
}

private[sparkgap] object ColumnEncoder {
  val Alignment = 64

  def apply(field: StructField, timeZone: String): ColumnEncoder = field.dataType match {
    case ArrayType(element, _) if width(element).isDefined => new ArrayEncoder(element)
    case _ => new ArrowEncoder(field, timeZone)
  }

  def aligned(offset: Long): Long = (offset + Alignment - 1) / Alignment * Alignment

  def width(element: DataType): Option[Int] = element match {
    case ByteType => Some(1)
    case ShortType => Some(2)
    case IntegerType | FloatType => Some(4)
    case LongType | DoubleType => Some(8)
    case _ => None
  }
}

/** Off-heap bytes that grow. */
private final class Bytes(initial: Long) extends AutoCloseable {
  private var capacity = initial
  var address: Long = Platform.allocateMemory(capacity)
  var size = 0L

  def reserve(more: Long): Long = {
    if (size + more > capacity) {
      val larger = math.max(capacity * 2, size + more)
      address = Platform.reallocateMemory(address, capacity, larger)
      capacity = larger
    }
    val place = address + size
    size += more
    place
  }

  override def close(): Unit = if (address != 0) {
    Platform.freeMemory(address)
    address = 0
  }
}

/** An array column of numbers without null elements costs one memory copy a row; null elements are marked one by one. */
private final class ArrayEncoder(element: DataType) extends ColumnEncoder {
  private val width = ColumnEncoder.width(element).get
  private val offsets = new Bytes(4096)
  private val values = new Bytes(1 << 16)
  private var rows = 0
  private var elements = 0
  private val nullRows = new java.util.BitSet()
  private val nullElements = new java.util.BitSet()

  override def clear(): Unit = {
    offsets.size = 0
    values.size = 0
    rows = 0
    elements = 0
    nullRows.clear()
    nullElements.clear()
    Platform.putInt(null, offsets.reserve(4), 0)
  }

  override def add(value: Any): Unit = {
    if (value == null) nullRows.set(rows)
    else copy(value match {
      case array: UnsafeArrayData => array
      case array => unsafe(array.asInstanceOf[ArrayData])
    })
    rows += 1
    Platform.putInt(null, offsets.reserve(4), elements)
  }

  private def copy(array: UnsafeArrayData): Unit = {
    val count = array.numElements()
    if (count > Int.MaxValue - elements) throw new IllegalArgumentException(s"a batch with more than ${Int.MaxValue} elements in a column: lower batch_size")
    val header = UnsafeArrayData.calculateHeaderPortionInBytes(count)
    Platform.copyMemory(array.getBaseObject, array.getBaseOffset + header, null, values.reserve(count.toLong * width), count.toLong * width)
    if (hasNulls(array, header)) (0 until count).foreach(index => if (array.isNullAt(index)) nullElements.set(elements + index))
    elements += count
  }

  /** The header is the number of elements and a bit a element, in words of 8 bytes. */
  private def hasNulls(array: UnsafeArrayData, header: Int): Boolean = {
    var word = 8
    while (word < header) {
      if (Platform.getLong(array.getBaseObject, array.getBaseOffset + word) != 0) return true
      word += 8
    }
    false
  }

  private def unsafe(array: ArrayData): UnsafeArrayData = {
    val count = array.numElements()
    val fresh = UnsafeArrayData.createFreshArray(count, width)
    (0 until count).foreach { index =>
      if (array.isNullAt(index)) fresh.setNullAt(index)
      else set(fresh, index, array)
    }
    fresh
  }

  private def set(fresh: UnsafeArrayData, index: Int, array: ArrayData): Unit = element match {
    case ByteType => fresh.setByte(index, array.getByte(index))
    case ShortType => fresh.setShort(index, array.getShort(index))
    case IntegerType => fresh.setInt(index, array.getInt(index))
    case LongType => fresh.setLong(index, array.getLong(index))
    case FloatType => fresh.setFloat(index, array.getFloat(index))
    case DoubleType => fresh.setDouble(index, array.getDouble(index))
  }

  override def bytes: Long = offsets.size + values.size + rows / 8 + elements / 8 + 8L * ColumnEncoder.Alignment

  override def write(memory: HostMemory, offset: Long): Written = {
    var end = offset
    def place(length: Long)(fill: Long => Unit): Seq[Long] = {
      val start = ColumnEncoder.aligned(end)
      fill(memory.address + start)
      end = start + length
      Seq(start, length)
    }
    def bitmap(nulls: java.util.BitSet, count: Int): Seq[Long] = if (nulls.isEmpty) Seq(0L, 0L) else place((count + 7L) / 8) { address =>
      (0 until (count + 7) / 8).foreach { byte =>
        val valid = (0 until 8).map(bit => if (nulls.get(byte * 8 + bit)) 0 else 1 << bit).sum
        Platform.putByte(null, address + byte, valid.toByte)
      }
    }
    val buffers = bitmap(nullRows, rows) ++
      place(offsets.size)(address => Platform.copyMemory(null, offsets.address, null, address, offsets.size)) ++
      bitmap(nullElements, elements) ++
      place(values.size)(address => Platform.copyMemory(null, values.address, null, address, values.size))
    Written(Seq(rows.toLong, nullRows.cardinality().toLong, elements.toLong, nullElements.cardinality().toLong), buffers, end)
  }

  override def close(): Unit = {
    offsets.close()
    values.close()
  }
}

/** Any other column, by the writer that Spark uses for its Python workers. */
private final class ArrowEncoder(field: StructField, timeZone: String) extends ColumnEncoder {
  private val allocator = ArrowUtils.rootAllocator.newChildAllocator(s"sparkgap column ${field.name}", 0, Long.MaxValue)
  private val root = VectorSchemaRoot.create(ArrowUtils.toArrowSchema(StructType(Seq(field)), timeZone, true, false), allocator)
  private val writer = ArrowWriter.create(root)
  private val cell = new Array[Any](1)
  private val row: InternalRow = new GenericInternalRow(cell)

  override def clear(): Unit = writer.reset()

  override def add(value: Any): Unit = {
    cell(0) = value
    writer.write(row)
  }

  override def bytes: Long = {
    writer.finish()
    root.getFieldVectors.asScala.map(vector => vector.getBuffers(false).map(each => each.readableBytes() + ColumnEncoder.Alignment).sum).sum + 1024L
  }

  override def write(memory: HostMemory, offset: Long): Written = {
    val batch = new VectorUnloader(root, true, false).getRecordBatch
    try {
      var end = offset
      val buffers = batch.getBuffers.asScala.toSeq.flatMap { buffer =>
        val start = ColumnEncoder.aligned(end)
        val length = buffer.readableBytes()
        Platform.copyMemory(null, buffer.memoryAddress(), null, memory.address + start, length)
        end = start + length
        Seq(start, length)
      }
      Written(batch.getNodes.asScala.toSeq.flatMap(node => Seq(node.getLength.toLong, node.getNullCount.toLong)), buffers, end)
    } finally batch.close()
  }

  override def close(): Unit = {
    root.close()
    allocator.close()
  }
}
