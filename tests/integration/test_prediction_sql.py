"""Predictions that SQL calls by name: `sparkgap.register`."""

from __future__ import annotations

import sys
import threading

import pytest
import sparkgap
from pyspark import cloudpickle
from pyspark.errors import AnalysisException, IllegalArgumentException, PythonException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from sparkgap import PlanError, predict_batch_udf

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def spark(either_way):
    """With the ids 0 to 9 as the view ten."""
    either_way.range(0, 10, 1, 2).createOrReplaceTempView("ten")
    return either_way


def make_plus_one():
    return lambda x: x + 1.0


def plus(number):
    def make_plus():
        return lambda x: x + number

    return predict_batch_udf(make_plus, return_type="double", batch_size=4)


@pytest.fixture
def plus_one(spark):
    return sparkgap.register(spark, "plus_one", plus(1.0))


def values(frame):
    """Values of a frame with one column, in order."""
    return sorted(row[0] for row in frame.collect())


@pytest.mark.usefixtures("plus_one")
class TestCalls:
    @pytest.mark.parametrize("call", ["plus_one(id)", "PLUS_ONE(id)", "plus_one(id + 0)", "plus_one(plus_one(id)) - 1"])
    def test_a_select(self, spark, call):
        assert values(spark.sql(f"SELECT {call} FROM ten")) == list(range(1, 11))

    def test_the_frame_api_reaches_it_too(self, spark):
        frame = spark.table("ten")
        for selected in (
            frame.selectExpr("plus_one(id)"),
            frame.select(F.expr("plus_one(id)")),
            frame.select(F.call_function("plus_one", "id")),
        ):
            assert values(selected) == list(range(1, 11))

    def test_a_condition(self, spark):
        assert values(spark.sql("SELECT id FROM ten WHERE plus_one(id) > 7.5 AND id < 9")) == [7, 8]

    def test_a_case_branch(self, spark):
        assert values(spark.sql("SELECT CASE WHEN id > 7 THEN plus_one(id) ELSE 0D END FROM ten")) == [0.0] * 8 + [
            9,
            10,
        ]

    def test_subqueries(self, spark):
        assert values(spark.sql("SELECT id FROM ten WHERE id = (SELECT max(id) FROM ten WHERE plus_one(id) < 6)")) == [
            4
        ]
        assert values(spark.sql("SELECT id FROM ten WHERE id IN (SELECT plus_one(id) FROM ten)")) == list(range(1, 10))

    def test_a_common_table_expression(self, spark):
        query = "WITH scored AS (SELECT id, plus_one(id) AS p FROM ten) SELECT a.p FROM scored a JOIN scored b ON a.p = b.id"
        assert values(spark.sql(query)) == list(range(1, 10))

    def test_a_temporary_view(self, spark):
        spark.sql("CREATE OR REPLACE TEMPORARY VIEW scored AS SELECT id, plus_one(id) AS p FROM ten")
        assert values(spark.sql("SELECT p FROM scored WHERE p > 8")) == [9, 10]
        assert values(spark.table("scored").select("p").limit(3).select(F.lit(1))) == [1, 1, 1]

    def test_several_columns_and_types(self, spark):
        def make():
            return lambda x, label: [{"label": f"{label[i]}{x[i]}", "twice": x[i] * 2} for i in range(len(x))]

        sparkgap.register(spark, "mixed", predict_batch_udf(make, return_type="label string, twice int", batch_size=3))
        rows = spark.sql("SELECT m.* FROM (SELECT id, mixed(id, 'n') AS m FROM ten WHERE id > 7) ORDER BY id").collect()
        assert rows == [("n8", 16), ("n9", 18)]

    def test_a_tensor_with_its_shape(self, spark):
        def make():
            def predict(x):
                assert x.shape[1:] == (2, 1)
                return x.sum(axis=(1, 2))

            return predict

        tensors = predict_batch_udf(make, return_type="double", batch_size=3, input_tensor_shapes=[[2, 1]])
        sparkgap.register(spark, "total", tensors)
        assert values(spark.sql("SELECT total(array(id, 1.5D)) FROM ten")) == [i + 1.5 for i in range(10)]

    def test_columns_are_named_as_sql_names_them(self, spark):
        assert spark.sql("SELECT plus_one(id), plus_one(id) AS p FROM ten").columns == ["plus_one(id)", "p"]

    def test_errors_name_the_function_and_the_column(self, spark):
        shaped = predict_batch_udf(make_plus_one, return_type="double", batch_size=4, input_tensor_shapes=[[3]])
        sparkgap.register(spark, "shaped", shaped)
        with pytest.raises(PythonException, match=r"(?s)array\(ten.id\).*shaped: the prediction of a batch raised"):
            spark.sql("SELECT shaped(array(id)) FROM ten").collect()

    def test_a_call_without_columns_is_refused(self, spark):
        with pytest.raises(IllegalArgumentException, match=r"plus_one\(\) was called without columns"):
            spark.sql("SELECT plus_one() FROM ten").collect()

    def test_a_call_with_named_arguments_is_refused(self, spark):
        with pytest.raises(IllegalArgumentException, match=r"plus_one\(\) has no argument x: .* by position"):
            spark.sql("SELECT plus_one(x => id) FROM ten").collect()


