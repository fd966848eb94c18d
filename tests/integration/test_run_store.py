"""Runs that outlive their server, in `spark.sparkgap.runs.dir`: on a good disk, on an object store, on a full disk and on none."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from pyspark import cloudpickle
from pyspark.sql.connect.session import SparkSession
from sparkgap import (
    PlanError,
    ResourceError,
    RunLostError,
    RunNotFoundError,
    TorchDistributor,
    TrainingError,
    attach,
    runs,
    training,
)
from sparkgap_server.java import find_java
from sparkgap_server.local import LocalServer
from sparkgap_server.shim import shim_jar, spark_home

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

ODD_USER = "../ÉVE/%2e."


def talk_and_return(size):
    print("a line of a run", flush=True)
    training.report(3, total=3, loss=0.5)
    return b"v" * size


def talk_and_fail():
    print("the last words", flush=True)
    raise ValueError("no weights")


def talk_and_stay():
    print("still there", flush=True)
    while True:
        time.sleep(0.1)


@contextmanager
def session_on(server, user="ann"):
    session = SparkSession.builder.remote(
        f"{server.url};user_id={user.replace('%', '%25').replace('/', '%2F')}"
    ).create()
    try:
        yield session
    finally:
        session.stop()


def submit(session, run_id, function, *args):
    return TorchDistributor(1, use_gpu=False, spark=session, run_id=run_id).submit(function, *args)


def server_at(directory, **more):
    return LocalServer("local[2]", conf={"spark.sparkgap.runs.dir": str(directory), **more})


def kill(server):
    """SIGKILL to the JVM, as from the kernel; its nursery follows by itself."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    os.kill(server.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def segments(directory, run_id):
    """A run's files, the oldest first."""
    (folder,) = Path(directory).glob(f"*/{run_id}-*")
    return sorted(folder.glob("[0-9]*"))


def holds(directory, text):
    return any(text.encode() in path.read_bytes() for path in Path(directory).glob("*/*/[0-9]*"))


# ---- A server that was killed, and its successor ----


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, eventually):
    """The second server on a directory; the first was killed with a run alive, and one file damaged afterwards."""
    directory = tmp_path_factory.mktemp("store") / "runs"
    first = server_at(directory).start()
    try:
        with session_on(first) as ann, session_on(first, ODD_USER) as eve:
            done = submit(ann, "done", talk_and_return, 10 << 20)
            assert len(done.result(60)) == 10 << 20
            assert isinstance(submit(ann, "failed", talk_and_fail).exception(60), TrainingError)
            for run_id in ("cut", "hole"):
                assert submit(ann, run_id, talk_and_return, 10 << 20).result(60)
            assert submit(eve, "done", talk_and_return, 3).result(60) == b"vvv"
            submit(ann, "alive", talk_and_stay)
            TorchDistributor(2, local_mode=False, use_gpu=False, spark=ann, run_id="waiting").submit(talk_and_stay)
            eventually(lambda: holds(directory, "2 task slots at the same time"), 20, "the run that waits is stored")
            eventually(lambda: holds(directory, "still there"), 20, "the line of the run that is alive is stored")
            eventually(
                lambda: runs(ann).state.isin(["SUCCEEDED", "FAILED", "RUNNING", "QUEUED"]).all(),
                20,
                "all have ended but two",
            )
        kill(first)
    finally:
        first.stop()
    killed = datetime.now(timezone.utc)
    last = segments(directory, "cut")[-1]
    last.write_bytes(last.read_bytes()[:-1])
    middle = segments(directory, "hole")[-2]
    middle.write_bytes(middle.read_bytes()[:-1] + b"?")
    with server_at(directory) as second:
        second.killed, second.directory = killed, directory
        yield second


@pytest.fixture
def ann(restarted):
    with session_on(restarted) as session:
        yield session


def test_a_finished_run_has_its_status_lines_figures_and_value_after_a_restart(ann):
    run = attach(ann, "done")
    assert (run.status, run.name, run.attempts) == ("SUCCEEDED", "talk_and_return", 1)
    assert [str(line) for line in run.logs()] == ["[rank 0] a line of a run"]
    assert [str(line) for line in run.logs(follow=True)] == ["[rank 0] a line of a run"]
    assert run.metrics().loss.tolist() == [0.5]
    assert run.result() == b"v" * (10 << 20)
    assert run.wait(1)
    run.cancel()
    assert attach(ann, "done").status == "SUCCEEDED"


