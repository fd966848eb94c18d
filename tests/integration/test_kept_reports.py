"""What the driver keeps of a run's reports, without a server: its log of events is fed with generated ones, more than it has room for."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sparkgap import metrics
from sparkgap_protos.reporting import Report
from sparkgap_protos.v1 import node_pb2, run_pb2
from sparkgap_server.java import find_java
from sparkgap_server.shim import shim_jar, spark_home
from sparkgap_server.train import reports

pytestmark = pytest.mark.timeout(170)

MEBI = 1 << 20


@dataclass(frozen=True)
class Left:
    """What is left of the events, and what the log says of them."""

    events: list[run_pb2.RunEvent]
    lost: int
    bytes: int

    def table(self, rank=0):
        found = metrics.table(self.events)
        return found[found["rank"] == rank].reset_index(drop=True)


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """`keep(events, max_bytes)` is what the driver's log has left of them."""
    folder = tmp_path_factory.mktemp("events")
    classpath = ":".join([str(shim_jar()), *map(str, sorted((spark_home() / "jars").glob("*.jar")))])
    arguments = folder / "arguments"
    arguments.write_text(
        f"-nowarn -classpath {classpath} -d {folder / 'keep.jar'} {Path(__file__).parent / 'events' / 'KeepEvents.scala'}"
    )
    run_java("-cp", f"{spark_home()}/jars/*", "scala.tools.nsc.Main", f"@{arguments}")

    def keep(events, max_bytes=MEBI):
        (folder / "in").write_bytes(b"".join(struct.pack(">I", len(each)) + each for each in map(serialized, events)))
        told = run_java(
            "-cp", f"{folder / 'keep.jar'}:{shim_jar()}:{spark_home()}/jars/*",
            "org.apache.spark.sql.connect.sparkgap.KeepEvents", str(max_bytes), str(folder / "in"), str(folder / "out"),
        )  # fmt: skip
        count, lost, size, micros, longest = told.split()
        print(
            f"{count} events, {float(micros):.0f} µs of CPU each in the log, {float(longest):.0f} µs at most",
            file=sys.stderr,
        )
        return Left(list(events_of((folder / "out").read_bytes())), int(lost), int(size))

    return keep


