"""What can be wrong with a plan, a server or an environment: each error says what was asked, what was found and what to do."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.protobuf import any_pb2
from pyspark import cloudpickle
from pyspark.errors.exceptions.connect import SparkConnectGrpcException
from pyspark.sql.connect.session import SparkSession
from sparkgap import (
    ExtensionError,
    PlanError,
    ResourceError,
    ResultError,
    RunNotFoundError,
    SparkgapError,
    TorchDistributor,
    TrainingError,
    VersionError,
    attach,
    channel,
)
from sparkgap_protos import PROTOCOL, codec
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server.java import find_java
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


@pytest.fixture
def nothing_sent(monkeypatch):
    """Fails the test when anything is sent to the server."""

    def execute(session, **kind):
        raise AssertionError("something was sent")

    monkeypatch.setattr(channel, "execute", execute)


@contextmanager
def session_on(url):
    session = SparkSession.builder.remote(url).create()
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def server_with(**conf):
    """A session on a server of one's own with these settings, dots written as two underscores."""
    settings = {key.replace("__", "."): value for key, value in conf.items()}
    with LocalServer("local[2]", conf=settings) as server, session_on(server.url) as session:
        yield session


# ---- What the client sees by itself: nothing is sent ----


@pytest.mark.parametrize("number", [0, -1, True, "2", 2.0, None])
def test_a_number_of_processes_that_is_none_is_refused(number):
    with pytest.raises(PlanError, match=rf"num_processes has to be a positive integer, got {number!r}") as caught:
        TorchDistributor(number)
    assert isinstance(caught.value, ValueError)  # pyspark's users catch this


def test_a_captured_value_that_cannot_be_pickled_is_named(cpu, nothing_sent):
    lock = threading.Lock()

    def main():
        with lock:
            return 1

    with pytest.raises(PlanError, match=r"main cannot be pickled: .* its closure variable 'lock' is a _thread\.lock"):
        cpu(1).run(main)


@pytest.mark.parametrize(
    ("args", "kwargs", "culprit"),
    [
        ((1, threading.Lock()), {}, r"argument 1 is a _thread\.lock"),
        ((), {"config": {"guards": [threading.Lock()]}}, r"argument 'config'\['guards'\]\[0\] is a _thread\.lock"),
    ],
)
def test_an_argument_that_cannot_be_pickled_is_named(cpu, nothing_sent, args, kwargs, culprit):
    with pytest.raises(PlanError, match=culprit):
        cpu(1).run(lambda *args, **kwargs: None, *args, **kwargs)


@pytest.mark.parametrize("place", ["global", "argument", "attribute", "frame"])
def test_what_means_nothing_in_a_rank_is_refused_with_the_way_to_it(cpu, spark, nothing_sent, monkeypatch, place):
    monkeypatch.setitem(globals(), "SESSION", spark)
    trainer = Trainer(spark.range(3))
    called, words = {
        "global": ((lambda: SESSION.range(3),), r": its global 'SESSION' is a pyspark\..*SparkSession\. .* pass the data"),
        "argument": ((print, 1, {"on": [spark]}), r"argument 1\['on'\]\[0\] is a pyspark\..*SparkSession\. "),
        "attribute": ((trainer.train,), r"\.__self__\.frame is a pyspark\..*DataFrame\. .* Write it to storage and pass the path"),
        "frame": ((print, trainer.frame["id"]), r"argument 0 is a pyspark\..*Column\. "),
    }[place]  # fmt: skip
    with pytest.raises(PlanError, match=words):
        cpu(1).run(*called)


SESSION = None


class Trainer:
    def __init__(self, frame):
        self.frame = frame

    def train(self):
        return self.frame.count()


def test_a_script_that_is_missing_is_named(cpu, nothing_sent, tmp_path):
    path = tmp_path / "missing.py"
    with pytest.raises(PlanError, match=rf"the script cannot be read on this machine: .*No such file.*{path}"):
        cpu(1).run(str(path))


def test_a_folder_without_a_main_is_no_script(cpu, nothing_sent, tmp_path):
    with pytest.raises(PlanError, match=rf"the folder {tmp_path} has no __main__\.py, with which it would be run"):
        cpu(1).run(tmp_path)


def test_a_script_takes_no_arguments_by_name(cpu, nothing_sent, tmp_path):
    path = tmp_path / "train.py"
    path.write_text("pass")
    with pytest.raises(
        PlanError, match=r"a script takes positional arguments only, got epochs, lr by name: pass '--name', 'value'"
    ):
        cpu(1).run(path, lr=0.1, epochs=2)


