"""What users are shown of a traceback, by the places that describe failures."""

import numpy as np
import pyarrow as pa
import pytest
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_server import tracebacks
from sparkgap_server.predict import failure as of_models
from sparkgap_server.predict import tensors
from sparkgap_server.predict.tensors import InputLayout, to_arguments
from sparkgap_server.train import failure as of_ranks


def error_of(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def frames(text):
    return [line for line in text.splitlines() if line.startswith("  File ")]


LAYOUT = InputLayout(names=("x",))
REFUSALS = {
    "too few columns": lambda: to_arguments([pa.array([1])], LAYOUT, 2),
    "an array without a shape": lambda: to_arguments([pa.array([[1]])], LAYOUT, 1),
    "a function without a signature": lambda: tensors.model_arguments(max),
    "a value that cannot be pickled": lambda: codec.pack(iter_of(3), "the value", advice=codec.RETURNED),
}


def iter_of(number):
    return (each for each in range(number))


def as_seen_by_ours(call):
    """The error as the code of ours sees it that catches it: the test's own frames above it are not there."""
    error = error_of(call)
    trace = error.__traceback__
    while not trace.tb_frame.f_code.co_filename.startswith(tracebacks._OWN):
        trace = trace.tb_next
    return error.with_traceback(trace)


@pytest.mark.parametrize("refused", REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_refused_by_a_sentence_comes_without_frames(refused):
    error = as_seen_by_ours(refused)
    for text in (
        of_models.describe(error, loading=False).traceback,
        of_ranks.describe(error, pb.RankPlacement()).traceback,
    ):
        assert text.startswith(type(error).__qualname__) or text.startswith(type(error).__module__)
        assert text.rstrip().endswith(str(error))
        assert text.count(str(error)) == 1


def test_user_code_is_shown_from_its_first_frame_on():
    def predict(x):
        return inner(x)

    def inner(x):
        return x.reshape(3, 3)

    error = error_of(lambda: predict(np.zeros(4)))
    assert [line.rpartition(", in ")[2] for line in frames(tracebacks.shown(error))][-2:] == ["predict", "inner"]


def test_a_bug_of_ours_keeps_all_its_frames(monkeypatch):
    monkeypatch.setattr(tensors, "_flattened", None)
    error = as_seen_by_ours(REFUSALS["too few columns"])
    assert type(error) is TypeError
    assert frames(of_models.describe(error, loading=False).traceback)
    assert frames(of_ranks.describe(error, pb.RankPlacement()).traceback)


def test_so_does_an_error_of_what_ours_has_called():
    error = as_seen_by_ours(lambda: to_arguments([pa.array([1])], InputLayout(names=("x", "y")), 1))
    assert str(error).startswith("zip()")
    assert frames(tracebacks.shown(error))
