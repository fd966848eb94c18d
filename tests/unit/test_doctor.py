"""The doctor's verdicts, from reports made by hand."""

from __future__ import annotations

import pytest
from sparkgap.doctor import server_checks
from sparkgap.verdicts import NOT_CHECKED, OK, PROBLEM, WARNING, Client, client_checks
from sparkgap_protos.v1 import run_pb2

PACKAGE = "org.apache.spark.sql.connect.sparkgap"
NEEDED = ("pandas", "pyarrow", "numpy", "grpcio", "grpcio-status", "googleapis-common-protos", "protobuf")
CLIENT = Client("3.11.7", "0.1.0", {"pyspark-client": "4.2.1", **dict.fromkeys(NEEDED, "1.0")})
SETTINGS = {
    "spark.plugins": f"other.Plugin,{PACKAGE}.SparkgapPlugin",
    "spark.sql.extensions": f"{PACKAGE}.SparkgapRules",
    "spark.connect.extensions.command.classes": f"{PACKAGE}.SparkgapCommands",
    "spark.connect.extensions.expression.classes": f"other.Expressions, {PACKAGE}.SparkgapExpressions",
    "spark.sparkgap.runs.dir": "hdfs:///runs",
}


def executor(number=0, **fields):
    said = {"python": "3.11", "sparkgap": "0.1.0", "torch": "2.13.0"}
    return run_pb2.ExecutorReport(**{"id": str(number), "host": f"node-{number}", "cores": 2, **said, **fields})


def report(executors=None, settings=None, **fields):
    """Two executors with all that is wanted; a setting of None is left out."""
    told = {key: value for key, value in {**SETTINGS, **(settings or {})}.items() if value is not None}
    cluster = {"spark": "4.2.1", "java": "17.0.15", "master": "spark://node:7077", "slots": 4}
    return run_pb2.ServerReport(
        **{**cluster, **fields},
        executors=[executor(0), executor(1)] if executors is None else executors,
        settings=[{"key": key, "value": value} for key, value in told.items()],
    )


def checks(client=CLIENT, **fields):
    return {each.name: each for each in server_checks(report(**fields), client)}


def test_a_cluster_that_has_everything_is_well():
    found = checks()
    assert {name: each.verdict for name, each in found.items()} == dict.fromkeys(found, OK)
    assert [each.advice for each in found.values()] == [""] * len(found)
    assert found["executors"].found == "2 executors on 2 hosts, 4 cores"
    assert found["slots"].found == "4 of 4 task slots free: up to 4 CPU ranks can start now; no run is alive"


GPU = "spark.task.resource.gpu.amount"
WITH_GPUS = [executor(0, gpus=["0", "1"]), executor(1, gpus=["0", "1"])]

