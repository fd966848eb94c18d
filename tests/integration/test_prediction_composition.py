"""Where a prediction may stand in a query, and that no row is predicted twice there: in aggregates, joins, subqueries, caches, streams."""

from __future__ import annotations

import sys

import pytest
import sparkgap
from pyspark import cloudpickle
from pyspark.errors import AnalysisException
from pyspark.sql import Window
from pyspark.sql import functions as F
from sparkgap import predict_batch_udf

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def spark(either_way):
    """With the tables a (id 0 to 7, k = id % 2) and b (label 0 to 7)."""
    either_way.range(0, 8, 1, 2).withColumn("k", F.expr("id % 2")).createOrReplaceTempView("a")
    either_way.range(0, 8, 1, 2).withColumnRenamed("id", "label").createOrReplaceTempView("b")
    return either_way


class Predictions:
    """The models p(x) = x + 1 and pair(x, y) = x + y, which note their loads and the rows they predict."""

    def __init__(self, path):
        self._path = str(path)
        self.forget()
        self.p = predict_batch_udf(self._plus_one(), return_type="double", batch_size=4)
        self.pair = predict_batch_udf(self._sum(), return_type="double", batch_size=4)

    def _plus_one(self):
        note = self._note

        def make():
            note("load")

            def predict(x):
                note(len(x))
                return x + 1.0

            return predict

        return make

    def _sum(self):
        note = self._note

        def make():
            def predict(x, y):
                note(len(x))
                return x + y

            return predict

        return make

    def _note(self, what):
        with open(self._path, "a") as file:
            file.write(f"{what}\n")

    def forget(self):
        open(self._path, "w").close()

    def _lines(self):
        with open(self._path) as file:
            return file.read().split()

    @property
    def rows(self):
        return sum(int(line) for line in self._lines() if line != "load")

    @property
    def loads(self):
        return self._lines().count("load")


def registered(made, spark):
    sparkgap.register(spark, "p", made.p)
    sparkgap.register(spark, "pair", made.pair)
    spark.sql("CREATE OR REPLACE TEMPORARY VIEW v AS SELECT *, p(id) AS q FROM a")
    return made


@pytest.fixture(scope="module")
def loaded(spark, tmp_path_factory):
    return registered(Predictions(tmp_path_factory.mktemp("loaded") / "journal"), spark)


@pytest.fixture
def predictions(loaded):
    """The models of all tests, which have noted nothing yet."""
    loaded.forget()
    return loaded


def tuples(frame):
    return sorted((tuple(row) for row in frame.collect()), key=str)


IDS = range(8)

AGGREGATES = [
    ("SELECT sum(p(id)) FROM a", [(36.0,)], 8),
    ("SELECT k, avg(p(id)), max(p(id) + 1) FROM a GROUP BY k", [(0, 4.0, 8.0), (1, 5.0, 9.0)], 8),
    ("SELECT k, sum(p(id)) AS s FROM a GROUP BY k HAVING sum(p(id)) > 17", [(1, 20.0)], 8),
    ("SELECT sum(p(id)) FILTER (WHERE p(id) > 2), count(DISTINCT p(k)) FROM a", [(33.0, 2)], 16),
    ("SELECT p(k), count(*), sum(p(id)) FROM a GROUP BY p(k)", [(1.0, 4, 16.0), (2.0, 4, 20.0)], 16),
    ("SELECT p(k) + 1, count(*) FROM a GROUP BY k, p(k) + 0", [(2.0, 4), (3.0, 4)], 8 + 2),
    ("SELECT p(p(k)), count(*) FROM a GROUP BY p(k)", [(2.0, 4), (3.0, 4)], 8 + 2),
    ("SELECT p(sum(p(id))), p(sum(p(id))) * 2 FROM a GROUP BY k", [(17.0, 34.0), (21.0, 42.0)], 8 + 2),
    ("SELECT p(k), sum(p(id)) FROM a GROUP BY ROLLUP (p(k))", [(1.0, 16.0), (2.0, 20.0), (None, 36.0)], 16),
    ("SELECT k, sum(p(id)) FROM a GROUP BY CUBE (k)", [(0, 16.0), (1, 20.0), (None, 36.0)], 8),
    ("SELECT * FROM (SELECT id, k FROM a) PIVOT (sum(p(id)) FOR k IN (0, 1))", [(16.0, 20.0)], 8),
    ("SELECT array_sort(collect_list(p(id)))[7], max_by(id, p(id)) FROM a", [(8.0, 7)], 8),
    ("SELECT sum(p(1D)), p(2D) FROM a", [(16.0, 3.0)], 8 + 1),
    ("SELECT DISTINCT p(k) FROM a", [(1.0,), (2.0,)], 8),
]

