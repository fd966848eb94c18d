"""The codec: what goes in comes out, what cannot go in is named, and the same code has the same digest in every process."""

import datetime as dt
import functools
import os
import subprocess
import sys
import textwrap
import threading
from typing import NamedTuple

import pytest
from pyspark.accumulators import Accumulator
from pyspark.core.broadcast import Broadcast
from pyspark.core.context import SparkContext
from pyspark.core.rdd import RDD
from pyspark.sql import SparkSession as ClassicSession
from pyspark.sql.classic.column import Column as ClassicColumn
from pyspark.sql.classic.dataframe import DataFrame as ClassicDataFrame
from pyspark.sql.connect.client import SparkConnectClient
from pyspark.sql.connect.column import Column
from pyspark.sql.connect.dataframe import DataFrame
from pyspark.sql.connect.group import GroupedData
from pyspark.sql.connect.session import SparkSession
from sparkgap import Run
from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb

LOCK = threading.Lock()


def packed_and_unpacked(value):
    return codec.unpack(codec.pack(value, "value"))


def digest(value):
    return codec.digest(codec.pack(value, "value"))


class TestPackAndUnpack:
    def test_a_closure_computes_the_same_on_the_other_side(self):
        factor = 3

        def scaled(x, offset=1):
            return factor * x + offset

        assert packed_and_unpacked(scaled)(5, offset=2) == 17

    def test_plain_values_come_back_equal(self):
        value = (1, "two", [3.0, None, True], {"four": b"4"}, {5}, 10**5000)
        assert packed_and_unpacked(value) == value

    def test_an_exception_comes_back_with_its_class_and_arguments(self):
        error = packed_and_unpacked(KeyError("weights"))
        assert type(error) is KeyError
        assert error.args == ("weights",)

    def test_a_payload_says_who_pickled_it(self):
        from pyspark import cloudpickle

        payload = codec.pack(1, "value")
        assert payload.python == "{}.{}".format(*sys.version_info)
        assert payload.cloudpickle == cloudpickle.__version__

    def test_a_payload_whose_data_lies_in_a_file(self, tmp_path):
        payload, data = codec.apart([1, "two"], "value")
        assert payload.data == b""
        (tmp_path / "data").write_bytes(data)
        with (tmp_path / "data").open("rb") as file:
            assert codec.unpack(payload, file) == [1, "two"]

    def test_another_minor_version_of_python_is_refused_before_anything_is_unpickled(self):
        payload = pb.Payload(python="3.9", cloudpickle="3.1", data=b"this is no pickle")
        with pytest.raises(codec.WrongPython) as refusal:
            codec.unpack(payload)
        assert str(refusal.value) == (
            f"it holds bytecode of Python 3.9, and this is Python {codec.PYTHON}: both need the same minor version"
        )


class TestNotPicklable:
    """The text names the part that is in the way, by the path that leads to it."""

    def text(self, value, what="the function train", parts=None):
        with pytest.raises(codec.NotPicklable) as refusal:
            codec.pack(value, what, parts)
        return str(refusal.value)

    def test_a_closure_variable(self):
        lock = threading.Lock()

        def train():
            return lock

        assert self.text(train) == (
            "the function train cannot be pickled: the function train: its closure variable 'lock' is a _thread.lock, and "
            "TypeError: cannot pickle '_thread.lock' object. Create it inside the function instead of carrying it along."
        )

    def test_a_global(self):
        def train():
            return LOCK

        assert "the function train: its global 'LOCK' is a _thread.lock" in self.text(train)

    def test_a_global_of_an_inner_function(self):
        def train():
            def step():
                return LOCK

            return step

        assert "the function train: its global 'LOCK' is a _thread.lock" in self.text(train)

    def test_an_attribute_of_an_attribute(self):
        class Trainer:
            def __init__(self):
                self.options = {"guards": [1, threading.Lock()]}

        trainer = Trainer()

        def train():
            return trainer

        path = "the function train: its closure variable 'trainer'.options['guards'][1] is a _thread.lock"
        assert path in self.text(train)

    def test_the_object_of_a_method(self):
        class Trainer:
            def __init__(self):
                self.lock = threading.Lock()

            def train(self):
                return self.lock

        assert "the function train.__self__.lock is a _thread.lock" in self.text(Trainer().train)

    def test_a_default(self):
        def train(first=1, lock=threading.Lock()):  # noqa: B008
            return first, lock

        assert "the function train: its default 1 is a _thread.lock" in self.text(train)

    def test_an_argument(self):
        def train(a, lock):
            return a, lock

        value = (train, (1, LOCK), {})
        parts = {"the function train": train, "argument 0": 1, "argument 1": LOCK}
        assert "cannot be pickled: argument 1 is a _thread.lock" in self.text(value, parts=parts)

    def test_a_value_that_refers_to_itself(self):
        loop = []
        loop.append(loop)
        loop.append(LOCK)
        assert "cannot be pickled: the function train[1] is a _thread.lock" in self.text(loop)


