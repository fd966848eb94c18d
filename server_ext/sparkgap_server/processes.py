"""What a forked child does first, and how a process with all its descendants is ended; used by nursery, keepers, ranks and hosts."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
from collections.abc import Iterable

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none can escape; not inherited by fork."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends; `parent` is its process id, to notice that it already has."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def begin_child(parent: int | None, keep: Iterable[int]) -> None:
    """Turn a fresh fork into a process of its own: session, signals, descriptors, random state.

    An inherited descriptor of a sibling would hide that sibling's end of file, so all but `keep` and the standard three are closed.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    if parent is not None:
        die_with_parent(parent)
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
    _reseed()


def _reseed() -> None:
    """New states for the generators that the fork has copied: without them all ranks and models of a nursery would draw the same numbers.

    What is not imported yet seeds itself from the system when it is: torch's generators of a GPU too, which do not exist before the GPU is used.
    """
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()  # 4 µs; torch.seed() looks for devices besides


def has_children() -> bool:
    """Whether this process has any child left, dead ones not yet waited for included."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_descendants(spare: Iterable[int] = ()) -> None:
    """SIGKILL to all descendants but the trees of `spare`; returns when none of them runs any more."""
    spared = set(spare)
    while True:
        doomed = [child for child in psutil.Process().children() if child.pid not in spared]
        if not doomed:
            return
        for child in doomed:
            for descendant in [*_descendants(child), child]:
                _kill(descendant.pid)
        for child in doomed:
            try:
                os.waitpid(child.pid, 0)
            except ChildProcessError:
                continue


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