JOINS = [
    ("SELECT id, label FROM a JOIN b ON p(id) = label", [(i, i + 1) for i in range(7)], 8),
    ("SELECT id, label FROM a JOIN b ON p(id) = p(label) AND p(id) > 6", [(6, 6), (7, 7)], 16),
    ("SELECT id, label FROM a JOIN b ON pair(id, label) = 2", [(0, 2), (1, 1), (2, 0)], 64),
    ("SELECT id, label FROM a JOIN b ON pair(id, label) = 3 AND id = label + 1", [(2, 1)], 7),
    ("SELECT id, label FROM a JOIN b ON pair(p(id), label) = 2", [(0, 1), (1, 0)], 8 + 64),
    (
        "SELECT id, label FROM a LEFT JOIN b ON p(id) = label AND p(label) > 7",
        [(i, i + 1 if i == 6 else None) for i in IDS],
        16,
    ),
    ("SELECT label, id FROM a RIGHT JOIN b ON p(id) = label", [(i, i - 1 if i else None) for i in IDS], 8),
    (
        "SELECT id, label FROM a FULL JOIN b ON p(id) = p(label) + 7",
        [(i, 0 if i == 7 else None) for i in IDS] + [(None, i) for i in range(1, 8)],
        16,
    ),
    ("SELECT id FROM a LEFT SEMI JOIN b ON p(label) = id", [(i,) for i in range(1, 8)], 8),
    ("SELECT id FROM a LEFT ANTI JOIN b ON p(label) = id", [(0,)], 8),
    ("SELECT id FROM a CROSS JOIN b WHERE pair(id, label) = 14", [(7,)], 64),
]

SUBQUERIES = [
    ("SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE p(label) = id)", [(i,) for i in range(1, 8)], 8),
    ("SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE p(id) = label)", [(i,) for i in range(7)], 8),
    ("SELECT id FROM a WHERE p(id) IN (SELECT p(label) FROM b WHERE label < 3)", [(0,), (1,), (2,)], 8 + 3),
    ("SELECT id FROM a WHERE p(id) NOT IN (SELECT label FROM b)", [(7,)], 8),
    ("SELECT id FROM a WHERE id = (SELECT max(p(label)) - 1 FROM b)", [(7,)], 8),
    ("SELECT id, (SELECT sum(label) FROM b WHERE label = p(id)) FROM a WHERE id > 5", [(6, 7), (7, None)], 2),
    ("SELECT id, m FROM a, LATERAL (SELECT p(id) AS m) WHERE id > 5", [(6, 7.0), (7, 8.0)], 2),
    (
        "WITH c AS (SELECT id, p(id) AS q FROM a) SELECT x.q FROM c x JOIN c y ON x.q = y.id",
        [(i,) for i in range(1, 8)],
        8,
    ),
]

