"""The verdicts of ``sparkgap doctor`` on a server: what its report means for this client, what fits, and what to do where something does not.

Nothing here asks anybody: checkup.py gathers what these functions judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sparkgap_protos.v1 import run_pb2

from sparkgap.verdicts import NOT_CHECKED, OK, PROBLEM, WARNING, Check, Client

_PACKAGE = "org.apache.spark.sql.connect.sparkgap"
_EXTENSIONS = {
    "spark.connect.extensions.command.classes": (f"{_PACKAGE}.SparkgapCommands", "training is impossible"),
    "spark.connect.extensions.expression.classes": (f"{_PACKAGE}.SparkgapExpressions", "predictions are impossible"),
}
_TRIED = ("4.2", "4.3")
_NAMED = 4


def server_checks(report: run_pb2.ServerReport, client: Client) -> list[Check]:
    """What a server's report says, in the order in which one would repair it."""
    settings = {each.key: each.value for each in report.settings}
    return [
        _spark(report, client),
        _extension(settings),
        _executors(report),
        *_nurseries(report, settings, client),
        _slots(report, settings),
        _gpus(report, settings),
        _training(report, settings),
        _prediction(report, settings),
        _runs(report, settings),
    ]


# ---- Versions and parts ----


def _spark(report: run_pb2.ServerReport, client: Client) -> Check:
    found = f"server {report.spark} on Java {report.java}, master {report.master}; client {client.pyspark or 'none'}"
    if client.pyspark and _minor(client.pyspark) != _minor(report.spark):
        advice = f"install pyspark-client {_minor(report.spark)}.* here: sparkgap is tested with the same minor version on both sides"
        return Check("Spark", WARNING, found, advice)
    if _minor(report.spark) not in _TRIED:
        return Check("Spark", WARNING, found, f"sparkgap is tested with Spark {' and '.join(_TRIED)}")
    return Check("Spark", OK, found)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _extension(settings: Mapping[str, str]) -> Check:
    lacking = [(key, *each) for key, each in _EXTENSIONS.items() if each[0] not in _listed(settings, key)]
    plugin = f"{_PACKAGE}.SparkgapPlugin"
    if plugin not in _listed(settings, "spark.plugins"):
        lacking.append(("spark.plugins", plugin, "training and predictions are impossible"))
    if not lacking:
        return Check("extension", OK, "loaded, with all its parts")
    return Check(
        "extension",
        PROBLEM,
        "; ".join(f"{key} does not name {name.rpartition('.')[2]}: {so}" for key, name, so in lacking),
        "the operator adds "
        + " and ".join(f"{name} to {key}" for key, name, _ in lacking)
        + ", and restarts the server "
        "(deploy/spark-defaults.conf)",
    )


def _listed(settings: Mapping[str, str], key: str) -> list[str]:
    return [each.strip() for each in settings.get(key, "").split(",")]


# ---- Executors ----


def _executors(report: run_pb2.ServerReport) -> Check:
    if not report.executors:
        advice = (
            "check that the cluster's workers run and have free cores and memory for spark.executor.cores and .memory"
        )
        return Check("executors", PROBLEM, "none has registered", advice)
    hosts = {each.host for each in report.executors}
    cores = sum(each.cores for each in report.executors)
    found = f"{_count(len(report.executors), 'executor')} on {_count(len(hosts), 'host')}, {_count(cores, 'core')}"
    return Check("executors", OK, found)


def _nurseries(report: run_pb2.ServerReport, settings: Mapping[str, str], client: Client) -> list[Check]:
    """Each executor's own Python, as it has said."""
    said = [each for each in report.executors if each.python]
    checks = [_started(report, settings)]
    if not said:
        return [
            *checks,
            Check("workers", NOT_CHECKED, "Python, sparkgap and torch of the executors, which none has told"),
        ]
    return [*checks, _python(said, client), _sparkgap(said, client), _torch(said)]