@pytest.mark.parametrize("train_object", [None, 42, [print]])
def test_an_object_that_cannot_be_trained_is_refused(cpu, nothing_sent, train_object):
    kind = type(train_object).__qualname__
    with pytest.raises(
        PlanError, match=f"train_object has to be a function or the path of a script or folder, got a {kind}"
    ):
        cpu(1).run(train_object)


def test_without_a_session_the_error_shows_how_to_make_one(monkeypatch):
    monkeypatch.setattr(SparkSession, "getActiveSession", classmethod(lambda cls: None))
    monkeypatch.setattr(SparkSession, "_get_default_session", classmethod(lambda cls: None))
    with pytest.raises(
        PlanError, match=r'no active Spark session: create one with SparkSession\.builder\.remote\("sc://HOST:PORT"\)'
    ):
        TorchDistributor(1).run(lambda: None)


def test_something_else_than_a_session_is_refused():
    with pytest.raises(ExtensionError, match=r"sparkgap needs a Spark Connect session, this is a builtins\.str"):
        TorchDistributor(1, spark="sc://localhost").run(lambda: None)


CLASSIC = """
import sys
from pyspark.sql import SparkSession
from sparkgap import ExtensionError, TorchDistributor

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
try:
    for given in (spark, None):
        try:
            TorchDistributor(1, spark=given).run(lambda: None)
        except ExtensionError as error:
            print(error)
finally:
    spark.stop()
"""


def test_a_classic_session_is_refused_given_or_active():
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("SPARK_")
    }  # of this process's Connect sessions
    environment = {**inherited, "JAVA_HOME": str(find_java().resolve().parent.parent), "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", CLASSIC], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == 2 * [
        "sparkgap needs a Spark Connect session, this is a pyspark.sql.session.SparkSession: create it with "
        'SparkSession.builder.remote("sc://HOST:PORT").getOrCreate()'
    ], done.stderr


# ---- What the server refuses ----


@pytest.mark.parametrize("run_id", ["with space", "a/b", "x" * 129, "ü", "../escape"])
def test_a_run_id_with_other_characters_is_refused(cpu, run_id):
    with pytest.raises(PlanError, match=r"run id '.+': 1 to 128 letters, digits, '\.', '_' and '-' are allowed"):
        cpu(1, run_id=run_id).run(lambda: None)


def test_an_unknown_run_is_refused(spark):
    with pytest.raises(RunNotFoundError, match="there is no run nobody-knows of this user on the server"):
        attach(spark, "nobody-knows")


def test_another_version_of_the_messages_is_refused_on_every_way(cpu, spark, monkeypatch):
    run = cpu(1).submit(lambda: None)
    assert run.wait(timeout=30)
    monkeypatch.setattr(channel, "PROTOCOL", 99)
    words = (
        rf"the client \(sparkgap .*, Python 3.*\) speaks version 99 of sparkgap's messages, the server speaks version {PROTOCOL}: "
        "install the same sparkgap release on both sides"
    )
    for attempt in (lambda: cpu(1).run(lambda: None), run.cancel, lambda: attach(spark, run.id)):
        with pytest.raises(VersionError, match=words):
            attempt()


@pytest.fixture
def another_python(monkeypatch):
    """This client says, and takes itself, to be one of Python 3.9."""
    monkeypatch.setattr(codec, "PYTHON", "3.9")


HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_function_with_bytecode_of_another_python_is_refused_before_anything_starts(cpu, another_python):
    with pytest.raises(
        VersionError,
        match=rf"the client runs Python 3\.9, the workers run Python {HERE}: what the function carries holds bytecode, which needs the same minor "
        rf"version on both sides\. Move the code into a module or a script, which travel as source, start the client with Python {HERE}, or set "
        rf"spark\.sparkgap\.python on the server",
    ):
        cpu(1).run(lambda: None)


def test_a_script_runs_from_another_python(cpu, another_python, tmp_path, capfd):
    path = tmp_path / "train.py"
    path.write_text("import sys\nprint('hello from', *sys.argv[1:])\n")
    assert cpu(2).run(path, "afar") is None
    assert cpu(2, results="all").run(path) == [None, None]
    assert "hello from afar" in capfd.readouterr().out


def test_a_function_of_a_module_runs_from_another_python(cpu, another_python, clients_own_module):
    run = cpu(1).submit(clients_own_module.helper)
    assert run.result(60) == 1
    assert run.metrics().empty
    assert list(run.logs()) == []