def test_a_failed_run_has_its_cause_after_a_restart(ann):
    error = attach(ann, "failed").exception()
    assert isinstance(error, TrainingError)
    assert isinstance(error.__cause__, ValueError)
    assert "talk_and_fail" in error.traceback


def test_a_run_that_was_alive_is_lost_and_says_since_when(ann, restarted):
    run = attach(ann, "alive")
    assert run.status == "LOST"
    with pytest.raises(
        RunLostError, match=r"run alive \(talk_and_stay\) is lost: .* last alive at \d{4}.*submit it under"
    ):
        run.result()
    assert [str(line) for line in run.logs(follow=True)] == ["[rank 0] still there"]
    ended = runs(ann).set_index("id").ended["alive"]
    assert timedelta(seconds=-1) <= restarted.killed - ended <= timedelta(seconds=30)


def test_a_lost_run_has_nothing_to_cancel(ann):
    run = attach(ann, "alive")
    run.cancel()
    assert run.status == "LOST"


def test_a_run_that_waited_for_its_slots_is_lost_too(ann):
    run = attach(ann, "waiting")
    assert (run.status, run.queue_position, run.waiting_for) == ("LOST", 0, "")


def test_the_id_of_an_earlier_run_still_means_that_run(ann):
    assert submit(ann, "done", talk_and_return, 10 << 20).status == "SUCCEEDED"
    again = submit(ann, "alive", talk_and_stay)
    assert again.status == "LOST"
    with pytest.raises(RunLostError):
        TorchDistributor(1, use_gpu=False, spark=ann, run_id="alive").run(talk_and_stay)
    for run_id in ("done", "alive"):
        with pytest.raises(PlanError, match="is taken by a run with another plan"):
            submit(ann, run_id, talk_and_return, 1)


def test_a_run_whose_last_file_was_cut_off_is_lost_with_what_came_before(ann):
    run = attach(ann, "cut")
    assert run.status == "LOST"
    assert [line.text for line in run.logs()] == ["a line of a run"]


def test_a_value_with_a_damaged_file_is_refused_and_the_rest_is_there(ann, restarted):
    run = attach(ann, "hole")
    assert run.status == "SUCCEEDED"
    with pytest.raises(
        ResourceError, match=r"of the value of run hole, which has \d+ bytes, \d+ can be read in .*runs"
    ):
        run.result()


def test_runs_lists_the_users_own_runs_with_the_newest_first(ann, restarted):
    before = datetime.now(timezone.utc)
    assert submit(ann, "fresh", talk_and_return, 1).result(60) == b"v"
    table = runs(ann)
    assert table.id.tolist() == ["fresh", "waiting", "alive", "hole", "cut", "failed", "done"]
    assert table.state.tolist() == ["SUCCEEDED", "LOST", "LOST", "SUCCEEDED", "LOST", "FAILED", "SUCCEEDED"]
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {
        **dict.fromkeys(("id", "name", "state", "waiting_for", "error", "notice"), "string"),
        **dict.fromkeys(("submitted", "started", "ended"), "datetime64[us, UTC]"),
        **dict.fromkeys(("world_size", "attempts", "queue_position"), "int64"),
    }
    row = table.iloc[0]
    assert before <= row.submitted <= row.started <= row.ended
    assert (row["name"], row.world_size, row.attempts, row.error, row.notice) == ("talk_and_return", 1, 1, "", "")
    assert "ValueError: no weights" in table.error[5]
    with session_on(restarted, ODD_USER) as eve:
        assert runs(eve).id.tolist() == ["done"]
        assert attach(eve, "done").result() == b"vvv"
        with pytest.raises(RunNotFoundError):
            attach(eve, "failed")
    with session_on(restarted, "nobody") as stranger:
        table = runs(stranger)
        assert len(table) == 0
        assert str(table.submitted.dtype) == "datetime64[us, UTC]"
        with pytest.raises(RunNotFoundError):
            attach(stranger, "done")


def test_files_are_the_servers_alone_and_stay_in_the_directory(restarted):
    paths = [restarted.directory, *restarted.directory.rglob("*")]
    assert {stat.S_IMODE(each.stat().st_mode) for each in paths if each.is_file()} == {0o600}
    assert {stat.S_IMODE(each.stat().st_mode) for each in paths if each.is_dir()} == {0o700}
    assert list(restarted.directory.parent.iterdir()) == [restarted.directory]
    assert len(list(restarted.directory.glob("*/done-*"))) == 2


# ---- An orderly stop, retention ----


