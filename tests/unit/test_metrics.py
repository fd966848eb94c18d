"""A run's reports as a table, a picture and TensorBoard's event files."""

from __future__ import annotations

import builtins
import math
import struct
import sys

import pandas as pd
import pytest
from sparkgap import metrics, plotting, tensorboard
from sparkgap_protos.v1 import run_pb2


def reported(rank, step, total=0, attempt=0, dropped=0, **values):
    report = run_pb2.Metrics(step=step, total=total, values=values, dropped=dropped)
    return run_pb2.RunEvent(rank=rank, attempt=attempt, time=1_700_000_000_000_000 + step, metrics=report)


PRINTED = run_pb2.RunEvent(log=run_pb2.LogLines(lines=["epoch 1"]))


def test_a_row_a_report_with_a_column_a_metric():
    table = metrics.table([reported(0, 1, 10, loss=0.5), PRINTED, reported(1, 2, attempt=1, accuracy=math.inf, a=-1)])
    assert list(table.columns) == ["rank", "attempt", "step", "total", "time", "a", "accuracy", "loss"]
    assert table["rank"].tolist() == [0, 1]
    assert table["attempt"].tolist() == [0, 1]
    assert table["total"].tolist() == [10, pd.NA]
    assert table["loss"].fillna(-7).tolist() == [0.5, -7]
    assert table["accuracy"].fillna(-7).tolist() == [-7, math.inf]
    assert table["time"][0] == pd.Timestamp("2023-11-14 22:13:20.000001", tz="UTC")


@pytest.mark.parametrize("events", [[], [PRINTED], [reported(0, 1, 10, loss=1.0)]])
def test_the_dtypes_are_the_same_without_reports(events):
    kinds = metrics.table(events).dtypes.astype(str).to_dict()
    assert kinds | {"loss": "float64"} == {
        "rank": "int64",
        "attempt": "int64",
        "step": "int64",
        "total": "Int64",
        "time": "datetime64[ns, UTC]",
        "loss": "float64",
    }


def test_reports_that_were_left_out_are_counted():
    assert metrics.table([reported(0, 1, dropped=2), reported(1, 1, dropped=3)]).attrs["dropped"] == 5


# ---- Pictures ----


