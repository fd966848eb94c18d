"""What nursery and keepers do where the system has no more to give: the one request is refused.

They keep a descriptor in hand, since with none left a request could not even be refused, and would wake their loop for ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sparkgap_protos.v1 import node_pb2 as pb

from sparkgap_server import wire


class Spare:
    """One descriptor, open on nothing."""

    def __init__(self) -> None:
        self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def shortage(self) -> OSError | None:
        """Why no further descriptor can be had now, or None where one can."""
        try:
            os.close(os.dup(self._descriptor))
        except OSError as problem:
            return problem
        return None

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Have its place taken by one that is opened in the block, and closed there."""
        os.close(self._descriptor)
        try:
            yield
        finally:
            self._descriptor = os.open(os.devnull, os.O_RDONLY)


def refuse(connection: socket.socket, problem: OSError) -> None:
    """In the system's words: the one request is refused, and the others go on. Never waits."""
    with suppress(OSError):
        connection.setblocking(False)
        wire.send(connection, pb.REFUSED, pb.Refused(message=f"{problem.strerror or problem} (errno {problem.errno})"))
