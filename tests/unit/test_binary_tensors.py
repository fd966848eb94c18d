"""Binary columns with a declared shape and dtype: tensors that NumPy reads where they lie."""

import mmap

import numpy as np
import pyarrow as pa
import pytest
from sparkgap_server.predict.tensors import InputLayout, to_arguments


def arguments(*columns, shapes=None, dtypes=None, model=None, **layout):
    names = tuple(f"c{index}" for index in range(len(columns)))
    shapes = None if shapes is None else tuple(None if shape is None else tuple(shape) for shape in shapes)
    dtypes = None if dtypes is None else tuple(None if dtype is None else np.dtype(dtype) for dtype in dtypes)
    return to_arguments(columns, InputLayout(names, shapes, None, dtypes, **layout), model or len(columns))


def binary(tensors, kind=None):
    return pa.array([None if each is None else each.tobytes() for each in tensors], kind or pa.binary())


DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_bytes_are_tensors_in_row_major_order(dtype, kind):
    tensors = (np.arange(18) % 7 % (2 if dtype == "?" else 7)).astype(dtype).reshape(3, 2, 3)
    (array,) = arguments(binary(tensors, kind), shapes=[[2, 3]], dtypes=[dtype])
    assert (array.dtype, array.shape) == (np.dtype(dtype), (3, 2, 3))
    np.testing.assert_array_equal(array, tensors)


def mapped(tensors):
    """A binary column over an anonymous mapping, as batches in shared memory are."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    np.frombuffer(memory, tensors.dtype, tensors.size)[:] = tensors.reshape(-1)
    bounds = np.arange(len(tensors) + 1, dtype=np.int32) * tensors[0].nbytes
    return pa.Array.from_buffers(pa.binary(), len(tensors), [None, pa.py_buffer(bounds), pa.py_buffer(memory)])


def test_they_are_a_view_of_the_batch_that_can_be_written_to():
    column = mapped(np.arange(12, dtype=np.float32).reshape(3, 4))
    memory = np.frombuffer(column.buffers()[2], np.float32, 12)
    (array,) = arguments(column.slice(1), shapes=[[2, 2]], dtypes=["float32"])
    assert np.shares_memory(array, memory)
    array[0, 0, 0] = 99
    assert memory[4] == 99


def test_torch_takes_them_without_a_warning():
    torch = pytest.importorskip("torch")
    (array,) = arguments(mapped(np.arange(4, dtype=np.float32).reshape(2, 2)), shapes=[[2]], dtypes=["float32"])
    assert torch.from_numpy(array).tolist() == [[0, 1], [2, 3]]  # pytest makes torch's warning an error


def test_rows_that_do_not_begin_at_a_multiple_of_the_size_of_a_value_are_copied():
    values = np.arange(4, dtype=np.float64)
    data = pa.py_buffer(b"\0\0\0" + values.tobytes())
    bounds = pa.py_buffer(np.array([3, 19, 35], np.int32))
    column = pa.Array.from_buffers(pa.binary(), 2, [None, bounds, data])
    (array,) = arguments(column, shapes=[[2]], dtypes=["float64"])
    np.testing.assert_array_equal(array, values.reshape(2, 2))
    assert array.flags.aligned


def test_booleans_are_any_byte_but_zero():
    (array,) = arguments(pa.array([b"\0\1", b"\2\xff"]), shapes=[[2]], dtypes=["bool"])
    assert array.view(np.uint8).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("start", [0, 1, 8, 9])
def test_a_slice_is_read_from_its_offset(start):
    tensors = np.arange(60, dtype=np.int16).reshape(10, 6)
    (array,) = arguments(binary(tensors).slice(start, 1), shapes=[[6]], dtypes=["int16"])
    np.testing.assert_array_equal(array, tensors[start : start + 1])


def test_a_slice_without_the_null_row_is_taken():
    tensors = [np.ones(2), None, np.zeros(2)]
    (array,) = arguments(binary(tensors).slice(2), shapes=[[2]], dtypes=["float64"])
    assert array.tolist() == [[0, 0]]


def test_no_rows_are_an_empty_tensor():
    (array,) = arguments(pa.array([], pa.binary()), shapes=[[2, 2]], dtypes=["float32"])
    assert (array.shape, array.dtype) == ((0, 2, 2), np.float32)


def test_they_stand_beside_other_inputs_and_in_structs():
    tensors = np.arange(4, dtype=np.float32).reshape(2, 2)
    image, number = arguments(binary(tensors), pa.array([7, 8]), shapes=[[2], None], dtypes=["float32", None], model=2)
    np.testing.assert_array_equal(image, tensors)
    assert number.tolist() == [7, 8]
    struct = pa.StructArray.from_arrays([binary(tensors), pa.array([7, 8])], names=["image", "number"])
    for each in (struct, struct.slice(1)):
        image, number = arguments(each, shapes=[[2], None], dtypes=["float32", None], model=2)
        np.testing.assert_array_equal(image, tensors[-len(each) :])


def test_the_only_field_of_a_struct_may_be_one():
    tensors = np.arange(4, dtype=np.float32).reshape(2, 2)
    struct = pa.StructArray.from_arrays([binary(tensors)], names=["image"])
    np.testing.assert_array_equal(arguments(struct, shapes=[[2]], dtypes=["float32"])[0], tensors)


def test_without_a_shape_and_a_dtype_a_binary_column_is_one_of_bytes_objects():
    column = pa.array([b"ab", None, b"c"])
    assert arguments(column)[0].tolist() == [b"ab", None, b"c"]
    first, _ = arguments(column, pa.array([1, 2, 3]), shapes=[None, None], dtypes=[None, "float32"])
    assert first.tolist() == [b"ab", None, b"c"]


SHORT = [np.zeros(4, "f4"), np.zeros(3, "f4"), np.zeros(4, "f4"), np.zeros(5, "f4")]
BAD = {
    "row of another length": (
        binary(SHORT), [[2, 2]], ["float32"],
        r"'c0' has input_tensor_shape \[2, 2\] and the dtype float32, which takes 16 bytes a row, but row 1 of 4 in the batch has 12 \(2 such rows\)",
    ),
    "null row": (binary([SHORT[0], None]), [[4]], ["float32"], "Column 'c0' .* takes 16 bytes a row, but row 1 of 2 in the batch is null"),
    "no dtype": (binary(SHORT), [[4]], None, "Column 'c0' is binary and has no dtype: declare input_dtypes for this input as well"),
    "no dtype for this input": (binary(SHORT), [[4]], [None], "declare input_dtypes"),
    "shape one without a dtype": (pa.array([b"a"]), [[1]], None, "declare input_dtypes"),
    "no shape": (binary(SHORT), None, ["float32"], "Column 'c0' is binary and has no shape: declare input_tensor_shapes for this input as well"),
    "no shape for this input": (binary(SHORT), [None], ["float32"], "declare input_tensor_shapes"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "shapes", "dtypes", "text"), BAD.values(), ids=BAD)
def test_bad_input_is_a_value_error_that_says_what_was_expected_and_found(column, shapes, dtypes, text):
    with pytest.raises(ValueError, match=text):
        arguments(column, shapes=shapes, dtypes=dtypes)
    twice = [[*each, *each] if each else None for each in (shapes, dtypes)]
    with pytest.raises(ValueError, match=text):
        arguments(column, column, shapes=twice[0], dtypes=twice[1])