def stand_in(kind):
    """An object of one of Spark's classes, without a server behind it."""
    return object.__new__(kind)


SPARK = stand_in(SparkSession)


class Pair(NamedTuple):
    left: object
    right: object


def places():
    """By a name for it: a value that holds a session or a DataFrame, and the words that lead there."""
    spark = stand_in(SparkSession)

    def closure():
        return spark

    def default(a=1, b=spark):
        return a, b

    def keyword(*, b=spark):
        return b

    def helper():
        return SPARK

    def calls():
        return helper()

    class Trainer:
        def __init__(self):
            self.session = spark

        def train(self):
            return self.session

    class Slotted:
        __slots__ = ("session",)

    class Shared:
        session = spark

    class Methods:
        @staticmethod
        def make():
            return SPARK

    class Properties:
        @property
        def made(self):
            return SPARK

    class Own:
        def __getstate__(self):
            return {"kept": {"frame": stand_in(DataFrame)}}

    def annotated(x):
        return x

    annotated.__annotations__["x"] = spark
    slotted = Slotted()
    slotted.session = spark

    def marked():
        return 1

    marked.session = spark
    return {
        "a closure variable": (closure, ": its closure variable 'spark'"),
        "a default": (default, ": its default 1"),
        "a default of a keyword": (keyword, ": its default of 'b'"),
        "a global of a function that it calls": (calls, ": its closure variable 'helper': its global 'SPARK'"),
        "an attribute of its object": (Trainer().train, ".__self__.session"),
        "an attribute of an object without a dict": (slotted, ".session"),
        "an attribute of a function": (marked, ".session"),
        "an attribute of a class": (Shared, ".session"),
        "a part of a partial": (functools.partial(print, 1, sep=spark), ".keywords['sep']"),
        "a list in a dict": ({"a": [1, spark]}, "['a'][1]"),
        "a key": ({spark: 1}, ": one of its keys"),
        "a set": ({spark}, ": one of its elements"),
        "a named tuple": (Pair(1, spark), "[1]"),
        "an exception": (RuntimeError("no", spark), ".args[1]"),
        "a state of its own": (Own(), ".kept['frame']"),
        "an annotation": (annotated, ": its annotation of 'x'"),
        "a static method": (Methods, ".make: its global 'SPARK'"),
        "a property": (Properties, ".made: its global 'SPARK'"),
    }


class TestWhatCannotTravel:
    """It is refused when it is packed: a rank would open it and fail where it is used."""

    def text(self, value, what="the function train", parts=None):
        with pytest.raises(codec.NotPicklable) as refusal:
            codec.pack(value, what, parts)
        return str(refusal.value)

    def test_a_global_of_the_function_with_what_to_do_instead(self):
        def train():
            return SPARK.range(3)

        assert self.text(train) == (
            "the function train cannot be sent: the function train: its global 'SPARK' is a pyspark.sql.connect.session.SparkSession. It works in "
            "this process alone. Use it here, and pass the data that the function needs, or write the data to storage and pass the path. The "
            "function must not create a session either: each of its processes would start a Spark of its own."
        )

    @pytest.mark.parametrize(
        ("kind", "advice"),
        [
            (SparkSession, "Use it here, and pass the data"),
            (ClassicSession, "Use it here, and pass the data"),
            (SparkContext, "Use it here, and pass the data"),
            (SparkConnectClient, "Use it here, and pass the data"),
            (DataFrame, "Write it to storage and pass the path, or pass what collect() or toPandas() returns"),
            (ClassicDataFrame, "Write it to storage and pass the path"),
            (RDD, "Write it to storage and pass the path"),
            (GroupedData, "Write it to storage and pass the path"),
            (Column, "a part of a query and holds no data"),
            (ClassicColumn, "a part of a query and holds no data"),
            (Broadcast, "Pass its value instead"),
            (Accumulator, "Return the number, or report it"),
            (Run, "Pass its id"),
        ],
        ids=lambda each: f"{each.__module__}.{each.__name__}" if isinstance(each, type) else "",
    )
    def test_each_kind_says_what_to_do_instead(self, kind, advice):
        text = self.text((stand_in(kind),), parts={"argument 0": stand_in(kind)})
        assert f"cannot be sent: argument 0 is a {kind.__module__}.{kind.__qualname__}. " in text
        assert advice in text

    def test_a_class_that_derives_from_one_of_sparks(self):
        class OurFrame(DataFrame):
            pass

        assert "OurFrame. It is a query" in self.text(stand_in(OurFrame))

    @pytest.mark.parametrize("place", places())
    def test_the_place_is_told(self, place):
        value, words = places()[place]
        text = self.text(value)
        assert text.startswith(f"the function train cannot be sent: the function train{words} is a pyspark."), text

    def test_the_nearest_place_is_told_where_a_large_value_holds_others(self):
        holder = {"numbers": list(range(300_000)), "deep": [[[[SPARK]]]], "near": [SPARK]}
        assert "the function train['near'][0] is a" in self.text(holder)

    def test_a_session_behind_a_value_that_cannot_be_pickled_either_is_what_is_told(self):
        assert "the function train[1] is a pyspark" in self.text([LOCK, SPARK])

    def test_classes_and_functions_of_spark_travel(self):
        from pyspark.sql import functions

        def train(frame: DataFrame, make=SparkSession):
            return functions.col("x"), frame

        opened = packed_and_unpacked((train, SparkSession, DataFrame, functions))
        assert opened[1:] == (SparkSession, DataFrame, functions)

    def test_a_session_behind_a_name_stays_where_it_is(self, monkeypatch):
        monkeypatch.setattr(
            textwrap, "spark", SPARK, raising=False
        )  # a global of a module, whose functions travel as names

        def train():
            return textwrap.dedent("x")

        assert packed_and_unpacked(train)() == "x"


