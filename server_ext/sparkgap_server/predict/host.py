"""The process that holds one model and predicts for every task of its executor; the nursery forks it and hands it connections.

A connection asks for the plan once, when the model is not loaded yet, and then takes turns: a batch in shared memory, its predictions behind it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

from sparkgap_server import wire
from sparkgap_server.predict.memory import SharedMemory
from sparkgap_server.predict.witness import FileWitness

_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class HostSpec:
    """What the nursery tells a host."""

    name: str
    python_path: tuple[str, ...]
    cores: int
    idle_seconds: float


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
    host = _Host()
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

    def __init__(self) -> None:
        self.broken = False
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
            wire.send(connection, pb.MODEL_FAILURE, _failure(failure.reason, loading=True))
            return
        memory = SharedMemory()
        try:
            self._ready(connection, memory, model)
            while (frame := wire.receive(connection)) is not None:
                if frame.kind == pb.GROW:
                    memory.grow(pb.Grow.FromString(frame.body).capacity)
                    self._ready(connection, memory, model)
                elif frame.kind == pb.BATCH:
                    wire.send(connection, *self._answer(memory, pb.Batch.FromString(frame.body).length, task, model))
                else:
                    raise wire.BrokenFrame(f"unexpected frame of kind {frame.kind}")
        finally:
            memory.close()

    def _ready(self, connection: socket.socket, memory: SharedMemory, model: _Model) -> None:
        ready = pb.ModelReady(
            pid=os.getpid(), descriptor=memory.descriptor, capacity=memory.capacity, load_seconds=model.load_seconds
        )
        wire.send(connection, pb.MODEL_READY, ready)

    def _load(self, connection: socket.socket) -> tuple[_Task, _Model]:
        """The task's own layout and return type, and the model, which is loaded by whoever comes first."""
        plan = _receive_plan(connection)
        with self._loading:
            # Tasks that already have a model keep it to their end: a query sees one version of the weights in each partition.
            if self._model is None or self._witness.changed():
                wire.send(connection, pb.PLAN_WANTED)
                with self._witness.watch():
                    self._model = _load(_receive_plan(connection))
        return _task(plan), self._model

    def _answer(self, memory: SharedMemory, length: int, task: _Task, model: _Model) -> tuple[int, Any]:
        from sparkgap_server.predict.columns import to_column
        from sparkgap_server.predict.tensors import to_arguments

        try:
            batch = memory.read(length)
            arguments = to_arguments(batch.columns, task.layout, model.arguments)
            with self._predicting:  # until the result is copied: a model may return the same memory every time
                began = time.perf_counter()
                predictions = model.predict(*arguments)
                seconds = time.perf_counter() - began
                column = to_column(predictions, batch.num_rows, task.return_type)
                offset, written = memory.write(length, pa.RecordBatch.from_arrays([column], names=["prediction"]))
        except (Exception, SystemExit) as error:  # sys.exit would end this thread only, and say nothing
            return pb.MODEL_FAILURE, _failure(error, loading=False)
        return pb.PREDICTED, pb.PredictedBatch(offset=offset, length=written, model_seconds=seconds)


@dataclass(frozen=True)
class _Task:
    layout: Any
    return_type: Any


def _task(plan: plan_pb2.PredictPlan) -> _Task:
    from pyspark.sql.types import _parse_datatype_json_string

    from sparkgap_server.predict.tensors import InputLayout

    shapes = None
    sparse = None
    if plan.HasField("input_shapes"):
        declared = plan.input_shapes.shapes
        if plan.input_shapes.sparse:
            sparse = {each.index: tuple(each.dimensions) for each in declared}
        else:
            shapes = tuple(tuple(each.dimensions) if each.given else None for each in declared)
    return _Task(InputLayout(tuple(plan.argument_names), shapes, sparse), _parse_datatype_json_string(plan.return_type))


def _receive_plan(connection: socket.socket) -> plan_pb2.PredictPlan:
    frame = wire.receive(connection)
    if frame is None or frame.kind != pb.PREDICT_PLAN:
        raise wire.BrokenFrame("expected a plan")
    return plan_pb2.PredictPlan.FromString(frame.body)


def _load(plan: plan_pb2.PredictPlan) -> _Model:
    from sparkgap_server.predict.tensors import model_arguments

    began = time.perf_counter()
    try:
        predict = codec.unpack(plan.make_predict_fn)()
        if not callable(predict):
            raise TypeError(f"make_predict_fn must return a function, it returned a {type(predict).__qualname__}")
        return _Model(predict, model_arguments(predict), time.perf_counter() - began)
    except (Exception, SystemExit) as error:
        raise LoadFailed(error) from error


def _failure(error: BaseException, *, loading: bool) -> pb.ModelFailure:
    message = str(error)
    if isinstance(error, ModuleNotFoundError):
        message += (
            f". The model needs the module {error.name!r}, which is not installed on the workers: install it there, or move what "
            "it uses into the file that calls predict_batch_udf"
        )
    return pb.ModelFailure(
        loading=loading,
        exception=type(error).__qualname__,
        message=message,
        traceback="".join(traceback.format_exception(error)),
    )
