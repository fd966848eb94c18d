"""A rank's reports on their way to its keeper: at a bounded rate, the newest always, and what was left out counted."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from sparkgap import training
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


def all_metrics(keeper, until):
    """What has been sent, up to the report of this step."""
    found = [next_event(keeper).metrics]
    while found[-1].step != until:
        found.append(next_event(keeper).metrics)
    return found


def test_a_report_goes_out_at_once(keeper):
    training.report(1, 3, loss=0.5)
    event = next_event(keeper)
    assert (event.rank, event.attempt) == (3, 2)
    assert event.metrics == run_pb2.Metrics(step=1, total=3, values={"loss": 0.5})


def test_a_hot_loop_is_thinned_counted_and_ends_with_its_last_report(keeper):
    for step in range(1, 20_001):
        training.report(step, loss=1 / step)
    sent = all_metrics(keeper, until=20_000)  # without finish: the rank may go on to something else
    assert len(sent) + sum(each.dropped for each in sent) == 20_000
    assert [each.step for each in sent[:100]] == list(range(1, 101))
    assert len(sent) < 2_000
    assert sent[-1].values["loss"] == 1 / 20_000


def test_the_end_of_a_rank_sends_what_waits(keeper, monkeypatch):
    monkeypatch.setattr(reports, "RATE", 1e-3)
    for step in range(1, 202):
        training.report(step)
    reporting.sink.finish()
    sent = all_metrics(keeper, until=201)
    assert [each.step for each in sent] == [*range(1, 101), 201]
    assert sent[-1].dropped == 100
    training.report(202)  # exit handlers may still call it
    keeper.setblocking(False)
    with pytest.raises(BlockingIOError):
        keeper.recv(1)


def test_a_keeper_that_does_not_read_holds_nobody_up(keeper, monkeypatch):
    monkeypatch.setattr(reports, "BURST", 1e9)
    reporting.sink._places = 1e9
    for step in range(1, 20_001):
        training.report(step, **{"long name " * 100: 1.0})
    sent = all_metrics(keeper, until=20_000)
    assert len(sent) + sum(each.dropped for each in sent) == 20_000


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
    sent = all_metrics(keeper, until=4000)
    assert len(sent) + sum(each.dropped for each in sent) == 4001


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