class TestPortable:
    """What holds no bytecode is opened by every minor version of Python."""

    @pytest.mark.parametrize(
        "value", [None, 1, {"loss": [0.5], "name": "a"}, textwrap.dedent, (textwrap.dedent, (1,), {}), KeyError("x"), dt.date(2026, 1, 1)],
        ids=repr,
    )  # fmt: skip
    def test_a_value_without_bytecode_is_opened_by_another_python(self, value, monkeypatch):
        payload = codec.pack(value, "value")
        monkeypatch.setattr(codec, "PYTHON", "3.99")
        assert payload.portable
        assert repr(codec.unpack(payload)) == repr(value)

    @pytest.mark.parametrize("kind", ["lambda", "argument", "class", "object", "method"])
    def test_a_value_with_bytecode_anywhere_is_refused(self, kind, monkeypatch):
        class Local:
            def method(self):
                return 1

        values = {"lambda": lambda: 1, "argument": (textwrap.dedent, (lambda: 1,), {}), "class": Local, "object": [{"a": Local()}],
                  "method": Local().method}  # fmt: skip
        payload = codec.pack(values[kind], "value")
        monkeypatch.setattr(codec, "PYTHON", "3.99")
        assert not payload.portable
        with pytest.raises(codec.WrongPython, match=r"this is Python 3\.99"):
            codec.unpack(payload)

    def test_a_payload_of_a_release_that_did_not_say_is_taken_for_one_with_bytecode(self):
        with pytest.raises(codec.WrongPython):
            codec.unpack(pb.Payload(python="3.9", data=codec.pack(None, "value").data))


PRELUDE = """
import abc, dataclasses, enum, functools
from sparkgap_protos import codec

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Base(abc.ABC):
    kinds = {"conv", "mlp", "attention", ("pair", 1), ("pair", 2), frozenset({"a", "b", "c"})}
    @abc.abstractmethod
    def load(self): ...

@dataclasses.dataclass
class Net(Base):
    width: int = WIDTH
    color: Color = Color.RED
    def load(self):
        return "relu" in {"relu", "gelu", "tanh", "silu"} or self.helper()
    def helper(self):
        return [help_with(x) for x in range(self.width)]

def help_with(x):
    return x if x in frozenset({"one", "two", "three"}) else make()

def make():
    names = {"alpha", "beta", "gamma", "delta"}
    def predict(x):
        return x, names, Net(), KEY, None if x in {1.5, None, "1", b"1"} else make
    return predict

LOADED = {Net, Color, Base}
def make_with_classes_in_a_set():
    return LOADED
"""


@pytest.fixture
def digests(tmp_path):
    """Digests of expressions in a fresh interpreter whose script defines the classes and functions of PRELUDE in __main__."""

    def run(*expressions, seed, width=8, key="4bf92f3577b34da6a3ce929d0e0e4736", prelude=PRELUDE):
        lines = "\n".join(f"print(codec.digest(codec.pack({each}, 'value')))" for each in expressions)
        script = tmp_path / "script.py"
        script.write_text(f"WIDTH = {width}\nKEY = {key!r}\n{prelude}\n{lines}\n")
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run


