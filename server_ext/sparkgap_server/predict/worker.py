"""The function that Spark's Python workers run for a prediction: chunks of whole model batches go to the model host, predictions come back.

The shim names `predict` in the UDF that it plans; the rows go on through shared memory to host.py.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
from google.protobuf.message import Message
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

from sparkgap_server import wire
from sparkgap_server.predict.batches import Pace, Rebatcher
from sparkgap_server.predict.context import own_task
from sparkgap_server.predict.failure import builtin_error
from sparkgap_server.predict.memory import MappedMemory, stream_size

#: Written by the shim into the executor's first local directory.
POINTER = "sparkgap-nursery"

_OPEN_ATTEMPTS = 3
_NURSERY_SECONDS = 10.0


class NurseryMissing(RuntimeError):
    """This executor has no nursery to fork model hosts from."""


class HostDied(RuntimeError):
    """The model host ended while it held a batch."""


class HostRefused(RuntimeError):
    """The nursery could not start a model host: this node has no process ids or descriptors left."""


class ModelError(RuntimeError):
    """The user's model raised an exception that is not one of Python's own classes."""


Columns = Sequence["pa.Array[Any]"]


def predict(plan_bytes: bytes, inputs: Iterator[pa.Array[Any] | tuple[pa.Array[Any], ...]]) -> Iterator[pa.Array[Any]]:
    """Predictions for the batches of one partition, in as many rows; an empty partition never asks for the model."""
    plan = plan_pb2.PredictPlan.FromString(plan_bytes)
    rebatcher, pace = Rebatcher(), Pace(plan.batch_size)
    host: _Host | None = None
    try:
        for columns in inputs:
            rebatcher.add(columns if isinstance(columns, tuple) else (columns,))
            predicted = []
            while rows := pace.rows(rebatcher.rows):
                host = host or _Host(plan)
                predicted.append(host.predict(rebatcher.take(rows), pace))
            if predicted:
                yield pa.concat_arrays(predicted)
        if rebatcher.rows:
            host = host or _Host(plan)
            yield host.predict(rebatcher.take(rebatcher.rows), pace)
    finally:
        if host is not None:
            host.close()


class _Host:
    """This task's connection to the model host."""

    def __init__(self, plan: plan_pb2.PredictPlan) -> None:
        self._name = plan.name
        self._connection, self._memory = _open(plan)

    def predict(self, columns: Columns, pace: Pace) -> pa.Array[Any]:
        batch = pa.RecordBatch.from_arrays(list(columns), names=[str(index) for index in range(len(columns))])
        size = stream_size(batch)
        if size > self._memory.capacity:
            self._ask(pb.GROW, pb.Grow(capacity=size), pb.MODEL_READY)
            self._memory.remap(size)
        request = pb.Batch(length=self._memory.write(batch, size))
        predicted = pb.PredictedBatch.FromString(self._ask(pb.BATCH, request, pb.PREDICTED))
        pace.took(predicted.model_seconds, size)
        return self._memory.read(predicted.offset, predicted.length).column(0)

    def close(self) -> None:
        self._connection.close()
        self._memory.close()

    def _ask(self, kind: int, question: Message, answer: int) -> bytes:
        _say(self._connection, kind, question)
        frame = _hear(self._connection)
        if frame is None:
            raise HostDied(
                f"the model host of {self._name} died while it predicted. Was it killed for memory? Hosts count against "
                "spark.executor.memoryOverhead; their errors are in the executor's stderr"
            )
        if frame.kind != answer:
            _raise(frame, self._name)
        return frame.body


