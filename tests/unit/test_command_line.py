"""The command `sparkgap` without a server: its arguments, its tables, and servers that are none."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from sparkgap import channel, checkup, cli, commands, tables, verdicts
from sparkgap.errors import PlanError, UnreachableError
from sparkgap_protos.v1 import run_pb2


@pytest.fixture(autouse=True)
def no_server_is_named(monkeypatch):
    monkeypatch.delenv("SPARK_REMOTE", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)


def ended(*arguments):
    """Exit status, or the text that is said with status 1."""
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments])
    return end.value.code


# ---- Arguments ----


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["logs"], "required: RUN"),
        (["cancel"], "required: RUN"),
        (["runs", "--state", "happy"], "invalid choice: 'HAPPY'"),
        (["runs", "--limit", "0"], "'0' is no whole number from 1 on"),
        (["logs", "x", "--rank", "-1"], "'-1' is no whole number"),
        (["logs", "x", "--since", "yesterday"], "'yesterday' is neither a time such as"),
        (["doctor", "--try", "two"], "'two' is no whole number"),
    ],
)
def test_wrong_usage_is_status_2(arguments, words, capsys):
    assert ended(*arguments) == 2
    assert words in capsys.readouterr().err


def test_the_version(capsys):
    assert ended("--version") == 0
    assert capsys.readouterr().out.startswith("sparkgap 0.")


@pytest.mark.parametrize("command", [["runs"], ["logs", "x"], ["cancel", "x"]])
def test_without_a_server_the_variable_is_named(command):
    assert ended(*command).startswith("sparkgap: which server? Set SPARK_REMOTE")


def test_the_doctor_without_a_server_looks_at_the_client(capsys):
    assert ended("doctor") == 1
    out = capsys.readouterr().out
    assert "no server is named" in out
    assert f"Python {sys.version.split()[0]}" in out


@pytest.mark.parametrize("arguments", [["--remote", "sc://a", "runs"], ["runs", "--remote", "sc://a"]])
def test_the_server_is_named_before_or_behind_the_command(arguments):
    assert cli._parser().parse_args(arguments).remote == "sc://a"


def test_a_span_or_a_time():
    now = datetime.now(timezone.utc)
    assert timedelta(minutes=9, seconds=50) < now - cli._since("10m") < timedelta(minutes=10, seconds=10)
    assert cli._since("2026-01-31T09:30Z") == datetime(2026, 1, 31, 9, 30, tzinfo=timezone.utc)
    assert cli._since("2026-01-31") == datetime(2026, 1, 31).astimezone()


def test_help_does_not_wait_for_pyspark():
    command = [sys.executable, "-X", "importtime", "-m", "sparkgap", "logs", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Ctrl-C leaves it alone" in " ".join(done.stdout.split())
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "sparkgap" in loaded
    assert not {"pyspark", "pandas", "numpy", "grpc"} & loaded


# ---- Servers that are none ----


@pytest.mark.parametrize(
    "url",
    ["http://a:1", "sc://:1", "sc://a:port", "sc://a/;token", "sc://a/;token=secret=x", "sc://a/token=secret", "a"],
)
def test_a_malformed_url_is_refused_without_its_token(url):
    with pytest.raises(PlanError, match="is none of Spark Connect: write sc://HOST") as error, channel.connection(url):
        pass
    assert "secret" not in str(error.value)


def test_a_port_where_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and no listen
        port = taken.getsockname()[1]
        with pytest.raises(UnreachableError) as error, channel.connection(f"sc://127.0.0.1:{port}"):
            pass
    assert f"no server can be reached at 127.0.0.1:{port} (" in error.value.found
    assert "Connection refused" in error.value.found


def test_a_port_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"sc://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=r"does not answer within 0\.5 s"), channel.connection(url, 0.5):
            pass


# ---- Tables ----


def test_a_table_has_columns_and_its_last_one_is_cut():
    rows = [("a", "first", "short"), ("abcdef", "", "a long reason that goes on")]
    assert tables.table(("id", "name", "reason"), rows, 30) == (
        "id      name   reason\na       first  short\nabcdef         a long reason …\n"
    )
    assert tables.table(("id", "reason"), [("a", "x" * 500)]).splitlines()[1] == "a   " + "x" * 500


def test_a_cell_is_one_line_that_no_terminal_obeys():
    assert tables.plain("two\nlines\t\x1b[31mred") == "two lines ?[31mred"


def test_made_up_ids_are_shortened_as_far_as_they_differ():
    assert tables.short_ids(["0123456789abcdef" * 2, "0123456789abc000" * 2, "my-own-run"]) == [
        "0123456789abcd", "0123456789abc0", "my-own-run",
    ]  # fmt: skip
    assert tables.short_ids(["f" * 32]) == ["f" * 8]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (2.46, "2.5 s"), (-0.01, "0.0 s"), (185, "3:05"), (97209, "27:00:09")]
)
def test_a_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_files_are_not_cut_and_columns_are(monkeypatch):
    assert tables.terminal_width() is None
    monkeypatch.setenv("COLUMNS", "77")
    assert tables.terminal_width() == 77


# ---- Runs ----


@pytest.fixture
def listed(monkeypatch, capsys):
    """`listed(statuses, *arguments)` is what `sparkgap runs` prints for these runs."""

    def show(statuses, states=(), limit=None, as_json=False):
        monkeypatch.setattr(commands, "_statuses", lambda session: statuses)
        assert commands.list_runs(None, states, limit, as_json) == 0
        return capsys.readouterr().out.splitlines()

    return show


WAITING = run_pb2.RunStatus(
    run_id="w", name="resnet", state=run_pb2.QUEUED, num_processes=4, submitted_at=1_700_000_000_000_000,
    queue_position=2, waiting_for="4 task slots",
)  # fmt: skip
FAILED = run_pb2.RunStatus(
    run_id="f", name="bert", state=run_pb2.FAILED, num_processes=2, attempt=1, submitted_at=1_700_000_000_000_000,
    started_at=1_700_000_001_000_000, ended_at=1_700_000_003_500_000, reason="rank 0 failed:\nValueError",
)  # fmt: skip


def test_runs_with_their_place_in_the_queue_or_their_reason(listed):
    head, waiting, failed = listed([WAITING, FAILED])
    assert head.split() == ["id", "name", "state", "submitted", "duration", "ranks", "attempts", "reason"]
    assert waiting.split()[:3] == ["w", "resnet", "QUEUED"]
    assert waiting.endswith("4      1         place 2 in the queue: 4 task slots")
    assert failed.endswith("2.5 s     2      2         rank 0 failed: ValueError")


def test_runs_in_a_terminal_of_80_columns(listed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = {"name": "a name that nobody would read", "reason": "a reason " * 10}
    plain = run_pb2.RunStatus(run_id="f" * 32, state=run_pb2.SUCCEEDED, num_processes=64, **long)
    head, line = listed([plain])
    assert head.split() == ["id", "name", "state", "submitted", "duration", "ranks", "reason"]
    assert line.startswith("ffffffff  a name that nob…  SUCCEEDED  ")
    assert len(line) == 80
    assert "attempts" in listed([plain, FAILED])[0]


def test_runs_by_state_and_number(listed):
    assert [line.split()[0] for line in listed([WAITING, FAILED], states=["FAILED"])] == ["id", "f"]
    assert [line.split()[0] for line in listed([WAITING, FAILED], limit=1)] == ["id", "w"]


def test_runs_as_json():
    fields = commands.run_fields(FAILED)
    assert (fields["id"], fields["state"], fields["attempts"], fields["seconds"]) == ("f", "FAILED", 2, 2.5)
    assert fields["ended"] == "2023-11-14T22:13:23.500000+00:00"
    fields = commands.run_fields(WAITING)
    assert (fields["queue_position"], fields["waiting_for"], fields["started"]) == (2, "4 task slots", None)


# ---- The doctor's page ----


def test_the_doctor_prints_advice_below_what_it_found(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    checkup._print(
        [
            verdicts.Check("slots", verdicts.OK, "4 of 4"),
            verdicts.Check(
                "torch",
                verdicts.WARNING,
                "not installed on the workers",
                "pip install torch there, unless none needs it",
            ),
        ]
    )
    assert capsys.readouterr().out.splitlines() == [
        "ok           slots  4 of 4",
        "warning      torch  not installed on the workers",
        "                    → pip install torch there, unless none",
        "                      needs it",
        "",
        "1 warning.",
    ]
