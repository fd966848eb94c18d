"""Predicted dates, timestamps and binary values to Arrow, alone, in lists and in structs."""

import datetime as dt
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql.conversion import PandasToArrowConversion
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DateType,
    IntegerType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)
from sparkgap_server.predict.columns import to_column
from sparkgap_server.predict.values import Conversion

NEW_YORK = "America/New_York"
UTC = dt.timezone.utc
NOON = dt.datetime(2024, 7, 1, 12, 0, 0, 123456)
EASTERN = dt.timezone(dt.timedelta(hours=-4))
DAY = NOON.date()


def times(*values, unit="us"):
    return np.array(values, f"M8[{unit}]")


def objects(*values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def column(values, kind, zone=NEW_YORK):
    made = to_column(values, len(values), kind, Conversion(zone))
    made.validate(full=True)
    return made.to_pylist()


def utc(*moments):
    return [None if each is None else each.replace(tzinfo=UTC) for each in moments]


AT_16 = dt.datetime(2024, 7, 1, 16, 0, 0, 123456)
TIMESTAMPS = {
    "microseconds": (times(NOON, "NaT"), [AT_16, None]),
    "nanoseconds are cut off": (np.array(["2024-07-01T12:00:00.123456789"], "M8[ns]"), [AT_16]),
    "nanoseconds before 1970": (np.array([-1], "i8").view("M8[ns]"), [dt.datetime(1970, 1, 1, 4, 59, 59, 999999)]),
    "days": (times("2024-07-01", unit="D"), [dt.datetime(2024, 7, 1, 4)]),
    "other byte order": (times(NOON).astype(">M8[us]"), [AT_16]),
    "strided": (times(NOON, "NaT", NOON)[::2], [AT_16, AT_16]),
    "datetimes": (objects(NOON, None, float("nan")), [AT_16, None, None]),
    "datetimes with a zone": (objects(NOON.replace(tzinfo=EASTERN), NOON.replace(tzinfo=UTC)), [AT_16, NOON]),
    "naive beside aware": (objects(NOON, NOON.replace(tzinfo=UTC), None), [AT_16, NOON, None]),
    "dates": (objects(DAY, dt.date(1900, 1, 1)), [dt.datetime(2024, 7, 1, 4), dt.datetime(1900, 1, 1, 5)]),
    "pandas": (objects(pd.Timestamp(NOON), pd.NaT, pd.Timestamp(NOON, tz="UTC")), [AT_16, None, NOON]),
    "datetime64": (objects(np.datetime64(NOON), np.datetime64("NaT"), np.datetime64("2024-07-01")), [AT_16, None, dt.datetime(2024, 7, 1, 4)]),
    "Series": (pd.Series([NOON]), [AT_16]),
    "nothing but nulls": (objects(None, None), [None, None]),
}  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), TIMESTAMPS.values(), ids=TIMESTAMPS)
def test_naive_timestamps_are_local_to_the_session_and_aware_ones_keep_their_instant(values, expected):
    assert column(values, TimestampType()) == utc(*expected)


@pytest.mark.parametrize("values", [times(NOON, "NaT"), objects(NOON, None)], ids=["datetime64", "objects"])
def test_timestamps_become_what_pandas_udfs_make_of_them(values):
    ours = to_column(values, 2, TimestampType(), Conversion(NEW_YORK))
    theirs = PandasToArrowConversion.convert(
        [pd.Series(values.astype("M8[ns]"))], StructType([StructField("_0", TimestampType())]), timezone=NEW_YORK,
        safecheck=False, arrow_cast=True, assign_cols_by_name=True,
    ).column(0)  # fmt: skip
    assert ours.to_pylist() == theirs.to_pylist() == utc(AT_16, None)


def test_of_two_equal_local_times_the_later_one_is_meant_as_in_pandas_udfs():
    twice = times("2024-11-03T01:30")
    theirs = pd.Series(twice.astype("M8[ns]")).dt.tz_localize(NEW_YORK, ambiguous=False).dt.tz_convert("UTC")
    assert column(twice, TimestampType()) == [theirs[0].to_pydatetime()] == utc(dt.datetime(2024, 11, 3, 6, 30))