CONDITIONS = [
    ("SELECT id FROM a WHERE p(id) > 3 AND p(id) < 5.5", [(3,), (4,)], 8),
    ("SELECT id FROM a WHERE p(id) > 3 AND id < 5", [(3,), (4,)], 5),
    ("SELECT q FROM v WHERE id = 5", [(6.0,)], 1),
    ("SELECT q, q + 1 FROM v WHERE q > 3 AND id < 4", [(4.0, 5.0)], 4),
    ("SELECT q FROM (SELECT * FROM v WHERE q > 3) WHERE id < 4", [(4.0,)], 4),
    ("SELECT q FROM v JOIN b ON id = label WHERE label < 2", [(1.0,), (2.0,)], 2),
    ("SELECT q FROM v WHERE id = 1 OR q = 3", [(2.0,), (3.0,)], 8),
    ("SELECT p(id) AS q FROM a WHERE p(id) > 6", [(7.0,), (8.0,)], 8),
    ("SELECT k, p(id) + 1, p(p(id)) FROM a WHERE p(id) > 7 AND id > 4 ORDER BY k LIMIT 3", [(1, 9.0, 9.0)], 3 + 1),
    ("SELECT sum(p(id)) FROM a WHERE p(id) > 6", [(15.0,)], 8),
    ("SELECT id FROM v", [(i,) for i in IDS], 0),
]

RESULTS = [
    ("SELECT p(id), p(a.id) + 1 FROM a WHERE id < 2", [(1.0, 2.0), (2.0, 3.0)], 2),
    ("SELECT p(id), p(p(id)), p(p(p(id))) FROM a WHERE id < 1", [(1.0, 2.0, 3.0)], 3),
    ("SELECT p(q) FROM v WHERE id > 6", [(9.0,)], 2),
    ("SELECT p(id) + 1 FROM (SELECT *, p(id) AS q FROM a) WHERE q > 7", [(9.0,)], 8),
    (
        "SELECT CASE WHEN id > 6 THEN p(id) WHEN id > 5 THEN p(id) * 2 ELSE 0 END FROM a",
        [(0.0,)] * 6 + [(14.0,), (8.0,)],
        8,
    ),
    ("SELECT id, x FROM a LATERAL VIEW explode(array(p(id), p(id))) AS x WHERE id > 6", [(7, 8.0), (7, 8.0)], 1),
    ("SELECT sum(p(id)) OVER (PARTITION BY k ORDER BY p(id)) FROM a WHERE id < 4", [(1.0,), (2.0,), (4.0,), (6.0,)], 4),
    ("SELECT p(id) AS x FROM a WHERE id < 2 DISTRIBUTE BY p(id)", [(1.0,), (2.0,)], 2),
    ("SELECT count(*) FROM (SELECT q FROM v LIMIT 3)", [(3,)], 0),
]


@pytest.mark.parametrize(("query", "rows", "predicted"), AGGREGATES + JOINS + SUBQUERIES + CONDITIONS + RESULTS)
def test_no_row_is_predicted_twice(spark, predictions, query, rows, predicted):
    assert tuples(spark.sql(query)) == sorted(rows, key=str)
    assert predictions.rows == predicted


