"""What stress.py looks at while nobody acts: descriptors, threads and memory of the server's processes, and what is left where it should not be."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil

MIB = 1 << 20

#: Pools of Spark's own, which fill up with use to limits of hundreds of threads; the kernel shows the first 15 characters.
SPARKS_POOLS = ("block-manager", "shuffle-exchang", "ResultQueryStag", "QueryStageCreat")


@dataclass(frozen=True)
class Vitals:
    """At one quiet moment. Memory is resident, in MiB; threads are those outside Spark's own pools."""

    jvm_descriptors: int
    jvm_threads: int
    jvm_memory: int
    nursery_descriptors: int
    nursery_memory: int
    ranks: int
    folders: int

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {value}" for field, value in zip(fields(self), astuple(self), strict=True))


def nursery_of(jvm: psutil.Process) -> psutil.Process:
    return next(each for each in jvm.children() if "sparkgap_server.nursery" in each.cmdline())


def at_rest(pid: int, folder: Path, seconds: float = 20) -> Vitals:
    """Once no rank and no folder of one is left, or the time is over; model hosts may stay."""
    jvm = psutil.Process(pid)
    deadline = time.monotonic() + seconds
    while True:
        nursery = nursery_of(jvm)
        folders = [*folder.glob("tmp/sparkgap-*/rank-*")]
        ranks = [rank for child in nursery.children() for rank in _children(child)]
        if not (folders or ranks) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return Vitals(
        jvm.num_fds(),
        len([name for name in _thread_names(jvm.pid) if not name.startswith(SPARKS_POOLS)]),
        jvm.memory_info().rss // MIB,
        nursery.num_fds(),
        nursery.memory_info().rss // MIB,
        len(ranks),
        len(folders),
    )


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


def _thread_names(pid: int) -> list[str]:
    names = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            names.append((thread / "comm").read_text())
    return names