class TestNames:
    def test_registering_returns_the_function(self, spark):
        function = plus(3.0)
        assert sparkgap.register(spark, "plus_three", function) is function
        assert values(spark.range(2).select(function("id"))) == [3.0, 4.0]

    def test_registering_again_replaces_it_in_views_as_well(self, spark):
        sparkgap.register(spark, "changing", plus(1.0))
        spark.sql("CREATE OR REPLACE TEMPORARY VIEW changes AS SELECT changing(id) AS p FROM ten")
        assert values(spark.sql("SELECT max(p) FROM changes")) == [10.0]
        sparkgap.register(spark, "changing", plus(2.0))
        assert values(spark.sql("SELECT max(p) FROM changes")) == [11.0]

    def test_it_can_be_dropped(self, spark):
        sparkgap.register(spark, "dropped", plus(1.0))
        assert spark.catalog.functionExists("dropped")
        spark.sql("DROP TEMPORARY FUNCTION dropped")
        with pytest.raises(AnalysisException, match="UNRESOLVED_ROUTINE"):
            spark.sql("SELECT dropped(id) FROM ten").collect()

    def test_another_session_does_not_see_it(self, spark, sparkgap_server):
        sparkgap.register(spark, "mine", plus(1.0))
        other = SparkSession.builder.remote(sparkgap_server.url).create()
        try:
            with pytest.raises(AnalysisException, match="UNRESOLVED_ROUTINE"):
                other.sql("SELECT mine(1)").collect()
        finally:
            other.stop()

    @pytest.mark.parametrize("name", ["", "a b", "a.b", "1a", "naïve", "`a`", "a\n", None, 7])
    def test_what_sql_could_not_call_is_refused(self, spark, name):
        with pytest.raises(PlanError, match="is no name for a function: letters, digits and '_' are needed"):
            sparkgap.register(spark, name, plus(1.0))

    @pytest.mark.parametrize("name", ["abs", "Sum", "explode"])
    def test_the_name_of_a_function_of_sparks_own_is_refused(self, spark, name):
        with pytest.raises(PlanError, match=f"{name} is a function of Spark's own"):
            sparkgap.register(spark, name, plus(1.0))


class TestRefusals:
    def test_a_plain_function(self, spark):
        with pytest.raises(PlanError, match="a function made by predict_batch_udf is needed, got a function"):
            sparkgap.register(spark, "plain", make_plus_one)

    def test_a_type_that_spark_does_not_know(self, spark):
        with pytest.raises(PlanError, match="return_type 'nonsense' is no Spark type"):
            sparkgap.register(spark, "bad", predict_batch_udf(make_plus_one, return_type="nonsense", batch_size=1))

    def test_a_function_that_cannot_be_pickled(self, spark):
        lock = threading.Lock()

        def make_with_lock():
            return lambda x: x + lock.locked()

        with pytest.raises(PlanError, match="make_with_lock"):
            sparkgap.register(spark, "bad", predict_batch_udf(make_with_lock, return_type="int", batch_size=1))


def test_a_model_is_shared_by_its_function_and_its_name(spark, tmp_path):
    loads = str(tmp_path / "loads")

    def make_noted():
        with open(loads, "a") as file:
            file.write("load\n")
        return lambda x: x * 1.0

    noted = predict_batch_udf(make_noted, return_type="double", batch_size=4)
    sparkgap.register(spark, "noted", noted)
    assert not (tmp_path / "loads").exists()
    for frame in (spark.range(3).select(noted("id")), spark.range(3).selectExpr("noted(id)")):
        assert values(frame) == [0.0, 1.0, 2.0]
    assert (tmp_path / "loads").read_text() == "load\n"