class TestFrames:
    """The same through the frame API, which builds its plans in other ways than SQL."""

    def test_an_aggregate(self, spark, predictions):
        assert spark.table("a").agg(F.sum(predictions.p("id"))).collect() == [(36.0,)]
        assert predictions.rows == 8

    def test_groups(self, spark, predictions):
        p, a = predictions.p, spark.table("a")
        assert tuples(a.groupBy("k").agg(F.avg(p("id")), F.max(p("id")))) == [(0, 4.0, 7.0), (1, 5.0, 8.0)]
        assert predictions.rows == 8
        assert tuples(a.groupBy(p("k").alias("g")).agg(F.sum("id"))) == [(1.0, 12), (2.0, 16)]
        assert predictions.rows == 16
        assert tuples(a.rollup(p("k").alias("g")).agg(F.sum(p("id")))) == [(1.0, 16.0), (2.0, 20.0), (None, 36.0)]

    def test_a_pivot(self, spark, predictions):
        pivoted = spark.table("a").groupBy().pivot("k").agg(F.sum(predictions.p("id")))
        assert tuples(pivoted) == [(16.0, 20.0)]
        assert pivoted.columns == ["0", "1"]

    def test_a_join_condition(self, spark, predictions):
        a, b = spark.table("a"), spark.table("b")
        joined = a.join(b, predictions.p(a.id) == b.label)
        assert joined.columns == ["id", "k", "label"]
        assert tuples(joined) == [(i, i % 2, i + 1) for i in range(7)]
        assert predictions.rows == 8

    def test_a_join_of_a_frame_with_itself(self, spark, predictions):
        frame = spark.table("a").withColumn("q", predictions.p("id"))
        joined = frame.alias("x").join(frame.alias("y"), F.col("x.q") == F.col("y.id"))
        assert tuples(joined.select("x.id", "y.q")) == [(i, i + 2.0) for i in range(7)]

    def test_a_window(self, spark, predictions):
        window = Window.partitionBy("k").orderBy("id")
        summed = spark.table("a").where("id < 4").select("id", F.sum(predictions.p("id")).over(window))
        assert tuples(summed) == [(0, 1.0), (1, 2.0), (2, 4.0), (3, 6.0)]
        assert predictions.rows == 4

    def test_explode_and_sort(self, spark, predictions):
        exploded = spark.table("a").select(F.explode(F.array(predictions.p("id"), F.lit(0.5))).alias("e"))
        assert [row.e for row in exploded.orderBy(F.desc("e")).limit(3).collect()] == [8.0, 7.0, 6.0]
        ordered = spark.table("a").orderBy(predictions.p("id").desc()).select("id")
        assert [row.id for row in ordered.collect()] == list(reversed(IDS))

    def test_an_observed_metric(self, spark, predictions):
        from pyspark.sql import Observation

        observation = Observation("seen")
        frame = spark.table("a").observe(observation, F.max(predictions.p("id")).alias("largest"))
        assert tuples(frame.select("id")) == [(i,) for i in IDS]
        assert observation.get == {"largest": 8.0}

    def test_statistics_and_missing_values(self, spark, predictions):
        frame = spark.table("a").withColumn("q", predictions.p("id"))
        assert frame.na.drop().count() == 8
        assert frame.approxQuantile("q", [0.0], 0.0) == [1.0]

    def test_writing_and_reading(self, spark, predictions, tmp_path):
        spark.table("a").select("id", predictions.p("id").alias("q")).write.parquet(str(tmp_path / "written"))
        assert predictions.rows == 8
        assert spark.read.parquet(str(tmp_path / "written")).agg(F.sum("q")).collect() == [(36.0,)]
        assert predictions.rows == 8


class TestCaches:
    def test_a_cached_frame_serves_every_query_over_it(self, spark, predictions):
        frame = spark.table("a").withColumn("q", predictions.p("id")).cache()
        try:
            assert frame.count() == 8
            assert tuples(frame.where("id = 5 AND q > 1").select("q")) == [(6.0,)]
            assert frame.groupBy("k").agg(F.sum("q")).count() == 2
            assert predictions.rows == 8
        finally:
            frame.unpersist(blocking=True)

    def test_a_cached_view_serves_sql(self, spark, predictions):
        spark.sql("CACHE TABLE v")
        try:
            assert tuples(spark.sql("SELECT q FROM v WHERE id = 5")) == [(6.0,)]
            assert tuples(spark.sql("SELECT sum(q) FROM v WHERE k = 0")) == [(16.0,)]
            assert predictions.rows == 8
        finally:
            spark.sql("UNCACHE TABLE v")

    def test_a_cached_aggregate_of_predictions(self, spark, predictions):
        frame = spark.table("a").groupBy("k").agg(F.sum(predictions.p("id")).alias("s")).cache()
        try:
            assert [tuples(frame), tuples(frame.where("k = 1"))] == [[(0, 16.0), (1, 20.0)], [(1, 20.0)]]
            assert predictions.rows == 8
        finally:
            frame.unpersist(blocking=True)


