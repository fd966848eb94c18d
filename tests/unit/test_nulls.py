"""nulls="keep", "error" and "skip": which rows the model sees, and where its predictions go."""

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.pandas.types import to_arrow_type
from sparkgap_protos.v1.plan_pb2 import PredictPlan
from sparkgap_server.predict.nulls import sift

KEEP, ERROR, SKIP = PredictPlan.NULLS_KEEP, PredictPlan.NULLS_ERROR, PredictPlan.NULLS_SKIP
VECTOR = to_arrow_type(VectorUDT())
A_VECTOR = {"type": 1, "size": None, "indices": None, "values": [1.0]}

NUMBERS = pa.array([1, None, 3, 4])
FIXED = pa.array([[1, 2], [3, None], None, [4, 5]], pa.list_(pa.int32(), 2))
PAIRS = pa.array([{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": None, "b": "x"}, {"a": 3, "b": "x"}])
COLUMNS = {
    "numbers": (NUMBERS, [1], "Column 'c' is null in row 1 of 4 in the batch (1 such rows)"),
    "strings": (pa.array([None, "a", None, "b"]), [0, 2], "Column 'c' is null in row 0 of 4 in the batch (2 such rows)"),
    "binary": (pa.array([b"", None, b"", None]), [1, 3], "Column 'c' is null in row 1 of 4"),
    "arrays": (pa.array([[1], [2], None, []]), [2], "Column 'c' is null in row 2 of 4"),
    "elements": (pa.array([[1, 2], [], [3, None], [None]]), [2, 3], "Column 'c' has a null element in row 2 of 4 in the batch (2 such rows)"),
    "elements of fixed arrays": (FIXED, [1, 2], "Column 'c' has a null element in row 1 of 4"),
    "nested elements": (pa.array([[[1]], [[], [None]], [[2]], []]), [1], "Column 'c' has a null element in row 1 of 4"),
    "structs": (pa.array([{"a": 1}, None, {"a": 2}, {"a": 3}]), [1], "Column 'c' is null in row 1 of 4"),
    "fields": (PAIRS, [0, 2], "Column 'c.b' is null in row 0 of 4"),
    "fields of elements": (pa.array([[{"a": 1}], [{"a": None}], [], [None]]), [1, 3], "Column 'c' has a null element in row 1 of 4"),
    "elements of fields": (pa.array([{"a": [1]}, {"a": [None]}, {"a": []}, {"a": [2]}]), [1], "Column 'c.a' has a null element in row 1 of 4"),
    "vectors": (pa.array([A_VECTOR, None, A_VECTOR, A_VECTOR], VECTOR), [1], "Column 'c' is null in row 1 of 4"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "null", "text"), COLUMNS.values(), ids=COLUMNS)
class TestAnyNull:
    def test_keep_leaves_the_batch_as_it_is(self, column, null, text):
        for nulls in (KEEP, PredictPlan.NULLS_UNSPECIFIED):
            sifted = sift([column], ["c"], 4, nulls)
            assert sifted.columns[0] is column
            assert (sifted.rows, sifted.places) == (4, None)

    def test_error_names_the_column_and_its_first_row(self, column, null, text):
        with pytest.raises(ValueError, match=r"nulls='error' refuses nulls") as error:
            sift([column], ["c"], 4, ERROR)
        assert str(error.value).startswith(text)

    def test_skip_leaves_the_rows_out(self, column, null, text):
        kept = [row for row in range(4) if row not in null]
        sifted = sift([column, pa.array([0, 1, 2, 3])], ["c", "row"], 4, SKIP)
        assert sifted.rows == len(kept)
        assert sifted.columns[0].to_pylist() == [column.to_pylist()[row] for row in kept]
        assert sifted.columns[1].to_pylist() == kept
        assert [place is not None for place in sifted.places.to_pylist()] == [row not in null for row in range(4)]

    def test_a_slice_is_looked_at_from_its_offset(self, column, null, text):
        for start in (1, 9):
            piece = pa.concat_arrays([column] * 3).slice(start, 3)
            sifted = sift([piece], ["c"], 3, SKIP)
            kept = [row for row in range(3) if (row + start) % 4 not in null]
            assert sifted.columns[0].to_pylist() == [piece.to_pylist()[row] for row in kept]

    def test_predictions_go_back_to_their_rows(self, column, null, text):
        sifted = sift([column], ["c"], 4, SKIP)
        kept = [row for row in range(4) if row not in null]
        lists = pa.array([[float(row)] * row for row in kept], pa.list_(pa.float64()))
        scattered = sifted.scattered(lists)
        scattered.validate(full=True)
        assert scattered.type == lists.type
        assert scattered.to_pylist() == [None if row in null else [float(row)] * row for row in range(4)]


NO_NULLS = {
    "numbers": pa.array([1, 2]),
    "NaN": pa.array([float("nan"), 1.0]),
    "empty arrays": pa.array([[], []], pa.list_(pa.int32())),
    "nulls outside of the slice": pa.array([None, 1, 2, None]).slice(1, 2),
    "elements outside of the slice": pa.array([[None], [1], [2], [None]]).slice(1, 2),
    "dense vectors": pa.array([A_VECTOR, A_VECTOR], VECTOR),
}


@pytest.mark.parametrize("column", NO_NULLS.values(), ids=NO_NULLS)
@pytest.mark.parametrize("nulls", [ERROR, SKIP], ids=["error", "skip"])
def test_a_batch_without_nulls_is_not_touched(column, nulls):
    sifted = sift([column], ["c"], 2, nulls)
    assert sifted.columns[0] is column
    predictions = pa.array([1, 2])
    assert sifted.scattered(predictions) is predictions


def test_elements_that_a_null_row_hides_do_not_count():
    hidden = pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3], pa.int32()), pa.array([1, None, 3]), mask=pa.array([False, True, False])
    )
    with pytest.raises(ValueError, match="Column 'c' is null in row 1 of 3"):
        sift([hidden], ["c"], 3, ERROR)
    assert sift([hidden], ["c"], 3, SKIP).columns[0].to_pylist() == [[1], [3]]