class TestDigest:
    def test_two_interpreters_agree_about_functions_and_classes_of_main(self, digests):
        expressions = ("make", "Net", "Net()", "Net(3).load", "functools.partial(help_with, 1)", "make_with_classes_in_a_set",
                       "[Net(1), Net(2), Color.BLUE]")  # fmt: skip
        first = digests(*expressions, seed=1)
        assert [digests(*expressions, seed=seed) for seed in (2, 3)] == [first, first]
        assert len(set(first)) == len(expressions)

    def test_packing_twice_in_one_process_gives_one_digest(self, digests):
        first, second = digests("make", "make", seed=1)
        assert first == second

    def test_a_changed_constant_of_a_class_is_another_digest(self, digests):
        assert digests("make", seed=1) != digests("make", seed=1, width=9)

    def test_a_changed_string_that_looks_like_a_tracking_id_is_another_digest(self, digests):
        assert digests("make", seed=1) != digests("make", seed=1, key="4bf92f3577b34da6a3ce929d0e0e4737")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"silu"', '"elu"'),  # an element of a set that is a constant of the code
            ('"delta"', '"epsilon"'),
            ('("pair", 2)', '("pair", 3)'),
            (
                "return x if x in",
                "return x if x not in",
            ),  # code of a function that is reached through a method's global
            ('BLUE = "blue"', 'BLUE = "azure"'),
            ("def helper(self):", "def helper(self, more=0):"),
        ],
    )
    def test_changed_code_is_another_digest(self, digests, old, new):
        assert old in PRELUDE
        assert digests("make", seed=1) != digests("make", seed=1, prelude=PRELUDE.replace(old, new))

    def test_values_that_differ_have_digests_that_differ(self):
        values = [
            [], (), {}, set(), frozenset(), "", b"", None, 0, False, 0.0, [[]], [()], ["a", "b"], ["ab"], ["a", ["b"]], [["a"], "b"],
            {"a", "b"}, {"a"}, frozenset({"a", "b"}), {"a": "b"}, {"b": "a"}, 1, 1.0, True, "1", b"1", -1, 255, 10**5000, 10**5000 + 1,
            {(1, 2), (3, 4)}, {(1, 4), (3, 2)}, {frozenset({1, 2}), frozenset({3})}, {frozenset({1}), frozenset({2, 3})},
        ]  # fmt: skip
        assert len({digest(value) for value in values}) == len(values)

    def test_equal_strings_are_one_whether_stored_once_or_twice(self):
        word, same = "".join(["wei", "ghts"]), "".join(["weig", "hts"])
        assert word is not same
        assert digest([word, word]) == digest([word, same])

    def test_sharing_a_mutable_object_is_not_the_same_as_having_two(self):
        one = []
        assert digest([one, one]) != digest([[], []])

    def test_objects_that_contain_themselves_have_a_digest(self):
        def loops():
            loop: list[object] = [1]
            pair = (loop, "x")
            loop.append(pair)
            loop.append({"me": loop})
            return loop, pair

        def member_of_its_own_set():
            class Node:
                pass

            node = Node()
            node.all = {node, "b", "a"}
            return node

        assert digest(loops()) == digest(loops())
        assert digest(loops()[1]) != digest(loops()[0])
        assert len(digest(member_of_its_own_set())) == 64

    def test_deeply_nested_values_and_large_arrays_have_a_digest(self):
        import numpy as np

        nested: list[object] = []
        for _ in range(200):
            nested = [nested]
        zeros = np.zeros(1 << 20, np.float32)
        changed = zeros.copy()
        changed[77] = 1
        assert len({digest(nested), digest([nested]), digest(zeros), digest(changed)}) == 4

    @pytest.mark.parametrize(
        "kind", [bytes, bytearray, lambda data: data.decode("latin-1")], ids=["bytes", "bytearray", "str"]
    )
    @pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1, 1 << 20])
    def test_every_byte_of_a_long_constant_counts(self, kind, size):
        data = bytes(size)
        last = data[:-1] + b"x"
        first = b"x" + data[1:]
        assert len({digest((kind(each), 1)) for each in (data, first, last, data + b"\0")}) == 4
        assert digest((kind(last), 1)) == digest((kind(bytes(last)), 1))

    def test_the_digest_of_data_beside_its_payload_is_that_of_the_whole(self):
        whole = codec.pack([1, "value"], "value")
        assert codec.digest(*codec.apart([1, "value"], "value")) == codec.digest(whole)

    def test_another_python_or_cloudpickle_is_another_digest(self):
        payload = codec.pack(1, "value")
        others = [
            pb.Payload(python="3.9", cloudpickle=payload.cloudpickle, data=payload.data),
            pb.Payload(python=payload.python, cloudpickle="9", data=payload.data),
        ]
        assert len({codec.digest(each) for each in [payload, *others]}) == 3

    def test_nothing_is_unpickled_for_a_digest(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "sprung"),)

        digest(Trap())
        assert not (tmp_path / "sprung").exists()


def test_the_digest_of_a_module_function_is_that_of_its_name():
    assert digest(textwrap.dedent) == digest(textwrap.dedent)
    assert digest(textwrap.dedent) != digest(textwrap.indent)
