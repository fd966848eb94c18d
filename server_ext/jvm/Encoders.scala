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

/** Collects one column, or one level of a nested one with `children` below it: `begin`, any number of `add`, `finish`. */
private[sparkgap] abstract class ColumnEncoder(children: ColumnEncoder*) {
  protected var memory: BatchMemory = _
  protected var rows = 0
  private val nulls = new BitSet
  private val regions = mutable.ArrayBuffer.empty[Region]

  /** A buffer of this level, in the order of Arrow's layout. */
  protected final def region(width: Int): Region = {
    regions += new Region(ColumnEncoder.FirstRows * width)
    regions.last
  }

  def begin(into: BatchMemory): Unit = {
    memory = into
    rows = 0
    nulls.clear()
    regions.foreach(_.begin(into))
    children.foreach(_.begin(into))
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

  final def addNull(): Unit = {
    nulls.set(rows)
    skip()
    rows += 1
  }

  def finish(layout: Layout): Unit = {
    layout.node(rows, nulls.cardinality())
    layout.buffer(if (nulls.isEmpty) Seq(0L, 0L) else bitmap(nulls, flipped = true))
    regions.foreach(each => layout.buffer(each.place))
    children.foreach(_.finish(layout))
  }

  def length: Int = rows
  def close(): Unit = ()

  /** Counts its row. */
  protected def addValue(row: SpecializedGetters, ordinal: Int): Unit

  /** What stands in the place of a null. */
  protected def skip(): Unit

  protected final def markNull(row: Int): Unit = nulls.set(row)

  /** Place of a bit a row. */
  protected final def bitmap(bits: BitSet, flipped: Boolean): Seq[Long] = {
    val (words, wanted) = (bits.toLongArray, (rows + 63) / 64)
    val offset = memory.allocate(wanted * 8L)
    (0 until wanted).foreach { index =>
      val word = if (index < words.length) words(index) else 0L
      Platform.putLong(null, memory.address + offset + index * 8L, if (flipped) ~word else word)
    }
    Seq(offset, wanted * 8L)
  }
}

private[sparkgap] object ColumnEncoder {
  /** Rows for which a region has room when it begins. */
  val FirstRows = 1024L

  def apply(field: StructField, timeZone: String): ColumnEncoder = bulk(field.dataType).getOrElse(new ArrowEncoder(field, timeZone))

  private def bulk(kind: DataType): Option[ColumnEncoder] = kind match {
    case BooleanType => Some(new BooleanEncoder)
    case ByteType => Some(new FixedEncoder(1, (to, row, at) => Platform.putByte(null, to, row.getByte(at))))
    case ShortType => Some(new FixedEncoder(2, (to, row, at) => Platform.putShort(null, to, row.getShort(at))))
    case IntegerType | DateType | _: YearMonthIntervalType => Some(new FixedEncoder(4, (to, row, at) => Platform.putInt(null, to, row.getInt(at))))
    case LongType | TimestampType | TimestampNTZType | _: DayTimeIntervalType =>
      Some(new FixedEncoder(8, (to, row, at) => Platform.putLong(null, to, row.getLong(at))))
    case FloatType => Some(new FixedEncoder(4, (to, row, at) => Platform.putFloat(null, to, row.getFloat(at))))
    case DoubleType => Some(new FixedEncoder(8, (to, row, at) => Platform.putDouble(null, to, row.getDouble(at))))
    case _: StringType => Some(new BytesEncoder(binary = false))
    case BinaryType => Some(new BytesEncoder(binary = true))
    case ArrayType(element, _) => bulk(element).map(new ListEncoder(_))
    case StructType(fields) if fields.nonEmpty =>
      val children = fields.map(field => bulk(field.dataType))
      Option.when(children.forall(_.isDefined))(new StructEncoder(children.map(_.get)))
    case user: UserDefinedType[_] => bulk(user.sqlType)
    case _ => None
  }
}

/** Copies one value to an address; Scala's own function types would box both numbers. */
private trait Put {
  def apply(address: Long, row: SpecializedGetters, ordinal: Int): Unit
}

/** Numbers, dates and times: `width` bytes a value, in rows and arrays alike. */
private final class FixedEncoder(width: Int, put: Put) extends ColumnEncoder {
  private val values = region(width)

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
}

/** A bit a value. */
private final class BooleanEncoder extends ColumnEncoder {
  private val values = new BitSet

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    values.clear()
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    if (row.getBoolean(ordinal)) values.set(rows)
    rows += 1
  }

  override protected def skip(): Unit = ()

  override def finish(layout: Layout): Unit = {
    super.finish(layout)
    layout.buffer(bitmap(values, flipped = false))
  }
}

/** Strings and binaries, end to end. */
private final class BytesEncoder(binary: Boolean) extends ColumnEncoder {
  private val offsets = region(4)
  private val bytes = region(32)

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
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
}

private final class ListEncoder(elements: ColumnEncoder) extends ColumnEncoder(elements) {
  private val offsets = region(4)

  override def begin(into: BatchMemory): Unit = {
    super.begin(into)
    Platform.putInt(null, offsets.reserve(4), 0)
  }

  override protected def addValue(row: SpecializedGetters, ordinal: Int): Unit = {
    elements.addElements(row.getArray(ordinal))
    skip()
    rows += 1
  }

  override protected def skip(): Unit = Platform.putInt(null, offsets.reserve(4), elements.length)
}

private final class StructEncoder(fields: Array[ColumnEncoder]) extends ColumnEncoder(fields.toSeq: _*) {
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
