"""Vectors of pyspark.ml as Arrow brings them: one tensor column of float64."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.linalg import DenseVector, SparseVector, Vectors, VectorUDT
from pyspark.sql.pandas.types import to_arrow_type
from sparkgap_server.predict.tensors import InputLayout, to_arguments
from sparkgap_server.predict.vectors import is_vector

KIND = to_arrow_type(VectorUDT())
FIELDS = [field.name for field in KIND]


def column(*vectors):
    rows = [None if each is None else dict(zip(FIELDS, VectorUDT().serialize(each), strict=True)) for each in vectors]
    return pa.array(rows, KIND)


def arguments(*columns, shapes=None, dtypes=None, model=None):
    names = tuple(f"c{index}" for index in range(len(columns)))
    shapes = None if shapes is None else tuple(None if shape is None else tuple(shape) for shape in shapes)
    dtypes = None if dtypes is None else tuple(map(np.dtype, dtypes))
    return to_arguments(columns, InputLayout(names, shapes, None, dtypes), model or len(columns))


DENSE = [Vectors.dense(1, 2, 3, 4), Vectors.dense(5, 6, 7, 8), Vectors.dense(0, 0, 9, 0)]
SPARSE = [Vectors.sparse(4, {1: 2.0}), Vectors.sparse(4, {}), Vectors.sparse(4, [0, 3], [5.0, 6.0])]
MIXED = [SPARSE[0], DENSE[0], SPARSE[1], DENSE[1], SPARSE[2]]


@pytest.mark.parametrize("vectors", [DENSE, SPARSE, MIXED, SPARSE[1:2]], ids=["dense", "sparse", "mixed", "zeros"])
@pytest.mark.parametrize("shape", [[4], [2, 2]], ids=str)
def test_vectors_are_a_tensor_in_their_shape(vectors, shape):
    (array,) = arguments(column(*vectors), shapes=[shape])
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, np.stack([each.toArray() for each in vectors]).reshape(-1, *shape))


@pytest.mark.parametrize("vectors", [DENSE, SPARSE, MIXED], ids=["dense", "sparse", "mixed"])
@pytest.mark.parametrize("start", [1, 2])
def test_a_slice_is_read_from_its_offset(vectors, start):
    piece = column(None, *vectors).slice(start, 2)
    expected = np.stack([each.toArray() for each in vectors[start - 1 : start + 1]])
    np.testing.assert_array_equal(arguments(piece, shapes=[[4]])[0], expected)


def test_dense_vectors_are_a_view():
    vectors = column(*DENSE)
    values = np.frombuffer(vectors.field("values").values.buffers()[1], np.float64, 12)
    assert np.shares_memory(arguments(vectors, shapes=[[4]])[0], values)


def test_no_rows_are_an_empty_tensor():
    assert arguments(column(), shapes=[[4]])[0].shape == (0, 4)


def test_they_have_the_declared_dtype():
    for vectors in (DENSE, MIXED):
        (array,) = arguments(column(*vectors), shapes=[[4]], dtypes=["float32"])
        assert array.dtype == np.float32
        assert array[0].tolist() == vectors[0].toArray().tolist()


def test_they_stand_beside_other_columns_and_in_structs():
    numbers = pa.array([1, 2, 3])
    tensor, number = arguments(column(*SPARSE), numbers, shapes=[[4], None])
    assert (tensor.shape, number.shape) == ((3, 4), (3,))
    struct = pa.StructArray.from_arrays([column(*SPARSE), numbers], names=["v", "n"])
    inner, number = arguments(struct, shapes=[[4], None], model=2)
    np.testing.assert_array_equal(inner, tensor)


BAD = {
    "dense of another size": (column(DENSE[0], DenseVector([1.0])), [4], r"'c0' .*\[4\], which takes 4 values .* row 1 of 2 .* has 1 \(1 such"),
    "sparse of another size": (column(SPARSE[0], SparseVector(9, {1: 1.0})), [4], "row 1 of 2 in the batch has 9"),
    "null row": (column(DENSE[0], None), [4], "row 1 of 2 in the batch is null"),
    "no shape": (column(DENSE[0]), None, "Tensor columns require input_tensor_shapes.*'c0' hold vectors"),
}  # fmt: skip


@pytest.mark.parametrize(("vectors", "shape", "text"), BAD.values(), ids=BAD)
def test_bad_vectors_are_a_value_error_that_says_what_was_expected_and_found(vectors, shape, text):
    with pytest.raises(ValueError, match=text):
        arguments(vectors, shapes=shape and [shape])


def test_a_shape_is_needed_among_several_inputs_too():
    with pytest.raises(ValueError, match="the shape of 'c0' is None"):
        arguments(column(DENSE[0]), pa.array([1]), shapes=[None, None])


NO_VECTORS = {
    "other names": [pa.field(f"{field.name}_", field.type) for field in KIND],
    "other order": [KIND.field(index) for index in (1, 0, 2, 3)],
    "other type": [*[KIND.field(index) for index in range(3)], pa.field("values", pa.list_(pa.float32()))],
    "a field more": [*KIND, pa.field("more", pa.int32())],
    "matrix": [pa.field("type", pa.int8()), pa.field("numRows", pa.int32())],
}


@pytest.mark.parametrize("fields", NO_VECTORS.values(), ids=NO_VECTORS)
def test_only_exactly_these_fields_are_a_vector(fields):
    assert is_vector(KIND)
    assert not is_vector(pa.struct(fields))
