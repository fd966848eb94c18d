"""A run as a notebook shows it, for `Run._repr_html_`: state, ranks with their newest figures, last lines."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from html import escape

from sparkgap_protos.v1 import run_pb2

_LINES = 12
_LINE_CHARACTERS = 200
_RANKS = 16
_COLORS = {run_pb2.SUCCEEDED: "#2a9d5c", run_pb2.FAILED: "#c0392b", run_pb2.RUNNING: "#2166ac"}
_CELL = "text-align:left;padding:2px 12px 2px 0"


def page(status: run_pb2.RunStatus, events: Iterable[run_pb2.RunEvent]) -> str:
    """The HTML of a run, from its status and its newest events; whatever a rank has said is escaped."""
    figures: dict[int, run_pb2.Metrics] = {}
    lines: list[str] = []
    for event in events:
        if event.HasField("metrics"):
            figures[event.rank] = event.metrics
        elif event.HasField("log"):
            lines = [*lines, *(f"[rank {event.rank}] {line}" for line in event.log.lines)][-_LINES:]
    parts = [_head(status), _table(status, figures)]
    if lines:
        text = "\n".join(line if len(line) <= _LINE_CHARACTERS else f"{line[:_LINE_CHARACTERS]}…" for line in lines)
        parts.append(f'<pre style="margin:6px 0;font-size:90%">{escape(text)}</pre>')
    return f"<div>{''.join(parts)}</div>"


def waiting(status: run_pb2.RunStatus) -> str:
    """Where a run that has not started stands and what it needs: "waits at position 2 of the queue; it needs …"."""
    place = f"at position {status.queue_position} of the queue" if status.queue_position else "for its turn in Spark"
    return f"waits {place}; it needs {status.waiting_for}"


def _head(status: run_pb2.RunStatus) -> str:
    color = _COLORS.get(status.state, "#64707d")
    state = escape(run_pb2.RunState.Name(status.state))
    head = (
        f'<b>{escape(status.name)}</b> <span style="color:{color}">{state}</span> <code>{escape(status.run_id)}</code>'
    )
    facts = [f"{status.num_processes} rank{'s' if status.num_processes != 1 else ''}"]
    if status.attempt or status.max_failures:
        facts.append(f"attempt {status.attempt + 1} of at most {status.max_failures + 1}")
    if status.started_at:
        facts.append(f"since {datetime.fromtimestamp(status.started_at / 1e6, timezone.utc):%Y-%m-%d %H:%M:%S} UTC")
    if status.started_at and status.ended_at:
        facts.append(f"for {(status.ended_at - status.started_at) / 1e6:.1f} s")
    notes = [waiting(status)] if status.waiting_for else []
    notes += [text for text in (status.reason, status.notice) if text]
    return f"<div>{head}<br>{escape(', '.join(facts))}</div>" + "".join(f"<div>{escape(text)}</div>" for text in notes)


def _table(status: run_pb2.RunStatus, figures: dict[int, run_pb2.Metrics]) -> str:
    failed = {failure.rank: failure for failure in reversed(status.failures)}
    ranks = sorted({*figures, *failed})
    if not ranks:
        return ""
    names = sorted({name for metrics in figures.values() for name in metrics.values})
    rows = [_row("th", ["rank", "step", *names, *(["failure"] if failed else [])])]
    for rank in ranks[:_RANKS]:
        metrics = figures.get(rank, run_pb2.Metrics())
        step = f"{metrics.step}/{metrics.total}" if metrics.total else str(metrics.step)
        cells = [str(rank), step if rank in figures else ""]
        cells += [f"{metrics.values[name]:.4g}" if name in metrics.values else "" for name in names]
        if failed:
            cells.append(_failure(failed[rank]) if rank in failed else "")
        rows.append(_row("td", cells))
    if len(ranks) > _RANKS:
        rows.append(_row("td", [f"and {len(ranks) - _RANKS} more"]))
    return '<table style="margin:6px 0">' + "".join(rows) + "</table>"


def _failure(failure: run_pb2.RankFailure) -> str:
    what = f"{failure.exception}: {failure.message}" if failure.exception else failure.message
    text = f"{what} on {failure.host}"
    return text if len(text) <= _LINE_CHARACTERS else f"{text[:_LINE_CHARACTERS]}…"


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"
