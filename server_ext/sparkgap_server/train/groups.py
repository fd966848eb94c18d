"""Keeps a rank's process groups alive to the end of its process, for rank.py.

A `DistributedDataParallel` model that outlives `destroy_process_group()`, as in most scripts, leaves the last reference to its gloo group to
whichever thread is last, and that may be one of the group's own: its destructor then waits for itself, and the rank hangs or aborts after its
work is done. Seen with torch 2.13 in one of three plain two-process runs, with torchrun's way of starting them as with ours; with the groups
kept, in none of three hundred.
"""

from __future__ import annotations

from typing import Any


class _Remembering(dict[Any, Any]):
    """A dict that never lets go of a key."""

    kept: list[Any]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept = list(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.kept.append(key)
        super().__setitem__(key, value)


def keep_groups() -> None:
    """Have torch's registry of process groups hold on to every group that this process ever makes."""
    try:
        import torch.distributed.distributed_c10d as c10d
    except ImportError:
        return
    if isinstance(getattr(c10d, "_pg_map", None), dict):
        c10d._pg_map = _Remembering(c10d._pg_map)
