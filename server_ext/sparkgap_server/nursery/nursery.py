"""Accepts connections of the executor's tasks and workers, and forks for each the process that it asks for.

The ranks of a run get a keeper (keeper.py), a model gets a host (predict/host.py); both are forked once and are handed every further connection.
The nursery runs no operator and makes no CUDA call and has one thread: a fork of a process that did any of this hangs.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server import processes, wire
from sparkgap_server.nursery import keeper, preload
from sparkgap_server.nursery.loop import READ, Loop
from sparkgap_server.nursery.spare import Spare, refuse
from sparkgap_server.predict import host

_HEADER_SECONDS = 10.0
_END_SECONDS = 4.0
_REMEMBERED_ENDS = 256


@dataclass(frozen=True)
class Settings:
    """What the JVM tells its nursery on the command line."""

    folder: Path
    cores: int
    host_idle_seconds: float


@dataclass(frozen=True, eq=False)
class _Child:
    """A keeper, which has a gang, or a model host. `folders` is the pattern of what is to be removed after it."""

    gang: str
    door: socket.socket
    lifeline: int
    folders: str


class Nursery:
    """One listening socket, one loop, the children's process ids."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._greetings: dict[
            socket.socket, float
        ] = {}  # connections whose first frame has not arrived yet, with their deadlines
        self._children: dict[int, _Child] = {}  # all of them, by process id
        self._doors: dict[str, _Child] = {}  # by the gang or the model: where its next connection goes
        self._ends: dict[str, pb.KeeperEnd] = {}  # by gang, of keepers that did not end well
        self._questions: list[tuple[str, socket.socket]] = []
        self._ending = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._spare = Spare()
        self._descriptors = processes.allow_descriptors()
        self._keeper_spec = keeper.KeeperSpec(settings.folder, self._descriptors)

    def serve(self) -> None:
        """Serve until standard input ends or SIGTERM arrives, then end every child and remove the folder."""
        processes.adopt_orphans()
        self._open()
        preload.essential()
        chores = preload.chores()  # for as long as nobody waits
        chore = next(chores, None)
        try:
            while not self._ending:
                busy = self._turn(0 if chore else 1.0)
                if chore and not busy:
                    chore()
                    chore = next(chores, None)
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
        self._loop.watch(self._listener, READ, lambda _: self._accept())
        self._loop.watch(reading, READ, lambda _: self._reap(reading))
        self._loop.watch(0, READ, lambda _: self._executor_spoke())

    def _turn(self, patience: float) -> bool:
        busy = self._loop.turn(patience)
        now = time.monotonic()
        for connection in [each for each, deadline in self._greetings.items() if deadline < now]:
            self._forget(connection).close()
        return busy

    def _stop(self) -> None:
        self._ending = True

    def _executor_spoke(self) -> None:
        if not os.read(0, 4096):
            self._stop()

    # ---- Connections ----

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as problem:
            if problem.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse_without_descriptors(problem)
            return
        connection.setblocking(False)
        self._greetings[connection] = time.monotonic() + _HEADER_SECONDS
        self._loop.watch(connection, READ, lambda _: self._greeted(connection))

    def _refuse_without_descriptors(self, problem: OSError) -> None:
        with self._spare.lent(), suppress(OSError), self._listener.accept()[0] as connection:
            refuse(connection, problem)

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
        kind = opened.WhichOneof("kind")
        if kind == "keeper":
            self._question(connection, opened.keeper)
            return
        with connection:
            connection.setblocking(True)
            try:
                if kind == "rank":
                    self._to_keeper(connection, opened.rank.gang)
                elif kind == "model":
                    self._to_host(connection, opened.model)
            except OSError as problem:
                _say(f"a connection was refused: {problem}")
                refuse(connection, problem)

    def _forget(self, connection: socket.socket) -> socket.socket:
        self._loop.forget(connection)
        del self._greetings[connection]
        return connection

    def _to_keeper(self, connection: socket.socket, gang: str) -> None:
        known = self._doors.get(gang)
        if known is None or not _hand(known.door, connection):
            self._doors[gang] = self._fork(
                gang,
                lambda door, lifeline: keeper.keep(connection, door, lifeline, self._keeper_spec),
                "rank-{pid}*",
                connection,
            )

    def _to_host(self, connection: socket.socket, request: pb.OpenModel) -> None:
        known = self._doors.get(request.key)
        if known is None or not _hand(known.door, connection):
            fresh = self._doors[request.key] = self._fork(
                "", lambda door, _: self._be_host(door, request), "model-{pid}"
            )
            _hand(fresh.door, connection)

    def _be_host(self, door: socket.socket, request: pb.OpenModel) -> int:
        processes.limit_descriptors(self._descriptors)
        spec = host.HostSpec(
            request.name,
            tuple(request.python_path),
            self._settings.cores,
            self._settings.host_idle_seconds,
            self._settings.folder / f"model-{os.getpid()}",
        )
        return host.serve(spec, door)

    def _fork(self, gang: str, body: Callable[[socket.socket, int], int], folders: str, *keep: socket.socket) -> _Child:
        """A keeper or a host.

        Raises
        ------
        OSError
            No descriptors or process ids are left; no descriptor stays open then.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            door, far_door = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.callback(door.close)
            theirs.callback(far_door.close)
            reading, writing = os.pipe()
            theirs.callback(os.close, reading)
            ours.callback(os.close, writing)
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                kept = [far_door.fileno(), reading, *(each.fileno() for each in keep)]
                # A keeper outlives the nursery by the time in which it ends its ranks.
                _become(lambda: body(far_door, reading), None if gang else parent, kept)
            ours.pop_all()
        door.setblocking(False)
        child = self._children[pid] = _Child(gang, door, writing, folders.format(pid=pid))
        return child

    # ---- Ends ----

    def _reap(self, wakeup: int) -> None:
        os.read(wakeup, 4096)
        ended: list[tuple[_Child, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if (child := self._children.pop(pid, None)) is not None:
                ended.append((child, os.waitstatus_to_exitcode(status)))
        # Keepers and hosts adopt orphans while they live, so whatever else is a child of this process was left by one that has ended.
        processes.kill_descendants(spare=self._children)
        for child, status in ended:
            self._bury(child, status)

    def _bury(self, child: _Child, status: int) -> None:
        for name in [name for name, each in self._doors.items() if each is child]:
            del self._doors[name]
        end = pb.KeeperEnd(status=status, words=_words(child.door))
        child.door.close()
        os.close(child.lifeline)
        for folder in self._settings.folder.glob(child.folders):
            shutil.rmtree(folder, ignore_errors=True)
        if child.gang:
            self._answer(child.gang, end)

    def _question(self, connection: socket.socket, request: pb.OpenKeeper) -> None:
        """How a keeper has ended, told as soon as it has; `end` has it killed, with all that is below it, whatever state it is in."""
        alive = [pid for pid, child in self._children.items() if child.gang == request.gang]
        if alive:
            self._questions.append((request.gang, connection))
            if request.end:
                for pid in alive:
                    processes.kill_tree(pid)
        else:
            _tell_end(connection, self._ends.get(request.gang, pb.KeeperEnd(unknown=True)))

    def _answer(self, gang: str, end: pb.KeeperEnd) -> None:
        if end.status != 0:
            self._ends[gang] = end
            while len(self._ends) > _REMEMBERED_ENDS:
                del self._ends[next(iter(self._ends))]
        for asked in [each for each in self._questions if each[0] == gang]:
            self._questions.remove(asked)
            _tell_end(asked[1], end)

    def _end(self) -> None:
        self._listener.close()
        keepers = {pid: child for pid, child in self._children.items() if child.gang}
        for child in keepers.values():
            os.close(child.lifeline)
        deadline = time.monotonic() + _END_SECONDS
        for pid in keepers:
            while time.monotonic() < deadline and _runs(pid):
                time.sleep(0.01)  # SIGCHLD has no deadline; the keepers bring their ranks to an end meanwhile
        processes.kill_descendants()
        shutil.rmtree(self._settings.folder, ignore_errors=True)


def _become(body: Callable[[], int], parent: int | None, keep: Iterable[int]) -> None:
    """The life of a forked child; never returns into the nursery's loop."""
    status = 1
    try:
        processes.begin_child(parent, keep)
        processes.adopt_orphans()
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


def _words(door: socket.socket) -> str:
    """What a keeper of ours has raised, if it has."""
    try:
        return door.recv(keeper.MAX_WORDS).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def _tell_end(connection: socket.socket, end: pb.KeeperEnd) -> None:
    with connection, suppress(OSError):
        wire.send(connection, pb.KEEPER_END, end)


def _say(text: str) -> None:
    sys.stderr.write(f"sparkgap nursery: {text}\n")
    sys.stderr.flush()
