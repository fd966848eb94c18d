"""A client's `Run` where something does not fit: a value that cannot be opened, a session that is over."""

import threading
import types

import pytest
from pyspark.errors.exceptions.connect import SparkConnectException, SparkConnectGrpcException
from sparkgap import ResultError, Run, SessionEndedError, channel
from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2


class WantsAProcessGroup:
    """Like a DDP module, which takes part in its group again when it is unpickled."""

    def __reduce__(self):
        return _open, ()


def _open():
    raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")


class WantsAModule:
    def __reduce__(self):
        return __import__, ("only_at_the_rank",)


@pytest.fixture
def ended(monkeypatch):
    """`ended(payload)` is a run that has succeeded with this value."""

    def run(payload):
        data = payload.SerializeToString()
        result = run_pb2.ResultChunk(data=data)
        monkeypatch.setattr(channel, "execute", lambda session, **kind: iter([run_pb2.Reply(result=result)]))
        return Run(None, run_pb2.RunStatus(run_id="abc", state=run_pb2.SUCCEEDED, result_bytes=len(data)))

    return run


class TestAValueThatCannotBeOpened:
    def test_the_text_says_what_to_return_and_keeps_the_run(self, ended):
        run = ended(codec.pack(WantsAProcessGroup(), "value"))
        with pytest.raises(ResultError) as caught:
            run.result()
        text = str(caught.value)
        assert text.startswith(
            "run abc has succeeded, but what rank 0 returned cannot be opened here: ValueError: Default process group has not"
        )
        for word in ("numbers", "the path", "state_dict()", "model.module.state_dict()", "attach(spark, 'abc')"):
            assert word in text
        assert type(caught.value.__cause__) is ValueError
        assert caught.value.run is run
        assert isinstance(caught.value, RuntimeError)

    def test_a_missing_module_is_named(self, ended):
        with pytest.raises(ResultError, match="This client has no module 'only_at_the_rank': install it") as caught:
            ended(codec.pack(WantsAModule(), "value")).result()
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)

    def test_of_several_values_the_rank_is_named(self, ended):
        values = [codec.pack(1, "value"), codec.pack(WantsAProcessGroup(), "value")]
        with pytest.raises(ResultError, match="what rank 1 returned cannot be opened"):
            ended(pb.Payload(ranks=values)).result()


CALLS = {
    "status": lambda run: run.status,
    "wait": lambda run: run.wait(),
    "result": lambda run: run.result(),
    "exception": lambda run: run.exception(),
    "cancel": lambda run: run.cancel(),
    "logs": lambda run: list(run.logs()),
    "metrics": lambda run: run.metrics(),
    "plot": lambda run: run.plot(),
    "waiting_for": lambda run: run.waiting_for,
}


class TestASessionThatIsOver:
    @pytest.fixture
    def run(self, monkeypatch):
        """`run(error)` is a run whose session answers every call with this error."""

        def start(error, *, is_closed=False):
            def failing(*args, **kwargs):
                raise error

            client = types.SimpleNamespace(
                is_closed=is_closed, _analyze=failing, _execute_plan_request_with_metadata=failing
            )
            return Run(types.SimpleNamespace(client=client), run_pb2.RunStatus(run_id="abc", state=run_pb2.RUNNING))

        return start

    ERRORS = (
        SparkConnectGrpcException("[INVALID_HANDLE.SESSION_CLOSED] The handle is invalid. Session was closed."),
        SparkConnectGrpcException("[INVALID_HANDLE.SESSION_NOT_FOUND] The handle is invalid. Session not found."),
        SparkConnectGrpcException(
            "[INVALID_HANDLE.SESSION_CHANGED] The existing Spark server driver instance has restarted."
        ),
        SparkConnectException(errorClass="NO_ACTIVE_SESSION", messageParameters={}),
        AssertionError("Received incorrect server side session identifier for request."),
    )

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:30])
    def test_every_call_says_that_the_run_is_not_over_and_how_to_take_it_up(self, run, call, error):
        with pytest.raises(SessionEndedError) as caught:
            call(run(error))
        text = str(caught.value)
        assert "SparkSession.builder.remote" in text
        assert "Run abc belongs to the server" in text
        assert "sparkgap.attach(another_session, 'abc')" in text
        assert caught.value.__cause__ is error

    def test_so_does_one_that_was_stopped_while_a_call_was_on_its_way(self, run):
        with pytest.raises(SessionEndedError, match="ValueError: Cannot invoke RPC on closed channel!"):
            _ = run(ValueError("Cannot invoke RPC on closed channel!"), is_closed=True).status

    def test_other_errors_pass(self, run):
        with pytest.raises(SparkConnectGrpcException, match="UNAVAILABLE"):
            _ = run(SparkConnectGrpcException("UNAVAILABLE")).status


def test_what_a_rank_returns_and_cannot_be_pickled_is_not_carried():
    class Loader:
        def __init__(self):
            self.batches = (i for i in range(3))

    for value, culprit in (
        (Loader(), r"\.batches is a builtins\.generator"),
        ({"a": threading.Lock()}, r"\['a'\] is a _thread\.lock"),
    ):
        with pytest.raises(codec.NotPicklable, match=culprit) as caught:
            codec.pack(value, "the value that rank 0 returned", advice=codec.RETURNED)
        assert str(caught.value).endswith(codec.RETURNED)
        assert "carrying" not in str(caught.value)
