// Columns of a batch in Arrow's layout, written straight into the memory that the model host reads: value by value out of rows, arrays of numbers and
// bytes in one copy.
package org.apache.spark.sql.connect.sparkgap

import java.util.BitSet

import scala.collection.mutable
import scala.jdk.CollectionConverters._

import org.apache.arrow.vector.{VectorSchemaRoot, VectorUnloader}
import org.sparkproject.connect.protobuf.DynamicMessage

import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{GenericInternalRow, SpecializedGetters, UnsafeArrayData, UnsafeRow}
import org.apache.spark.sql.catalyst.util.ArrayData
import org.apache.spark.sql.execution.arrow.ArrowWriter
import org.apache.spark.sql.types._
import org.apache.spark.sql.util.ArrowUtils
import org.apache.spark.unsafe.Platform
import org.apache.spark.unsafe.types.UTF8String

/** Nodes (length and number of nulls) and buffers (offset and length) of one column, depth first. */
private[sparkgap] final class Layout {
  private val nodes, buffers = mutable.ArrayBuffer.empty[Long]

  def node(length: Long, nulls: Long): Unit = nodes ++= Seq(length, nulls)
  def buffer(place: Seq[Long]): Unit = buffers ++= place

  /** Of all buffers together. */
  def bytes: Long = buffers.grouped(2).map(_.last).sum
  def toMessage: DynamicMessage = Schema.build("Column")("nodes" -> nodes, "buffers" -> buffers)
}

/** Collects one column, or one level of a nested one: `begin`, any number of `add`, `finish`. */
private[sparkgap] abstract class ColumnEncoder {
  protected var memory: BatchMemory = _
  protected var rows = 0
  private val nulls = new BitSet

  def begin(into: BatchMemory): Unit = {
    memory = into
    rows = 0
    nulls.clear()
  }

  final def add(row: SpecializedGetters, ordinal: Int): Unit = if (row.isNullAt(ordinal)) addNull() else addValue(row, ordinal)

  /** All elements of an array. */
  def addElements(array: ArrayData): Unit = {
    var index = 0
    while (index < array.numElements()) {
      add(array, index)
      index += 1
    }
  }

  def addNull(): Unit = {
    nulls.set(rows)
    skip()
    rows += 1
  }

  def finish(layout: Layout): Unit = {
    layout.node(rows, nulls.cardinality())
    layout.buffer(validity)
  }

  def length: Int = rows
  def close(): Unit = ()

  protected def addValue(row: SpecializedGetters, ordinal: Int): Unit

  /** What stands in the place of a null. */
  protected def skip(): Unit

  protected final def markNull(row: Int): Unit = nulls.set(row)

  private def validity: Seq[Long] = if (nulls.isEmpty) Seq(0L, 0L) else {
    val words = nulls.toLongArray
    val length = (rows + 63L) / 64 * 8
    val offset = memory.allocate(length)
    (0 until (length / 8).toInt).foreach { index =>
      Platform.putLong(null, memory.address + offset + index * 8L, if (index < words.length) ~words(index) else -1L)
    }
    Seq(offset, length)
  }
}

private[sparkgap] object ColumnEncoder {
  private val FirstRows = 1024

  def apply(field: StructField, timeZone: String): ColumnEncoder = bulk(field.dataType).getOrElse(new ArrowEncoder(field, timeZone))

  private def bulk(kind: DataType): Option[ColumnEncoder] = kind match {
    case BooleanType => Some(new BooleanEncoder)
    case ByteType => Some(new ByteEncoder)
    case ShortType => Some(new ShortEncoder)
    case IntegerType | DateType | _: YearMonthIntervalType => Some(new IntEncoder)
    case LongType | TimestampType | TimestampNTZType | _: DayTimeIntervalType => Some(new LongEncoder)
    case FloatType => Some(new FloatEncoder)
    case DoubleType => Some(new DoubleEncoder)
    case _: StringType => Some(new BytesEncoder(binary = false))
    case BinaryType => Some(new BytesEncoder(binary = true))
    case ArrayType(element, _) => bulk(element).map(new ListEncoder(_))
    case StructType(fields) if fields.nonEmpty =>
      val children = fields.map(field => bulk(field.dataType))
      Option.when(children.forall(_.isDefined))(new StructEncoder(children.map(_.get)))
    case user: UserDefinedType[_] => bulk(user.sqlType)
    case _ => None
  }

  /** Capacity that a region begins with. */
  def capacity(width: Int): Long = FirstRows.toLong * width
}

/** Numbers, dates and times: `width` bytes a value, in rows, arrays and vectors alike. */
private abstract class FixedEncoder(width: Int) extends ColumnEncoder {
  private val values = new Region(ColumnEncoder.capacity(width))

  protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    values.begin(into)
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    put(values.reserve(width), row, ordinal)
    rows += 1
  }

  override protected def skip(): Unit = Platform.setMemory(values.reserve(width), 0.toByte, width)

  override def addElements(array: ArrayData): Unit = array match {
    case unsafe: UnsafeArrayData =>
      val count = unsafe.numElements()
      val header = UnsafeArrayData.calculateHeaderPortionInBytes(count)
      Platform.copyMemory(unsafe.getBaseObject, unsafe.getBaseOffset + header, null, values.reserve(count.toLong * width), count.toLong * width)
      if (hasNulls(unsafe, header)) (0 until count).foreach(index => if (unsafe.isNullAt(index)) markNull(rows + index))
      rows += count
    case _ => super.addElements(array)
  }

  /** The header is the number of elements and a bit an element, in words of 8 bytes. */
  private def hasNulls(array: UnsafeArrayData, header: Int): Boolean = {
    var word = 8
    while (word < header) {
      if (Platform.getLong(array.getBaseObject, array.getBaseOffset + word) != 0) return true
      word += 8
    }
    false
  }

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    layout.buffer(values.place)
  }
}

