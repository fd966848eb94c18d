"""Arrow columns to NumPy arguments: tables of examples, and a comparison with pyspark's own way over pandas."""

import datetime
import decimal
import mmap
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparkgap_server.predict.tensors import model_arguments
from tensor_ways import NEW_YORK, arguments, pyspark_arguments

NOON = datetime.datetime(2024, 7, 1, 12)
FLOATS = pa.list_(pa.float32())


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    assert [(array.dtype, array.shape) for array in ours] == [(array.dtype, array.shape) for array in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, reference)
        if mine.dtype == object:
            assert [type(value) for value in mine.flat] == [type(value) for value in reference.flat]


SCALARS = {
    "byte": (pa.array([1, -2], pa.int8()), np.int8),
    "int": (pa.array([1, 2], pa.int32()), np.int32),
    "long": (pa.array([1, 2**62 + 1], pa.int64()), np.int64),
    "int with null": (pa.array([1, None], pa.int32()), np.float64),
    "float": (pa.array([1.5, 2], pa.float32()), np.float32),
    "float with null": (pa.array([1.5, None], pa.float32()), np.float32),
    "double with null": (pa.array([None, 2.5]), np.float64),
    "bool": (pa.array([True, False]), np.bool_),
    "bool with null": (pa.array([True, None]), object),
    "string": (pa.array(["a", None]), object),
    "large string": (pa.array(["a", "b"], pa.large_string()), object),
    "binary": (pa.array([b"a", None]), object),
    "date": (pa.array([NOON.date(), None]), object),
    "timestamp": (pa.array([NOON, None], pa.timestamp("us", tz=NEW_YORK)), "M8[ns]"),
    "timestamp without zone": (pa.array([NOON, None], pa.timestamp("us")), "M8[ns]"),
    "interval": (pa.array([datetime.timedelta(hours=1), None]), "m8[ns]"),
    "time": (pa.array([NOON.time(), None], pa.time64("ns")), object),
    "decimal": (pa.array([decimal.Decimal("1.50"), None], pa.decimal128(5, 2)), object),
    "null": (pa.nulls(2), object),
    "map": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())), object),
}


@pytest.mark.parametrize(("column", "dtype"), SCALARS.values(), ids=SCALARS)
def test_a_scalar_column_has_the_dtype_and_the_values_that_pandas_shows(column, dtype):
    (array,) = arguments(column)
    assert array.dtype == dtype
    assert_same([array], pyspark_arguments([column], None, 1))


@pytest.mark.parametrize("column", [column for column, _ in SCALARS.values()], ids=SCALARS)
def test_a_slice_of_a_scalar_column_is_read_from_its_offset(column):
    doubled = pa.concat_arrays([column.slice(1), column, column, column, column, column])
    for start in (1, 9):
        piece = doubled.slice(start, 2)
        assert_same(arguments(piece), pyspark_arguments([piece], None, 1))


def test_times_are_local_to_the_session_time_zone():
    (array,) = arguments(SCALARS["timestamp"][0])
    assert array[0] == np.datetime64("2024-07-01T08:00:00")


def test_several_scalar_columns_go_to_as_many_arguments():
    columns = [pa.array([1, 2]), pa.array(["a", "b"]), pa.array([1.0, None])]
    assert_same(arguments(*columns, model=3), pyspark_arguments(columns, None, 3))


def test_a_scalar_column_may_have_shape_one():
    columns = [pa.array([1, 2]), pa.array(["a", "bcd"]), pa.array([True, None])]
    ours = arguments(*columns, shapes=[[1], [1], [1, 1]], model=3)
    assert [array.shape for array in ours] == [(2, 1), (2, 1), (2, 1, 1)]
    assert_same(ours, pyspark_arguments(columns, [[1], [1], [1, 1]], 3))


STRUCTS = {
    "same": {"a": pa.array([1, 2]), "b": pa.array([3, 4])},
    "int and float": {"a": pa.array([1, 2], pa.int32()), "b": pa.array([0.5, None], pa.float32())},
    "byte and float": {"a": pa.array([1, 2], pa.int8()), "b": pa.array([0.5, 1], pa.float32())},
    "int and bool": {"a": pa.array([1, 2], pa.int32()), "b": pa.array([True, False])},
    "bools": {"a": pa.array([True, False]), "b": pa.array([True, False])},
    "string": {"a": pa.array([1, 2], pa.int32()), "b": pa.array(["x", None])},
    "times": {"a": pa.array([NOON, None], pa.timestamp("us")), "b": pa.array([NOON, NOON], pa.timestamp("us"))},
    "one field": {"a": pa.array([1, 2])},
}