def test_a_server_that_is_stopped_cancels_its_runs_and_the_next_one_knows(tmp_path, eventually):
    with server_at(tmp_path / "runs") as server, session_on(server) as ann:
        assert submit(ann, "old", talk_and_return, 1).result(60)
        assert submit(ann, "done", talk_and_return, 1 << 20).result(60)
        submit(ann, "alive", talk_and_stay)
        eventually(lambda: attach(ann, "alive").status == "RUNNING", 20, "the run runs")
    for path in segments(tmp_path / "runs", "old"):
        os.utime(path, (time.time() - 3 * 86400,) * 2)
    more = {"spark.sparkgap.runs.maxAge": "2d", "spark.sparkgap.runs.maxBytes": "3m"}
    with server_at(tmp_path / "runs", **more) as server, session_on(server) as ann:
        eventually(lambda: runs(ann).id.tolist() == ["alive", "done"], 20, "the run that is too old is forgotten")
        assert attach(ann, "alive").status == "CANCELLED"
        assert runs(ann).error[0] == "the server is stopping"
        for index in range(3):
            assert submit(ann, f"big-{index}", talk_and_return, 1 << 20).result(60)
        eventually(
            lambda: not list((tmp_path / "runs").glob("*/done-*")), 20, "the oldest of too many bytes is removed"
        )
        assert segments(tmp_path / "runs", "big-2")
        with pytest.raises(RunNotFoundError):
            attach(ann, "old")
        assert submit(ann, "old", talk_and_return, 2).result(60) == b"vv"  # the id is free again


# ---- Other filesystems ----


@pytest.fixture(scope="module")
def object_store(tmp_path_factory):
    """Settings of a server that knows the filesystem of ObjectStore.scala as objects:/."""
    folder = tmp_path_factory.mktemp("filesystem")
    source = Path(__file__).parent / "filesystems" / "ObjectStore.scala"
    arguments = folder / "arguments"
    classpath = ":".join(map(str, sorted((spark_home() / "jars").glob("*.jar"))))
    arguments.write_text(f"-nowarn -classpath {classpath} -d {folder / 'objects.jar'} {source}")
    command = [str(find_java()), "-cp", f"{spark_home()}/jars/*", "scala.tools.nsc.Main", f"@{arguments}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "spark.jars": f"{shim_jar()},{folder / 'objects.jar'}",
        "spark.hadoop.fs.objects.impl": "sparkgap.test.ObjectStore",
    }


def test_a_filesystem_without_append_rename_and_overwrite_serves(object_store, tmp_path, eventually):
    with server_at(f"objects:{tmp_path}/runs", **object_store) as server:
        with session_on(server) as ann:
            assert submit(ann, "done", talk_and_return, 10 << 20).result(60)
            submit(ann, "alive", talk_and_stay)
            eventually(lambda: holds(tmp_path / "runs", "still there"), 20, "the line is stored")
            assert attach(ann, "alive").notice == ""
        kill(server)
    with server_at(f"objects:{tmp_path}/runs", **object_store) as server, session_on(server) as ann:
        assert runs(ann).state.tolist() == ["LOST", "SUCCEEDED"]
        assert attach(ann, "done").result() == b"v" * (10 << 20)
        assert [line.text for line in attach(ann, "alive").logs()] == ["still there"]


@pytest.mark.parametrize("kind", ["full", "unwritable"])
def test_a_filesystem_that_fails_fails_no_run_and_is_told_of_once(object_store, tmp_path, kind):
    (tmp_path / "a file").touch()
    directory = f"objects:{tmp_path}/full/runs" if kind == "full" else f"{tmp_path}/a file/runs"
    with server_at(directory, **object_store) as server, session_on(server) as ann:
        run = submit(ann, "done", talk_and_return, 1 << 20)
        assert run.result(60) == b"v" * (1 << 20)
        assert [line.text for line in run.logs()] == ["a line of a run"]
        assert "spark.sparkgap.runs.dir cannot be written" in attach(ann, "done").notice
        time.sleep(2.5)  # for more attempts
        assert server.log.read_text().count("run done of ann: spark.sparkgap.runs.dir cannot be written") == 1


def test_no_rank_waits_for_a_slow_filesystem(object_store, tmp_path):
    def many_lines():
        begin = time.monotonic()
        for number in range(2000):
            print(number, flush=True)
        return time.monotonic() - begin

    with server_at(f"objects:{tmp_path}/slow/runs", **object_store) as server, session_on(server) as ann:
        run = submit(ann, "lines", many_lines)
        assert run.result(60) < 2.5
        assert len(list(run.logs())) == 2000
    shutil.rmtree(tmp_path / "slow")
