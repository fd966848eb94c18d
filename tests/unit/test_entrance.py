"""What a user sees of an error: his own call, and none of our frames; except where it is a bug of ours."""

import inspect
import threading
import traceback

import pytest
import sparkgap
from sparkgap import PlanError, TorchDistributor, predict_batch_udf
from sparkgap.entrance import entrance
from sparkgap.errors import ProtocolError


def make_model():
    return lambda x: x


def lock_in_its_closure():
    lock = threading.Lock()
    return lambda: lock


CALLS = {
    "a bad argument of TorchDistributor": lambda: TorchDistributor(0),
    "a function that cannot be pickled": lambda: TorchDistributor(1, spark=sparkgap).run(lock_in_its_closure()),
    "no session": lambda: sparkgap.attach("no session", "id"),
    "a bad argument of predict_batch_udf": lambda: predict_batch_udf(make_model, return_type="double", batch_size=0),
    "a model that cannot be pickled": lambda: predict_batch_udf(
        lock_in_its_closure(), return_type="double", batch_size=1
    )("x"),
    "no columns": lambda: predict_batch_udf(make_model, return_type="double", batch_size=1)(),
    "a property": lambda: predict_batch_udf(make_model, return_type="double", batch_size=1).evalType,
    "a registration": lambda: sparkgap.register(None, "f", make_model),
}


@pytest.fixture(autouse=True)
def any_session(monkeypatch):
    """What is given as a session is one, so that plans are packed."""
    from sparkgap import channel

    real = channel.connect_session
    monkeypatch.setattr(channel, "connect_session", lambda given: given if given is sparkgap else real(given))


def frames(error):
    """Names of the files of a traceback and of those of its causes, as Python prints them."""
    shown = []
    while error is not None:
        shown.append([(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return shown


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_refusal_is_raised_at_the_users_own_call(call):
    with pytest.raises(sparkgap.SparkgapError) as caught:
        call()
    own, *causes = frames(caught.value)
    assert [name for _, name in own[:2]] == [inspect.currentframe().f_code.co_name, "<lambda>"]
    assert [name for _, name in own[2:]] == ["call"]  # Python adds each frame that an exception passes
    for cause in causes:
        assert not [file for file, _ in cause if "/sparkgap/" in file or "/sparkgap_protos/" in file]


def test_pytest_and_notebooks_leave_the_wrappers_frame_out():
    with pytest.raises(PlanError) as caught:
        TorchDistributor(0)
    assert caught.traceback[-1].frame.f_locals["__tracebackhide__"] is True
    assert str(caught.traceback.filter(caught)[-1].path) == __file__


def test_what_caused_a_refusal_is_kept():
    with pytest.raises(PlanError, match=r"its closure variable 'lock' is a _thread\.lock") as caught:
        TorchDistributor(1, spark=sparkgap).run(lock_in_its_closure())
    assert type(caught.value.__cause__) is TypeError  # pickle's own


@pytest.mark.parametrize("error", [KeyError("a bug of ours"), AssertionError(), ProtocolError("not understood")])
def test_a_bug_of_ours_keeps_all_its_frames(error):
    def deep():
        raise error

    @entrance
    def public():
        deep()

    with pytest.raises(type(error)) as caught:
        public()
    assert [name for _, name in frames(caught.value)[0]][-3:] == ["call", "public", "deep"]


def test_everything_public_is_an_entrance():
    def is_guarded(function):
        return (
            inspect.unwrap(function) is not function and function.__code__.co_filename == entrance.__code__.co_filename
        )

    unguarded = []
    for name in sparkgap.__all__:
        thing = getattr(sparkgap, name)
        if isinstance(thing, type) and not issubclass(thing, (Exception, sparkgap.LogLine)):
            members = {key: each for key, each in vars(thing).items() if not key.startswith("_")}
            functions = {key: each.fget if isinstance(each, property) else each for key, each in members.items()}
            unguarded += [f"{name}.{key}" for key, each in functions.items() if callable(each) and not is_guarded(each)]
        elif inspect.isfunction(thing) and not is_guarded(thing):
            unguarded.append(name)
    assert unguarded == ["files"]  # looks at the environment, and raises nothing


def test_an_entrance_looks_like_what_it_guards():
    assert str(inspect.signature(TorchDistributor)).startswith("(num_processes: 'int' = 1, local_mode: 'bool' = True")
    assert list(inspect.signature(predict_batch_udf).parameters)[:3] == ["make_predict_fn", "return_type", "batch_size"]
    assert sparkgap.Run.status.__doc__.startswith("QUEUED, STARTING")