@pytest.mark.parametrize("fields", STRUCTS.values(), ids=STRUCTS)
def test_a_struct_is_one_table_or_one_argument_a_field(fields):
    struct = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    assert_same(arguments(struct), pyspark_arguments([struct], None, 1))
    if len(fields) > 1:
        assert arguments(struct)[0].shape == (2, len(fields))
        assert_same(arguments(struct, model=len(fields)), pyspark_arguments([struct], None, len(fields)))


def test_a_null_struct_is_null_in_each_field():
    struct = pa.array([{"a": 1, "b": 2.5}, None], pa.struct([("a", pa.int32()), ("b", pa.float64())]))
    (table,) = arguments(struct)
    np.testing.assert_array_equal(table, [[1, 2.5], [np.nan, np.nan]])
    assert_same([table], pyspark_arguments([struct], None, 1))


def test_a_struct_beside_a_column_counts_its_fields():
    struct = pa.array([{"a": 1, "b": 2.5}], pa.struct([("a", pa.int32()), ("b", pa.float64())]))
    columns = [struct, pa.array([7])]
    assert_same(arguments(*columns, model=3), pyspark_arguments(columns, None, 3))


def test_times_beside_numbers_in_a_struct_are_datetimes():
    struct = pa.StructArray.from_arrays(
        [pa.array([NOON, None], pa.timestamp("us")), pa.array([1, 2])], names=["t", "n"]
    )
    assert arguments(struct)[0].tolist() == [[NOON, 1], [None, 2]]


TENSORS = {
    "list": pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], FLOATS),
    "large list": pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], pa.large_list(pa.int64())),
    "fixed size list": pa.array([[1, 2, 3, 4], [5, 6, 7, 8]], pa.list_(pa.int16(), 4)),
    "null floats": pa.array([[1, None, 3, 4], [5, 6, 7, 8]], FLOATS),
    "null integers": pa.array([[1, None, 3, 4], [5, 6, 7, 8]], pa.list_(pa.int32())),
    "booleans": pa.array([[True, False, True, True], [False] * 4]),
    "null booleans": pa.array([[True, None, True, True], [False] * 4]),
    "strings": pa.array([["a", "b", None, "d"], ["e"] * 4]),
}