def test_one_panel_a_metric_and_one_line_a_rank():
    table = metrics.table([reported(rank, step, loss=1 / step, accuracy=step) for step in (1, 2, 3) for rank in (0, 1)])
    figure = plotting.draw(table, "digits")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["accuracy", "loss"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["rank 0", "rank 1"]
    assert list(figure.axes[1].lines[0].get_xdata()) == [1, 2, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rank 0", "rank 1"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def together(rank, figures, first=1):
    """One event with a report for each of `figures`, at successive steps."""
    newest = reported(rank, first + len(figures) - 1, **figures[-1])
    earlier = newest.metrics.earlier
    earlier.steps.extend([first, *[1] * (len(figures) - 2)])
    earlier.times.extend([1 - len(figures), *[1] * (len(figures) - 2)])
    for name in {name for each in figures[:-1] for name in each}:
        positions = [at for at, each in enumerate(figures[:-1]) if name in each]
        earlier.metrics.add(name=name, values=[figures[at][name] for at in positions], reports=positions)
    return newest


def test_reports_that_travelled_together_are_rows_like_others():
    apart = [
        reported(1, 5, loss=0.5),
        reported(1, 6, accuracy=1.0),
        reported(1, 7, loss=0.25),
        reported(0, 1, loss=1.0),
    ]
    one = together(1, [{"loss": 0.5}, {"accuracy": 1.0}, {"loss": 0.25}], first=5)
    pd.testing.assert_frame_equal(metrics.table([one, apart[-1]]), metrics.table(apart))
    assert metrics.reports_of(one) == [report for event in apart[:3] for report in metrics.reports_of(event)]


def test_reports_that_came_twice_while_the_server_put_them_together_are_one_row_each():
    apart = [reported(0, 1, loss=math.nan), reported(0, 2, loss=1.0)]
    table = metrics.table([*apart, together(0, [{"loss": math.nan}, {"loss": 1.0}, {"loss": 0.5}])])
    assert table["step"].tolist() == [1, 2, 3]


def test_a_long_curve_is_drawn_with_its_spikes():
    spikes = {3: 40.0, 50_000: -7.0, 77_777: 9.0}
    table = metrics.table([together(0, [{"loss": spikes.get(step, math.sin(step))} for step in range(1, 100_001)])])
    (line,) = plotting.draw(table, "digits").axes[0].lines
    drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert len(drawn) <= plotting._MOST_POINTS
    assert {step: drawn.get(step) for step in spikes} == spikes
    assert (min(drawn), max(drawn)) == (1, 100_000)
    assert line.get_xdata().tolist() == sorted(drawn)


def test_each_attempt_has_a_line_of_its_own():
    table = metrics.table([reported(0, step, attempt=attempt, loss=1.0) for attempt in (0, 1) for step in (1, 2)])
    assert len(plotting.draw(table, "digits").axes[0].lines) == 2


@pytest.mark.parametrize("events", [[], [reported(0, 1)]])
def test_a_picture_without_metrics_says_so(events):
    figure = plotting.draw(metrics.table(events), "digits")
    assert [text.get_text() for text in figure.texts] == ["digits", "No rank has reported a metric yet."]


def test_many_ranks_and_values_that_are_none_can_be_drawn():
    table = metrics.table([reported(rank, 1, loss=math.nan if rank else math.inf) for rank in range(20)])
    assert plotting.draw(table, "digits")._repr_png_()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def none_of_it(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "sparkgap.plotting")
    monkeypatch.setattr(builtins, "__import__", none_of_it)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sparkgap\[plot\]'"):
        import sparkgap.plotting  # noqa: F401


# ---- TensorBoard ----


def test_the_checksum_is_the_one_of_rfc_3720():
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
    assert tensorboard.crc32c(bytes(32)) == 0x8A9136AA
    assert tensorboard.crc32c(b"\xff" * 32) == 0x62A8AB43


def records(data):
    """The records of a TFRecord file, with their checksums checked."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == tensorboard._masked_crc(data[:8])
        yield data[12 : 12 + length]
        assert data[12 + length : 16 + length] == tensorboard._masked_crc(data[12 : 12 + length])
        data = data[16 + length :]


def test_an_event_file_has_the_bytes_that_tensorboard_wrote_for_the_same(tmp_path):
    (file,) = metrics.export([reported(3, 300, loss=0.25), PRINTED], tmp_path)
    assert file.relative_to(tmp_path).parts == ("rank-3", "events.out.tfevents.1700000000.sparkgap")
    version, event = records(file.read_bytes())
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    assert struct.unpack("<d", event[1:9]) == (1_700_000_000.0003,)
    # step 300; a summary with one value, its tag and its number in single precision
    assert event[9:] == b"\x10\xac\x02" + b"\x2a\x0d" + b"\x0a\x0b" + b"\x0a\x04loss" + b"\x15" + struct.pack(
        "<f", 0.25
    )


def test_each_rank_and_attempt_has_a_folder_and_a_second_export_replaces_the_first(tmp_path):
    events = [reported(0, -1, loss=1e300), reported(0, 1, attempt=1, loss=-1e300), reported(1, 1, loss=math.nan)]
    first = metrics.export(events, tmp_path)
    assert [file.parent.name for file in first] == ["rank-0", "rank-0-attempt-1", "rank-1"]
    assert metrics.export(events, tmp_path) == first
    assert sorted(tmp_path.rglob("events*")) == first
    for file in first:
        assert len(list(records(file.read_bytes()))) == 2


def test_reports_that_came_twice_are_exported_once(tmp_path):
    """The server puts old reports together while they are read."""
    event = reported(0, 1, loss=0.5)
    (file,) = metrics.export([event, event, reported(0, 2, loss=0.5)], tmp_path)
    assert len(list(records(file.read_bytes()))) == 3


def test_nothing_reported_exports_nothing(tmp_path):
    assert metrics.export([PRINTED], tmp_path / "new") == []