def test_a_failure_is_told_to_another_python(cpu, another_python, tmp_path):
    path = tmp_path / "train.py"
    path.write_text("raise ValueError('no weights')\n")
    with pytest.raises(TrainingError, match="ValueError: no weights") as caught:
        cpu(1).run(path)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_value_with_bytecode_of_another_python_leaves_the_run_succeeded(
    cpu, another_python, clients_own_module, spark
):
    run = cpu(1).submit(clients_own_module.a_function_of_its_own)
    with pytest.raises(
        VersionError,
        match=rf"run {run.id} has succeeded, but its value cannot be opened here: it holds a function or class as bytecode of Python {HERE}, this "
        rf"client runs Python 3\.9\. Return plain Python or NumPy values, or open it from Python {HERE}",
    ):
        run.result(60)
    assert run.status == "SUCCEEDED"
    assert run.exception() is None
    assert attach(spark, run.id).status == "SUCCEEDED"


def test_more_processes_than_slots_are_refused_within_ten_seconds(cpu):
    began = time.monotonic()
    with pytest.raises(
        ResourceError,
        match=r"5 ranks need 5 task slots at the same time, the cluster has 4: lower num_processes, pass local_mode=True .*--master local\[5\]",
    ):
        cpu(5, local_mode=False).run(lambda: None)
    assert time.monotonic() - began < 10


def test_more_processes_than_slots_are_no_problem_in_local_mode(cpu):
    assert cpu(6, local_mode=True).run(lambda: os.environ["WORLD_SIZE"]) == "6"


@pytest.mark.parametrize("local_mode", [True, False])
def test_gpus_that_the_cluster_does_not_have_are_refused(spark, local_mode):
    with pytest.raises(
        ResourceError,
        match=r"use_gpu=True, but the cluster's executors have no GPUs: spark\.executor\.resource\.gpu\.amount is not set .* or pass use_gpu=False",
    ):
        TorchDistributor(2, local_mode, use_gpu=True, spark=spark).run(lambda: None)