CASES = {
    "another Spark": (
        {"spark": "4.3.0"}, "Spark", WARNING, "client 4.2.1", "pyspark-client 4.3.*",
    ),
    "no plugin": (
        {"settings": {"spark.plugins": "other.Plugin"}}, "extension", PROBLEM, "spark.plugins does not name SparkgapPlugin",
        f"adds {PACKAGE}.SparkgapPlugin to spark.plugins",
    ),
    "no expressions": (
        {"settings": {"spark.connect.extensions.expression.classes": None}}, "extension", PROBLEM,
        "predictions are impossible", "SparkgapExpressions to spark.connect.extensions.expression.classes",
    ),
    "no executors": ({"executors": [], "slots": 0}, "executors", PROBLEM, "none has registered", "free cores and memory"),
    "a nursery that cannot start": (
        {"executors": [executor(0), executor(1, python="", failure="no such file /opt/python")],
         "settings": {"spark.sparkgap.python": "/opt/python"}},
        "nurseries", PROBLEM, "executor 1 on node-1: no such file /opt/python", "check spark.sparkgap.python (/opt/python)",
    ),
    "a nursery that is silent": (
        {"executors": [executor(0), executor(1, python="")]}, "nurseries", WARNING, "1 executor of 2", "executor 1 on node-1",
    ),
    "another Python": (
        {"executors": [executor(python="3.12")]}, "Python", WARNING, "3.11 here, 3.12 on the workers",
        "scripts run, and functions of modules, whose source travels; functions and classes that a script or notebook defines are refused",
    ),
    "another Python, for functions": (
        {"executors": [executor(python="3.12")]}, "Python", WARNING, "3.11 here, 3.12 on the workers",
        "client with Python 3.12, or set spark.sparkgap.python on the server to a Python 3.11",
    ),
    "another sparkgap": (
        {"executors": [executor(0), executor(1, sparkgap="0.2.0")]}, "sparkgap", WARNING, "0.1.0 and 0.2.0 on the workers",
        "sparkgap[server]==0.1.0",
    ),
    "no torch": ({"executors": [executor(torch="")]}, "torch", WARNING, "not installed on the workers", "pip install torch"),
    "torch on some": (
        {"executors": [executor(0), executor(1, torch="")]}, "torch", WARNING, "executor 1 on node-1; 2.13.0 elsewhere", "same",
    ),
    "two torches": (
        {"executors": [executor(0), executor(1, torch="2.12.0")]}, "torch", WARNING, "2.12.0 and 2.13.0", "same torch",
    ),
    "some slots taken": (
        {"busy_slots": 3, "active_runs": 2, "queued_runs": 1}, "slots", OK,
        "1 of 4 task slots free: up to 1 CPU rank can start now, 4 at most; 2 runs of all users not ended, 1 waiting", "",
    ),
    "all slots taken": ({"busy_slots": 4, "active_runs": 1}, "slots", WARNING, "0 of 4", "wait in the queue"),
    "no slots": ({"slots": 0, "settings": {GPU: "1"}}, "slots", PROBLEM, "no task slots", f"{GPU} GPUs"),
    "no GPUs": ({}, "GPUs", OK, "pass use_gpu=False", ""),
    "GPUs that no task gets": (
        {"executors": WITH_GPUS, "master": "local[4]"}, "GPUs", WARNING, f"{GPU} is not set: use_gpu=True is refused", "whole",
    ),
    "GPUs in parts": (
        {"executors": WITH_GPUS, "master": "local[4]", "settings": {GPU: "0.5"}}, "GPUs", WARNING,
        "0.5 a task: use_gpu=True is refused", "whole",
    ),
    "GPUs in parts on a cluster, which can cut tasks": (
        {"executors": WITH_GPUS, "settings": {GPU: "0.5"}}, "GPUs", OK,
        "each rank in a task cut for it: use_gpu=True trains with up to 4 ranks, up to 2 with local_mode=True", "",
    ),
    "one and a half GPUs": ({"executors": WITH_GPUS, "settings": {GPU: "1.5"}}, "GPUs", OK, "a task cut for it", ""),
    "whole GPUs": (
        {"executors": WITH_GPUS, "slots": 2, "settings": {GPU: "2"}}, "GPUs", OK,
        "2 a task: use_gpu=True trains with up to 4 ranks, up to 2 with local_mode=True", "",
    ),
    "GPUs that are not there": ({"settings": {GPU: "1"}}, "GPUs", PROBLEM, "no executor has a GPU", "discoveryScript"),
    "dynamic allocation": (
        {"settings": {"spark.dynamicAllocation.enabled": "true"}}, "training", PROBLEM, "training is refused", "executor.instances",
    ),
    "dynamic allocation on a local master, which Spark ignores": (
        {"master": "local[4]", "settings": {"spark.dynamicAllocation.enabled": "true"}}, "training", OK, "no setting", "",
    ),
    "TLS": ({"settings": {"spark.ssl.enabled": "true"}}, "training", PROBLEM, "training is refused", "ignoreSsl"),
    "TLS that is ignored": (
        {"settings": {"spark.ssl.enabled": "true", "spark.sparkgap.ignoreSsl": "true"}}, "training", OK, "no setting", "",
    ),
    "no rules": (
        {"settings": {"spark.sql.extensions": "a.B"}}, "prediction", WARNING, "through Spark's Python workers", "SparkgapRules",
    ),
    "direct predictions switched off": (
        {"settings": {"spark.sparkgap.predict.direct": "false"}}, "prediction", WARNING, "Python workers", "true",
    ),
    "a session with files": ({"session_files": True}, "prediction", WARNING, "files of its own", "session without"),
    "no directory of runs": (
        {"settings": {"spark.sparkgap.runs.dir": None}}, "runs", WARNING, "end with the server", "directory",
    ),
    "no directory of runs on a local master": (
        {"master": "local[4]", "settings": {"spark.sparkgap.runs.dir": None}}, "runs", OK, "end with the server", "",
    ),
    "a directory of runs that cannot be used": (
        {"runs_dir_problem": "/runs is no folder"}, "runs", PROBLEM, "hdfs:///runs cannot be used: /runs is no folder", "can write",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "name", "verdict", "found", "advice"), CASES.values(), ids=CASES)
def test_the_verdict_for(fields, name, verdict, found, advice):
    check = checks(**fields)[name]
    assert check.verdict == verdict, check
    assert found in check.found
    assert advice in check.advice
    assert bool(check.advice) == (verdict != OK)


def test_nothing_is_said_of_workers_that_have_told_nothing():
    found = checks(executors=[executor(python="", sparkgap="", torch="")])
    assert found["workers"].verdict == NOT_CHECKED
    assert not {"Python", "sparkgap", "torch"} & set(found)


def test_many_executors_are_counted_and_the_first_ones_named():
    found = checks(executors=[executor(number, python="", failure="broken") for number in range(40)])["nurseries"].found
    assert "executor 3 on node-3: broken and 36 more" in found
    assert "executor 4" not in found


# ---- The client ----


def the_clients(packages):
    return client_checks(Client("3.11.7", "0.1.0", packages))[1]


def test_a_client_with_all_that_pyspark_needs_is_well():
    assert the_clients(CLIENT.packages).verdict == OK


@pytest.mark.parametrize(
    ("change", "found", "advice"),
    [
        ({"pyspark-client": None}, "not installed", "pip install 'sparkgap[client]'"),
        ({"pyspark": "4.2.0"}, "pyspark 4.2.0 and pyspark-client 4.2.1, which both bring", "uninstall both"),
        ({"grpcio": None, "pandas": None}, "not what it needs: pandas, grpcio", "sparkgap[client]"),
    ],
)
def test_a_client_that_lacks_something(change, found, advice):
    packages = {name: version for name, version in {**CLIENT.packages, **change}.items() if version}
    check = the_clients(packages)
    assert check.verdict == PROBLEM
    assert found in check.found
    assert advice in check.advice


def test_a_cluster_of_one_machine_is_a_cluster():
    """Spark cuts its tasks, and lets no barrier stage run with dynamic allocation."""
    with_shares = {"settings": {GPU: "0.5"}, "executors": WITH_GPUS, "master": "local-cluster[2,2,1024]"}
    assert "each rank in a task cut for it" in checks(**with_shares)["GPUs"].found
    assert "use_gpu=True is refused" in checks(**{**with_shares, "master": "local[2]"})["GPUs"].found
    dynamic = {"settings": {"spark.dynamicAllocation.enabled": "true"}}
    assert checks(**dynamic, master="local-cluster[2,2,1024]")["training"].verdict == PROBLEM
    assert checks(**dynamic, master="local[2]")["training"].verdict == OK
