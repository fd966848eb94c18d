"""What a client shows of a run: lines, progress in terminals, and the view of notebooks."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest
from sparkgap import progress, view
from sparkgap.logs import Cursor, Loss
from sparkgap.progress import Console, plain
from sparkgap_protos.v1 import run_pb2


def reported(step, total=0, rank=0, attempt=0, seconds=0.0, **values):
    report = run_pb2.Metrics(step=step, total=total, values=values)
    return run_pb2.RunEvent(rank=rank, attempt=attempt, time=int(seconds * 1e6), metrics=report)


def printed(*lines, rank=0, stream=run_pb2.LogLines.STDOUT, dropped=0):
    return run_pb2.RunEvent(rank=rank, log=run_pb2.LogLines(stream=stream, lines=lines, dropped=dropped))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


def shown(*events):
    with Console() as console:
        for event in events:
            console.event(event)


def shown_in_a_terminal(*events):
    """What a terminal gets; set here, as pytest exchanges the streams between a fixture and its test."""
    with contextlib.redirect_stderr(Terminal()) as out:
        shown(*events)
    return out.getvalue()


# ---- In terminals ----


def test_a_bar_shows_step_rate_time_to_go_and_figures():
    last = shown_in_a_terminal(reported(1, 10, loss=0.5), reported(7, 10, loss=0.25), printed("hello")).split("\r")[-1]
    assert last.startswith("rank 0:  70%|")
    assert "7/10 [" in last
    assert "step/s" in last or "s/step" in last
    assert "loss=0.25" in last


def test_the_bar_follows_the_lowest_rank_and_begins_anew_with_an_attempt():
    text = shown_in_a_terminal(
        reported(5, rank=2), reported(6, rank=1), reported(9, rank=2), reported(1, rank=1, attempt=1)
    )
    older, newer = text.rstrip("\n").split("\n")  # rank 2's bar made room for rank 1's
    assert older.split("\r")[-1].startswith("rank 1: 6step")
    assert newer.split("\r")[-1].startswith("rank 1: 1step")


def test_without_tqdm_a_terminal_gets_plain_lines(without_tqdm, monkeypatch):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    text = shown_in_a_terminal(
        reported(100, 200, seconds=50, loss=0.5),
        reported(110, 200, seconds=55, loss=0.25),
        reported(200, 200, seconds=60),
    )
    assert text.splitlines() == [
        "[sparkgap] step 100/200 (50%), loss 0.5",
        "[sparkgap] step 110/200 (55%), 2.0 steps/s, 0:45 to go, loss 0.25",
        "[sparkgap] step 200/200 (100%), 10.0 steps/s",
    ]


def test_hours_to_go_are_hours():
    assert plain(run_pb2.Metrics(step=1, total=3601), 1, 2.0) == "step 1/3601 (0%), 0.5 steps/s, 2:00:00 to go"
    assert plain(run_pb2.Metrics(step=3), 2, 1.0) == "step 3, 2.0 steps/s"


@pytest.mark.parametrize("tqdm", [True, False])
def test_where_nobody_watches_only_lines_are_shown(capsys, monkeypatch, tqdm):
    if not tqdm:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    shown(
        reported(1, 2, loss=1.0),
        printed("one", "two"),
        reported(2, 2),
        printed("err", rank=1, stream=run_pb2.LogLines.STDERR),
    )
    assert capsys.readouterr() == ("[rank 0] one\n[rank 0] two\n", "[rank 1] err\n")


def test_dropped_lines_are_said(capsys):
    shown(printed("after", dropped=7))
    out, err = capsys.readouterr()
    assert out == "[rank 0] after\n"
    assert err == "[rank 0] … 7 lines were dropped: printed faster than the cluster takes\n"


def test_events_that_the_server_has_forgotten_are_said(capsys):
    with Console() as console:
        console.lost(Loss(7, 345_000))
        console.lost(Loss(7, None))
        console.lost(Loss(7, 0))
    assert [line.split(" came faster")[0] for line in capsys.readouterr().err.splitlines()] == [
        "[sparkgap] … 345000 lines",
        "[sparkgap] … 7 events (lines and reports)",
    ]


def test_why_a_run_has_not_started_is_said(capsys):
    status = run_pb2.RunStatus(name="digits", queue_position=2, waiting_for="1 task slot; <the cluster> has 2")
    with Console() as console:
        console.waits(status)
        status.queue_position = 0
        console.waits(status)
    needs = "it needs 1 task slot; <the cluster> has 2\n"
    assert capsys.readouterr().err == (
        f"[sparkgap] digits waits at position 2 of the queue; {needs}[sparkgap] digits waits for its turn in Spark; {needs}"
    )
    assert "waits for its turn in Spark; it needs 1 task slot; &lt;the cluster&gt; has 2</div>" in view.page(status, [])


def page(upto, line, *events, dropped=0):
    return run_pb2.RunEvents(
        next_sequence=upto, next_line=line, dropped=dropped, events=[run_pb2.RunEvent(log=each) for each in events]
    )


def test_a_reader_knows_how_many_lines_it_misses():
    cursor = Cursor()
    assert cursor.advance(page(1, 5, run_pb2.LogLines(lines=["a", "b"], dropped=3))) is None
    assert cursor.sequence == 1
    assert cursor.advance(page(10, 26, run_pb2.LogLines(lines=["z"]), dropped=8)) == Loss(8, 20)
    assert cursor.advance(page(10, 26)) is None
    assert cursor.advance(page(11, 30, run_pb2.LogLines(lines=["!"]))) == Loss(0, 3), (
        "the server only knows how many events are lost in all"
    )


def test_a_reader_that_begins_in_the_middle_does_not():
    cursor = Cursor(5)
    assert cursor.advance(page(9, 25, dropped=4)) == Loss(4, None)
    assert cursor.advance(page(12, 30, dropped=3)) == Loss(3, 5)
    assert cursor.advance(run_pb2.RunEvents(next_sequence=20, dropped=8)) == Loss(8, None)
    assert cursor.sequence == 20


# ---- In notebooks ----


def test_a_notebook_sees_state_ranks_figures_and_last_lines():
    status = run_pb2.RunStatus(
        run_id="run-1",
        name="digits",
        state=run_pb2.RUNNING,
        num_processes=2,
        attempt=1,
        max_failures=3,
        started_at=1_700_000_000_000_000,
    )
    html = view.page(
        status, [reported(1, 10, loss=0.5), reported(2, 10, loss=0.25), reported(2, rank=1), printed("epoch 1")]
    )
    for part in (
        "<b>digits</b>",
        "RUNNING",
        "<code>run-1</code>",
        "2 ranks, attempt 2 of at most 4, since 2023-11-14 22:13:20 UTC",
    ):
        assert part in html
    for cell in ("2/10", "0.25", "loss", "rank"):
        assert f">{cell}</t" in html
    assert "0.5" not in html
    assert "[rank 0] epoch 1" in html


def test_whatever_a_rank_or_user_says_is_escaped():
    bad = "<script>alert('&')</script>"
    failure = run_pb2.RankFailure(rank=0, host=bad, exception=bad, message=bad)
    status = run_pb2.RunStatus(run_id=bad, name=bad, state=run_pb2.FAILED, reason=bad, failures=[failure])
    html = view.page(status, [reported(1, **{bad: 1.0}), printed(bad)])
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)") == 8


def test_a_view_is_short_whatever_the_run_is():
    status = run_pb2.RunStatus(run_id="run-1", state=run_pb2.RUNNING, num_processes=10_000)
    html = view.page(
        status, [reported(1, rank=rank, loss=1.0) for rank in range(10_000)] + [printed("x" * 60_000)] * 100
    )
    assert len(html) < 10_000
    assert "and 9984 more" in html
    assert view.page(run_pb2.RunStatus(), [])
