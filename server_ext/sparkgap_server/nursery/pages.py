"""Makes forks of the nursery cheap: fork copies an entry for each page, and one huge page stands for 512 of them.

Measured with torch imported, 240 MB, Linux 6.18: a fork takes 2 ms instead of 9, and its end the same again. The memory is what it was.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

_MADV_COLLAPSE = 25  # Linux 6.1 and later; others answer EINVAL, and nothing changes
_HUGE = 2 << 20
_STEP = 16 * _HUGE


def collapse(maps: Path = Path("/proc/self/maps")) -> Iterator[Callable[[], None]]:
    """Steps of some 10 to 50 ms, to be done while nobody waits, that turn this process's private anonymous memory into huge pages."""
    for line in maps.read_text().splitlines():
        span, permissions, _, _, _, *name = line.split(maxsplit=5)
        if permissions.startswith("rw") and permissions.endswith("p") and (not name or name[0] == "[heap]"):
            first, end = (int(address, 16) for address in span.split("-"))
            first, end = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
            for start in range(first, end, _STEP):
                yield partial(_advise, start, min(end, start + _STEP))


def _advise(first: int, end: int) -> None:
    libc = ctypes.CDLL(None)
    for start in range(first, end, _HUGE):  # one by one, since the first hole would end it
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(_HUGE), _MADV_COLLAPSE)