def _started(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    failed = [each for each in report.executors if each.failure]
    silent = [each for each in report.executors if not each.failure and not each.python]
    if failed:
        advice = (
            f"check spark.sparkgap.python ({settings.get('spark.sparkgap.python', 'not set: PYSPARK_PYTHON of the executor')}): on each "
            "node it has to be a Python with sparkgap[server]"
        )
        found = "; ".join(f"{_where(each)}: {each.failure}" for each in failed[:_NAMED]) + _more(len(failed))
        return Check("nurseries", PROBLEM, found, advice)
    if silent:
        found = f"{_count(len(silent), 'executor')} of {len(report.executors)} has not told of its nursery yet"
        advice = "ask again in some seconds; if it stays so, look into that executor's stderr: " + _places(silent)
        return Check("nurseries", WARNING, found, advice)
    if not report.executors:
        return Check("nurseries", NOT_CHECKED, "no executors")
    return Check("nurseries", OK, "one beside each executor")


def _python(said: list[run_pb2.ExecutorReport], client: Client) -> Check:
    ours = _minor(client.python)
    others = [each for each in said if each.python != ours]
    if not others:
        return Check("Python", OK, f"{ours} on both sides")
    theirs = others[0].python
    return Check(
        "Python",
        WARNING,
        f"{ours} here, {_versions(each.python for each in said)} on the workers",
        "scripts run, and functions of modules, whose source travels; functions and classes that a script or notebook defines are refused, "
        f"as bytecode needs the same minor version on both sides: for these use a client with Python {theirs}, or set spark.sparkgap.python on "
        f"the server to a Python {ours} with sparkgap[server]",
    )


def _sparkgap(said: list[run_pb2.ExecutorReport], client: Client) -> Check:
    found = _versions(each.sparkgap or "unknown" for each in said)
    if {each.sparkgap for each in said} == {client.sparkgap}:
        return Check("sparkgap", OK, f"{client.sparkgap} on both sides")
    advice = f"install one release on both sides, for example sparkgap[server]=={client.sparkgap} in the Python of the workers"
    return Check("sparkgap", WARNING, f"{client.sparkgap} here, {found} on the workers", advice)


def _torch(said: list[run_pb2.ExecutorReport]) -> Check:
    without = [each for each in said if not each.torch]
    found = {each.torch for each in said if each.torch}
    if not found:
        advice = "pip install torch into the Python of the workers, unless your code needs none"
        return Check("torch", WARNING, "not installed on the workers", advice)
    if without:
        advice = "install the same torch on all workers: a rank may start on any of them"
        return Check("torch", WARNING, f"not installed on {_places(without)}; {_versions(found)} elsewhere", advice)
    if len(found) > 1:
        advice = "install the same torch on all workers: a gang may be spread over them"
        return Check("torch", WARNING, f"{_versions(found)}, by worker", advice)
    return Check("torch", OK, f"{found.pop()} on the workers")


# ---- Room ----


def _slots(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    free = max(report.slots - report.busy_slots, 0)
    alive = "no run is alive"
    if report.active_runs:
        alive = f"{_count(report.active_runs, 'run')} of all users not ended" + (
            f", {report.queued_runs} waiting" if report.queued_runs else ""
        )
    now = f"up to {_count(free, 'CPU rank')} can start now" + (
        f", {report.slots} at most" if free < report.slots else ""
    )
    found = f"{free} of {_count(report.slots, 'task slot')} free: {now}; {alive}"
    if not report.slots:
        advice = "see executors; a task takes spark.task.cpus cores"
        if "spark.task.resource.gpu.amount" in settings:
            advice += " and spark.task.resource.gpu.amount GPUs"
        return Check("slots", PROBLEM, f"no task slots; {alive}", advice)
    if not free:
        advice = "runs wait in the queue until other work of the server has ended; `sparkgap runs` shows yours and their places"
        return Check("slots", WARNING, found, advice)
    return Check("slots", OK, found)


def _gpus(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    key = "spark.task.resource.gpu.amount"
    seen = [each for each in report.executors if each.gpus]
    number = sum(len(each.gpus) for each in seen)
    there = f"{_count(number, 'GPU')} on {_count(len(seen), 'executor')}"
    share = _number(settings.get(key, ""))
    cut = not _runs_in_the_driver(report.master)  # Spark can cut tasks of other sizes for a run
    if share is None and not number:
        return Check("GPUs", OK, f"none, and {key} is not set: pass use_gpu=False, use_gpu=True is refused")
    if not number:
        advice = "set spark.executor.resource.gpu.amount and .discoveryScript, and look for their errors in the executors' logs"
        return Check("GPUs", PROBLEM, f"{key} is {share:g}, but no executor has a GPU: no task can start", advice)
    whole = share is not None and share >= 1 and share == int(share)
    if not whole and not cut:
        found = f"{key} is not set" if share is None else f"{share:g} a task"
        advice = f"set {key} to a whole number, 1 as a rule: a rank needs whole GPUs"
        return Check("GPUs", WARNING, f"{there}, {found}: use_gpu=True is refused", advice)
    ranks = report.slots * int(share) if whole and share is not None else number
    together = max(len(each.gpus) for each in seen) if cut or share is None else int(share)
    size = f"{share:g} a task" if whole else "each rank in a task cut for it"
    trains = f"use_gpu=True trains with up to {_count(ranks, 'rank')}, up to {together} with local_mode=True"
    return Check("GPUs", OK, f"{there}, {size}: {trains}")


def _runs_in_the_driver(master: str) -> bool:
    """Spark's own way to tell; ``local-cluster[…]`` has executors."""
    return master == "local" or master.startswith("local[")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# ---- Settings ----


def _training(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    found, advice = [], []
    # Spark itself ignores dynamic allocation on a local master.
    if _true(settings, "spark.dynamicAllocation.enabled") and not _runs_in_the_driver(report.master):
        found.append(
            "spark.dynamicAllocation.enabled is true, with which Spark runs no barrier stage: training is refused"
        )
        advice.append("set it to false and give the server a fixed number of executors (spark.executor.instances)")
    if _true(settings, "spark.ssl.enabled") and not _true(settings, "spark.sparkgap.ignoreSsl"):
        found.append("spark.ssl.enabled promises encryption, which ranks do not have between them: training is refused")
        advice.append("set spark.sparkgap.ignoreSsl to true to train without it")
    if found:
        return Check("training", PROBLEM, "; ".join(found), "; ".join(advice))
    return Check("training", OK, "no setting is against it")


def _prediction(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    rules = f"{_PACKAGE}.SparkgapRules"
    way = "predictions go through Spark's Python workers, with the same results and more slowly"
    if rules not in _listed(settings, "spark.sql.extensions"):
        advice = f"add {rules} to spark.sql.extensions"
        return Check("prediction", WARNING, f"spark.sql.extensions does not name SparkgapRules: {way}", advice)
    if settings.get("spark.sparkgap.predict.direct", "").lower() == "false":
        advice = "leave it out, or set it to true in the session"
        return Check("prediction", WARNING, f"spark.sparkgap.predict.direct is false: {way}", advice)
    if report.session_files:
        advice = "use a session without files of its own, if that matters"
        return Check("prediction", WARNING, f"this session has files or Python files of its own: {way}", advice)
    return Check("prediction", OK, "straight from Spark's tasks to the model")


def _true(settings: Mapping[str, str], key: str) -> bool:
    return settings.get(key, "").strip().lower() == "true"


def _runs(report: run_pb2.ServerReport, settings: Mapping[str, str]) -> Check:
    directory = settings.get("spark.sparkgap.runs.dir", "")
    if report.runs_dir_problem:
        advice = (
            "give the server's user a directory there that it can write, or set spark.sparkgap.runs.dir to another one"
        )
        return Check("runs", PROBLEM, f"{directory} cannot be used: {report.runs_dir_problem}", advice)
    if directory:
        return Check("runs", OK, f"outlive the server, in {directory}")
    found = "spark.sparkgap.runs.dir is not set: runs, their logs and values end with the server"
    if report.master.startswith("local"):
        return Check("runs", OK, found)
    return Check("runs", WARNING, found, "set it to a directory on a filesystem that Hadoop knows (hdfs:, s3a:, file:)")


# ---- Words ----


def _where(executor: run_pb2.ExecutorReport) -> str:
    return f"executor {executor.id} on {executor.host}"


def _places(executors: list[run_pb2.ExecutorReport]) -> str:
    return ", ".join(_where(each) for each in executors[:_NAMED]) + _more(len(executors))


def _more(number: int) -> str:
    return f" and {number - _NAMED} more" if number > _NAMED else ""


def _versions(found: Iterable[str]) -> str:
    return " and ".join(sorted(set(found)))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
