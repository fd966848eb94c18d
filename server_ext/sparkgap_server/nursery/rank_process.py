"""Forks the process of a rank, for its keeper: a channel for frames, pipes for what it prints, a descriptor that tells its end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from sparkgap_server import processes
from sparkgap_server.train import exits, rank


@dataclass(frozen=True, eq=False)
class RankProcess:
    """A rank as its keeper sees it; the keeper is its parent. All files are non-blocking."""

    pid: int
    pidfd: int
    channel: socket.socket
    out: int
    err: int

    @classmethod
    def fork(cls, task: rank.RankTask, descriptors: int) -> RankProcess:
        """Start the rank, which may open so many files.

        Raises
        ------
        OSError
            No descriptors or process ids are left; nothing has been started then, and no descriptor stays open.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            channel, far_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.callback(channel.close)
            theirs.callback(far_channel.close)
            (out, far_out), (err, far_err) = (_pipe(ours, theirs) for _ in range(2))
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _become_rank(task, descriptors, parent, far_channel, (far_out, far_err))
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            for descriptor in (out, err):
                os.set_blocking(descriptor, False)
            channel.setblocking(False)
            ours.pop_all()
            return cls(pid, pidfd, channel, out, err)

    def signal(self, number: signal.Signals) -> None:
        """To its whole process group, which it has not left yet where it was forked a moment ago."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status, or the negative number of the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    reading, writing = os.pipe()
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


def _become_rank(
    task: rank.RankTask, descriptors: int, parent: int, channel: socket.socket, output: tuple[int, int]
) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output[0], 1)
        os.dup2(output[1], 2)
        processes.begin_child(parent, [channel.fileno()])
        processes.limit_descriptors(descriptors)
        processes.adopt_orphans()  # so that what it leaves behind comes to the keeper when it ends, and not before
        sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        status = rank.run(task, channel)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        exits.exit_now(status)
