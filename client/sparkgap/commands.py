"""The commands ``sparkgap runs``, ``logs`` and ``cancel``; cli.py hands each a session and what the command line says."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap import channel, tables
from sparkgap.errors import PlanError, RunNotFoundError
from sparkgap.logs import Cursor, LogLine, lines_of
from sparkgap.run import Run, attach

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_CANCEL_SECONDS = 15.0
_NAMED = 5


def note(text: str) -> None:
    """What is said beside the output, on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"sparkgap: {text}\n")
    sys.stderr.flush()


# ---- runs ----


def list_runs(session: SparkSession, states: Collection[str], limit: int | None, as_json: bool) -> int:
    """Print the user's runs, the newest first."""
    every = _statuses(session)
    ids = tables.short_ids([each.run_id for each in every])
    chosen = [(short, each) for short, each in zip(ids, every, strict=True) if not states or _state(each) in states]
    chosen = chosen[:limit]
    if as_json:
        _print_json([run_fields(each) for _, each in chosen])
    elif not chosen:
        note(f"no runs of {channel.user_of(session) or 'this user'} at {channel.server_place(session)}")
    else:
        sys.stdout.write(_table(chosen, tables.terminal_width()))
    return 0


def run_fields(status: run_pb2.RunStatus) -> dict[str, Any]:
    """A run as `--json` gives it; times in ISO 8601, UTC."""
    times = {
        name: tables.moment(value)
        for name, value in (
            ("submitted", status.submitted_at),
            ("started", status.started_at),
            ("ended", status.ended_at),
        )
    }
    return {
        "id": status.run_id,
        "name": status.name,
        "state": _state(status),
        **{name: when.isoformat() if when else None for name, when in times.items()},
        "seconds": _seconds(status),
        "ranks": status.num_processes,
        "attempts": status.attempt + 1,
        "max_failures": status.max_failures,
        "queue_position": status.queue_position or None,
        "waiting_for": status.waiting_for,
        "reason": status.reason,
        "notice": status.notice,
    }


