"""The variables that a rank finds, besides those that a real run shows in test_training.py."""

import pytest
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_server.train import environment


@pytest.fixture
def found(monkeypatch):
    """`found(gpus=["0"])` is the environment of a rank so placed."""

    def apply(before=None, **placement):
        variables = dict(before or {})
        monkeypatch.setattr(environment.os, "environ", variables)
        monkeypatch.setattr(environment, "_limit_threads", lambda count: None)
        environment.apply(pb.RankPlacement(world_size=2, **placement))
        return variables

    return apply


def test_accelerate_takes_the_ranks_for_those_of_one_training_without_gpus_too(found):
    assert found()["ACCELERATE_USE_CPU"] == "true"


def test_accelerate_uses_the_gpus_that_there_are(found):
    assert "ACCELERATE_USE_CPU" not in found(gpus=["0", "1"])


def test_what_the_operator_has_set_for_accelerate_stays(found):
    assert found({"ACCELERATE_USE_CPU": "false"})["ACCELERATE_USE_CPU"] == "false"
