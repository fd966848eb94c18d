"""Models that carry much: weights travel to the server once for each content, to an executor once, and never inside a plan."""

from __future__ import annotations

import os
import signal
import stat
import sys

import grpc
import numpy as np
import pytest
from pyspark import cloudpickle
from pyspark.errors import PySparkException, PythonException
from pyspark.sql.connect.client import DefaultChannelBuilder
from pyspark.sql.connect.session import SparkSession
from sparkgap import PlanError, channel, predict_batch_udf
from sparkgap_server.local import LocalServer

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

MB = 1_000_000
WAYS = pytest.mark.parametrize("direct", ["true", "false"], ids=["direct", "workers"])


class Counter(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):
    """Adds up the bytes of every request that pyspark hands to gRPC."""

    def __init__(self):
        self._bytes = 0

    def taken(self):
        """Bytes since the last call."""
        sent, self._bytes = self._bytes, 0
        return sent

    def _counted(self, request):
        self._bytes += request.ByteSize()
        return request

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details, self._counted(request))

    def intercept_unary_stream(self, continuation, details, request):
        return continuation(details, self._counted(request))

    def intercept_stream_unary(self, continuation, details, requests):
        return continuation(details, map(self._counted, requests))


@pytest.fixture
def connect(sparkgap_server):
    """A function that opens a session and returns it with the counter of its bytes."""
    sessions = []

    def open_session(direct="true", url=sparkgap_server.url):
        counter = Counter()
        builder = DefaultChannelBuilder(url)
        builder.add_interceptor(counter)
        session = SparkSession.builder.channelBuilder(builder).create()
        sessions.append(session)
        session.conf.set("spark.sparkgap.predict.direct", direct)
        counter.taken()
        return session, counter

    yield open_session
    for session in sessions:
        session.stop()