def test_a_local_time_that_does_not_exist_is_refused_with_the_zone_named():
    with pytest.raises(ValueError, match=r"session's time zone 'America/New_York'.*2024-03-10 02:30.*aware datetimes"):
        column(times("2024-03-10T02:30"), TimestampType())
    assert column(objects(dt.datetime(2024, 3, 10, 2, 30, tzinfo=UTC)), TimestampType())


def test_a_zone_that_arrow_does_not_know_is_named():
    with pytest.raises(ValueError, match=r"session's time zone 'GMT\+8'.*spark\.sql\.session\.timeZone"):
        column(times(NOON), TimestampType(), "GMT+8")


@pytest.mark.parametrize("zone", ["UTC", "+08:00", NEW_YORK])
def test_timestamps_without_a_zone_are_left_as_they_are(zone):
    assert column(times(NOON, "NaT"), TimestampNTZType(), zone) == [NOON, None]
    assert column(objects(NOON, None, DAY), TimestampNTZType(), zone) == [NOON, None, dt.datetime(2024, 7, 1)]


DATES = {
    "days": (times("2024-07-01", "NaT", unit="D"), [DAY, None]),
    "microseconds are cut off": (times(NOON), [DAY]),
    "before 1970": (times("1969-12-31T23:59"), [dt.date(1969, 12, 31)]),
    "dates": (objects(DAY, None), [DAY, None]),
    "datetimes": (objects(NOON, pd.NaT), [DAY, None]),
    "a zone's own day": (objects(dt.datetime(2024, 7, 1, 23, tzinfo=EASTERN)), [DAY]),
    "datetime64": (objects(np.datetime64("2024-07-01")), [DAY]),
}


@pytest.mark.parametrize(("values", "expected"), DATES.values(), ids=DATES)
def test_dates(values, expected):
    assert column(values, DateType()) == expected


BINARY = {
    "bytes objects": (objects(b"a\0", None, b""), [b"a\0", None, b""]),
    "other bytes": (objects(bytearray(b"a"), memoryview(b"b")), [b"a", b"b"]),
    "fixed width": (np.array([b"ab", b"c"], "S2"), [b"ab", b"c"]),
    "void": (np.array([b"ab", b"c\0"], "V2"), [b"ab", b"c\0"]),
}


@pytest.mark.parametrize(("values", "expected"), BINARY.values(), ids=BINARY)
def test_binary_values(values, expected):
    assert column(values, BinaryType()) == expected
    lists = column(values.reshape(1, -1), ArrayType(BinaryType()))
    assert lists == [expected]


EVENT = StructType(
    [
        StructField("at", TimestampType()), StructField("day", DateType()), StructField("raw", BinaryType()),
        StructField("all", ArrayType(TimestampType())),
    ]
)  # fmt: skip
EVENTS = [
    {"at": AT_16.replace(tzinfo=UTC), "day": DAY, "raw": b"a\0", "all": utc(AT_16, None)},
    {"at": None, "day": None, "raw": None, "all": utc(AT_16, AT_16)},
]


def test_fields_and_elements_from_arrays():
    predictions = {
        "at": times(NOON, "NaT"), "day": times(DAY, "NaT", unit="D"), "raw": objects(b"a\0", None),
        "all": np.stack([times(NOON, "NaT"), times(NOON, NOON)]),
    }  # fmt: skip
    assert column_of_events(predictions) == EVENTS


@pytest.mark.parametrize("as_objects", [False, True], ids=["datetime64", "datetime"])
def test_fields_and_elements_from_rows(as_objects):
    noon, day = (NOON, DAY) if as_objects else (np.datetime64(NOON), np.datetime64(DAY))
    lists = [objects(NOON, None), objects(NOON, NOON)] if as_objects else [times(NOON, "NaT"), times(NOON, NOON)]
    predictions = [
        {"at": noon, "day": day, "raw": b"a\0", "all": lists[0]},
        {"at": None, "day": None, "raw": None, "all": lists[1]},
    ]
    assert column_of_events(predictions) == EVENTS


