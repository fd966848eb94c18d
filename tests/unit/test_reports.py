"""A rank's reports on their way to its keeper: several to an event, at a bounded rate, the newest always, and what was left out counted."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from itertools import pairwise

import pandas as pd
import pytest
from sparkgap import metrics, training
from sparkgap_protos import reporting
from sparkgap_protos.v1 import node_pb2, run_pb2
from sparkgap_server import wire
from sparkgap_server.train import reports
from sparkgap_server.train.reports import Reporter


@pytest.fixture
def keeper(monkeypatch):
    """The other end of a rank's channel; `training.report` writes into it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.settimeout(30)
    monkeypatch.setattr(reporting, "sink", Reporter(node_pb2.RankPlacement(rank=3, attempt=2), ours))
    yield theirs
    reporting.sink.finish()
    ours.close()
    theirs.close()


def next_event(keeper):
    frame = wire.receive(keeper)
    assert frame.kind == node_pb2.EVENT
    return run_pb2.RunEvent.FromString(frame.body)


def all_events(keeper, until):
    """What has been sent, up to the report of this step."""
    found = [next_event(keeper)]
    while found[-1].metrics.step != until:
        found.append(next_event(keeper))
    return found


def all_steps(events):
    return [step for event in events for _, step, _ in metrics.reports_of(event)]


def all_dropped(events):
    return sum(event.metrics.dropped for event in events)


def test_a_report_goes_out_at_once(keeper):
    training.report(1, 3, loss=0.5)
    event = next_event(keeper)
    assert (event.rank, event.attempt) == (3, 2)
    assert event.metrics == run_pb2.Metrics(step=1, total=3, values={"loss": 0.5})


def test_two_thousand_reports_a_second_all_arrive(keeper):
    """As the ranks of a run give them: at their pace, while nobody waits for the courier."""
    told, began = 0, time.monotonic()
    while told < 5_000:
        while told < 5_000 and told < 2_000 * (time.monotonic() - began):
            told += 1
            training.report(told, 5_000, loss=1 / told, rate=0.1)
        time.sleep(0.001)
    sent = all_events(keeper, until=5_000)
    assert all_steps(sent) == list(range(1, 5_001))
    assert all_dropped(sent) == 0
    assert len(sent) < 500, "several travel together"
    found = [report for event in sent for report in metrics.reports_of(event)]
    assert [values for _, _, values in found] == [{"loss": 1 / step, "rate": 0.1} for step in range(1, 5_001)]
    times = [when for when, _, _ in found]
    assert times == sorted(times)


def test_reports_that_wait_go_out_together(keeper):
    names = [{"loss": 0.5}, {"loss": math.nan, "accuracy": 0.25}, {}, {"loss": 0.125}]
    for step, values in zip([7, 2**63 - 1, -(2**63) + 1, 10], names, strict=True):
        training.report(step, 20 if step == 7 else None, **values)
    first, second = all_events(keeper, until=10)
    assert metrics.reports_of(first)[0][1:] == (7, {"loss": 0.5})
    together = [report[1:] for report in metrics.reports_of(second)]
    assert repr(together) == repr([(2**63 - 1, names[1]), (-(2**63) + 1, {}), (10, {"loss": 0.125})])
    assert metrics.table([first, second])["step"].tolist() == [7, 2**63 - 1, -(2**63) + 1, 10]
    assert metrics.table([first, second])["total"].tolist() == [20, pd.NA, pd.NA, pd.NA]


@pytest.mark.parametrize("count", [20_000, 300_001])
def test_a_hot_loop_is_thinned_evenly_counted_and_ends_with_its_last_report(keeper, monkeypatch, count):
    monkeypatch.setattr(reports, "PAUSE", 1e6)
    for step in range(1, count + 1):
        training.report(step, loss=1 / step)
    reporting.sink.finish()
    sent = all_events(keeper, until=count)
    steps = all_steps(sent)
    assert len(steps) + all_dropped(sent) == count
    assert reports.BURST / 2 < len(steps) <= reports.BURST + 1
    assert len({later - earlier for earlier, later in pairwise(steps[1:-1])}) == 1


def test_a_hot_loop_that_goes_on_is_bounded_and_its_last_report_arrives_without_an_end(keeper):
    step, began = 0, time.monotonic()
    while time.monotonic() - began < 1:
        for _ in range(1000):
            step += 1
            training.report(step, loss=1 / step)
    sent = all_events(keeper, until=step)
    seconds = time.monotonic() - began
    assert len(all_steps(sent)) + all_dropped(sent) == step
    assert len(all_steps(sent)) <= 2 * reports.BURST + seconds * reports.RATE


def test_the_end_of_a_rank_sends_what_waits(keeper, monkeypatch):
    monkeypatch.setattr(reports, "PAUSE", 1e6)
    for step in range(1, 202):
        training.report(step)
    reporting.sink.finish()
    assert all_steps(all_events(keeper, until=201)) == list(range(1, 202))
    training.report(202)  # exit handlers may still call it
    keeper.setblocking(False)
    with pytest.raises(BlockingIOError):
        keeper.recv(1)


def test_a_keeper_that_does_not_read_holds_nobody_up(keeper):
    for step in range(1, 200_001):
        training.report(step, **{f"long name {step % 100} " * 100: 1.0})
    sent = all_events(keeper, until=200_000)
    assert len(all_steps(sent)) + all_dropped(sent) == 200_000


def test_a_name_that_no_message_can_hold_takes_nobody_along(keeper):
    for step, name in enumerate(["loss", "\ud800", "loss"], start=1):
        training.report(step, **{name: 1.0})
    sent = all_events(keeper, until=3)
    assert (all_steps(sent), all_dropped(sent)) == ([1, 3], 1)


def test_a_signal_handler_may_report_in_the_midst_of_a_report(keeper):
    def report_too(*_):
        training.report(0)

    before = signal.signal(signal.SIGALRM, report_too)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    try:
        for step in range(1, 100_001):
            training.report(step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    training.report(100_001)
    sent = all_events(keeper, until=100_001)
    steps = [step for step in all_steps(sent) if step]
    assert steps == sorted(steps)


def test_threads_may_report_side_by_side(keeper):
    def report_often(first):
        for step in range(first, first + 1000):
            training.report(step)

    threads = [threading.Thread(target=report_often, args=(1000 * number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    training.report(4000)
    sent = all_events(keeper, until=4000)
    assert len(all_steps(sent)) + all_dropped(sent) == 4001


def test_a_forked_process_says_nothing(keeper):
    pid = os.fork()
    if pid == 0:
        training.report(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    training.report(2)
    assert next_event(keeper).metrics.step == 2


def test_a_keeper_that_is_gone_is_no_error(keeper):
    keeper.close()
    training.report(1)
    training.report(2)


@pytest.mark.parametrize("name", reporting.COLUMNS)
def test_a_metric_may_not_have_the_name_of_another_column(keeper, name):
    if name in ("step", "total"):
        return  # Python itself refuses these
    with pytest.raises(ValueError, match=rf"a metric cannot be called '{name}', .*: choose another name"):
        training.report(1, **{name: 1.0})


def test_a_figure_that_is_no_number_is_named(keeper):
    with pytest.raises(TypeError, match=r"the metric 'loss' has to be a number, got a list: "):
        training.report(1, accuracy=0.5, loss=[1])
    with pytest.raises(ValueError, match=r"step and total are counts of at most \d+, got 1\d+ and None"):
        training.report(10**30)
