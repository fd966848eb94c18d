"""The process that holds one model and predicts for every task of its executor; the nursery forks it and hands it connections.

A connection asks for the plan once, when the model is not loaded yet, and then takes turns: a batch in shared memory, its predictions behind it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

from sparkgap_server import program, sources, wire
from sparkgap_server.predict.failure import describe
from sparkgap_server.predict.memory import SharedMemory
from sparkgap_server.predict.witness import FileWitness

if TYPE_CHECKING:
    from sparkgap_server.predict.chunk import Chunk
    from sparkgap_server.predict.task import Task

_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class HostSpec:
    """What the nursery tells a host; it removes the folder `private` after the host's end."""

    name: str
    python_path: tuple[str, ...]
    cores: int
    idle_seconds: float
    private: Path


@dataclass(frozen=True)
class _Model:
    predict: Callable[..., object]
    arguments: int
    load_seconds: float


class LoadFailed(Exception):
    """make_predict_fn raised `reason`."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


def serve(spec: HostSpec, door: socket.socket) -> int:
    """Serve connections that arrive through `door` until the nursery closes it, the host is idle for long, or the model cannot be loaded."""
    sys.path[:0] = spec.python_path
    _use_threads(spec.cores)
    host = _Host(spec.private)
    door.settimeout(_TICK_SECONDS)
    while not (host.broken or host.idle_for() > spec.idle_seconds):
        try:
            _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
        except TimeoutError:
            continue
        if not descriptors:
            return 0
        host.begin(socket.socket(fileno=descriptors[0]))
    door.close()
    host.finish()
    return 0


def _use_threads(cores: int) -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(max(1, cores))


class _Host:
    """One thread a connection; one prediction at a time, since user code was never promised more."""

    def __init__(self, private: Path) -> None:
        self.broken = False
        self._private = private
        self._loading = threading.Lock()
        self._predicting = threading.Lock()
        self._model: _Model | None = None
        self._witness = FileWitness()
        self._threads: set[threading.Thread] = set()
        self._last_used = time.monotonic()

    def idle_for(self) -> float:
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        if self._threads:
            self._last_used = time.monotonic()
        return time.monotonic() - self._last_used

    def begin(self, connection: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        self._threads.add(thread)
        thread.start()

    def finish(self) -> None:
        """Wait for the tasks that are still connected: one may have loaded the model although another could not."""
        for thread in self._threads:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._converse(connection)
            except (OSError, wire.BrokenFrame) as problem:
                sys.stderr.write(f"sparkgap model host: a connection ended: {problem}\n")

    def _converse(self, connection: socket.socket) -> None:
        try:
            task, model = self._load(connection)
        except LoadFailed as failure:
            self.broken = True
            wire.send(connection, pb.MODEL_FAILURE, describe(failure.reason, loading=True))
            return
        talk = _Talk(connection, task, model, self._predicting)
        try:
            talk.run()
        finally:
            talk.close()

    def _load(self, connection: socket.socket) -> tuple[Task, _Model]:
        """The task's own layout and return type, and the model, which is loaded by whoever comes first."""
        plan = _receive_plan(connection)
        with self._loading:
            # Tasks that already have a model keep it to their end: a query sees one version of the weights in each partition.
            if self._model is None or self._witness.changed():
                wire.send(connection, pb.PLAN_WANTED)
                whole = _receive_plan(connection)
                # Opened before the watch begins: Spark may remove the file while the model lives.
                with _payload(whole) as file, self._witness.watch():
                    self._model = _load(whole, file, self._private)
        from sparkgap_server.predict.task import task_of

        return task_of(plan), self._model