def column_of_events(predictions):
    made = to_column(predictions, 2, EVENT, Conversion(NEW_YORK))
    made.validate(full=True)
    return made.to_pylist()


def test_rows_of_lists_that_differ_in_length():
    rows = [{"all": times(NOON)}, {"all": times(NOON, "NaT")}, {"all": None}]
    struct = StructType([StructField("all", ArrayType(TimestampType()))])
    assert to_column(rows, 3, struct, Conversion(NEW_YORK)).to_pylist() == [
        {"all": utc(AT_16)}, {"all": utc(AT_16, None)}, {"all": None},
    ]  # fmt: skip


def test_lists_of_lists_of_times():
    nested = np.stack([np.stack([times(NOON), times("NaT")])])
    assert column(nested, ArrayType(ArrayType(TimestampType()))) == [[utc(AT_16), [None]]]


NOT_NULL = StructType([StructField("at", TimestampType(), False)])
BAD = {
    "numbers for a timestamp": (np.ones(2, "i8"), TimestampType(), TypeError, "cannot convert int64 to the return type timestamp"),
    "numbers for a date": (np.ones(2), DateType(), TypeError, "cannot convert float64 to the return type date"),
    "numbers for a binary": (np.ones(2, "u1"), BinaryType(), TypeError, "cannot convert uint8 to the return type binary"),
    "objects that are numbers": (objects(NOON, 3), TimestampNTZType(), TypeError, "cannot convert a int to the return type timestamp_ntz"),
    "objects that are texts": (objects("2024-07-01", None), DateType(), TypeError, "cannot convert a str to the return type date"),
    "texts": (np.array(["2024-07-01"] * 2), DateType(), ValueError, "cannot convert <U10 to the return type date"),
    "spans": (np.ones(2, "m8[s]"), TimestampType(), ValueError, "cannot convert timedelta64"),
    "a zone for no zone": (objects(NOON.replace(tzinfo=UTC), None), TimestampNTZType(), ValueError, "which has no time zone: return naive"),
    "times for a number": (times(NOON, NOON), IntegerType(), ValueError, "cannot convert datetime64"),
    "times for a text": (times(NOON, NOON), StringType(), ValueError, "cannot convert datetime64"),
    "times for a binary": (times(NOON, NOON), BinaryType(), ValueError, "cannot convert datetime64"),
    "numbers in binary objects": (objects(b"a", 3), BinaryType(), (ValueError, TypeError), "Prediction results: cannot convert"),
    "NaT where no null is declared": ({"at": times(NOON, "NaT")}, NOT_NULL, ValueError, "field 'at' hold 1 nulls, but .* not nullable"),
}  # fmt: skip


@pytest.mark.parametrize(("predictions", "return_type", "kind", "text"), BAD.values(), ids=BAD)
def test_what_does_not_convert_says_what_it_is(predictions, return_type, kind, text):
    with pytest.raises(kind, match=text):
        to_column(predictions, 2, return_type, Conversion(NEW_YORK))


def test_columns_are_of_the_type_that_spark_expects_of_python():
    assert to_column(times(NOON), 1, TimestampType(), Conversion(NEW_YORK)).type == pa.timestamp("us", "UTC")
    assert to_column(times(NOON), 1, TimestampNTZType(), Conversion(NEW_YORK)).type == pa.timestamp("us")
    assert to_column(times(NOON), 1, DateType(), Conversion(NEW_YORK)).type == pa.date32()


def test_times_do_not_import_pandas():
    code = """
import sys, numpy as np, datetime
from pyspark.sql.types import *
from sparkgap_server.predict.columns import to_column
from sparkgap_server.predict.values import Conversion
now = datetime.datetime.now()
for kind in TimestampType(), TimestampNTZType(), DateType():
    for values in np.array([now, now], "M8[us]"), np.array([now, None], object):
        to_column(values, 2, kind, Conversion("America/New_York"))
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
