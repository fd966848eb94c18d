// A column of predictions where the model host has put it: Arrow's layout in shared memory, read in place and without Arrow's checks of every access.
package org.apache.spark.sql.connect.sparkgap

import org.apache.spark.sql.types._
import org.apache.spark.sql.vectorized.{ColumnVector, ColumnarArray, ColumnarMap}
import org.apache.spark.unsafe.Platform
import org.apache.spark.unsafe.types.UTF8String

/** Where a column's nodes and buffers are, taken one after the other, depth first. */
private[sparkgap] final class Places(base: Long, nodes: Iterator[Long], buffers: Iterator[Long]) {
  /** Length and number of nulls. */
  def node(): (Int, Int) = (nodes.next().toInt, nodes.next().toInt)

  /** Address of a buffer, 0 for one that is absent. */
  def buffer(): Long = {
    val (offset, length) = (buffers.next(), buffers.next())
    if (length == 0) 0 else base + offset
  }
}

/** The types that predictions have; Predict refuses others. */
private[sparkgap] final class PredictedColumn(kind: DataType, places: Places) extends ColumnVector(kind) {
  val (length, nulls) = places.node()
  private val validity = places.buffer()
  private val values = kind match {
    case _: StructType => 0L
    case _ => places.buffer() // of strings, binaries and arrays: the offsets
  }
  private val bytes = kind match {
    case _: StringType | BinaryType => places.buffer()
    case _ => 0L
  }
  private val children = kind match {
    case ArrayType(element, _) => Array(new PredictedColumn(element, places))
    case StructType(fields) => fields.map(field => new PredictedColumn(field.dataType, places))
    case _ => Array.empty[PredictedColumn]
  }

  override def close(): Unit = ()
  override def hasNull: Boolean = nulls > 0
  override def numNulls: Int = nulls
  override def isNullAt(row: Int): Boolean = nulls > 0 && !bit(validity, row)

  override def getBoolean(row: Int): Boolean = bit(values, row)
  override def getByte(row: Int): Byte = Platform.getByte(null, values + row)
  override def getShort(row: Int): Short = Platform.getShort(null, values + row * 2L)
  override def getInt(row: Int): Int = Platform.getInt(null, values + row * 4L)
  override def getLong(row: Int): Long = Platform.getLong(null, values + row * 8L)
  override def getFloat(row: Int): Float = Platform.getFloat(null, values + row * 4L)
  override def getDouble(row: Int): Double = Platform.getDouble(null, values + row * 8L)
  override def getUTF8String(row: Int): UTF8String = UTF8String.fromAddress(null, bytes + offset(row), offset(row + 1) - offset(row))
  override def getBinary(row: Int): Array[Byte] = getUTF8String(row).getBytes
  override def getArray(row: Int): ColumnarArray = new ColumnarArray(children.head, offset(row), offset(row + 1) - offset(row))
  override def getChild(index: Int): ColumnVector = children(index)
  override def getMap(row: Int): ColumnarMap = throw new UnsupportedOperationException("maps are no predictions")
  override def getDecimal(row: Int, precision: Int, scale: Int): Decimal = throw new UnsupportedOperationException("decimals are no predictions")

  private def bit(address: Long, row: Int): Boolean = (Platform.getByte(null, address + (row >> 3)) & (1 << (row & 7))) != 0

  /** An empty column has no offsets. */
  private def offset(row: Int): Int = if (values == 0) 0 else Platform.getInt(null, values + row * 4L)
}
