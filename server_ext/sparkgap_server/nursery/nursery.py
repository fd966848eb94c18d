"""Accepts connections of the executor's tasks and workers, and forks for each the process that it asks for.

A rank gets a keeper (keeper.py) that takes the connection over; a model's host (predict/host.py) is forked once and is handed every further
connection. The nursery runs no operator and makes no CUDA call and has one thread: a fork of a process that did any of this hangs.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server import processes, wire
from sparkgap_server.nursery import keeper
from sparkgap_server.predict import host

#: Imported before the first connection is served; a cluster for inference only may lack some.
ESSENTIAL = (
    "numpy",
    "pyarrow",
    "pyspark.cloudpickle",
    "pyspark.sql.types",
    "pyspark.sql.pandas.types",
    "torch",
    "torch.distributed",
)

#: Imported one by one while nobody waits: the first step of an optimizer loads torch._dynamo, 1 to 2 s in each rank otherwise.
EXTRA = ("torch.nn.parallel", "torch._dynamo", "torch.utils.data.distributed")

_HEADER_SECONDS = 10.0
_END_SECONDS = 4.0


@dataclass(frozen=True)
class Settings:
    """What the JVM tells its nursery on the command line."""

    folder: Path
    cores: int
    host_idle_seconds: float


@dataclass
class _Greeting:
    """A connection whose first frame has not arrived yet."""

    reader: wire.FrameReader
    deadline: float


@dataclass(frozen=True)
class _Host:
    pid: int
    door: socket.socket


class Nursery:
    """One listening socket, one selector, the children's process ids."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._greetings: dict[socket.socket, _Greeting] = {}
        self._keepers: dict[int, int] = {}  # process id to the lifeline's writing end
        self._hosts: dict[str, _Host] = {}  # by model key
        self._ending = False
        self._extra = list(EXTRA)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def serve(self) -> None:
        """Serve until standard input ends or SIGTERM arrives, then end every child and remove the folder."""
        processes.adopt_orphans()
        self._open()
        for module in ESSENTIAL:
            _import(module)
        gc.freeze()
        try:
            while not self._ending:
                self._turn()
        finally:
            self._end()

    def _open(self) -> None:
        # Bound under another name first: the socket's appearance says that connections are queued from now on.
        unfinished = self._settings.folder / "nursery.unfinished"
        self._listener.bind(str(unfinished))
        os.chmod(unfinished, 0o600)
        self._listener.listen(256)
        self._listener.setblocking(False)
        os.rename(unfinished, self._settings.folder / "nursery")
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGTERM, lambda number, frame: self._stop())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_blocking(0, False)
        self._watch(self._listener, self._accept)
        self._watch(reading, lambda: self._reap(reading))
        self._watch(0, self._executor_spoke)

    def _watch(self, file: int | socket.socket, callback: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, callback)

    def _turn(self) -> None:
        ready = self._selector.select(0 if self._extra else 1.0)
        for key, _ in ready:
            key.data()
        now = time.monotonic()
        for connection in [each for each, greeting in self._greetings.items() if greeting.deadline < now]:
            self._forget(connection).close()
        if not ready and self._extra:
            _import(self._extra.pop(0))
            gc.freeze()

    def _stop(self) -> None:
        self._ending = True

    def _executor_spoke(self) -> None:
        if not os.read(0, 4096):
            self._stop()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._greetings[connection] = _Greeting(wire.FrameReader(), time.monotonic() + _HEADER_SECONDS)
        self._watch(connection, lambda: self._greeted(connection))

    def _greeted(self, connection: socket.socket) -> None:
        """Read the first frame and nothing behind it: the rest of the stream is for the child."""
        try:
            wanted = wire.encode(0)
            peeked = connection.recv(1 << 16, socket.MSG_PEEK)
            if not peeked:
                self._forget(connection).close()
                return
            if len(peeked) < len(wanted):
                return
            length = int.from_bytes(peeked[1:5], "little")
            if peeked[0] != pb.OPEN or length > 1 << 15:
                raise wire.BrokenFrame(f"expected an Open frame, got kind {peeked[0]} with {length} bytes")
            if len(peeked) < 5 + length:
                return
            opened = pb.Open.FromString(connection.recv(5 + length)[5:])
        except (OSError, DecodeError, wire.BrokenFrame) as problem:
            _say(f"a connection was refused: {problem}")
            self._forget(connection).close()
            return
        self._forget(connection)
        connection.setblocking(True)
        if opened.WhichOneof("kind") == "rank":
            self._fork_keeper(connection, opened.rank)
        elif opened.WhichOneof("kind") == "model":
            self._hand_to_host(connection, opened.model)
        connection.close()

    def _forget(self, connection: socket.socket) -> socket.socket:
        self._selector.unregister(connection)
        del self._greetings[connection]
        return connection

    def _fork_keeper(self, connection: socket.socket, request: pb.OpenRank) -> None:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            private = self._rank_folder(os.getpid())
            _child(lambda: keeper.keep(connection, reading, private), None, connection.fileno(), reading)
        os.close(reading)
        self._keepers[pid] = writing

    def _hand_to_host(self, connection: socket.socket, request: pb.OpenModel) -> None:
        known = self._hosts.get(request.key)
        if known is None or not _hand(known.door, connection):
            self._hosts[request.key] = self._fork_host(request)
            _hand(self._hosts[request.key].door, connection)

    def _fork_host(self, request: pb.OpenModel) -> _Host:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            spec = host.HostSpec(
                request.name,
                tuple(request.python_path),
                self._settings.cores,
                self._settings.host_idle_seconds,
                self._model_folder(os.getpid()),
            )
            _child(lambda: host.serve(spec, theirs), parent, theirs.fileno())
        theirs.close()
        return _Host(pid, ours)

    def _rank_folder(self, keeper_pid: int) -> Path:
        return self._settings.folder / f"rank-{keeper_pid}"

    def _model_folder(self, host_pid: int) -> Path:
        return self._settings.folder / f"model-{host_pid}"

    def _reap(self, wakeup: int) -> None:
        os.read(wakeup, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (lifeline := self._keepers.pop(pid, None)) is not None:
                os.close(lifeline)
                if status != 0:  # it could not clean up after itself, so its descendants are ours now
                    processes.kill_descendants(spare=[*self._keepers, *(each.pid for each in self._hosts.values())])
                shutil.rmtree(self._rank_folder(pid), ignore_errors=True)
            else:
                shutil.rmtree(self._model_folder(pid), ignore_errors=True)
            for key, each in list(self._hosts.items()):
                if each.pid == pid:
                    each.door.close()
                    del self._hosts[key]

    def _end(self) -> None:
        self._listener.close()
        for lifeline in self._keepers.values():
            os.close(lifeline)
        deadline = time.monotonic() + _END_SECONDS
        for pid in self._keepers:
            while time.monotonic() < deadline and _runs(pid):
                time.sleep(0.01)  # SIGCHLD has no deadline; the keepers bring their ranks to an end meanwhile
        processes.kill_descendants()
        shutil.rmtree(self._settings.folder, ignore_errors=True)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as problem:
        _say(f"{module} cannot be imported here: {problem}")


def _child(body: Callable[[], int], parent: int | None, *keep: int) -> None:
    """The life of a forked child; never returns into the nursery's loop."""
    status = 1
    try:
        processes.begin_child(parent, keep)
        status = body()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def _runs(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _hand(door: socket.socket, connection: socket.socket) -> bool:
    try:
        socket.send_fds(door, [b"c"], [connection.fileno()])
    except OSError:
        return False
    return True


def _say(text: str) -> None:
    sys.stderr.write(f"sparkgap nursery: {text}\n")
    sys.stderr.flush()
