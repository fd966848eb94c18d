"""Columns in shared memory as their bare Arrow buffers, for the model host's talk with tasks of the JVM, which write and read the same layout."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from sparkgap_protos.v1 import node_pb2 as pb

ALIGNMENT = 64


def read_column(kind: pa.DataType, column: pb.Column, memory: mmap.mmap) -> Any:
    """An array over the buffers of a column, without a copy; they can be written to where the memory can."""
    nodes = iter(zip(column.nodes[::2], column.nodes[1::2], strict=True))
    view = memoryview(memory)
    buffers = (
        pa.py_buffer(view[offset : offset + length]) if length else None
        for offset, length in zip(column.buffers[::2], column.buffers[1::2], strict=True)
    )
    return _build(kind, nodes, buffers)


def _build(kind: pa.DataType, nodes: Iterator[tuple[int, int]], buffers: Iterator[pa.Buffer | None]) -> Any:
    length, nulls = next(nodes)
    if pa.types.is_null(kind):
        return pa.nulls(length)
    storage: Any = kind
    own = [next(buffers)]
    children: list[Any] = []
    if pa.types.is_struct(kind):
        children = [_build(storage.field(index).type, nodes, buffers) for index in range(storage.num_fields)]
    elif pa.types.is_fixed_size_list(kind):
        children = [_build(storage.value_type, nodes, buffers)]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        own.append(next(buffers))
        children = [_build(storage.value_type, nodes, buffers)]
    elif pa.types.is_map(kind):
        own.append(next(buffers))
        children = [_build(pa.struct([storage.key_field, storage.item_field]), nodes, buffers)]
    else:
        own += [next(buffers) for _ in range(kind.num_buffers - 1)]
    # Arrow leaves out empty buffers, but reads the first offset of an empty list or string column.
    own[1:] = [pa.py_buffer(bytes(8)) if each is None else each for each in own[1:]]
    return pa.Array.from_buffers(kind, length, own, nulls, 0, children or None)


def write_column(array: pa.Array[Any], memory: mmap.mmap, offset: int) -> tuple[pb.Column, int]:
    """Copy the buffers of an array behind `offset`; the memory is large enough. Returns their places, and the end."""
    places: list[int] = []
    end = offset
    view = memoryview(memory)
    for buffer in array.buffers():
        if buffer is None or not buffer.size:
            places += [0, 0]
            continue
        start = -(-end // ALIGNMENT) * ALIGNMENT
        end = start + buffer.size
        view[start:end] = memoryview(buffer).cast("B")
        places += [start, buffer.size]
    return pb.Column(nodes=list(_nodes(array)), buffers=places), end


def _nodes(array: Any) -> Iterator[int]:
    if array.offset:
        raise ValueError(f"a slice cannot be written: it begins at {array.offset}")
    yield len(array)
    yield array.null_count
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _nodes(array.values)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _nodes(array.field(index))
    elif kind.num_fields:
        raise ValueError(f"a column of type {kind} cannot be written")