class _Talk:
    """One task's batches: a worker sends Arrow streams in one memory, a task of the JVM columns in two, filling one while the other is predicted."""

    def __init__(self, connection: socket.socket, task: Task, model: _Model, turn: threading.Lock) -> None:
        self._connection = connection
        self._task = task
        self._model = model
        self._turn = turn
        self._memories: list[SharedMemory] = []
        self._schema: pa.Schema | None = None

    def run(self) -> None:
        self._add_memory()
        while (frame := wire.receive(self._connection)) is not None:
            if frame.kind == pb.COLUMN_BATCH:
                self._answer(lambda body=frame.body: self._columns(pb.ColumnBatch.FromString(body)))  # type: ignore[misc]
            elif frame.kind == pb.BATCH:
                self._answer(lambda body=frame.body: self._stream(pb.Batch.FromString(body)))  # type: ignore[misc]
            elif frame.kind == pb.GROW:
                self._memories[0].grow(pb.Grow.FromString(frame.body).capacity)
                self._ready(0)
            elif frame.kind == pb.SCHEMA:
                self._schema = pa.ipc.read_schema(pa.py_buffer(frame.body))
                self._add_memory()
            else:
                raise wire.BrokenFrame(f"unexpected frame of kind {frame.kind}")

    def close(self) -> None:
        for memory in self._memories:
            memory.close()

    def _add_memory(self) -> None:
        self._memories.append(SharedMemory())
        self._ready(len(self._memories) - 1)

    def _ready(self, slot: int) -> None:
        memory = self._memories[slot]
        ready = pb.ModelReady(
            pid=os.getpid(),
            descriptor=memory.descriptor,
            capacity=memory.capacity,
            load_seconds=self._model.load_seconds,
            slot=slot,
        )
        wire.send(self._connection, pb.MODEL_READY, ready)

    def _answer(self, predicted: Callable[[], tuple[int, Any]]) -> None:
        try:
            kind, body = predicted()
        except (Exception, SystemExit) as error:  # sys.exit would end this thread only, and say nothing
            kind, body = pb.MODEL_FAILURE, describe(error, loading=False)
        wire.send(self._connection, kind, body)

    def _stream(self, message: pb.Batch) -> tuple[int, pb.PredictedBatch]:
        memory = self._memories[0]
        batch = memory.read(message.length)
        chunk = self._chunk(batch.columns, batch.num_rows)
        with self._turn:
            column, seconds = chunk.predict(self._model.predict)
            predictions = pa.RecordBatch.from_arrays([column], names=["prediction"])
            offset, written = memory.write(message.length, predictions)
        return pb.PREDICTED, pb.PredictedBatch(offset=offset, length=written, model_seconds=seconds)

    def _columns(self, message: pb.ColumnBatch) -> tuple[int, pb.PredictedColumn]:
        if self._schema is None:
            raise wire.BrokenFrame("columns arrived before their schema")
        memory = self._memories[message.slot]
        chunk = self._chunk(memory.read_columns(self._schema, message), message.rows)
        with self._turn:
            column, seconds = chunk.predict(self._model.predict)
            layout, end = memory.write_column(message.length, column)
        return pb.PREDICTED_COLUMN, pb.PredictedColumn(
            column=layout, length=end, model_seconds=seconds, slot=message.slot
        )

    def _chunk(self, columns: Sequence[pa.Array[Any]], rows: int) -> Chunk:
        from sparkgap_server.predict.chunk import Chunk

        return Chunk(self._task, self._model.arguments, columns, rows)


def _receive_plan(connection: socket.socket) -> plan_pb2.PredictPlan:
    frame = wire.receive(connection)
    if frame is None or frame.kind != pb.PREDICT_PLAN:
        raise wire.BrokenFrame("expected a plan")
    return plan_pb2.PredictPlan.FromString(frame.body)


@contextmanager
def _payload(plan: plan_pb2.PredictPlan) -> Iterator[IO[bytes] | None]:
    """The file with what make_predict_fn carries, or None where the plan holds it."""
    if not plan.payload_file:
        yield None
        return
    try:
        descriptor = os.open(plan.payload_file, os.O_RDONLY)
    except OSError as error:
        text = f"what make_predict_fn carries cannot be read on this node: {error}. Run the query again from its client, which sends it again"
        raise LoadFailed(type(error)(text)) from error
    with open(descriptor, "rb", 1 << 20) as file:
        yield file


def _load(plan: plan_pb2.PredictPlan, file: IO[bytes] | None, private: Path) -> _Model:
    from sparkgap_server.predict.tensors import model_arguments

    began = time.perf_counter()
    try:
        sent = program.begin(private, [plan.name])
        sources.install(plan.make_predict_fn.modules, sent, plan.make_predict_fn.files)
        predict = codec.unpack(plan.make_predict_fn, file)()
        if not callable(predict):
            raise TypeError(f"make_predict_fn must return a function, it returned a {type(predict).__qualname__}")
        return _Model(predict, model_arguments(predict), time.perf_counter() - began)
    except (Exception, SystemExit) as error:
        raise LoadFailed(error) from error
