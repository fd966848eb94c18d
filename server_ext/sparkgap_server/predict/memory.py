"""Shared memory between a model host and whoever sends it batches: an anonymous file of the host, which the other side maps through /proc.

Nothing is left behind when either side dies, and a container's small /dev/shm does not limit it.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import pyarrow as pa
from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server.predict.layout import ALIGNMENT, read_column, write_column


class SharedMemory:
    """The host's end: owns the file, grows it, and reads and writes Arrow streams in it."""

    def __init__(self, capacity: int = 1 << 20) -> None:
        self.descriptor = os.memfd_create("sparkgap-batches", os.MFD_CLOEXEC)
        self.capacity = 0
        try:
            self.grow(capacity)
        except BaseException:
            os.close(self.descriptor)
            raise

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` bytes; arrays that view the old mapping stay valid."""
        if capacity > self.capacity:
            self.capacity = max(capacity, 2 * self.capacity)
            os.ftruncate(self.descriptor, self.capacity)
            self._map = mmap.mmap(self.descriptor, self.capacity)

    def adopt(self, needed: int) -> None:
        """Map anew where the other side has grown the file to hold `needed` bytes."""
        if needed > self.capacity:
            self.capacity = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, self.capacity)

    def read_columns(self, schema: pa.Schema, message: pb.ColumnBatch) -> list[pa.Array[Any]]:
        """The columns of a batch that a task of the JVM has written, without a copy."""
        self.adopt(message.length)
        return [
            read_column(field.type, column, self._map) for field, column in zip(schema, message.columns, strict=True)
        ]

    def write_column(self, offset: int, array: pa.Array[Any]) -> tuple[pb.Column, int]:
        """Write one column behind `offset`; returns where its buffers are and where it ends."""
        buffers = array.buffers()
        self.grow(offset + sum(_padded(buffer.size) for buffer in buffers if buffer is not None) + ALIGNMENT)
        return write_column(array, self._map, offset)

    def read(self, length: int) -> pa.RecordBatch:
        """The record batch of the stream in the first `length` bytes, without a copy; its buffers can be written to, as models may do."""
        batch = read_batch(self._map, 0, length)
        window = pa.py_buffer(self._map)
        return pa.RecordBatch.from_arrays([_writable(column, window) for column in batch.columns], schema=batch.schema)

    def write(self, offset: int, batch: pa.RecordBatch) -> tuple[int, int]:
        """Write a stream behind `offset`; returns where it begins and how long it is."""
        start = _padded(offset)
        size = stream_size(batch)
        self.grow(start + size)
        return start, write_batch(self._map, start, size, batch)

    def close(self) -> None:
        """Give the file back; mappings live on until their arrays are gone."""
        os.close(self.descriptor)


class MappedMemory:
    """The other side's end: maps the host's file, again whenever it has grown."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._descriptor = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        self.capacity = 0
        try:
            self.remap(0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def remap(self, needed: int) -> None:
        """Map anew if less than `needed` bytes are mapped."""
        if needed > self.capacity or self.capacity == 0:
            self.capacity = os.fstat(self._descriptor).st_size
            self._map = mmap.mmap(self._descriptor, self.capacity)

    def write(self, batch: pa.RecordBatch, size: int) -> int:
        """Write a stream at the start; `size` is what `stream_size` says. Returns its length."""
        return write_batch(self._map, 0, size, batch)

    def read(self, offset: int, length: int) -> pa.RecordBatch:
        """The record batch of a stream, copied out: the next batch overwrites the memory."""
        self.remap(offset + length)
        return read_batch(self._map[offset : offset + length], 0, length)

    def close(self) -> None:
        """Unmap; the host keeps its file."""
        os.close(self._descriptor)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def stream_size(batch: pa.RecordBatch) -> int:
    """Bytes of the batch as an Arrow IPC stream."""
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return int(sink.size())


def write_batch(target: mmap.mmap, start: int, size: int, batch: pa.RecordBatch) -> int:
    """Write an Arrow IPC stream of `size` bytes into a mapping with one copy of the data."""
    window = pa.py_buffer(memoryview(target)[start : start + size])
    sink = pa.FixedSizeBufferWriter(window)
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return size


def read_batch(source: mmap.mmap | bytes, start: int, length: int) -> pa.RecordBatch:
    """The one record batch of an Arrow IPC stream; its arrays view `source`."""
    with pa.ipc.open_stream(pa.py_buffer(memoryview(source)[start : start + length])) as reader:
        return reader.read_next_batch()


def _writable(array: Any, window: pa.Buffer) -> Any:
    """The same array over buffers that are marked as mutable: Arrow's IPC reader marks its slices as constant."""
    kind = array.type
    children: list[pa.Array[Any]] = []
    own = array.buffers()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        own, children = own[:2], [array.values]
    elif pa.types.is_fixed_size_list(kind):
        own, children = own[:1], [array.values]
    elif pa.types.is_struct(kind):
        own, children = own[:1], [array.field(index) for index in range(kind.num_fields)]
    elif kind.num_fields or isinstance(kind, (pa.ExtensionType, pa.DictionaryType)):
        return array
    buffers = [None if each is None else _mutable(each, window) for each in own]
    children = [_writable(child, window) for child in children]
    return pa.Array.from_buffers(kind, len(array), buffers, array.null_count, array.offset, children or None)


def _mutable(buffer: pa.Buffer, window: pa.Buffer) -> pa.Buffer:
    start = buffer.address - window.address
    if buffer.size == 0 or not 0 <= start <= window.size - buffer.size:
        return buffer  # an empty buffer lies anywhere
    return pa.py_buffer(memoryview(window)[start : start + buffer.size])
