"""The process that holds one model and predicts for every task of its executor; the nursery forks it and hands it connections.

A connection asks for the plan once, when the model is not loaded yet, and then takes turns: a batch in shared memory, its predictions behind it. Each
connection has a thread that reads; user code runs in the main thread alone.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

from sparkgap_server import wire
from sparkgap_server.predict.context import shown, to_pyspark
from sparkgap_server.predict.failure import describe
from sparkgap_server.predict.model import LoadFailed, Model, load
from sparkgap_server.predict.turns import Turns
from sparkgap_server.predict.witness import FileWitness

if TYPE_CHECKING:
    from pyspark import TaskContext

_TICK_SECONDS = 1.0


@dataclass(frozen=True)
class HostSpec:
    """What the nursery tells a host; it removes the folder `private` after the host's end."""

    name: str
    python_path: tuple[str, ...]
    cores: int
    idle_seconds: float
    private: Path


def serve(spec: HostSpec, door: socket.socket) -> int:
    """Serve connections that arrive through `door` until the nursery closes it, the host is idle for long, or the model cannot be loaded."""
    sys.path[:0] = spec.python_path
    _use_threads(spec.cores)
    _Host(spec, door).run()
    return 0


def _use_threads(cores: int) -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(max(1, cores))


class _Stage(Enum):
    SERVING = "takes connections"
    LEAVING = "takes no more, as it was idle or could not load, and serves those it has: one may have a model although another got none"
    ENDED = "nobody is connected any more, or the nursery has closed the door"


class _Host:
    """The main thread owns the stage and the number of connections; the other threads tell it what happens, in `turns`."""

    def __init__(self, spec: HostSpec, door: socket.socket) -> None:
        self._spec = spec
        self._door = door
        self._turns = Turns()
        self._stage = _Stage.SERVING
        self._connected = 0
        self._last_used = time.monotonic()
        self._loading = threading.Lock()
        self._model: Model | None = None
        self._witness = FileWitness()

    # ---- In the main thread ----

    def run(self) -> None:
        threading.Thread(target=self._receive_connections, daemon=True).start()
        while self._stage is not _Stage.ENDED:
            self._turns.take(_TICK_SECONDS)
            if self._connected:
                continue
            if self._stage is _Stage.LEAVING:
                self._stage = _Stage.ENDED
            elif time.monotonic() - self._last_used > self._spec.idle_seconds:
                self._leave()

    def _entered(self) -> None:
        self._connected += 1

    def _left(self, connection: socket.socket) -> None:
        # Closed here, where predictions are sent from: its number cannot become another connection's meanwhile.
        connection.close()
        self._connected -= 1
        self._last_used = time.monotonic()

    def _leave(self) -> None:
        if self._stage is _Stage.SERVING:
            self._stage = _Stage.LEAVING
            _shut(self._door)  # the nursery forks another host for whoever comes next

    def _door_closed(self) -> None:
        if self._stage is _Stage.SERVING:
            self._stage = _Stage.ENDED

    def _load(self, plan: plan_pb2.PredictPlan, context: TaskContext | None) -> Model:
        try:
            with shown(context):
                return load(plan, self._spec.private, self._witness)
        except LoadFailed:
            self._leave()
            raise

    # ---- In a thread that waits at the door ----

    def _receive_connections(self) -> None:
        while True:
            try:
                _, descriptors, _, _ = socket.recv_fds(self._door, 1, 1)
            except OSError:
                descriptors = []
            if not descriptors:
                self._turns.put(self._door_closed)
                return
            self._turns.put(self._entered)
            connection = socket.socket(fileno=descriptors[0])
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    # ---- In a thread of each connection ----

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        except (OSError, wire.BrokenFrame) as problem:
            sys.stderr.write(f"sparkgap model host: a connection ended: {problem}\n")
        finally:
            _shut(connection)  # at once: the main thread, which closes it, may be in user code for long
            self._turns.put(partial(self._left, connection))

    def _converse(self, connection: socket.socket) -> None:
        from sparkgap_server.predict.talk import Partner, Talk
        from sparkgap_server.predict.task import task_of

        context, plan = _receive_greeting(connection)
        try:
            model = self._current_model(connection, context)
        except LoadFailed as failure:
            wire.send(connection, pb.MODEL_FAILURE, describe(failure.reason, loading=True))
            return
        try:
            # The task's own layout and return type: only the model is shared.
            partner = Partner(connection, task_of(plan), context)
        except Exception as error:
            wire.send(connection, pb.MODEL_FAILURE, describe(error, loading=False))
            return
        Talk(partner, model, self._turns).read()

    def _current_model(self, connection: socket.socket, context: TaskContext | None) -> Model:
        """The model, which is loaded by whoever comes first; the others wait."""
        with self._loading:
            # Tasks that already have a model keep it to their end: a query sees one version of the weights in each partition.
            if self._model is None or self._witness.changed():
                wire.send(connection, pb.PLAN_WANTED)
                plan = _plan_in(wire.receive(connection))
                self._model = self._turns.ask(lambda: self._load(plan, context))
            return self._model


def _receive_greeting(connection: socket.socket) -> tuple[TaskContext | None, plan_pb2.PredictPlan]:
    """Which task it is, where it says so, and its plan without make_predict_fn."""
    frame = wire.receive(connection)
    if frame is None or frame.kind != pb.TASK_CONTEXT:
        return None, _plan_in(frame)
    context = to_pyspark(pb.TaskContext.FromString(frame.body))
    return context, _plan_in(wire.receive(connection))


def _plan_in(frame: wire.Frame | None) -> plan_pb2.PredictPlan:
    if frame is None or frame.kind != pb.PREDICT_PLAN:
        raise wire.BrokenFrame("expected a plan")
    return plan_pb2.PredictPlan.FromString(frame.body)


def _shut(connection: socket.socket) -> None:
    """Tell the other side that nothing more comes and nothing is read; who waits here for it wakes up."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side has closed it
