// The messages of sparkgap_protos without generated Java: the descriptor set lies in the jar, and every other file reads and writes messages
// through the helpers here.
package org.apache.spark.sql.connect.sparkgap

import scala.collection.mutable
import scala.jdk.CollectionConverters._

import org.sparkproject.connect.protobuf.{Any => ProtoAny, ByteString, CodedInputStream, DynamicMessage, InvalidProtocolBufferException}
import org.sparkproject.connect.protobuf.{AnyProto, DescriptorProtos, Descriptors, Message}

object Schema {
  val Protocol = 1
  private val Package = "sparkgap.v1"
  private val UrlPrefix = s"type.googleapis.com/$Package."

  private lazy val types: Map[String, Descriptors.Descriptor] = {
    val stream = getClass.getResourceAsStream("/sparkgap/schema.bin")
    val set = try DescriptorProtos.FileDescriptorSet.parseFrom(stream) finally stream.close()
    val files = mutable.LinkedHashMap[String, Descriptors.FileDescriptor]("google/protobuf/any.proto" -> AnyProto.getDescriptor)
    set.getFileList.asScala.foreach { file =>
      files(file.getName) = Descriptors.FileDescriptor.buildFrom(file, file.getDependencyList.asScala.map(files).toArray)
    }
    files.values.flatMap(_.getMessageTypes.asScala).map(each => each.getName -> each).toMap
  }

  /** An extension of ours of the wanted type, or None for messages of other plugins. */
  def extension(any: ProtoAny, name: String): Option[DynamicMessage] =
    if (any.getTypeUrl == UrlPrefix + name) Some(parse(name, any.getValue.toByteArray)) else None

  def parse(name: String, bytes: Array[Byte]): DynamicMessage =
    try DynamicMessage.parseFrom(types(name), CodedInputStream.newInstance(bytes))
    catch { case damage: InvalidProtocolBufferException => throw Refused.plan(s"the $name is damaged: ${damage.getMessage}") }

  def build(name: String)(fields: (String, Any)*): DynamicMessage = change(DynamicMessage.newBuilder(types(name)), fields)

  private def change(builder: DynamicMessage.Builder, fields: Seq[(String, Any)]): DynamicMessage = {
    val descriptor = builder.getDescriptorForType
    fields.foreach { case (name, value) =>
      val field = descriptor.findFieldByName(name)
      def encoded(plain: Any): Any = plain match {
        case number: Int if field.getJavaType == Descriptors.FieldDescriptor.JavaType.LONG => number.toLong
        case bytes: Array[Byte] => ByteString.copyFrom(bytes)
        case choice: String if field.getJavaType == Descriptors.FieldDescriptor.JavaType.ENUM => field.getEnumType.findValueByName(choice)
        case other => other
      }
      value match {
        case many: Iterable[_] => many.foreach(each => builder.addRepeatedField(field, encoded(each)))
        case one => builder.setField(field, encoded(one))
      }
    }
    builder.build()
  }

  def pack(message: Message): ProtoAny =
    ProtoAny.newBuilder().setTypeUrl(UrlPrefix + message.getDescriptorForType.getName).setValue(message.toByteString).build()

  implicit class Fields(message: DynamicMessage) {
    private def value(name: String): Any = message.getField(message.getDescriptorForType.findFieldByName(name))
    def string(name: String): String = value(name).asInstanceOf[String]
    def int(name: String): Int = value(name).asInstanceOf[Int]
    def long(name: String): Long = value(name).asInstanceOf[Long]
    def bool(name: String): Boolean = value(name).asInstanceOf[Boolean]
    def bytes(name: String): Array[Byte] = value(name).asInstanceOf[ByteString].toByteArray
    def message(name: String): DynamicMessage = value(name).asInstanceOf[DynamicMessage]
    def messages(name: String): Seq[DynamicMessage] = value(name).asInstanceOf[java.util.List[DynamicMessage]].asScala.toSeq
    def double(name: String): Double = value(name).asInstanceOf[Double]
    def longs(name: String): Seq[Long] = value(name).asInstanceOf[java.util.List[Long]].asScala.toSeq
    def strings(name: String): Seq[String] = value(name).asInstanceOf[java.util.List[String]].asScala.toSeq
    def choiceOf(name: String): String = value(name).asInstanceOf[Descriptors.EnumValueDescriptor].getName
    def count(name: String): Int = message.getRepeatedFieldCount(message.getDescriptorForType.findFieldByName(name))
    def byteArrays(name: String): Seq[Array[Byte]] = value(name).asInstanceOf[java.util.List[ByteString]].asScala.map(_.toByteArray).toSeq
    def has(name: String): Boolean = message.hasField(message.getDescriptorForType.findFieldByName(name))
    def copy(fields: (String, Any)*): DynamicMessage = change(message.toBuilder, fields)
    def without(name: String): DynamicMessage = message.toBuilder.clearField(message.getDescriptorForType.findFieldByName(name)).build()

    /** The one field of the oneof that is set, or None. */
    def choice(oneof: String): Option[String] =
      message.getDescriptorForType.getOneofs.asScala.find(_.getName == oneof).flatMap(one => Option(message.getOneofFieldDescriptor(one))).map(_.getName)
  }
}

/** A request that is not carried out. `reason` is a value of Refusal.Reason and says who has to act. Inside an expression it reaches the client as Spark's
  * own exception, and of an IllegalArgumentException pyspark shows the bare text. */
final class Refused(val reason: String, message: String) extends IllegalArgumentException(message) {
  def toReply: DynamicMessage = Schema.build("Reply")("refusal" -> Schema.build("Refusal")("reason" -> reason, "message" -> getMessage))
}

object Refused {
  def plan(message: String): Refused = new Refused("PLAN", message)
  def version(message: String): Refused = new Refused("VERSION", message)
  def resources(message: String): Refused = new Refused("RESOURCES", message)
  def unknownRun(id: String): Refused = new Refused("RUN_NOT_FOUND", s"there is no run $id of this user on the server")

  def unlessSpoken(protocol: Int, client: String): Unit = if (protocol != Schema.Protocol) throw version(
    s"the client ($client) speaks version $protocol of sparkgap's messages, the server speaks version ${Schema.Protocol}: " +
      "install the same sparkgap release on both sides")
}