@pytest.fixture
def clients_own_module(tmp_path, monkeypatch):
    """A module that only the client has."""
    (tmp_path / "only_at_the_client.py").write_text(
        "def helper():\n    return 1\n\n\nclass Lost(Exception):\n    pass\n\n\ndef a_function_of_its_own():\n    return lambda: 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import only_at_the_client

    yield only_at_the_client
    del sys.modules["only_at_the_client"]


def test_a_module_that_the_workers_lack_is_named_with_what_to_do(cpu, clients_own_module):
    helper = clients_own_module.helper
    with pytest.raises(
        TrainingError,
        match=r"ModuleNotFoundError: No module named 'only_at_the_client'\. The function needs the module 'only_at_the_client', which is "
        r"not installed on the workers: install it there, or move what the function uses into the file that calls run, or name the module "
        r"in modules=",
    ) as caught:
        cpu(2, modules=[]).run(lambda: helper())
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_module_that_the_client_lacks_is_named_with_what_to_do(cpu, tmp_path):
    def main(folder):
        (Path(folder) / "only_at_the_rank.py").write_text("class Value:\n    pass\n")
        sys.path.insert(0, folder)
        import only_at_the_rank

        return only_at_the_rank.Value()

    with pytest.raises(ResultError, match=r"cannot be opened here: .* This client has no module 'only_at_the_rank'"):
        cpu(1).run(main, str(tmp_path))


def test_a_ddp_model_as_value_is_refused_here_with_what_to_return(cpu):
    def main():
        import torch
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        distributed.init_process_group("gloo")
        return DistributedDataParallel(torch.nn.Linear(2, 1))

    with pytest.raises(
        ResultError, match=r"Default process group has not been initialized.*model\.module\.state_dict\(\)"
    ) as caught:
        cpu(1).run(main)
    assert caught.value.run.status == "SUCCEEDED"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_value_that_cannot_be_pickled_gets_advice_about_values(cpu):
    def main():
        class Loader:
            def __init__(self):
                self.batches = (batch for batch in range(3))

        return {"loader": Loader()}

    with pytest.raises(
        TrainingError,
        match=r"the value that rank 0 returned cannot be pickled: .*\['loader'\]\.batches is a builtins\.generator, .* Return instead",
    ):
        cpu(1).run(main)


def test_a_wrong_token_is_refused_without_a_run(sparkgap_server):
    url = sparkgap_server.url.split("token=")[0] + "token=wrong"
    # pyspark refuses while it makes the session; the words are its own
    with (
        pytest.raises(SparkConnectGrpcException, match=r"(?i)unauthenticated|invalid.*token|authentication"),
        session_on(url) as session,
    ):
        TorchDistributor(1, use_gpu=False, spark=session).run(lambda: None)


# ---- Servers that are set up another way ----


def test_a_server_without_the_extension_is_named_as_such():
    extensions = {f"spark.connect.extensions.{kind}.classes": "" for kind in ("command", "expression", "getStatus")}
    with LocalServer("local[1]", conf=extensions) as server, session_on(server.url) as session:
        for attempt in (
            lambda: TorchDistributor(1, use_gpu=False, spark=session).run(lambda: None),
            lambda: attach(session, "any"),
        ):
            with pytest.raises(
                ExtensionError,
                match=r"does not have the sparkgap extension: its operator adds .* `sparkgap-server start`",
            ):
                attempt()


def test_dynamic_allocation_is_refused_with_the_setting():
    # Spark ignores dynamic allocation on local masters unless it is told that this is a test.
    words = (
        r"spark\.dynamicAllocation\.enabled is true on the server, and Spark runs no barrier stage with it: set it to false and .*"
        r"spark\.executor\.instances"
    )
    with (
        server_with(spark__dynamicAllocation__enabled="true", spark__dynamicAllocation__testing="true") as session,
        pytest.raises(ResourceError, match=words),
    ):
        TorchDistributor(1, use_gpu=False, spark=session).run(lambda: None)


def test_shares_of_gpus_are_refused_where_spark_cuts_no_task_with_a_whole_one():
    words = (
        r"a task of 1 rank needs spark\.task\.cpus=1 and spark\.task\.resource\.gpu\.amount=1, the server has spark\.task\.cpus=1 and "
        r"spark\.task\.resource\.gpu\.amount=0\.5, and with master local\[2\] Spark cuts all tasks alike, a rank's GPUs being whole ones"
    )
    with (
        server_with(spark__task__resource__gpu__amount="0.5", spark__executor__resource__gpu__amount="1") as session,
        pytest.raises(ResourceError, match=words),
    ):
        TorchDistributor(1, use_gpu=True, spark=session).run(lambda: None)


def test_more_local_ranks_than_gpus_are_refused_with_the_number_that_would_do():
    """pyspark lowers the number and logs a warning."""
    words = r"all 8 ranks into one task, which needs 8 GPUs, and a task has 2 \(spark\.task\.resource\.gpu\.amount\): pass num_processes=2, the most"
    with (
        server_with(spark__task__resource__gpu__amount="2", spark__executor__resource__gpu__amount="2") as session,
        pytest.raises(ResourceError, match=words),
    ):
        TorchDistributor(8, local_mode=True, use_gpu=True, spark=session).run(lambda: None)


def test_encryption_that_ranks_cannot_give_and_sizes_over_the_limit_are_refused():
    with server_with(spark__ssl__enabled="true", spark__sparkgap__plan__maxBytes="1m") as session:
        cpu = functools.partial(TorchDistributor, use_gpu=False, spark=session)
        with pytest.raises(
            ResourceError,
            match=r"spark\.ssl\.enabled promises encryption, which torch\.distributed does not give .*spark\.sparkgap\.ignoreSsl",
        ):
            cpu(1).run(lambda: None)
        session.conf.set("pytorch.spark.distributor.ignoreSsl", "true")  # pyspark's own name for the waiver
        assert cpu(1).run(lambda: "in the clear") == "in the clear"
        with pytest.raises(
            PlanError,
            match=r"the plan has 20\d+ bytes, spark\.sparkgap\.plan\.maxBytes allows 1048576: write large arguments to storage",
        ):
            cpu(1).run(len, os.urandom(2_000_000))


def test_encryption_may_be_waived_and_values_over_the_limit_fail_the_run():
    with server_with(
        spark__ssl__enabled="true", spark__sparkgap__ignoreSsl="true", spark__sparkgap__result__maxBytes="1m"
    ) as session:
        cpu = functools.partial(TorchDistributor, use_gpu=False, spark=session)
        assert cpu(1).run(lambda: "plain") == "plain"
        with pytest.raises(
            TrainingError,
            match=r"rank 0 returned 20\d+ bytes, spark\.sparkgap\.result\.maxBytes allows 1048576: write large values to storage",
        ):
            cpu(1).run(bytes, 2_000_000)


# ---- Messages that no client of ours sends ----


def send_command(session, message):
    request = session.client._execute_plan_request_with_metadata()
    request.plan.command.extension.CopyFrom(message)
    return [
        channel._reply(each)
        for each in session.client._execute_and_fetch_as_iterator(request, {})
        if isinstance(each, any_pb2.Any)
    ]


def send_query(session, message):
    session.client._analyze(method="spark_version")  # GetStatus alone does not create the session
    answer = session.client._get_operation_statuses(operation_ids=None, request_extensions=[message])
    return [channel._reply(each) for each in answer.extensions]


def ours(name, value):
    data = value if isinstance(value, bytes) else value.SerializeToString()
    return any_pb2.Any(type_url=f"type.googleapis.com/sparkgap.v1.{name}", value=data)


@pytest.mark.parametrize(("name", "send"), [("Command", send_command), ("Query", send_query)])
@pytest.mark.parametrize("damage", [b"\xff\xff\xff", b"\x08", b"\x1a\x7f\x00"])
def test_damaged_bytes_are_refused(spark, cpu, name, send, damage):
    with pytest.raises(SparkgapError, match=f"the {name} is damaged: "):
        send(spark, ours(name, damage))
    assert cpu(1).run(lambda: "unharmed") == "unharmed"


def test_every_truncation_of_a_submit_is_refused(spark):
    plan = pb.TrainPlan(run_id="truncated", name="n", num_processes=1, script=pb.Script(name="s.py", source=b"pass"))
    whole = pb.Command(protocol=PROTOCOL, client="test", submit=pb.SubmitRun(plan=plan)).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises(SparkgapError):
            send_command(spark, ours("Command", whole[:length]))
    with pytest.raises(RunNotFoundError):
        attach(spark, "truncated")


@pytest.mark.parametrize(
    ("name", "send", "message", "words"),
    [
        ("Command", send_command, pb.Command(protocol=PROTOCOL), "the command asks for nothing that this server knows"),
        ("Query", send_query, pb.Query(protocol=PROTOCOL), "the query asks for nothing that this server knows"),
        (
            "Command",
            send_command,
            pb.Command(protocol=PROTOCOL, submit=pb.SubmitRun(plan=pb.TrainPlan(run_id="empty", num_processes=1))),
            "the plan has neither a function nor a script",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(plan=pb.TrainPlan(run_id="none", script=pb.Script(name="s.py", source=b""))),
            ),
            "num_processes is 0: at least 1 rank is needed",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(run_id="many", num_processes=2**32 - 1, script=pb.Script(name="s", source=b""))
                ),
            ),
            "num_processes",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(run_id="bare", num_processes=1, function=pb.Payload(python="3.11"))
                ),
            ),
            "the plan's function is empty",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(run_id="nameless", num_processes=1, script=pb.Script(source=b"pass"))
                ),
            ),
            "the plan's script has no name",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(
                        run_id="greedy",
                        num_processes=1,
                        script=pb.Script(name="s"),
                        resources=pb.RankResources(cpus=2**32 - 1),
                    )
                ),
            ),
            "resources has more cpus than a server counts to",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(
                        run_id="endless", num_processes=1, script=pb.Script(name="s"), max_failures=2**32 - 1
                    )
                ),
            ),
            "max_failures is more than a server counts to",
        ),
        (
            "Command",
            send_command,
            pb.Command(
                protocol=PROTOCOL,
                submit=pb.SubmitRun(
                    plan=pb.TrainPlan(run_id="long", name="n" * 10_001, num_processes=1, script=pb.Script(name="s"))
                ),
            ),
            "the name of a run has at most 10000 characters, this one 10001",
        ),
        (
            "Command",
            send_command,
            pb.Command(protocol=PROTOCOL, follow=pb.FollowRun(run_id="nobody")),
            "there is no run nobody of this user",
        ),
    ],
)
def test_a_message_that_asks_for_nothing_possible_is_refused(spark, name, send, message, words):
    with pytest.raises(SparkgapError, match=words):
        send(spark, ours(name, message))


def test_messages_of_other_plugins_are_left_to_them(spark, cpu):
    foreign = any_pb2.Any(type_url="type.googleapis.com/another.plugin.Command", value=b"\x08\x01")
    with pytest.raises(SparkConnectGrpcException, match=r"(?i)no handler"):
        send_command(spark, foreign)
    assert send_query(spark, foreign) == []
    assert cpu(1).run(lambda: "ours still work") == "ours still work"
