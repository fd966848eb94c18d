"""Predicted dates and times to Arrow columns, for `values`: naive ones are the session's local time, as in Spark's pandas UDFs."""

from __future__ import annotations

import datetime
import operator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.types import DataType, DateType, TimestampType

from sparkgap_server.predict.views import buffer_view

_ZONED = pa.timestamp("us", tz="UTC")


def time_column(values: npt.NDArray[Any], leaf: DataType, what: str, time_zone: str) -> pa.Array[Any]:
    """Column of dates or timestamps from a 1-D array of datetime64, or of objects: dates, datetimes, datetime64, and None, NaN or NaT for null.

    Finer units than the column's are cut off, towards the past. Aware datetimes keep their instant in a `TimestampType` and their own
    day in a `DateType`.

    Raises
    ------
    ValueError
        A time does not exist in `time_zone`, as the clock is set forward there; Arrow does not know `time_zone`; an aware
        datetime stands for a timestamp without a time zone.
    TypeError
        An object is no date.
    """
    aware = None
    if values.dtype == object:
        values, aware = _moments(values, leaf, what)
    if isinstance(leaf, DateType):
        days = values.astype("M8[D]")
        return _array(pa.date32(), days.view(np.int64).astype(np.int32), ~np.isnat(days))
    moments = np.ascontiguousarray(values.astype("M8[us]"))
    valid = ~np.isnat(moments)
    if not isinstance(leaf, TimestampType):
        return _array(pa.timestamp("us"), moments, valid)
    if time_zone != "UTC":
        local = valid if aware is None else valid & ~aware
        moments = np.where(local, _instants(moments, local, what, time_zone), moments)
    return _array(_ZONED, moments, valid)


def _moments(
    objects: npt.NDArray[Any], leaf: DataType, what: str
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.bool_]]:
    """The objects as datetime64, and which of them knew their time zone: those are in UTC, or dates."""
    moments = np.full(len(objects), np.datetime64("NaT"), "M8[us]")
    aware = np.zeros(len(objects), bool)
    for row, value in enumerate(objects):
        if value is None or operator.ne(value, value):  # NaN and NaT differ from themselves
            continue
        if not isinstance(value, (datetime.date, np.datetime64)):
            raise TypeError(
                f"{what}: cannot convert a {type(value).__qualname__} to the return type {leaf.simpleString()}; dates, datetimes "
                "and datetime64 do"
            )
        if isinstance(value, datetime.datetime) and value.tzinfo is not None:
            aware[row] = True
            if isinstance(leaf, DateType):
                moments[row] = value.date()
                continue
            if not isinstance(leaf, TimestampType):
                raise ValueError(
                    f"{what}: cannot convert {value!r} to the return type {leaf.simpleString()}, which has no time zone: return naive "
                    "datetimes, or declare a timestamp"
                )
            moments[row] = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
        else:
            moments[row] = value
    return moments, aware


def _instants(
    moments: npt.NDArray[np.datetime64], local: npt.NDArray[np.bool_], what: str, time_zone: str
) -> npt.NDArray[np.datetime64]:
    column: Any = _array(pa.timestamp("us"), moments, local)
    try:
        # Of two local times that are equal, pandas UDFs take the later one as well.
        zoned = pc.assume_timezone(column, time_zone, ambiguous="latest")
    except pa.ArrowInvalid as error:
        reason = " ".join(str(error).split())  # Arrow tells of a gap in several lines
        raise ValueError(
            f"{what}: cannot convert local times of the session's time zone {time_zone!r} to the return type timestamp: {reason}. "
            "Naive times are meant in spark.sql.session.timeZone; aware datetimes are taken as they are"
        ) from error
    return buffer_view(zoned).view("M8[us]")


def _array(kind: pa.DataType, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> pa.Array[Any]:
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))  # type: ignore[arg-type]
    return pa.Array.from_buffers(kind, len(values), [bitmap, pa.py_buffer(values)])  # type: ignore[arg-type]
