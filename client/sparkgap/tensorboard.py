"""TensorBoard's event file, for metrics.py: a TFRecord file of Event messages with scalar summaries.

Written by hand: the format has not changed in ten years, and TensorBoard's own writer, torch's and tensorboardX would each bring packages that a
thin client does not have. The messages are tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import BinaryIO


def write(out: BinaryIO, began: float, scalars: Iterable[tuple[float, int, dict[str, float]]]) -> None:
    """Write a whole file: `scalars` are time (seconds since 1970), step, and values by tag."""
    out.write(_record(struct.pack("<Bd", 0x09, began) + _bytes(3, b"brain.Event:2")))
    for when, step, values in scalars:
        summary = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in sorted(values.items())
        )
        event = struct.pack("<Bd", 0x09, when) + b"\x10" + _varint(step % (1 << 64)) + _bytes(5, summary)
        out.write(_record(event))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _float(field: int, value: float) -> bytes:
    try:
        return bytes([field << 3 | 5]) + struct.pack("<f", value)
    except OverflowError:  # beyond single precision, which is what the format has
        return _float(field, float("inf") if value > 0 else float("-inf"))


def _bytes(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, as in RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _entry(index: int) -> int:
    for _ in range(8):
        index = index >> 1 ^ (0x82F63B78 if index & 1 else 0)
    return index


_TABLE = tuple(_entry(index) for index in range(256))
