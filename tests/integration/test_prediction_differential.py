"""Random tables through random predictions, on both ways of execution, against a few lines of plain Python.

The model tells of each row what it saw, and how large its batch was.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sparkgap import predict_batch_udf

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(600)

SCALARS = {
    pa.int8(): st.integers(-128, 127),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**53), 2**53),  # beside a null they are floats
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
}
ELEMENTS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()]


@dataclass(frozen=True)
class Table:
    """Columns of a table, the shape and the dtype of each as the model is told, and how it is predicted."""

    columns: list[pa.Array]
    shapes: list[list[int] | None]
    dtypes: list[str | None]
    batch_size: int
    partitions: int
    nulls: str
    from_parquet: bool
    keeps: list[int]

    @property
    def names(self) -> list[str]:
        return [f"c{index}" for index in range(len(self.columns))]

    @property
    def rows(self) -> list[list[Any]]:
        return list(map(list, zip(*(column.to_pylist() for column in self.columns), strict=True)))


@st.composite
def tables(draw) -> Table:
    rows = draw(st.sampled_from([0, 1, 2, 7, 30, 100]))
    count = draw(st.integers(1, 4))
    columns, shapes, dtypes = zip(*(draw(described_columns(rows)) for _ in range(count)), strict=True)
    return Table(
        list(columns),
        list(shapes),
        list(dtypes),
        batch_size=draw(st.sampled_from([1, 2, 3, 16, 64])),
        partitions=draw(st.integers(1, 3)),
        nulls=draw(st.sampled_from(["keep", "skip"])),
        from_parquet=draw(st.booleans()),
        keeps=draw(st.lists(st.integers(0, count - 1), unique=True)),
    )


@st.composite
def described_columns(draw, rows: int) -> tuple[pa.Array, list[int] | None, str | None]:
    """A column, the shape of a row or None, and the dtype of its bytes or None."""
    kind = draw(st.sampled_from(["scalar", "array", "binary"]))
    with_nulls = draw(st.booleans())
    if kind == "scalar":
        arrow = draw(st.sampled_from(list(SCALARS)))
        values = SCALARS[arrow] | st.none() if with_nulls else SCALARS[arrow]
        return pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), arrow), None, None
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    arrow = draw(st.sampled_from(ELEMENTS))
    row = st.lists(SCALARS[arrow], min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    values = draw(st.lists(row, min_size=rows, max_size=rows))
    if kind == "array":
        return pa.array(values, pa.list_(arrow)), shape, None
    dtype = np.dtype(arrow.to_pandas_dtype())
    return pa.array([np.array(each, dtype).tobytes() for each in values], pa.binary()), shape, dtype.name


def text(value: Any) -> str:
    """One form for a value whichever dtype its batch has: integers beside a null are floats, and a null is NaN or None."""
    if isinstance(value, np.ndarray):
        return f"{list(value.shape)}{[text(each) for each in value.reshape(-1)]}"
    if value is None or value != value:
        return "nothing"
    return value if isinstance(value, str) else repr(float(value))


def tell(*inputs: Any) -> dict[str, Any]:
    rows = len(inputs[0])
    told = [" ".join(text(each[row]) for each in inputs) for row in range(rows)]
    return {"told": np.array(told, dtype=object), "rows": np.full(rows, rows)}


def make_one():
    return lambda a: tell(a)


def make_two():
    return lambda a, b: tell(a, b)


def make_three():
    return lambda a, b, c: tell(a, b, c)


def make_four():
    return lambda a, b, c, d: tell(a, b, c, d)


MODELS = [make_one, make_two, make_three, make_four]


def expected(table: Table) -> list[str | None]:
    """What the model has to tell of each row; None where it never sees the row."""
    told = []
    for row in table.rows:
        seen = [value for value, *_ in map(as_seen, row, table.shapes, table.dtypes, table.columns)]
        skipped = table.nulls == "skip" and any(value is None for value in row)
        told.append(None if skipped else " ".join(map(text, seen)))
    return told


def as_seen(value: Any, shape: list[int] | None, dtype: str | None, column: pa.Array) -> tuple[Any]:
    if shape is None:
        return (value,)
    if dtype is not None:
        return (np.frombuffer(value, dtype).reshape(shape),)
    return (np.array(value, column.type.value_type.to_pandas_dtype()).reshape(shape),)


@pytest.fixture(scope="module")
def sessions(predicting_session):
    return {way: predicting_session(way == "direct") for way in ("direct", "workers")}


@pytest.mark.parametrize("way", ["direct", "workers"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_any_table_is_predicted_as_plain_python_does(sessions, tmp_path_factory, way: str, table: Table) -> None:
    check(sessions[way], table, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "workers"])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_many_tables_are_predicted_as_plain_python_does(sessions, tmp_path_factory, way: str, table: Table) -> None:
    check(sessions[way], table, tmp_path_factory)


def check(spark: SparkSession, table: Table, folders: pytest.TempPathFactory) -> None:
    udf = predict_batch_udf(
        MODELS[len(table.columns) - 1],
        return_type="told string, rows int",
        batch_size=table.batch_size,
        input_tensor_shapes=table.shapes if any(table.shapes) else None,
        input_dtypes=table.dtypes if any(table.dtypes) else None,
        nulls=table.nulls,
    )
    kept = [table.names[index] for index in table.keeps]
    predicted = frame_of(spark, table, folders).select(
        udf(*table.names).alias("p"), "id", F.spark_partition_id().alias("partition"), *kept
    )
    found = predicted.collect()
    told = expected(table)
    assert sorted(row["id"] for row in found) == list(range(len(told)))
    for row in found:
        assert (row["p"] and row["p"]["told"]) == told[row["id"]]
        for index in table.keeps:
            assert repr(row[table.names[index]]) == repr(table.rows[row["id"]][index])
    if table.nulls == "keep":
        check_batches(found, table.batch_size)


def frame_of(spark: SparkSession, table: Table, folders: pytest.TempPathFactory):
    data = pa.table(
        {"id": pa.array(range(len(table.columns[0]))), **dict(zip(table.names, table.columns, strict=True))}
    )
    if not table.from_parquet and data.num_rows:  # pyspark infers no schema from an empty table
        return spark.createDataFrame(data).repartition(table.partitions)
    folder = folders.mktemp("table")
    for part in range(table.partitions):
        size = -(-data.num_rows // table.partitions)
        pq.write_table(data.slice(part * size, size), folder / f"{part}.parquet")
    return spark.read.parquet(str(folder))


def check_batches(found: list[Any], batch_size: int) -> None:
    """In each partition all batches are full but the last."""
    for _, rows in itertools.groupby(sorted(found, key=lambda row: row["partition"]), key=lambda row: row["partition"]):
        sizes = sorted((row["p"]["rows"] for row in rows), reverse=True)
        full, rest = divmod(len(sizes), batch_size)
        assert sizes == [batch_size] * full * batch_size + [rest] * rest
