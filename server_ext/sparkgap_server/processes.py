"""What a forked child does first, and how a process with all its descendants is ended; used by nursery, keepers, ranks and hosts."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress

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
    _close_all_but({0, 1, 2, *keep})
    _reseed()


def _close_all_but(kept: set[int]) -> None:
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # one of them is the listing's own, closed already
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)


def allow_descriptors() -> int:
    """Raise this process's limit of descriptors as far as it may, and return what it was: five a rank are needed, and some systems give 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def limit_descriptors(soft: int) -> None:
    """The limit that processes of user code expect: `select` takes no descriptor beyond 1024, and loops over all possible ones take long."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _reseed() -> None:
    """New states for the generators that the fork has copied: without them all ranks and models of a nursery would draw the same numbers.

    What is not imported yet seeds itself from the system when it is: torch's generators of a GPU too, which do not exist before the GPU is used.
    """
    random.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.seed()  # 4 µs; torch.seed() looks for devices besides


def kill_descendants(spare: Iterable[int] = ()) -> None:
    """SIGKILL to all descendants but the trees of `spare`; returns when none of them runs any more."""
    spared = set(spare)
    while doomed := [child for child in _children() if child not in spared]:
        for child in doomed:
            kill_tree(child)
        for child in doomed:
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                continue


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all its descendants; a stopped one ends by it too."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _children() -> list[int]:
    """Of this process, which has one thread."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [child.pid for child in psutil.Process().children()]