def _table(chosen: Sequence[tuple[str, run_pb2.RunStatus]], width: int | None) -> str:
    """For a terminal, 80 columns have to do: ids and names are cut, times are to the minute, and what is the same for all is left out."""
    head = ["id", "name", "state", "submitted", "duration", "ranks", "attempts", "reason"]
    rows = [
        [
            each.run_id if width is None else short,
            each.name if width is None else tables.cut(tables.plain(each.name), max(width // 5, 12)),
            _state(each),
            tables.local_time(tables.moment(each.submitted_at), short=width is not None),
            tables.duration(_seconds(each)),
            str(each.num_processes),
            str(each.attempt + 1),
            _why(each),
        ]
        for short, each in chosen
    ]
    if width is not None and not any(each.attempt for _, each in chosen):
        attempts = head.index("attempts")
        for line in (head, *rows):
            del line[attempts]
    return tables.table(head, rows, width)


def _why(status: run_pb2.RunStatus) -> str:
    """Why it waits, or ended as it did, or what it does without."""
    if status.state == run_pb2.QUEUED:
        place = f"place {status.queue_position} in the queue" if status.queue_position else ""
        return ": ".join(part for part in (place, status.waiting_for) if part)
    return status.reason or status.notice


def _seconds(status: run_pb2.RunStatus) -> float | None:
    if not status.started_at:
        return None
    return (status.ended_at or time.time() * 1e6) / 1e6 - status.started_at / 1e6


def _state(status: run_pb2.RunStatus) -> str:
    return run_pb2.RunState.Name(status.state)


def _statuses(session: SparkSession) -> list[run_pb2.RunStatus]:
    return list(channel.ask(session, list=pb.ListRunsQuery()).list.runs)


# ---- logs ----


def show_logs(
    session: SparkSession,
    run_id: str,
    *,
    follow: bool,
    ranks: Collection[int],
    since: datetime | None,
    tail: int | None,
    as_json: bool,
) -> int:
    """Print what the ranks have printed, and with `follow` what they print until the run's end."""
    run = find(session, run_id)
    log = _Log(run, ranks, since)
    try:
        last: deque[LogLine] | None = None if tail is None else deque(maxlen=tail)
        for line in log.lines(follow=follow and tail is None):
            if last is None:
                _print_line(line, as_json)
            else:
                last.append(line)
        for line in last or ():
            _print_line(line, as_json)
        if follow and tail is not None:
            for line in log.lines(follow=True):
                _print_line(line, as_json)
    except KeyboardInterrupt:
        note(f"stopped watching, the run goes on: `sparkgap cancel {run.id}` ends it")
        return 130
    if follow:
        status = channel.ask(session, run=pb.RunQuery(run_id=run.id)).status
        note(f"run {run.id} is {_state(status)}" + (f": {tables.plain(status.reason)}" if status.reason else ""))
    return 0


class _Log:
    """A run's lines from where the last look has ended, with what is missing said beside them."""

    def __init__(self, run: Run, ranks: Collection[int], since: datetime | None) -> None:
        self._run = run
        self._ranks = ranks
        self._since = since
        self._cursor = Cursor()
        self._attempt = 0

    def lines(self, *, follow: bool) -> Iterator[LogLine]:
        for reply in self._run._pages(no_wait=not follow, cursor=self._cursor, lost=lambda loss: note(str(loss))):
            for event in reply.events.events:
                yield from self._lines(event)

    def _lines(self, event: run_pb2.RunEvent) -> Iterator[LogLine]:
        if event.attempt > self._attempt:
            self._attempt = event.attempt
            note(f"attempt {event.attempt + 1} begins")
        if self._ranks and event.rank not in self._ranks:
            return
        if event.log.dropped:
            note(f"rank {event.rank}: {event.log.dropped} lines were dropped: printed faster than the cluster takes")
        for line in lines_of(event):
            if self._since is None or line.time >= self._since:
                yield line


def _print_line(line: LogLine, as_json: bool) -> None:
    if as_json:
        fields = {"rank": line.rank, "attempt": line.attempt, "time": line.time.isoformat(), "stream": line.stream}
        sys.stdout.write(json.dumps({**fields, "text": line.text}) + "\n")
    else:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# ---- cancel ----


def cancel(session: SparkSession, run_ids: Sequence[str], reason: str, as_json: bool) -> int:
    """End the runs and say what became of them; 1 where one is unknown or has not ended after some seconds."""
    told: list[dict[str, Any]] = []
    failed = False
    for run_id in run_ids:
        try:
            run = find(session, run_id)
        except PlanError as unknown:
            note(str(unknown))
            failed = True
            continue
        had_ended = run.wait(0)
        if not had_ended:
            run.cancel(reason)
        ended = run.wait(_CANCEL_SECONDS)
        status = channel.ask(session, run=pb.RunQuery(run_id=run.id)).status
        failed = failed or not ended
        told.append({**run_fields(status), "had_ended": had_ended})
        if not as_json:
            sys.stdout.write(f"{run.id}  {_outcome(_state(status), had_ended, ended)}\n")
            sys.stdout.flush()
    if as_json:
        _print_json(told)
    return 1 if failed else 0


def _outcome(state: str, had_ended: bool, ended: bool) -> str:
    if had_ended:
        return f"had ended already: {state}"
    return state if ended else f"is told to end, but still {state} after {_CANCEL_SECONDS:g} s"


# ---- All ----


def find(session: SparkSession, run_id: str) -> Run:
    """The run with this id, or the only one whose id begins so.

    Raises
    ------
    PlanError
        There is none of this user (`RunNotFoundError`), or there are several.
    """
    if not run_id:  # an unset variable of a shell must not mean the only run
        raise PlanError("a run's id is empty")
    try:
        return attach(session, run_id)
    except RunNotFoundError as unknown:
        ids = [each.run_id for each in _statuses(session) if each.run_id.startswith(run_id)]
        if not ids:
            raise RunNotFoundError(f"{unknown}; `sparkgap runs` lists those that there are") from None
    if len(ids) > 1:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        raise PlanError(f"{len(ids)} runs begin with {run_id}: {', '.join(ids[:_NAMED])}{more}")
    return attach(session, ids[0])


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
