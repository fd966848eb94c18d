"""One task's batches in its model host: the connection's thread reads them and prepares the arguments, the main thread predicts.

A worker sends Arrow streams in one memory, a task of the JVM columns in two, filling one while the other is predicted.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server import wire
from sparkgap_server.predict.chunk import Chunk
from sparkgap_server.predict.context import shown
from sparkgap_server.predict.failure import describe
from sparkgap_server.predict.memory import SharedMemory
from sparkgap_server.predict.model import Model
from sparkgap_server.predict.task import Task
from sparkgap_server.predict.turns import Turns

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from pyspark import TaskContext

Answer = Callable[["pa.Array[Any]", float], tuple[int, "Message"]]
"""Puts predictions into shared memory; they took so many seconds in the model. Gives the frame that says where they are."""


@dataclass(frozen=True)
class Partner:
    """Whom a host talks with: its connection, what its plan asks of a batch, and which task it is, where that is known."""

    connection: socket.socket
    task: Task
    context: TaskContext | None


class Talk:
    """`read` runs in a thread of the connection, everything else that a batch needs in the main thread.

    Reader and main thread never use one memory at the same time: the other side reuses a memory when it has the answer to what was in it.
    """

    def __init__(self, partner: Partner, model: Model, turns: Turns) -> None:
        self._connection = partner.connection
        self._task = partner.task
        self._context = partner.context
        self._model = model
        self._turns = turns
        self._memories: list[SharedMemory] = []
        self._schema: pa.Schema | None = None
        self._over = (
            False  # the other side has gone, or has been told of a failure: what it sent before is predicted for nobody
        )

    def read(self) -> None:
        """Read frames until the other side closes."""
        try:
            self._add_memory()
            while (frame := wire.receive(self._connection)) is not None:
                self._take(frame)
        finally:
            self._over = True
            self._turns.put(self._give_back)

    def _take(self, frame: wire.Frame) -> None:
        if frame.kind == pb.COLUMN_BATCH:
            columns = pb.ColumnBatch.FromString(frame.body)
            self._prepare(partial(self._chunk_of_columns, columns), partial(self._write_column, columns))
        elif frame.kind == pb.BATCH:
            batch = pb.Batch.FromString(frame.body)
            self._prepare(partial(self._chunk_of_stream, batch), partial(self._write_stream, batch))
        elif frame.kind == pb.GROW:
            self._memories[0].grow(pb.Grow.FromString(frame.body).capacity)
            self._ready(0)
        elif frame.kind == pb.SCHEMA:
            self._schema = pa.ipc.read_schema(pa.py_buffer(frame.body))
            self._add_memory()
        else:
            raise wire.BrokenFrame(f"unexpected frame of kind {frame.kind}")

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

    def _prepare(self, chunk: Callable[[], Chunk], answer: Answer) -> None:
        """The arguments are made while the main thread predicts what came before."""
        try:
            work = partial(self._predict, chunk(), answer)
        except Exception as error:
            work = partial(self._fail, error)
        self._turns.put(work)

    def _chunk_of_columns(self, message: pb.ColumnBatch) -> Chunk:
        if self._schema is None:
            raise wire.BrokenFrame("columns arrived before their schema")
        columns = self._memories[message.slot].read_columns(self._schema, message)
        return Chunk(self._task, self._model.arguments, columns, message.rows)

    def _chunk_of_stream(self, message: pb.Batch) -> Chunk:
        batch = self._memories[0].read(message.length)
        return Chunk(self._task, self._model.arguments, batch.columns, batch.num_rows)

    # ---- In the main thread ----

    def _predict(self, chunk: Chunk, answer: Answer) -> None:
        if self._over:
            return
        try:
            with shown(self._context):
                predictions, seconds = chunk.predict(self._model.predict)
            kind, body = answer(predictions, seconds)
        except BaseException as error:  # SystemExit would end the host and say nothing
            self._fail(error)
            return
        try:
            # Never waits for the other side to read: at most two such frames are unread, and the socket holds far more.
            wire.send(self._connection, kind, body)
        except OSError as problem:
            _lost(problem)

    def _write_column(self, message: pb.ColumnBatch, column: pa.Array[Any], seconds: float) -> tuple[int, Message]:
        layout, end = self._memories[message.slot].write_column(message.length, column)
        return pb.PREDICTED_COLUMN, pb.PredictedColumn(
            column=layout, length=end, model_seconds=seconds, slot=message.slot
        )

    def _write_stream(self, message: pb.Batch, column: pa.Array[Any], seconds: float) -> tuple[int, Message]:
        predictions = pa.RecordBatch.from_arrays([column], names=["prediction"])
        offset, written = self._memories[0].write(message.length, predictions)
        return pb.PREDICTED, pb.PredictedBatch(offset=offset, length=written, model_seconds=seconds)

    def _fail(self, error: BaseException) -> None:
        """Tell the other side, which ends then.

        From a thread of its own: a failure has any length, and a task that reads from this model for another function of this same model reads it
        when that one is answered.
        """
        if self._over:
            return
        self._over = True
        failure = describe(error, loading=False)
        threading.Thread(target=_tell, args=(self._connection.dup(), failure), daemon=True).start()

    def _give_back(self) -> None:
        for memory in self._memories:
            memory.close()


def _tell(connection: socket.socket, failure: pb.ModelFailure) -> None:
    with connection:
        try:
            wire.send(connection, pb.MODEL_FAILURE, failure)
        except OSError as problem:
            _lost(problem)


def _lost(problem: Exception) -> None:
    with suppress(OSError):
        sys.stderr.write(f"sparkgap model host: a connection ended: {problem}\n")