@pytest.fixture
def numbers(request):
    """A function that makes weights of some bytes; no other test has the same."""
    seed = abs(hash(request.node.nodeid))
    return lambda size, index=0: np.random.default_rng([seed, index]).integers(1, 100, size // 8)


def model(weights, *more):
    """Predicts the sum of its weights plus x, and the id of its process."""

    def make_weighty():
        total = int(weights.sum())
        assert all(more)
        return lambda x: {"sum": x + total, "host": np.full(len(x), os.getpid())}

    return predict_batch_udf(make_weighty, return_type="struct<sum: bigint, host: bigint>", batch_size=16)


def predicted(session, udf, rows=40):
    """Sums in order of the rows, and the processes that predicted them."""
    found = [row[0] for row in session.range(0, rows, 1, 4).select(udf("id")).collect()]
    return [each.sum for each in found], {each.host for each in found}


def expected(weights, rows=40):
    return [int(weights.sum()) + i for i in range(rows)]


def payloads(server):
    """Files with weights below a server's folder: the driver's, and the executors' where they have their own."""
    return [path for path in server.log.parent.rglob("payload-*") if path.is_file()]


class TestOnce:
    @WAYS
    def test_150_mb_reach_the_server_once_whatever_the_query_and_the_function(self, connect, numbers, direct):
        weights = numbers(150 * MB)  # a message of Connect ends at 128 MiB
        session, counter = connect(direct)
        udf = model(weights)
        sums, hosts = predicted(session, udf)
        assert sums == expected(weights)
        assert 150 * MB < counter.taken() < 153 * MB

        assert predicted(session, udf) == (sums, hosts)
        assert predicted(session, model(weights.copy())) == (sums, hosts)
        assert counter.taken() < 0.1 * MB

        another, its_counter = connect(direct)
        assert predicted(another, model(weights)) == (sums, hosts)
        assert its_counter.taken() < 0.1 * MB

    @WAYS
    def test_a_host_that_was_killed_is_replaced_and_nothing_is_sent_again(self, connect, numbers, direct):
        weights = numbers(MB)
        session, counter = connect(direct)
        udf = model(weights)
        _, [host] = predicted(session, udf)
        counter.taken()
        os.kill(host, signal.SIGKILL)
        sums, [successor] = predicted(session, udf)
        assert (sums, counter.taken() < 0.1 * MB) == (expected(weights), True)
        assert successor != host

    def test_one_content_that_pickles_to_other_bytes_is_not_sent_again(self, connect, numbers):
        weights = numbers(MB)
        session, counter = connect()
        name = "".join(["attention ", "head"])
        shared, apart = [name, name], [name, "".join(["attention ", "head"])]
        assert cloudpickle.dumps(shared) != cloudpickle.dumps(apart)
        first = predicted(session, model(weights, shared))
        assert counter.taken() > MB
        assert predicted(session, model(weights, apart)) == first
        frame = session.range(5).select(model(weights, apart)("id").alias("a"), model(weights, shared)("id").alias("b"))
        assert all(row.a == row.b for row in frame.collect())
        assert counter.taken() < 0.1 * MB

    def test_columns_of_one_content_share_its_bytes(self, numbers):
        weights = numbers(MB)
        one, other = (model(weights)("id")._expr._large for _ in range(2))
        assert one is other

    def test_what_is_small_travels_in_the_plan(self, sparkgap_server, connect, numbers):
        weights = numbers(100_000)
        session, counter = connect()
        before = payloads(sparkgap_server)
        assert predicted(session, model(weights))[0] == expected(weights)
        assert counter.taken() > 100_000
        assert payloads(sparkgap_server) == before


class TestNeverTheWrongModel:
    @WAYS
    def test_changed_weights_are_another_model(self, connect, numbers, direct):
        session, counter = connect(direct)
        weights = numbers(MB)
        udf = model(weights)
        column = udf("id")  # pickled now
        weights[7] += 1
        (changed, [one]), (before, [other]) = predicted(session, udf), predicted(session, lambda _: column)
        assert changed == expected(weights)
        assert before == [each - 1 for each in expected(weights)]
        assert one != other
        assert 2 * MB < counter.taken() < 2.2 * MB

    def test_another_user_cannot_name_a_payload(self, sparkgap_server, connect, numbers, monkeypatch):
        mine, _ = connect()
        udf = model(numbers(MB))
        predicted(mine, udf)
        eve, counter = connect(url=f"{sparkgap_server.url};user_id=eve")
        with monkeypatch.context() as patch:
            patch.setattr(channel, "put_pickle", claim_to_have_uploaded)
            with pytest.raises(PySparkException, match="is not on the server"):
                predicted(eve, udf)
        assert counter.taken() < 0.1 * MB
        assert predicted(eve, udf)[0] == predicted(mine, udf)[0]
        assert counter.taken() > MB


def claim_to_have_uploaded(client, plan, data):
    """As a client would that has the digest only."""
    plan.make_predict_fn.uploaded_bytes = len(data)


@pytest.fixture(scope="class")
def small_server():
    conf = {"spark.sparkgap.model.maxBytes": "4m", "spark.sparkgap.model.keptBytes": "3m"}
    with LocalServer("local[2]", conf=conf) as server:
        yield server


class TestLimits:
    def test_too_large_a_payload_is_refused_before_anything_is_sent(self, small_server, connect, numbers):
        session, counter = connect(url=small_server.url)
        with pytest.raises(
            PlanError,
            match=r"make_predict_fn \(make_weighty\) carries 50\d{5} bytes, this server takes 4194304 \(spark.sparkgap.model.maxBytes\): write",
        ):
            predicted(session, model(numbers(5 * MB)))
        assert counter.taken() < 0.1 * MB

    @WAYS
    def test_what_the_server_has_forgotten_is_sent_again_and_stays_where_a_view_needs_it(
        self, small_server, connect, numbers, direct
    ):
        first, second = numbers(2 * MB), numbers(2 * MB, index=1)
        session, _ = connect(direct, small_server.url)
        udf = model(first)
        session.range(0, 40, 1, 1).select(udf("id").sum.alias("sum")).createOrReplaceTempView("predicted")
        predicted(session, model(second))  # both together are more than the server keeps
        assert [row.sum for row in session.sql("SELECT sum FROM predicted").collect()] == expected(first)
        other, counter = connect(direct, small_server.url)
        assert predicted(other, udf)[0] == expected(first)
        assert 2 * MB < counter.taken() < 2.1 * MB


class TestFiles:
    def test_they_are_their_users_alone_and_gone_with_the_server(self, numbers):
        weights = numbers(MB)
        with LocalServer("local[2]") as server:
            session = SparkSession.builder.remote(server.url).create()
            assert predicted(session, model(weights))[0] == expected(weights)
            [file] = payloads(server)
            modes = (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode))
            session.stop()
        assert modes == (0o600, 0o700)
        assert not file.exists()

    @WAYS
    def test_one_that_was_deleted_is_an_error_that_says_so_and_the_next_query_works(
        self, sparkgap_server, connect, numbers, direct
    ):
        weights = numbers(MB)
        session, counter = connect(direct)
        before = set(payloads(sparkgap_server))
        frame = session.range(0, 40, 1, 1).select(model(weights)("id").sum.alias("sum"))
        frame.createOrReplaceTempView("deprived")  # the server has planned it
        [file] = set(payloads(sparkgap_server)) - before
        file.unlink()
        with pytest.raises(PythonException, match="FileNotFoundError: what make_predict_fn carries cannot be read"):
            session.sql("SELECT sum FROM deprived").collect()
        counter.taken()
        assert [row.sum for row in frame.collect()] == expected(weights)
        assert counter.taken() < 0.1 * MB

    def test_a_server_that_encrypts_its_disks_gets_them_inside_the_plan(self, connect, numbers):
        weights = numbers(MB)
        with LocalServer("local[2]", conf={"spark.io.encryption.enabled": "true"}) as server:
            for direct in ("true", "false"):
                session, counter = connect(direct, server.url)
                assert predicted(session, model(weights))[0] == expected(weights)
                assert counter.taken() > MB
                session.stop()
            assert payloads(server) == []
