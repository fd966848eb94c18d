"""Plays the JVM's part towards a real nursery process, for tests without Spark."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2, run_pb2
from sparkgap_server import wire


@dataclass
class NurseryProcess:
    process: subprocess.Popen[bytes]
    folder: Path
    hello: dict[str, Any]
    connections: list[socket.socket] = field(default_factory=list)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        self.connections.append(connection)
        connection.connect(str(self.folder / "nursery"))
        return connection

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running_nursery(idle_seconds: float = 60, user: int | None = None) -> Iterator[NurseryProcess]:
    """A nursery of one's own; `user` is the id of another user that it runs as, who may read what root may."""
    with tempfile.TemporaryDirectory(prefix="sg-") as above:
        folder = Path(above, "n")
        folder.mkdir(mode=0o700)
        command = [sys.executable, "-m", "sparkgap_server.nursery", "--folder", str(folder)]
        command += ["--cores", "1", "--host-idle-seconds", str(idle_seconds)]
        if user is not None:
            os.chmod(above, 0o711)
            os.chown(folder, user, user)
            may_read = ["--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"]
            command = ["setpriv", "--reuid", str(user), "--clear-groups", *may_read, *command]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            hello = json.loads(process.stdout.readline())
            until((folder / "nursery").exists, 30)
            nursery = NurseryProcess(process, folder, hello)
            try:
                yield nursery
            finally:
                for connection in nursery.connections:
                    connection.close()
        finally:
            process.stdin.close()
            process.wait(20)
            process.stdout.close()


@dataclass
class Rank:
    """What one rank has said so far."""

    connection: socket.socket
    plan: plan_pb2.TrainPlan
    lines: list[str] = field(default_factory=list)
    dropped: int = 0
    metrics: list[run_pb2.Metrics] = field(default_factory=list)
    notices: list[pb.RankNotice] = field(default_factory=list)
    pid: int = 0
    value: bytes = b""
    returned: bool = False
    failure: run_pb2.RankFailure | None = None
    exit: pb.RankExit | None = None
    refused: str = ""
    asked: bool = False  # for the plan

    def read_until(self, condition: Callable[[], bool]) -> Rank:
        """Take frames until the condition holds or the stream ends."""
        with suppress(ConnectionResetError):  # refused, with something unread
            while not condition() and (frame := wire.receive(self.connection)) is not None:
                self.take(frame)
        return self

    def to_end(self) -> Rank:
        return self.read_until(lambda: False)

    def take(self, frame: wire.Frame) -> None:
        if frame.kind == pb.REFUSED:
            self.refused = pb.Refused.FromString(frame.body).message
        elif frame.kind == pb.PLAN_WANTED:
            self.asked = True
            wire.send(self.connection, pb.TRAIN_PLAN, self.plan)
        elif frame.kind == pb.ADDRESS:
            wire.send(self.connection, pb.MEETING_POINT, frame.body)
        elif frame.kind == pb.EVENT:
            event = run_pb2.RunEvent.FromString(frame.body)
            self.lines += event.log.lines
            self.dropped += event.log.dropped
            self.pid = event.started.pid or self.pid
            if event.HasField("metrics"):
                self.metrics.append(event.metrics)
        elif frame.kind == pb.NOTICE:
            self.notices.append(pb.RankNotice.FromString(frame.body))
        elif frame.kind == pb.RESULT:
            self.returned = True
            self.value += frame.body
        elif frame.kind == pb.FAILURE:
            self.failure = run_pb2.RankFailure.FromString(frame.body)
        elif frame.kind == pb.EXIT:
            self.exit = pb.RankExit.FromString(frame.body)

    def result(self) -> Any:
        return codec.unpack(plan_pb2.Payload.FromString(self.value))


def start_rank(nursery: NurseryProcess, function: Callable[..., Any], *args: Any, **placement: Any) -> Rank:
    """Ask for a rank of a world of one, or as `placement` says."""
    plan = plan_pb2.TrainPlan(run_id="r", num_processes=1, function=codec.pack((function, args, {}), "function"))
    return start_plan(nursery, plan, **placement)


def start_plan(
    nursery: NurseryProcess,
    plan: plan_pb2.TrainPlan,
    connection: socket.socket | None = None,
    gang: str | None = None,
    **placement: Any,
) -> Rank:
    """Over a connection that is open already, where one is given; in a gang of its own, unless one is named."""
    place = {"run_id": "r", "world_size": 1, "local_world_size": 1, "num_nodes": 1, "host": "127.0.0.1", "cpus": 1}
    connection = connection or nursery.connect()
    wire.send(connection, pb.OPEN, pb.Open(rank=pb.OpenRank(run_id="r", gang=gang or uuid4().hex)))
    message = pb.RankPlacement(**{**place, "max_result_bytes": 64 << 20, **placement})
    rank = Rank(connection, plan)
    try:
        wire.send(connection, pb.PLACEMENT, message)
        frame = wire.receive(connection) if gang is None else None
        if frame is not None:
            rank.take(frame)
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused, which the next frame says
    return rank


def keeper_of(rank: Rank) -> psutil.Process:
    parent = psutil.Process(rank.pid).parent()
    assert parent is not None
    return parent


def keeper_end(nursery: NurseryProcess, gang: str, end: bool = False) -> pb.KeeperEnd:
    connection = nursery.connect()
    wire.send(connection, pb.OPEN, pb.Open(keeper=pb.OpenKeeper(gang=gang, end=end)))
    frame = wire.receive(connection)
    assert frame is not None
    assert frame.kind == pb.KEEPER_END
    return pb.KeeperEnd.FromString(frame.body)


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition that nobody announces, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """No such process, or only its exit status is left."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
