"""Frames between the processes of one node: what nursery, ranks and model hosts say to the JVM's tasks and to each other over Unix sockets.

A frame is one byte of kind (`FrameKind` in node.proto), four bytes of little-endian length, and the body.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from google.protobuf.message import Message

_HEADER = struct.Struct("<BI")

#: No frame is larger; plans are limited to less by the driver.
MAX_BODY_BYTES = 256 << 20


class BrokenFrame(RuntimeError):
    """The other side does not speak this protocol, or died in the middle of a frame."""


@dataclass(frozen=True)
class Frame:
    """One message: its kind and its serialized body."""

    kind: int
    body: bytes


def encode(kind: int, body: bytes | Message = b"") -> bytes:
    """A frame as bytes."""
    data = body if isinstance(body, bytes) else body.SerializeToString()
    return _HEADER.pack(kind, len(data)) + data


def send(connection: socket.socket, kind: int, body: bytes | Message = b"") -> None:
    """Write one frame; blocks while the other side does not read."""
    connection.sendall(encode(kind, body))


def receive(connection: socket.socket) -> Frame | None:
    """Read one frame from a blocking socket, or None where the other side has closed between frames."""
    header = _read(connection, _HEADER.size)
    if header is None:
        return None
    kind, length = _HEADER.unpack(header)
    _check(length)
    body = _read(connection, length)
    if body is None:
        raise BrokenFrame("the connection ended in the middle of a frame")
    return Frame(kind, bytes(body))


def _read(connection: socket.socket, length: int) -> bytearray | None:
    data = bytearray(length)
    view = memoryview(data)
    filled = 0
    while filled < length:
        count = connection.recv_into(view[filled:])
        if count == 0:
            if filled:
                raise BrokenFrame("the connection ended in the middle of a frame")
            return None
        filled += count
    return data


def _check(length: int) -> None:
    if length > MAX_BODY_BYTES:
        raise BrokenFrame(f"a frame of {length} bytes, at most {MAX_BODY_BYTES} are allowed")


class FrameReader:
    """Collects what a non-blocking socket delivers and gives out whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Frames that are complete now."""
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer, start)
            _check(length)
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(kind, bytes(self._buffer[start + _HEADER.size : end])))
            start = end
        del self._buffer[:start]
        return frames