def test_the_first_row_of_all_columns_is_told():
    with pytest.raises(ValueError, match="Column 'b' is null in row 0 of 4"):
        sift([NUMBERS, pa.array([None, "x", "y", "z"])], ["a", "b"], 4, ERROR)


def test_a_row_is_left_out_for_a_null_in_any_column():
    sifted = sift([NUMBERS, pa.array([None, "x", "y", "z"])], ["a", "b"], 4, SKIP)
    assert [column.to_pylist() for column in sifted.columns] == [[3, 4], ["y", "z"]]
    assert sifted.places.to_pylist() == [None, None, 0, 1]


def test_a_batch_of_nulls_has_no_row_left_and_null_predictions():
    sifted = sift([pa.nulls(3, pa.int32())], ["c"], 3, SKIP)
    assert sifted.rows == 0
    for kind in (pa.float32(), pa.list_(pa.string()), pa.struct([pa.field("a", pa.int32(), nullable=False)])):
        scattered = sifted.scattered(pa.array([], kind))
        scattered.validate(full=True)
        assert scattered.to_pylist() == [None] * 3


def test_what_is_left_can_be_written_to():
    sifted = sift([pa.array([1.0, None, 3.0])], ["c"], 3, SKIP)
    values = np.frombuffer(sifted.columns[0].buffers()[1], np.float64, 2)
    assert values.tolist() == [1, 3]
    assert values.flags.writeable


def test_a_struct_whose_field_is_declared_as_not_null_is_null_where_its_row_is_left_out():
    kind = pa.struct([pa.field("a", pa.int32(), nullable=False)])
    scattered = sift([NUMBERS], ["c"], 4, SKIP).scattered(pa.array([{"a": 1}, {"a": 2}, {"a": 3}], kind))
    assert scattered.to_pylist() == [{"a": 1}, None, {"a": 2}, {"a": 3}]
