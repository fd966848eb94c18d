"""Parquet tables for inference.py and growth.py, written by pyarrow, so that no way of predicting has had a hand in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PIXELS = 784
PARTS = 2  # files of a table, so that both cores have one


def write_tables(folder: Path, rows: int, images: int) -> None:
    """`rows` numbers, and tensors of 784 floats as array and as binary; five times as many rows of scalars and of texts; `images` of the tensors."""
    generator = np.random.default_rng(0)
    for part in range(PARTS):
        count = rows // PARTS
        pixels = generator.random((count, PIXELS), dtype=np.float32)
        bounds = np.arange(count + 1, dtype=np.int32) * PIXELS
        write(folder / "arrays", part, {"x": pa.ListArray.from_arrays(pa.array(bounds), pa.array(pixels.reshape(-1)))})
        write(folder / "images", part, {"x": pa.array(list(map(bytes, pixels[: images // PARTS])), pa.binary())})
        write(folder / "numbers", part, {"x": pixels[:, 0]})
        write(folder / "binaries", part, {"x": pa.array(list(map(bytes, pixels)), pa.binary())})
        write(folder / "scalars", part, {f"c{index}": generator.random(count * 5) for index in range(8)})
        write(folder / "texts", part, {"text": [f"row number {index} of part {part}" for index in range(count * 5)]})


def write(table: Path, part: int, columns: Mapping[str, Any]) -> None:
    """One file of a table."""
    table.mkdir(exist_ok=True)
    pq.write_table(pa.table(dict(columns)), table / f"part-{part}.parquet")
