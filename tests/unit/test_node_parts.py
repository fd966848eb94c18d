"""The small parts of a node's processes: frames, lines, batches, shared memory, watched files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparkgap_protos.v1 import node_pb2, run_pb2
from sparkgap_server import wire
from sparkgap_server.nursery.lines import MAX_LINE_BYTES, LineCollector
from sparkgap_server.predict.batches import Pace, Rebatcher
from sparkgap_server.predict.memory import MappedMemory, SharedMemory, stream_size
from sparkgap_server.predict.witness import FileWitness

# ---- frames ----


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50))), st.lists(st.integers(1, 30), min_size=1))
def test_frames_come_out_whole_however_the_stream_is_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(wire.encode(kind, body) for kind, body in frames)
    reader = wire.FrameReader()
    found = []
    turn = 0
    while stream:
        size = cuts[turn % len(cuts)]
        found += reader.feed(stream[:size])
        stream = stream[size:]
        turn += 1
    assert [(frame.kind, frame.body) for frame in found] == frames


def test_a_stream_that_ends_between_frames_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(theirs, 3, b"abc")
        theirs.shutdown(socket.SHUT_WR)
        assert wire.receive(ours) == wire.Frame(3, b"abc")
        assert wire.receive(ours) is None


@pytest.mark.parametrize("stream", [b"\x01", b"\x01\x05\x00\x00\x00ab"])
def test_a_stream_that_ends_inside_a_frame_is_one(stream: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(stream)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(wire.BrokenFrame, match="middle of a frame"):
            wire.receive(ours)


def test_an_absurd_length_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(wire.BrokenFrame, match="4294967295 bytes, at most"):
        wire.FrameReader().feed(b"\x01\xff\xff\xff\xff")


# ---- lines ----


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"a\nb\n"], ["a", "b"]),
        ([b"a", b"b\nc"], ["ab", "c"]),
        ([b"\n\n"], ["", ""]),
        ([b"dos\r\n"], ["dos"]),
        ([b" 1%\r 2%\r", b" 3%\n"], [" 3%"]),
        ([b" 1%\r 2%\r"], [" 2%"]),
        ([b"\xc3", b"\xa4\n\xff\n"], ["ä", "\\xff"]),
        ([], []),
    ],
)
def test_bytes_become_lines(pieces: list[bytes], lines: list[str]) -> None:
    assert collected(*pieces) == lines


def collected(*pieces: bytes) -> list[str]:
    collector = LineCollector(run_pb2.LogLines.STDOUT)
    return [line for piece in [*pieces, b""] for line in collector.feed(piece)]


@given(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n"])), st.integers(1, 5))
def test_it_does_not_matter_how_the_bytes_of_lines_arrive(parts: list[bytes], size: int) -> None:
    printed = b"".join(parts)
    assert collected(*(printed[start : start + size] for start in range(0, len(printed), size))) == collected(printed)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_last_state_of_a_progress_bar_is_shown_however_long_it_has_run(end: bytes) -> None:
    states = [b"\r%5d of 99999" % number for number in range(20_000)]
    assert sum(map(len, states)) > MAX_LINE_BYTES
    assert collected(*states, end) == ["19999 of 99999"]


def test_what_overwrites_a_long_line_is_not_cut() -> None:
    assert collected(b"x" * MAX_LINE_BYTES, b"x\r", b"short\n") == ["short"]


def test_a_long_line_is_cut_and_says_so() -> None:
    collector = LineCollector(run_pb2.LogLines.STDOUT)
    assert collector.feed(b"x" * MAX_LINE_BYTES) == []
    assert collector.feed(b"y" * 1000) == []
    assert collector.feed(b"z\nnext\n") == ["x" * MAX_LINE_BYTES + " … [1001 bytes cut]", "next"]


# ---- batches ----


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 15))
def test_rows_are_taken_in_order_across_the_borders_of_what_came_in(sizes: list[int], wanted: int) -> None:
    rebatcher = Rebatcher()
    start = 0
    taken = []
    for size in sizes:
        values = np.arange(start, start + size)
        rebatcher.add((pa.array(values), pa.array(values.astype(str))))
        start += size
        while rebatcher.rows >= wanted:
            taken.append(rebatcher.take(wanted))
    assert all(len(column) == wanted for columns in taken for column in columns)
    if rebatcher.rows:
        taken.append(rebatcher.take(rebatcher.rows))
    assert [value for numbers, _ in taken for value in numbers.to_pylist()] == list(range(start))
    assert [value for _, texts in taken for value in texts.to_pylist()] == [str(value) for value in range(start)]


class TestPace:
    def test_it_begins_with_one_batch(self) -> None:
        assert Pace(10).rows(1000) == 10

    def test_it_never_takes_a_part_of_a_batch(self) -> None:
        pace = Pace(10)
        pace.took(0.0, 100)
        assert [pace.rows(waiting) for waiting in (9, 10, 19, 20, 35)] == [0, 10, 10, 20, 20]

    def test_fast_batches_go_together_up_to_a_limit_of_rows(self) -> None:
        pace = Pace(10)
        for _ in range(20):
            pace.took(0.0001, 100)
        assert pace.rows(10**6) == 2560

    def test_and_of_bytes(self) -> None:
        pace = Pace(10)
        for _ in range(20):
            pace.took(0.0001, pace.rows(10**6) * 10_000)
        assert pace.rows(10**6) == 320

    def test_slow_batches_go_alone(self) -> None:
        pace = Pace(10)
        for _ in range(5):
            pace.took(0.0001, 100)
        for _ in range(10):
            pace.took(1.0, 100)
        assert pace.rows(10**6) == 10

    def test_a_batch_larger_than_every_limit_goes_alone(self) -> None:
        pace = Pace(100_000)
        pace.took(0.0, 10**9)
        assert pace.rows(10**6) == 100_000


# ---- shared memory ----

EVERY_LAYOUT = {
    "numbers": pa.array([1, None, 3], pa.int32()),
    "lists": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32())),
    "fixed lists": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int64(), 2)),
    "structs": pa.array(
        [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None], pa.struct([("a", pa.int16()), ("b", pa.string())])
    ),
    "strings": pa.array(["a", None, "ccc"]),
    "booleans": pa.array([True, None, False]),
    "nested lists": pa.array([[[1], [2, 3]], [], None], pa.list_(pa.list_(pa.int8()))),
    "maps": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("column", EVERY_LAYOUT.values(), ids=EVERY_LAYOUT.keys())
def test_a_batch_crosses_the_memory_both_ways(column: pa.Array) -> None:
    host = SharedMemory()
    worker = MappedMemory(os.getpid(), host.descriptor)
    batch = pa.RecordBatch.from_arrays([column, column.slice(0)], names=["0", "1"])
    length = worker.write(batch, stream_size(batch))
    arrived = host.read(length)
    arrived.validate(full=True)
    assert arrived.equals(batch)
    offset, written = host.write(length, arrived)
    assert worker.read(offset, written).equals(batch)
    worker.close()
    host.close()


@pytest.mark.parametrize("name", [name for name in EVERY_LAYOUT if name not in ("maps", "nothing")])
def test_a_column_crosses_the_memory_as_bare_buffers(name: str) -> None:
    host = SharedMemory(capacity=64)
    column = EVERY_LAYOUT[name]
    layout, end = host.write_column(7, column)
    message = node_pb2.ColumnBatch(rows=len(column), length=end, columns=[layout])
    (arrived,) = host.read_columns(pa.schema([("0", column.type)]), message)
    arrived.validate(full=True)
    assert arrived.equals(column)
    host.close()


def test_empty_columns_cross_the_memory_too() -> None:
    host = SharedMemory(capacity=64)
    for column in EVERY_LAYOUT.values():
        if pa.types.is_map(column.type) or pa.types.is_null(column.type):
            continue
        empty = pa.array([], column.type)
        layout, end = host.write_column(0, empty)
        message = node_pb2.ColumnBatch(rows=0, length=end, columns=[layout])
        (arrived,) = host.read_columns(pa.schema([("0", column.type)]), message)
        assert arrived.equals(empty)
    host.close()


def test_the_memory_grows_and_old_views_stay_valid() -> None:
    host = SharedMemory(capacity=4096)
    worker = MappedMemory(os.getpid(), host.descriptor)
    small = pa.RecordBatch.from_arrays([pa.array([1.0, 2.0])], names=["0"])
    view = host.read(worker.write(small, stream_size(small)))
    large = pa.RecordBatch.from_arrays([pa.array(np.arange(100_000.0))], names=["0"])
    offset, written = host.write(1000, large)
    assert worker.capacity == 4096
    assert worker.read(offset, written).equals(large)
    assert worker.capacity == host.capacity >= 800_000
    assert view.equals(small)
    worker.close()
    host.close()


def test_what_a_model_is_shown_can_be_written_to() -> None:
    host = SharedMemory()
    batch = pa.RecordBatch.from_arrays([EVERY_LAYOUT["lists"]], names=["0"])
    values = host.read(host.write(0, batch)[1]).column(0).values
    assert values.buffers()[1].is_mutable
    host.close()


# ---- watched files ----


@pytest.fixture(scope="module")
def witness() -> FileWitness:
    """One for all tests: an audit hook stays for the life of the process."""
    return FileWitness()


def rewrite(path: Path) -> None:
    path.write_bytes(b"other weights")


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("change", [rewrite, replace, Path.unlink])
def test_a_file_that_was_read_and_changes_is_noticed(
    witness: FileWitness, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"weights")
    with witness.watch():
        weights.read_bytes()
        (tmp_path / "output").write_text("a file that is written is no weight")
        Path(os.__file__).read_bytes()
    assert witness.changed() == []
    (tmp_path / "output").write_text("more")
    assert witness.changed() == []
    change(weights)
    assert witness.changed() == [str(weights)]


def test_what_is_read_at_other_times_does_not_count(witness: FileWitness, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"weights")
    with witness.watch():
        pass
    weights.read_bytes()
    rewrite(weights)
    assert witness.changed() == []


def test_weights_that_torch_loads_are_watched(witness: FileWitness, tmp_path: Path) -> None:
    import torch

    weights = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(3)}, weights)
    for mapped in (False, True):
        with witness.watch():
            torch.load(weights, weights_only=True, mmap=mapped)
        torch.save({"w": torch.zeros(4)}, weights)
        assert witness.changed() == [str(weights)]