@pytest.mark.parametrize("column", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("shape", [[4], [2, 2], [1, 4, 1]], ids=str)
def test_a_tensor_column_takes_its_shape(column, shape):
    (array,) = arguments(column, shapes=[shape])
    assert array.shape == (2, *shape)
    assert_same([array], pyspark_arguments([column], [shape], 1))
    both = arguments(column, column, shapes=[shape, [4]], model=2)
    assert_same(both, pyspark_arguments([column, column], [shape, [4]], 2))


@pytest.mark.parametrize("column", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_slice_of_a_tensor_column_is_read_from_its_offset(column, start):
    piece = pa.concat_arrays([column, column.slice(1), column, column]).slice(start, 2)
    assert_same(arguments(piece, shapes=[[2, 2]]), pyspark_arguments([piece], [[2, 2]], 1))


def test_a_tensor_column_without_a_shape_among_several_is_an_array_of_arrays():
    ragged = pa.array([[9], [1, 2], [3], None], FLOATS).slice(1)
    first, second = arguments(ragged, pa.array([1, 2, 3]), shapes=[None, None], model=2)
    assert [None if row is None else row.tolist() for row in first] == [[1, 2], [3], None]
    assert first[0].dtype == np.float32
    assert second.tolist() == [1, 2, 3]


def test_shapes_may_be_given_by_index():
    columns = [pa.array([1, 2]), pa.array([[1, 2], [3, 4]], FLOATS)]
    scalar, tensor = arguments(*columns, sparse={1: (2, 1)}, model=2)
    assert (scalar.shape, tensor.shape) == ((2,), (2, 2, 1))
    assert_same([scalar, tensor], pyspark_arguments(columns, {1: [2, 1]}, 2))


def test_an_empty_shape_is_that_of_a_scalar_and_no_shapes_are_as_none_given():
    column = pa.array([1, 2])
    assert_same(arguments(column, shapes=[[]]), pyspark_arguments([column], [[]], 1))
    assert_same(arguments(column, column, shapes=[], model=2), pyspark_arguments([column, column], [], 2))


def test_nanoseconds_of_a_time_of_day_are_refused_as_in_pyspark():
    column = pa.array([61 * 10**9 + 1_234], pa.time64("ns"))
    for convert in (lambda: arguments(column), lambda: pyspark_arguments([column], None, 1)):
        with pytest.raises(ValueError, match=r"lose data|non-zero nanoseconds"):
            convert()


def test_shape_none_leaves_a_scalar_column_as_it_is():
    assert arguments(pa.array([1, 2]), shapes=[None])[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "column", [pa.array([], pa.int32()), pa.array([], pa.bool_()), pa.array([], pa.string())], ids=str
)
def test_no_rows_are_empty_arrays(column):
    assert arguments(column)[0].shape == (0,)
    tensor = pa.array([[1, 2]], FLOATS).slice(1)
    assert arguments(tensor, shapes=[[2]])[0].shape == (0, 2)
    assert arguments(pa.array([], FLOATS), shapes=[[2]])[0].shape == (0, 2)


def mapped(dtype, values):
    """An Arrow column over an anonymous mapping, as batches in shared memory are."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    np.frombuffer(memory, dtype, len(values))[:] = values
    return pa.Array.from_buffers(pa.from_numpy_dtype(dtype), len(values), [None, pa.py_buffer(memory)])


def list_column(values, width):
    offsets = pa.py_buffer(np.arange(0, len(values) + 1, width, dtype=np.int32))
    kind = pa.list_(values.type)
    return pa.Array.from_buffers(kind, len(values) // width, [None, offsets], children=[values])


def test_numbers_without_nulls_are_views_of_writable_memory():
    values = mapped(np.float32, range(12))
    (tensor,) = arguments(list_column(values, 4).slice(1), shapes=[[2, 2]])
    memory = np.frombuffer(values.buffers()[1], np.float32, 12)
    assert np.shares_memory(tensor, memory)
    tensor[0, 0, 0] = 99
    assert memory[4] == 99
    (scalars,) = arguments(values.slice(2))
    assert np.shares_memory(scalars, memory)
    assert scalars.flags.writeable


def test_a_view_of_read_only_memory_stays_read_only():
    buffer = pa.py_buffer(np.arange(4.0).tobytes())
    column = pa.Array.from_buffers(pa.float64(), 4, [None, buffer])
    (scalars,) = arguments(column)
    assert np.shares_memory(scalars, np.frombuffer(buffer))
    assert not scalars.flags.writeable


def test_nulls_do_not_write_into_the_batch():
    values = pa.Array.from_buffers(
        pa.float64(), 3, [pa.py_buffer(bytes([0b101])), pa.py_buffer(mmap.mmap(-1, mmap.PAGESIZE))]
    )
    (array,) = arguments(values)
    assert np.isnan(array[1])
    assert not np.isnan(np.frombuffer(values.buffers()[1], count=3)).any()


def test_torch_takes_a_mapped_batch_without_a_warning():
    torch = pytest.importorskip("torch")
    (tensor,) = arguments(list_column(mapped(np.float32, range(4)), 2), shapes=[[2]])
    assert torch.from_numpy(tensor).tolist() == [[0, 1], [2, 3]]  # pytest makes torch's warning an error


PAIR = pa.array([{"a": 1, "b": 2}])
ROWS = pa.array([[1, 2], [3, 4]], FLOATS)
BAD = {
    "no shapes": ([ROWS], None, 1, "Tensor columns require input_tensor_shapes.*'c0'"),
    "shape of a tensor is None": ([ROWS], [None], 1, "Tensor columns require input_tensor_shapes.*'c0'"),
    "scalars for one input": ([pa.array([1]), pa.array([2])], None, 1, "Multiple input columns found.*'c0', 'c1'"),
    "tensors for one input": ([ROWS, ROWS], [[2], [2]], 1, "Multiple input columns found"),
    "too few columns": ([pa.array([1])], None, 2, "Model expected 2 inputs, but received 1 columns: 'c0'"),
    "fields are columns": ([PAIR], None, 3, r"Model expected 3 inputs, but received 2 columns: 'c0\.a', 'c0\.b'"),
    "model without inputs": ([pa.array([1])], None, 0, "Model expected 0 inputs, but received 1 columns"),
    "shapes and columns": ([ROWS, ROWS], [[2]], 2, "input_tensor_shapes must match columns: 1 shapes for 2 columns"),
    "shapes and one input": ([ROWS], [[2], [2]], 1, "Multiple input_tensor_shapes found.*2 shapes"),
    "shape of a scalar": (
        [pa.array([1])],
        [[2]],
        1,
        r"Invalid input_tensor_shape for scalar column.*'c0', shape \[2\]",
    ),
    "scalar of two": ([pa.array([1]), pa.array([1])], [[2], [1]], 2, "does not match expected shape.*scalar"),
    "struct shape": ([PAIR], [[3]], 1, r"does not match expected shape.*2 fields, 'c0\.a', 'c0\.b'.*\[3\]"),
    "struct shape None": ([PAIR], [None], 1, "does not match expected shape.*None"),
    "too long": ([ROWS], [[1]], 1, r"Column 'c0' .*\[1\], which takes 1 values a row, but row 0 of 2 .*has 2 \(2 such"),
    "too short": ([ROWS], [[2, 2]], 1, r"\[2, 2\], which takes 4 values a row, but row 0 of 2"),
    "ragged": ([pa.array([[1, 2], [3], [4]], FLOATS)], [[2]], 1, r"row 1 of 3 in the batch has 1 \(2 such rows\)"),
    "null row": ([pa.array([[1, 2], [3, 4], None], FLOATS)], [[2]], 1, "'c0' .*row 2 of 3 in the batch is null"),
    "nested lists": ([pa.array([[[1.0, 2.0]]])], [[2]], 1, "has 1 .1 such rows.: .*use `flatten`"),
    "unknown dimension": ([ROWS], [[-1, 2]], 1, "positive dimensions"),
    "empty dimension": ([pa.array([[]], FLOATS)], [[0]], 1, "positive dimensions"),
}


@pytest.mark.parametrize(("columns", "shapes", "model", "text"), BAD.values(), ids=BAD)
def test_bad_input_is_a_value_error_that_says_what_was_expected_and_found(columns, shapes, model, text):
    with pytest.raises(ValueError, match=text):
        arguments(*columns, shapes=shapes, model=model)


PYSPARK_RAISES_TYPE_ERROR = {"shape of a tensor is None"}


@pytest.mark.parametrize("case", BAD)
def test_pyspark_refuses_the_same_input(case):
    columns, shapes, model, _ = BAD[case]
    with pytest.raises(TypeError if case in PYSPARK_RAISES_TYPE_ERROR else ValueError):
        pyspark_arguments(columns, shapes, model)


def test_an_index_without_an_input_is_refused():
    with pytest.raises(ValueError, match="shape for input 2, but the model has 2 inputs"):
        arguments(ROWS, ROWS, sparse={2: (2,)}, model=2)


def test_a_variant_is_refused():
    fields = [pa.field("value", pa.binary(), False), pa.field("metadata", pa.binary(), False, {"variant": "true"})]
    with pytest.raises(ValueError, match="'c0' is a variant"):
        arguments(pa.array([{"value": b"", "metadata": b""}], pa.struct(fields)))


def test_model_arguments_are_counted_as_pyspark_does():
    assert model_arguments(lambda x: x) == 1
    assert model_arguments(lambda x, y=1, *, z=2: x) == 3
    assert model_arguments(lambda *arrays: arrays) == 1


def test_numbers_and_times_never_import_pandas():
    code = """
import sys, datetime, pyarrow as pa
from sparkgap_server.predict.tensors import InputLayout, to_arguments
built = pa.ipc.open_stream(sys.stdin.buffer).read_next_batch()
assert "pandas" not in sys.modules, "the test itself imports it"
shapes = tuple((2,) if pa.types.is_list(c.type) else None for c in built.columns)
to_arguments(built.columns, InputLayout(tuple(built.schema.names), shapes), built.num_columns)
assert "pandas" not in sys.modules
"""
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)
    columns = [column for column, _ in SCALARS.values() if not any(is_text(column.type) for is_text in texts)]
    columns += [ROWS, pa.array([[1, None], [3, 4]], FLOATS)]
    batch = pa.RecordBatch.from_arrays(columns, [f"c{index}" for index in range(len(columns))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    subprocess.run(
        [sys.executable, "-c", code],
        input=sink.getvalue().to_pybytes(),
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )


INTEGERS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}


def values_of(kind):
    if kind in INTEGERS:
        return st.integers(-(2 ** INTEGERS[kind]), 2 ** INTEGERS[kind] - 1)
    if pa.types.is_floating(kind):
        return st.floats(width=kind.bit_width)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_string(kind):
        return st.text(max_size=3)
    # Outside these years pytz, which pyspark uses beside strings in a struct, has other offsets than Arrow has.
    return st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2037, 1, 1))


KINDS = [*INTEGERS, pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.timestamp("us", tz=NEW_YORK)]
TENSOR_KINDS = KINDS[:-1]


@st.composite
def scalar_columns(draw, rows):
    kind = draw(st.sampled_from(KINDS))
    values = values_of(kind)
    return pa.array(
        draw(st.lists(st.none() | values if draw(st.booleans()) else values, min_size=rows, max_size=rows)), kind
    )


@st.composite
def tensor_columns(draw, rows):
    """Flat rows of one width; at times one row is of another."""
    kind, width = draw(st.sampled_from(TENSOR_KINDS)), draw(st.integers(1, 4))
    values = values_of(kind) | st.none() if draw(st.booleans()) else values_of(kind)
    row = st.lists(values, min_size=width, max_size=width)
    filled = draw(st.lists(row, min_size=rows, max_size=rows))
    if draw(st.integers(0, 5)) == 0:
        filled[draw(st.integers(0, rows - 1))].append(draw(values))
    return pa.array(filled, draw(st.sampled_from([pa.list_, pa.large_list]))(kind))


@st.composite
def struct_columns(draw, rows, name):
    # pyspark takes all columns and fields of one name for one input, so every field has a name of its own.
    fields = draw(st.lists(scalar_columns(rows), min_size=1, max_size=3))
    return pa.StructArray.from_arrays(fields, names=[f"{name}{index}" for index in range(len(fields))])


def fitting(column):
    """Shapes, one a model argument, that suit the first row of a column."""
    if pa.types.is_struct(column.type):
        return [[1]] * len(column.type)
    return [[len(column[0])] if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) else []]


@st.composite
def batches(draw):
    """Columns, shapes and the number of model arguments; most of them fit together."""
    rows, start = draw(st.integers(1, 5)), draw(st.integers(0, 9))
    columns = []
    for name in draw(st.sampled_from(["x", "xy", "xyz"])):
        kinds = scalar_columns(rows + start) | tensor_columns(rows + start) | struct_columns(rows + start, name)
        columns.append(draw(kinds).slice(start))
    shapes = [shape for column in columns for shape in fitting(column)]
    inputs = len(shapes)
    if draw(st.integers(0, 3)) == 0:
        shape = st.sampled_from([[], [1], [2], [3], [1, 2], [2, 2], [4]])
        shapes = draw(st.none() | st.lists(shape, min_size=max(1, inputs - 1), max_size=inputs))
    return columns, shapes, draw(st.sampled_from([1, inputs, inputs, inputs, inputs + 1]))


def comparable(array):
    """pandas marks missing values in objects by its own singletons, and times by a class of its own."""
    if array.dtype != object:
        return array
    same = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        if isinstance(value, np.ndarray):
            same[index] = (value.dtype, value.tobytes() if value.dtype != object else value.tolist())
        elif isinstance(value, pd.Timestamp):
            same[index] = value.to_pydatetime()
        else:
            same[index] = None if value is None or value != value or value is pd.NaT else value
    return same


def without_na(array):
    """Integers with nulls beside strings in a struct are pandas' nullable integers there; here floats as everywhere."""
    if array.dtype != object or not any(value is pd.NA for value in array.flat):
        return array
    return np.array([None if value is pd.NA else value for value in array.flat], object).reshape(array.shape)


@given(batches())
def test_every_batch_becomes_what_pyspark_makes_of_it(batch):
    columns, shapes, model = batch
    try:
        theirs = pyspark_arguments(columns, shapes, model)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            arguments(*columns, shapes=shapes, model=model)
        return
    ours = arguments(*columns, shapes=shapes, model=model)
    for mine, reference in zip(ours, theirs, strict=True):
        plain = without_na(reference)
        assert mine.shape == reference.shape
        if plain is reference:
            assert mine.dtype == reference.dtype
            np.testing.assert_array_equal(comparable(mine), comparable(reference))
        else:
            np.testing.assert_array_equal(comparable(mine.astype(object)), comparable(plain))
