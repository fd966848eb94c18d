"""The command `sparkgap` against real servers and runs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from unittest import mock

import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from sparkgap import TorchDistributor, attach, cli
from sparkgap_server.local import LocalServer

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(120)

COMMAND = [sys.executable, "-m", "sparkgap"]


def speak(lines, pause=0.0):
    rank = int(os.environ["RANK"])
    for number in range(lines):
        print(f"line {number} of {rank}", flush=True)
        time.sleep(pause)  # lines that come together have one time
    print(f"error of {rank}", file=sys.stderr, flush=True)
    return rank


def speak_and_wait():
    speak(1)
    while True:
        time.sleep(0.1)


def speak_and_fail():
    speak(1)
    raise ValueError("no weights\nat all")


def sparkgap(url, *arguments, status=0, columns=""):
    """Standard output and error of a command that ends with this status; in this process, which has imported pyspark."""
    named = {"SPARK_REMOTE": url, "COLUMNS": columns}
    with (
        mock.patch.dict(os.environ, named),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as error,
        pytest.raises(SystemExit) as end,
    ):
        cli.main([*arguments])
    said = f"{end.value.code}\n" if isinstance(end.value.code, str) else ""
    assert (1 if said else end.value.code) == status, out.getvalue() + error.getvalue() + said
    return out.getvalue(), error.getvalue() + said


@contextmanager
def process(url, *command):
    """The same as a process of its own."""
    named = {**os.environ, "SPARK_REMOTE": url, "COLUMNS": ""}
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=named)
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=30)


def verdicts(out):
    return {each["name"]: each for each in json.loads(out)["checks"]}


@pytest.fixture(scope="module")
def url(sparkgap_server):
    """As a user whose runs no other test makes."""
    return f"{sparkgap_server.url};user_id=cli-ann"


@pytest.fixture(scope="module")
def session(url):
    session = SparkSession.builder.remote(url).create()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def runs(session):
    """Three runs that have ended."""

    def submit(run_id, ranks, function, *args):
        distributor = TorchDistributor(ranks, local_mode=False, use_gpu=False, spark=session, run_id=run_id)
        return distributor.submit(function, *args)

    found = [
        submit("cli-first", 2, speak, 3, 0.1),
        submit("cli-failed", 1, speak_and_fail),
        submit("other", 1, speak, 2000),
    ]
    assert all(run.wait(60) for run in found)
    return found


@contextmanager
def endless(session, run_id):
    run = TorchDistributor(1, use_gpu=False, spark=session, run_id=run_id).submit(speak_and_wait)
    try:
        yield run
    finally:
        run.cancel()
        assert run.wait(20)


# ---- doctor ----


def test_a_good_server_is_well_and_a_trial_runs(url):
    with process(url, *COMMAND, "doctor", "--try", "2") as doctor:
        out, error = doctor.communicate(timeout=60)
        assert (doctor.returncode, error) == (0, "")
    assert out.endswith("\nEverything fits.\n")
    assert "trial run   2 ranks: first line after " in out
    assert "of 2 on " in out


def test_the_doctors_json_has_verdicts_and_the_servers_report(url):
    out, _ = sparkgap(url, "doctor", "--json")
    told = json.loads(out)
    assert told["verdict"] == "ok"
    assert verdicts(out)["trial run"]["verdict"] == "not checked"
    assert verdicts(out)["connection"]["found"].endswith("answers, as user cli-ann")
    server = told["server"]
    (executor,) = server["executors"]
    assert (server["master"], server["slots"], executor["cores"]) == ("local[4]", 4, 4)
    assert executor["python"] == ".".join(map(str, sys.version_info[:2]))
    assert executor["torch"] == subprocess.check_output(
        [sys.executable, "-c", "from importlib import metadata; print(metadata.version('torch'), end='')"], text=True
    )
    token = url.partition("token=")[2].partition(";")[0]
    assert token
    assert token not in out


def test_slots_that_a_run_takes_are_busy(url, session):
    with endless(session, "cli-busy") as run:
        assert next(iter(run.logs(follow=True))).text == "line 0 of 0"
        server = json.loads(sparkgap(url, "doctor", "--json")[0])["server"]
        assert (server["busy_slots"], server["active_runs"]) == (1, 1)
        assert server["executors"][0]["running_tasks"] == 1


def test_a_trial_with_more_ranks_than_slots_is_refused(url):
    out, _ = sparkgap(url, "doctor", "--json", "--try", "99", status=1)
    assert verdicts(out)["trial run"]["verdict"] == "problem"
    assert "99 ranks need 99 task slots" in verdicts(out)["trial run"]["found"]
    assert "lower num_processes" in verdicts(out)["trial run"]["advice"]


def test_a_server_that_is_ill_says_where(tmp_path):
    (tmp_path / "file").touch()
    conf = {
        "spark.sparkgap.python": "/no/such/python",
        "spark.sparkgap.runs.dir": f"{tmp_path}/file/runs",
        "spark.sparkgap.password": "hunter2",
        "spark.sparkgap.place": "hdfs://ann:hunter2@node/runs",
        "spark.sql.extensions": "",
    }
    with LocalServer("local[2]", conf=conf) as server:
        out, _ = sparkgap(server.url, "doctor", "--json", status=1)
    found = verdicts(out)
    assert found["nurseries"]["verdict"] == found["runs"]["verdict"] == "problem"
    assert "/no/such/python" in found["nurseries"]["found"]
    assert f"{tmp_path}/file is no folder" in found["runs"]["found"]
    assert found["prediction"]["verdict"] == "warning"
    assert "hunter2" not in out
    assert json.loads(out)["server"]["settings"]["spark.sparkgap.place"] == "hdfs://…@node/runs"


def test_a_server_without_the_extension():
    conf = {f"spark.connect.extensions.{kind}.classes": "" for kind in ("command", "expression", "getStatus")}
    with LocalServer("local[1]", conf=conf) as server:
        out, _ = sparkgap(server.url, "doctor", status=1)
        _, error = sparkgap(server.url, "runs", status=1)
    assert "does not have sparkgap's" in out
    assert "→ its operator adds sparkgap's jar and settings" in out
    assert out.endswith("\n1 problem.\n")
    assert error.startswith("sparkgap: the Spark Connect server does not have the sparkgap extension: ")
    assert error.count("\n") == 1


def test_a_server_that_is_not_there_and_a_token_that_is_wrong(url):
    out, _ = sparkgap("sc://localhost:1/;token=secret", "doctor", "--json", status=1)
    check = verdicts(out)["connection"]
    assert check["found"].startswith("no server can be reached at localhost:1 (")
    assert check["advice"] == "check host, port and use_ssl of the URL, and whether the server runs"
    with process(url.replace("token=", "token=x"), *COMMAND, "runs") as runs:
        out, error = runs.communicate(timeout=60)
        assert (runs.returncode, out, error.count("\n")) == (1, "", 1)
    assert error.endswith(" does not let this client in: the token in the URL is missing or wrong\n")


# ---- runs ----


def test_runs_are_a_table_and_json(url, runs):
    out, _ = sparkgap(url, "runs")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["cli-first"].split()[1:3] == ["speak", "SUCCEEDED"]
    assert rows["cli-failed"].endswith("rank 0 failed: ValueError: no weights at all")
    cut, _ = sparkgap(url, "runs", columns="80")
    assert max(map(len, cut.splitlines())) == 80
    assert next(line for line in cut.splitlines() if line.startswith("cli-failed")).endswith("…")
    told = {each["id"]: each for each in json.loads(sparkgap(url, "runs", "--json")[0])}
    assert (told["cli-first"]["state"], told["cli-first"]["ranks"]) == ("SUCCEEDED", 2)
    assert datetime.fromisoformat(told["cli-first"]["submitted"]) <= datetime.fromisoformat(told["cli-first"]["ended"])


def test_runs_of_one_state(url, runs):
    told = json.loads(sparkgap(url, "runs", "--json", "--state", "failed", "--limit", "1")[0])
    assert [each["id"] for each in told] == ["cli-failed"]


def test_the_runs_of_others_are_unknown(url, runs):
    stranger = url.replace("cli-ann", "cli-eve")
    out, error = sparkgap(stranger, "runs")
    assert (out, error.startswith("sparkgap: no runs of cli-eve at localhost:")) == ("", True)
    assert json.loads(sparkgap(stranger, "runs", "--json")[0]) == []
    for command in ("logs", "cancel"):
        _, error = sparkgap(stranger, command, "cli-first", status=1)
        assert error.startswith("sparkgap: there is no run cli-first of this user on the server; `sparkgap runs` lists")


# ---- logs ----


def test_logs_have_their_rank_and_both_streams(url, runs):
    out, error = sparkgap(url, "logs", "cli-fi")
    expected = [f"[rank {rank}] line {n} of {rank}" for rank in range(2) for n in range(3)]
    assert sorted(out.splitlines()) == sorted([*expected, "[rank 0] error of 0", "[rank 1] error of 1"])
    assert error == ""


def test_logs_of_a_rank_as_json(url, runs):
    out, _ = sparkgap(url, "logs", "cli-first", "--rank", "1", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {(each["rank"], each["attempt"]) for each in lines} == {(1, 0)}
    assert [each["text"] for each in lines if each["stream"] == "stderr"] == ["error of 1"]
    assert all(datetime.fromisoformat(each["time"]).tzinfo for each in lines)
    third = lines[2]["time"]
    later, _ = sparkgap(url, "logs", "cli-first", "--rank", "1", "--json", "--since", third)
    assert [json.loads(line) for line in later.splitlines()] == [each for each in lines if each["time"] >= third]
    assert len(later) < len(out)


def test_the_last_lines(url, runs):
    assert len(sparkgap(url, "logs", "other", "--tail", "2")[0].splitlines()) == 2
    out, error = sparkgap(url, "logs", "other", "-f", "--tail", "2")
    assert len(out.splitlines()) == 2
    assert error == "sparkgap: run other is SUCCEEDED\n"


def test_an_id_that_is_ambiguous_or_empty(url, runs):
    _, error = sparkgap(url, "logs", "cli-f", status=1)
    assert "2 runs begin with cli-f: " in error
    assert {"cli-first", "cli-failed"} <= set(error.replace(",", " ").split())
    assert sparkgap(url, "cancel", "", status=1)[1] == "sparkgap: a run's id is empty\n"


def test_a_pipe_that_is_closed_ends_quietly(url, runs):
    command = f"{sys.executable} -m sparkgap logs other | head -n 1; echo ${{PIPESTATUS[0]}}"
    with process(url, "bash", "-c", command) as piped:
        assert piped.communicate(timeout=60) == ("[rank 0] line 0 of 0\n0\n", "")


def test_a_run_is_followed_until_it_is_cancelled(url, session):
    with endless(session, "cli-followed"), process(url, *COMMAND, "logs", "-f", "cli-fol") as watching:
        assert watching.stdout.readline() == "[rank 0] line 0 of 0\n"
        out, _ = sparkgap(url, "cancel", "cli-foll", "cli-nobody", "--reason", "enough of it", status=1)
        assert out == "cli-followed  CANCELLED\n"
        assert watching.wait(30) == 0
        rest, error = watching.stdout.read(), watching.stderr.read()
        assert rest == "[rank 0] error of 0\n"
        assert error == "sparkgap: run cli-followed is CANCELLED: enough of it\n"
        (told,) = json.loads(sparkgap(url, "cancel", "cli-followed", "--json")[0])
        assert (told["state"], told["had_ended"], told["reason"]) == ("CANCELLED", True, "enough of it")


def test_ctrl_c_stops_watching_and_leaves_the_run(url, session):
    with endless(session, "cli-watched"), process(url, *COMMAND, "logs", "-f", "cli-watched") as watching:
        assert watching.stdout.readline() == "[rank 0] line 0 of 0\n"
        watching.send_signal(signal.SIGINT)
        _, error = watching.communicate(timeout=30)
        assert watching.returncode == 130
        assert error == "sparkgap: stopped watching, the run goes on: `sparkgap cancel cli-watched` ends it\n"
        assert attach(session, "cli-watched").status == "RUNNING"