private final class ByteEncoder extends FixedEncoder(1) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putByte(null, address, row.getByte(ordinal))
}

private final class ShortEncoder extends FixedEncoder(2) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putShort(null, address, row.getShort(ordinal))
}

private final class IntEncoder extends FixedEncoder(4) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putInt(null, address, row.getInt(ordinal))
}

private final class LongEncoder extends FixedEncoder(8) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putLong(null, address, row.getLong(ordinal))
}

private final class FloatEncoder extends FixedEncoder(4) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putFloat(null, address, row.getFloat(ordinal))
}

private final class DoubleEncoder extends FixedEncoder(8) {
  override protected def put(address: Long, row: SpecializedGetters, ordinal: Int): Unit = Platform.putDouble(null, address, row.getDouble(ordinal))
}

/** A bit a value. */
private final class BooleanEncoder extends ColumnEncoder {
  private val values = new Region(ColumnEncoder.capacity(1))
  private val bits = new BitSet

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    values.begin(into)
    bits.clear()
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    if (row.getBoolean(ordinal)) bits.set(rows)
    rows += 1
  }

  override protected def skip(): Unit = ()

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    val (packed, bytes) = (bits.toByteArray, (rows + 7) / 8)
    val address = values.reserve(bytes)
    Platform.setMemory(address, 0.toByte, bytes)
    Platform.copyMemory(packed, Platform.BYTE_ARRAY_OFFSET, null, address, packed.length)
    layout.buffer(values.place)
  }
}

/** Strings and binaries, end to end. */
private final class BytesEncoder(binary: Boolean) extends ColumnEncoder {
  private val offsets = new Region(ColumnEncoder.capacity(4))
  private val bytes = new Region(ColumnEncoder.capacity(32))

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    offsets.begin(into)
    bytes.begin(into)
    Platform.putInt(null, offsets.reserve(4), 0)
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    // Spark's own layouts hand out binaries as if they were strings, without a copy.
    val value = row match {
      case _: UnsafeRow | _: UnsafeArrayData => row.getUTF8String(ordinal)
      case _ if binary => UTF8String.fromBytes(row.getBinary(ordinal))
      case _ => row.getUTF8String(ordinal)
    }
    val count = value.numBytes()
    Platform.copyMemory(value.getBaseObject, value.getBaseOffset, null, bytes.reserve(count), count)
    skip()
    rows += 1
  }

  override protected def skip(): Unit = Platform.putInt(null, offsets.reserve(4), bytes.size.toInt)

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    layout.buffer(offsets.place)
    layout.buffer(bytes.place)
  }
}

private final class ListEncoder(elements: ColumnEncoder) extends ColumnEncoder {
  private val offsets = new Region(ColumnEncoder.capacity(4))

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    offsets.begin(into)
    elements.begin(into)
    Platform.putInt(null, offsets.reserve(4), 0)
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    elements.addElements(row.getArray(ordinal))
    skip()
    rows += 1
  }

  override protected def skip(): Unit = Platform.putInt(null, offsets.reserve(4), elements.length)

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    layout.buffer(offsets.place)
    elements.finish(layout)
  }
}

private final class StructEncoder(fields: Array[ColumnEncoder]) extends ColumnEncoder {
  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    fields.foreach(_.begin(into))
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    val struct = row.getStruct(ordinal, fields.length)
    var index = 0
    while (index < fields.length) {
      fields(index).add(struct, index)
      index += 1
    }
    rows += 1
  }

  override protected def skip(): Unit = fields.foreach(_.addNull())

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    fields.foreach(_.finish(layout))
  }
}

/** Any other column (decimals, maps, intervals), by the writer that Spark uses for its Python workers. */
private final class ArrowEncoder(field: StructField, timeZone: String) extends ColumnEncoder {
  private val allocator = ArrowUtils.rootAllocator.newChildAllocator(s"sparkgap column ${field.name}", 0, Long.MaxValue)
  private val root = VectorSchemaRoot.create(ArrowUtils.toArrowSchema(StructType(Seq(field)), timeZone, true, false), allocator)
  private val writer = ArrowWriter.create(root)
  private val cell = new Array[Any](1)
  private val row: InternalRow = new GenericInternalRow(cell)

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    writer.reset()
  }

  override protected def addValue(from: SpecializedGetters, ordinal: Int): Unit = {
    write(from.get(ordinal, field.dataType))
    rows += 1
  }

  override protected def skip(): Unit = write(null)

  private def write(value: Any): Unit = {
    cell(0) = value
    writer.write(row)
  }

  override def finish(layout: Layout): Unit = {
    writer.finish()
    val batch = new VectorUnloader(root, true, false).getRecordBatch
    try {
      batch.getNodes.asScala.foreach(node => layout.node(node.getLength, node.getNullCount))
      batch.getBuffers.asScala.foreach { buffer =>
        val length = buffer.readableBytes()
        val offset = memory.allocate(length)
        Platform.copyMemory(null, buffer.memoryAddress(), null, memory.address + offset, length)
        layout.buffer(Seq(offset, length))
      }
    } finally batch.close()
  }

  override def close(): Unit = {
    root.close()
    allocator.close()
  }
}