class TestRefusals:
    """What Spark refuses of any Python function, with its own words."""

    @pytest.mark.parametrize(
        "query",
        [
            "SELECT id FROM a LEFT JOIN b ON pair(id, label) = 3",
            "SELECT id FROM a WHERE EXISTS (SELECT 1 FROM b WHERE pair(id, label) = 3)",
        ],
    )
    def test_an_outer_joins_condition_over_both_sides(self, spark, predictions, query):
        with pytest.raises(AnalysisException, match="PYTHON_UDF_IN_ON_CLAUSE"):
            spark.sql(query).collect()

    def test_a_lambda_function(self, spark, predictions):
        with pytest.raises(AnalysisException, match="LAMBDA_FUNCTION_WITH_PYTHON_UDF"):
            spark.sql("SELECT transform(array(id), x -> p(x)) FROM a").collect()


class TestStreams:
    @pytest.fixture
    def predictions(self, spark, tmp_path):
        """Models of this test alone, so that their loads count."""
        return registered(Predictions(tmp_path / "journal"), spark)

    @pytest.fixture
    def batches(self, spark, tmp_path):
        """A stream over files of which the first, ids 0 to 4, lies there; calling it adds the second, ids 5 to 9."""
        folder = tmp_path / "incoming"
        spark.range(0, 5, 1, 1).write.json(str(folder))

        class Batches:
            stream = spark.readStream.schema("id long").option("maxFilesPerTrigger", 1).json(str(folder))

            @staticmethod
            def add():
                spark.range(5, 10, 1, 1).write.mode("append").json(str(folder))

        return Batches

    def run(self, query, batches):
        try:
            query.processAllAvailable()
            batches.add()
            query.processAllAvailable()
            assert query.exception() is None
            return query.lastProgress["batchId"]
        finally:
            query.stop()

    def test_two_micro_batches_share_a_model(self, spark, predictions, batches, tmp_path):
        predicted = batches.stream.withColumn("q", predictions.p("id")).where("q > 2 AND id < 9")
        query = predicted.writeStream.option("checkpointLocation", str(tmp_path / "checkpoint"))
        assert self.run(query.format("parquet").start(str(tmp_path / "out")), batches) >= 1
        assert tuples(spark.read.parquet(str(tmp_path / "out"))) == [(i, i + 1.0) for i in range(2, 9)]
        assert (predictions.loads, predictions.rows) == (1, 9)

    def test_a_registered_function_in_a_stream(self, spark, predictions, batches):
        query = batches.stream.selectExpr("p(p(id)) AS q").writeStream.format("memory").queryName("scores").start()
        self.run(query, batches)
        assert tuples(spark.table("scores")) == sorted(((i + 2.0,) for i in range(10)), key=str)
        assert (predictions.loads, predictions.rows) == (1, 20)

    def test_an_aggregate_over_predictions(self, spark, predictions, batches):
        summed = batches.stream.groupBy((F.col("id") % 2).alias("k")).agg(F.sum(predictions.p("id")).alias("s"))
        spark.conf.set("spark.sql.shuffle.partitions", 2)
        try:
            query = summed.writeStream.format("memory").outputMode("complete").queryName("sums").start()
            self.run(query, batches)
        finally:
            spark.conf.unset("spark.sql.shuffle.partitions")
        assert tuples(spark.table("sums")) == [(0, 25.0), (1, 30.0)]
        assert (predictions.loads, predictions.rows) == (1, 10)

    def test_a_function_for_each_batch(self, spark, predictions, batches, tmp_path):
        out = str(tmp_path / "out")

        def append(frame, number):
            frame.write.mode("append").parquet(out)

        self.run(
            batches.stream.select(predictions.p("id").alias("q")).writeStream.foreachBatch(append).start(), batches
        )
        assert tuples(spark.read.parquet(out).agg(F.sum("q"))) == [(55.0,)]
        assert (predictions.loads, predictions.rows) == (1, 10)