def _open(plan: plan_pb2.PredictPlan) -> tuple[socket.socket, MappedMemory]:
    """A connection to a host that has the model, and the memory that it shares; what fails is closed."""
    # A host that ends may take a connection down with it before the task has its memory: because it was idle, could not load, or another task's batch
    # has killed it.
    for _ in range(_OPEN_ATTEMPTS):
        connection = _connect(plan)
        try:
            if (ready := _greet(connection, plan)) is not None:
                with suppress(FileNotFoundError):
                    return connection, MappedMemory(ready.pid, ready.descriptor)
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise HostDied(
        f"the model host of {plan.name} ended {_OPEN_ATTEMPTS} times before it could load the model. Was it killed for memory? "
        "Hosts count against spark.executor.memoryOverhead; their errors are in the executor's stderr"
    )


def _greet(connection: socket.socket, plan: plan_pb2.PredictPlan) -> pb.ModelReady | None:
    """What the host says once it has the model, or None where it ended before."""
    outline = plan_pb2.PredictPlan()
    outline.CopyFrom(plan)
    outline.ClearField("make_predict_fn")
    if (task := own_task()) is not None:
        _say(connection, pb.TASK_CONTEXT, task)
    _say(connection, pb.PREDICT_PLAN, outline)
    frame = _hear(connection)
    if frame is not None and frame.kind == pb.PLAN_WANTED:
        _say(connection, pb.PREDICT_PLAN, _with_payload(plan))
        frame = _hear(connection)
    if frame is None:
        return None
    if frame.kind != pb.MODEL_READY:
        _raise(frame, plan.name)
    return pb.ModelReady.FromString(frame.body)


def _say(connection: socket.socket, kind: int, body: Message) -> None:
    with suppress(OSError):  # who has refused and closed can still be heard
        wire.send(connection, kind, body)


def _hear(connection: socket.socket) -> wire.Frame | None:
    try:
        return wire.receive(connection)
    except (OSError, wire.BrokenFrame):
        return None


def _with_payload(plan: plan_pb2.PredictPlan) -> plan_pb2.PredictPlan:
    """Spark has put an uploaded payload on this node before it started the function, and told this worker where; nobody reads it here."""
    if not plan.HasField("broadcast"):
        return plan
    from pyspark.core.broadcast import _broadcastRegistry

    located = plan_pb2.PredictPlan()
    located.CopyFrom(plan)
    located.payload_file = _broadcastRegistry[plan.broadcast]._path
    return located


def _connect(plan: plan_pb2.PredictPlan) -> socket.socket:
    pointer = Path(os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]) / POINTER
    model = pb.OpenModel(key=plan.digest, name=plan.name, python_path=_session_path())
    deadline = time.monotonic() + _NURSERY_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(pointer.read_text())
            wire.send(connection, pb.OPEN, pb.Open(model=model))
            return connection
        except OSError as problem:
            connection.close()
            if time.monotonic() > deadline:
                raise NurseryMissing(
                    f"no nursery runs beside this executor ({problem}): spark.plugins on the server must name sparkgap's plugin, and "
                    "the executor's stderr says why a nursery ended"
                ) from problem
            time.sleep(
                0.02
            )  # one that was killed is started again at once, and its socket appears some milliseconds later


def _session_path() -> list[str]:
    """What the session's artifacts added to this worker's path, wherever Spark unpacked them."""
    from pyspark.core.files import SparkFiles

    root = SparkFiles._root_directory
    return [entry for entry in sys.path if root and entry.startswith(root)]


def _raise(frame: wire.Frame, name: str) -> NoReturn:
    if frame.kind == pb.REFUSED:
        refused = pb.Refused.FromString(frame.body)
        raise HostRefused(f"the nursery could not start the model host of {name}: {refused.message}")
    if frame.kind != pb.MODEL_FAILURE:
        raise wire.BrokenFrame(f"unexpected frame of kind {frame.kind}")
    failure = pb.ModelFailure.FromString(frame.body)
    what = "make_predict_fn raised" if failure.loading else "the prediction of a batch raised"
    text = f"{failure.message}\n\n{name}: {what} in the model host:\n{failure.traceback}"
    raise builtin_error(failure.exception, text) or ModelError(f"{failure.exception}: {text}")