def run_java(*arguments):
    done = subprocess.run([str(find_java()), *arguments], capture_output=True, text=True, timeout=160, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def serialized(event):
    return event.SerializeToString()


def events_of(data):
    while data:
        (length,) = struct.unpack(">I", data[:4])
        yield run_pb2.RunEvent.FromString(data[4 : 4 + length])
        data = data[4 + length :]


def event_of(steps, values, rank=0, attempt=0, dropped=0):
    """As a rank sends it; `values` gives the figures of a step."""
    batch = [(Report(step, 10**7, values(step)), 1_700_000_000 * 10**9 + step * 500_000) for step in steps]
    return reports._event(node_pb2.RankPlacement(rank=rank, attempt=attempt), batch, dropped)


def curve(steps, values, together=200, **more):
    return [
        event_of(range(first, min(first + together, steps + 1)), values, **more)
        for first in range(1, steps + 1, together)
    ]


def loss(step):
    """Falls slowly, with two spikes and a hole, each of one step."""
    return {
        "loss": {70_001: 50.0, 150_003: -30.0, 320_007: 99.0}.get(step, 1 / step + math.sin(step / 5_000)),
        "rate": 0.1,
    }


def test_what_there_is_room_for_is_kept_as_it_came(keep):
    left = keep(curve(10_000, loss))
    table = left.table()
    assert table["step"].tolist() == list(range(1, 10_001))
    assert table["loss"].tolist() == [loss(step)["loss"] for step in range(1, 10_001)]
    assert (left.lost, table.attrs) == (0, {"dropped": 0, "thinned": 0})


def test_a_long_curve_is_thinned_evenly_in_its_past_and_keeps_its_newest_and_its_extremes(keep):
    steps = 400_000
    left = keep(curve(steps, loss))
    table = left.table()
    assert left.bytes <= MEBI // 2
    assert left.lost == 0
    assert len(table) + table.attrs["thinned"] == steps
    assert table["step"].is_monotonic_increasing
    assert table["step"].tolist()[-5_000:] == list(range(steps - 4_999, steps + 1)), "the newest are all there"
    for step in (70_001, 150_003, 320_007):
        assert table.set_index("step").loc[step, "loss"] == loss(step)["loss"]
    # Even: of any two windows of equal length in the older half, neither has more than some four times the reports of the other.
    counts, _ = np.histogram(table["step"], bins=np.arange(0, steps // 2 + 1, 20_000))
    assert counts.min() > 100
    assert counts.max() <= 4.5 * counts.min()
    drawn = np.interp(np.arange(1, steps, 1000), table["step"], table["loss"])
    expected = [loss(step)["loss"] for step in range(1, steps, 1000)]
    assert np.median(np.abs(drawn - expected)) < 0.01


def test_slow_reports_that_come_one_to_an_event_are_put_together(keep):
    left = keep(curve(20_000, loss, together=1), 64 * MEBI)
    assert left.table()["step"].tolist() == list(range(1, 20_001))
    assert left.lost == 0
    assert len(left.events) < 5_000


def test_eight_ranks_share_the_room_and_a_slow_one_keeps_what_it_said(keep):
    fast = [curve(100_000, loss, rank=rank) for rank in range(8)]
    slow = curve(50, lambda step: {"validation": float(step)}, together=1, rank=8)
    woven = []
    for at, turn in enumerate(zip(*fast, strict=True)):
        woven += turn
        if at % 10 == 0:
            woven.append(slow[at // 10])
    left = keep(woven, 2 * MEBI)
    assert left.lost == 0
    for rank in range(8):
        table = left.table(rank)
        assert table["step"].iloc[-1] == 100_000
        assert table["loss"].max() == 50.0
        assert 2_000 < len(table) < 20_000
    assert left.table(8)["validation"].tolist() == [float(step) for step in range(1, 51)]


def test_attempts_are_curves_of_their_own_and_what_ranks_left_out_stays_counted(keep):
    left = keep([*curve(100_000, loss, dropped=3), *curve(100_000, loss, attempt=1)])
    table = left.table()
    assert table.groupby("attempt")["loss"].max().tolist() == [50.0, 50.0]
    assert table.attrs["dropped"] == 3 * 500
    assert len(table) + table.attrs["thinned"] == 200_000


def test_a_hundred_metrics_keep_their_extremes(keep):
    def many(step):
        return {f"layer {layer}": 1e6 if step == 7 + 100 * layer else math.sin(step + layer) for layer in range(100)}

    table = keep(curve(20_000, many, together=50), 16 * MEBI).table()
    assert 0 < len(table) < 15_000
    assert (table[[f"layer {layer}" for layer in range(100)]].max() == 1e6).all()


def test_nan_and_missing_figures_come_through(keep):
    def sparse(step):
        return {"loss": math.nan} if step % 3 == 0 else {"accuracy": math.inf} if step % 3 == 1 else {}

    left = keep(curve(300_000, sparse))
    values = [found for event in left.events for _, _, found in metrics.reports_of(event)]
    assert {repr(sorted(each.items())) for each in values} == {"[('loss', nan)]", "[('accuracy', inf)]", "[]"}


def test_lines_make_room_and_are_counted_while_reports_and_failures_stay(keep):
    started = run_pb2.RunEvent(started=run_pb2.RankStarted(host="node-1"))
    printed = [run_pb2.RunEvent(log=run_pb2.LogLines(lines=["x" * 1000] * 20)) for _ in range(200)]
    woven = [
        started,
        *(event for pair in zip(curve(20_000, loss, together=100), printed, strict=True) for event in pair),
    ]
    left = keep(woven)
    table = left.table()
    assert table["step"].tolist() == list(range(1, 20_001))
    assert left.events[0].started.host == "node-1"
    lines = sum(1 for event in left.events if event.HasField("log"))
    assert 0 < lines < 200
    assert left.lost == 200 - lines


def test_a_small_room_is_enough(keep):
    left = keep(curve(20_000, loss, together=7), 2_000)
    assert left.bytes <= 1_000
    assert left.table()["step"].iloc[-1] == 20_000


def test_columns_that_do_not_fit_together_harm_nobody(keep):
    broken = run_pb2.RunEvent(
        rank=1,
        metrics=run_pb2.Metrics(
            step=1, earlier=run_pb2.EarlierReports(
                steps=[1, 2, 3], times=[1], totals=[5] * 9,
                metrics=[
                    run_pb2.MetricColumn(name="a", values=[1.0] * 9),
                    run_pb2.MetricColumn(name="b", values=[1.0], reports=[2**32 - 1]),
                ],
            ),
        ),
    )  # fmt: skip
    left = keep([broken, *curve(100_000, loss), broken, *curve(100_000, loss)])
    assert left.table()["step"].iloc[-1] == 100_000
