"""A nursery whose system gives it no more: runs and queries are refused in the system's words, and those that are there notice nothing."""

from __future__ import annotations

import functools
import itertools
import os
import resource
import sys
import time

import psutil
import pytest
from pyspark import cloudpickle
from sparkgap import TorchDistributor, TrainingError, predict_batch_udf

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


def sleep_for_ever():
    print("ready", flush=True)
    time.sleep(1000)


@pytest.mark.parametrize("room", [0, 2])  # not even for the connection, and for the connection but no process
def test_a_nursery_without_descriptors_refuses_one_request_in_the_systems_words(cpu, spark, sparkgap_server, room):
    children = psutil.Process(sparkgap_server.pid).children()
    nursery = next(each for each in children if "sparkgap_server.nursery" in each.cmdline())
    before = cpu(1).submit(sleep_for_ever)
    assert next(iter(before.logs(follow=True))).text == "ready"
    soft, hard = resource.prlimit(nursery.pid, resource.RLIMIT_NOFILE)
    used = {int(each) for each in os.listdir(f"/proc/{nursery.pid}/fd")}
    free = (number for number in itertools.count() if number not in used)
    resource.prlimit(nursery.pid, resource.RLIMIT_NOFILE, (next(itertools.islice(free, room, None)), hard))
    try:
        with pytest.raises(
            TrainingError, match=r"the executor's nursery could not start it: Too many open files \(errno 24\)"
        ):
            cpu(1).run(lambda: "never")
        add_one = predict_batch_udf(lambda: lambda x: x + room, return_type="double", batch_size=10)
        with pytest.raises(
            Exception, match=r"the nursery could not start the model host of .*: Too many open files \(errno 24\)"
        ):
            spark.range(3).select(add_one("id")).collect()
    finally:
        resource.prlimit(nursery.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert before.status == "RUNNING"
    before.cancel()
    assert [row[0] for row in spark.range(3).select(add_one("id")).collect()] == [room, 1 + room, 2 + room]
    assert cpu(1).run(lambda: "still here") == "still here"
