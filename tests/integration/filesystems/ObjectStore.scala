// A filesystem as poor as an object store, for test_run_store.py: no append, no rename, nothing to see of a file before it is closed, and nothing is
// ever changed. Below a folder named "full", every disk is full after the first bytes; below "slow", each file takes seconds.
package sparkgap.test

import java.io.{ByteArrayOutputStream, IOException, OutputStream}
import java.net.URI

import org.apache.hadoop.fs._
import org.apache.hadoop.fs.permission.FsPermission
import org.apache.hadoop.util.Progressable

class ObjectStore extends RawLocalFileSystem {
  override def getUri: URI = URI.create("objects:///")
  override def getScheme: String = "objects"
  override def pathToFile(path: Path): java.io.File = new java.io.File(path.toUri.getPath)

  override def create(file: Path, permission: FsPermission, overwrite: Boolean, buffer: Int, replication: Short, block: Long, progress: Progressable)
      : FSDataOutputStream = {
    if (overwrite) throw new UnsupportedOperationException(s"overwrites $file")
    val whole = new ByteArrayOutputStream
    val path = file.toUri.getPath
    new FSDataOutputStream(new OutputStream {
      private var closed = false
      override def write(byte: Int): Unit = { fill(1); whole.write(byte) }
      override def write(bytes: Array[Byte], from: Int, length: Int): Unit = { fill(length); whole.write(bytes, from, length) }
      private def fill(more: Int): Unit = if (path.contains("/full/") && whole.size + more > 100) throw new IOException("No space left on device")
      override def close(): Unit = if (!closed) {
        closed = true
        if (path.contains("/slow/")) Thread.sleep(3000)
        val out = ObjectStore.super.create(file, permission, false, buffer, replication, block, progress)
        try out.write(whole.toByteArray) finally out.close()
      }
    }, null)
  }

  override def append(file: Path, buffer: Int, progress: Progressable): FSDataOutputStream = throw new UnsupportedOperationException("append")
  override def rename(from: Path, to: Path): Boolean = throw new UnsupportedOperationException("rename")
  override def truncate(file: Path, length: Long): Boolean = throw new UnsupportedOperationException("truncate")
}
