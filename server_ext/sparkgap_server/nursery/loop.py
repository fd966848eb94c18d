"""What the nursery and its keepers wait with: a selector whose callbacks may change what is watched.

A selector hands out a list of ready files. A callback may let go of one whose turn comes later in the same list, or close it and open another under
the same number, so each is looked up again before its turn.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import TypeAlias

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

File: TypeAlias = "int | socket.socket"
Callback: TypeAlias = Callable[[int], None]


class Loop:
    """Calls back, in turns, for files that are ready."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, file: File, events: int, callback: Callback) -> None:
        """Call back with the events that are ready, from now on and instead of what was watched of this file before; 0 is none.

        The callback is one object for as long as the file is watched, and for no other file: it tells them apart.
        """
        known = self._selector.get_map().get(file)
        if known is None and events:
            self._selector.register(file, events, callback)
        elif known is not None and not events:
            self._selector.unregister(file)  # epoll reports a hang-up of a file that nothing is asked of, too
        elif known is not None and known.events != events:
            self._selector.modify(file, events, callback)

    def forget(self, file: File) -> None:
        """Never call back for the file again, not in this turn either. Comes before the file is closed."""
        if file in self._selector.get_map():
            self._selector.unregister(file)

    def turn(self, patience: float | None) -> bool:
        """Wait for at most `patience` seconds, for ever with None, and call back for what is ready; says whether anything was."""
        ready = self._selector.select(patience)
        for key, mask in ready:
            now = self._selector.get_map().get(key.fd)
            if (
                now is not None and now.data is key.data and mask & now.events
            ):  # the number may be another file's by now
                now.data(mask & now.events)
        return bool(ready)
