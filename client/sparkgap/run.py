"""A training run as a client sees it: its state, output, figures and value, all read from the server that owns it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap import channel, metrics, view
from sparkgap.entrance import entrance
from sparkgap.errors import (
    ProtocolError,
    ResultError,
    RunCancelledError,
    RunLostError,
    SessionEndedError,
    TrainingError,
    VersionError,
)
from sparkgap.logs import Cursor, Logs, Loss

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from pyspark.sql.connect.session import SparkSession

_FINAL = (run_pb2.SUCCEEDED, run_pb2.FAILED, run_pb2.CANCELLED, run_pb2.LOST)
_VIEWED_EVENTS = 500
_CANCEL_SECONDS = 10.0


class Listener(Protocol):
    """Whoever is shown a run's events as they arrive."""

    def event(self, event: run_pb2.RunEvent) -> None:
        """Take one event; called in the order of the server's log."""

    def lost(self, loss: Loss) -> None:
        """Take note of events that the server no longer had."""

    def waits(self, status: run_pb2.RunStatus) -> None:
        """Take note of what the run waits for; called when that has changed."""


@entrance
def attach(spark: SparkSession, run_id: str) -> Run:
    """Take up a run of this user again, from any client.

    Raises
    ------
    RunNotFoundError
        The user of this session has no such run.
    """
    session = channel.connect_session(spark)
    return Run(session, channel.ask(session, run=pb.RunQuery(run_id=run_id)).status)


@entrance
class Run:
    """A training run, owned by the server; made by `TorchDistributor.submit` and `attach`.

    Calls that ask the server raise `SessionEndedError` where the session is over: the run goes on, and `attach` takes it up from another one.
    """

    def __init__(self, session: SparkSession, status: run_pb2.RunStatus) -> None:
        self._session = session
        self._last = status

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, name={self.name!r}, status={run_pb2.RunState.Name(self._last.state)})"

    def _repr_html_(self) -> str:
        """For notebooks: state, ranks and last lines as they are now, or as they were when the server could last be asked."""
        try:
            status = self._refresh()
            events = list(self._events(no_wait=True, start=max(0, status.next_sequence - _VIEWED_EVENTS)))
        except Exception:
            events = []  # a notebook would show the traceback of its own display code
        return view.page(self._last, events)

    @property
    def id(self) -> str:
        """The id that the client chose."""
        return self._last.run_id

    @property
    def name(self) -> str:
        """For people."""
        return self._last.name

    @property
    def status(self) -> str:
        """QUEUED, STARTING, RUNNING, RETRYING, SUCCEEDED, FAILED, CANCELLED or LOST; asks the server, some 2 ms, until it is one of the last four."""
        return run_pb2.RunState.Name(self._refresh().state)

    @property
    def notice(self) -> str:
        """What the run has to do without; empty if all is well. Asks the server.

        Its record on the server's disk, files that its ranks left in their working directories, threads that were not awaited. Ranks that are ended
        from outside, as those of a cancelled run, may have something to say some seconds after the run's end.
        """
        self._last = channel.ask(self._session, run=pb.RunQuery(run_id=self.id)).status
        return self._last.notice

    @property
    def queue_position(self) -> int:
        """Place among the runs that wait for their slots, from 1; 0 if it does not wait, or only for Spark's other work.

        Asks the server, like `status`.
        """
        return self._refresh().queue_position

    @property
    def waiting_for(self) -> str:
        """What a run that has not started waits for, one sentence; empty otherwise. Asks the server, like `status`."""
        return self._refresh().waiting_for

    @property
    def attempts(self) -> int:
        """How often the gang has been started, 1 at first."""
        return self._last.attempt + 1

    def logs(self, follow: bool = False, rank: int | None = None, since: datetime | None = None) -> Logs:
        """Lines that the ranks have printed, in the order in which they reached the server.

        Parameters
        ----------
        follow
            Go on until the run ends instead of stopping at the last line that is there now.
        rank
            Only this rank's lines.
        since
            Only lines printed at this time (with a time zone) or later.

        Returns
        -------
        Logs
            An iterator of `LogLine`; its `dropped` counts the lines that are missing.
        """
        return Logs(lambda lost: self._pages(no_wait=not follow, lost=lost), rank, since)

    def metrics(self) -> pd.DataFrame:
        """What `sparkgap.training.report` has been given up to now, one row a report, while the run goes on and afterwards.

        Costs the transfer of the run's events. Reports take half of ``spark.sparkgap.events.maxBytes`` at most, some 10 bytes a figure. Where a run
        has more, the server thins the older half of them, evenly over its time; of each stretch the rows with the smallest and the largest value of
        each metric stay.

        Returns
        -------
        pandas.DataFrame
            Columns rank, attempt (int64, both from 0), step (int64), total (Int64, missing where unknown), time (UTC), and a float64 column a metric,
            NaN where a report had none of it. The rows of a rank are in its order. ``.attrs["dropped"]`` counts the reports that came faster than a
            rank sends them, ``.attrs["thinned"]`` those that the server has left out among old ones, ``.attrs["lost_events"]`` other events, lines
            mostly, that it no longer has.
        """
        losses: list[Loss] = []
        frame = metrics.table(self._events(no_wait=True, lost=losses.append))
        frame.attrs["lost_events"] = sum(loss.events for loss in losses)
        return frame

    def plot(self) -> Figure:
        """Draw the metrics reported up to now over their steps, one panel a metric and one line a rank.

        Returns
        -------
        matplotlib.figure.Figure
            Not known to pyplot; notebooks show it, and ``savefig`` writes it.

        Raises
        ------
        ModuleNotFoundError
            matplotlib is not installed (extra ``plot``).
        """
        from sparkgap import plotting

        return plotting.draw(self.metrics(), f"{self.name}, {run_pb2.RunState.Name(self._last.state).lower()}")

    def export_tensorboard(self, folder: str | Path) -> list[Path]:
        """Write the metrics reported up to now as TensorBoard event files, for ``tensorboard --logdir FOLDER``; needs no further package.

        Exporting the same run again replaces its files.

        Parameters
        ----------
        folder
            Made if it is missing; gets a folder ``rank-N`` for each rank that reported.

        Returns
        -------
        list of Path
            The files, by rank; empty where nothing has been reported.
        """
        return metrics.export(self._events(no_wait=True), Path(folder))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the run's end, `timeout` seconds at most; returns whether it has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while self._refresh().state not in _FINAL:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(pause * 1.5, 0.5)
        return True

    def result(self, timeout: float | None = None) -> Any:
        """What rank 0 returned, or with ``results="all"`` a list of what each rank did; waits for it, and may be called again.

        Raises
        ------
        TimeoutError
            The run goes on after `timeout` seconds.
        TrainingError, RunCancelledError, RunLostError
            The run has no value.
        ResultError
            Its value cannot be opened here.
        VersionError
            The run has succeeded, and its value holds bytecode of another minor version of Python.
        """
        self._await(timeout)
        if (error := self._error()) is not None:
            raise error
        return self._fetch_result()

    def exception(self, timeout: float | None = None) -> Exception | None:
        """Why the run has no value, or None if it has one; waits for its end as `result` does."""
        self._await(timeout)
        return self._error()

    def cancel(self, reason: str = "cancelled by its user") -> None:
        """End the run in whatever state it is; its ranks and their children are gone within seconds. Does nothing to a run that has ended."""
        with self._beyond_its_session():
            for reply in channel.execute(self._session, cancel=pb.CancelRun(run_id=self.id, reason=reason)):
                self._last = reply.status

    def _await(self, timeout: float | None) -> None:
        if self._last.state not in _FINAL and not self.wait(timeout):
            raise TimeoutError(
                f"run {self.id} has not ended after {timeout:g} s; it is {run_pb2.RunState.Name(self._last.state)}"
            )

    def _error(self) -> Exception | None:
        if self._last.state == run_pb2.FAILED:
            return TrainingError.of(self._last)
        if self._last.state == run_pb2.LOST:
            return RunLostError.of(self._last)
        if self._last.state == run_pb2.CANCELLED:
            return RunCancelledError(f"run {self.id} was cancelled: {self._last.reason}")
        return None

    def _refresh(self) -> run_pb2.RunStatus:
        if self._last.state not in _FINAL:
            with self._beyond_its_session():
                self._last = channel.ask(self._session, run=pb.RunQuery(run_id=self.id)).status
        return self._last

    @contextmanager
    def _beyond_its_session(self) -> Iterator[None]:
        """Says where a session is over that the run, which belongs to the server, is not."""
        try:
            yield
        except SessionEndedError as error:
            raise SessionEndedError(
                f"{error}. Run {self.id} belongs to the server and is not over for that: take it up again with "
                f"sparkgap.attach(another_session, {self.id!r}), as the same user"
            ) from error.__cause__

    def _events(
        self, *, no_wait: bool, start: int = 0, lost: Callable[[Loss], None] | None = None
    ) -> Iterator[run_pb2.RunEvent]:
        for reply in self._pages(no_wait=no_wait, cursor=Cursor(start), lost=lost):
            yield from reply.events.events

    def _follow_to_end(self, listener: Listener) -> None:
        """Show a listener everything from the first event to the run's end, and keep the value if it has come along."""
        chunks = []
        for reply in self._pages(as_call=True, lost=listener.lost):
            if reply.HasField("events"):
                for event in reply.events.events:
                    listener.event(event)
            elif reply.HasField("result"):
                chunks.append(reply.result.data)
            elif reply.status.waiting_for:
                listener.waits(reply.status)
        self._value = b"".join(chunks)

    def _pages(
        self,
        *,
        no_wait: bool = False,
        as_call: bool = False,
        cursor: Cursor | None = None,
        lost: Callable[[Loss], None] | None = None,
    ) -> Iterator[run_pb2.Reply]:
        """All replies up to the run's end; `as_call` is for who waits for the value, and has Spark's interrupt cancel the run."""
        cursor = cursor or Cursor()
        complete = False
        while not complete:
            follow = pb.FollowRun(
                run_id=self.id,
                from_sequence=cursor.sequence,
                no_wait=no_wait,
                with_result=as_call,
                cancel_on_interrupt=as_call,
            )
            try:
                with self._beyond_its_session():
                    for reply in channel.execute(self._session, follow=follow):
                        if reply.HasField("status"):
                            self._last = reply.status
                            complete = reply.status.complete
                        elif reply.HasField("events"):
                            loss = cursor.advance(reply.events)
                            if loss is not None and lost is not None:
                                lost(loss)
                        yield reply
            except Exception as error:
                if not (as_call and channel.is_interrupt(error)):
                    raise
                self.wait(_CANCEL_SECONDS)
                raise self._error() or RunCancelledError(f"run {self.id} is being cancelled: {error}") from error

    def _fetch_result(self) -> Any:
        data = getattr(self, "_value", None)
        if data is None:
            follow = pb.FollowRun(run_id=self.id, from_sequence=self._last.next_sequence, with_result=True)
            with self._beyond_its_session():
                replies = channel.execute(self._session, follow=follow)
                data = b"".join(reply.result.data for reply in replies if reply.HasField("result"))
        if len(data) != self._last.result_bytes:
            raise ProtocolError(
                f"the value of run {self.id} arrived with {len(data)} of {self._last.result_bytes} bytes: call result() again"
            )
        value = pb.Payload.FromString(data)
        return (
            [self._opened(each, rank) for rank, each in enumerate(value.ranks)]
            if value.ranks
            else self._opened(value, 0)
        )

    def _opened(self, value: pb.Payload, rank: int) -> Any:
        try:
            return codec.unpack(value)
        except codec.WrongPython as error:
            raise VersionError(
                f"run {self.id} has succeeded, but its value cannot be opened here: it holds a function or class as bytecode of Python "
                f"{error.python}, this client runs Python {codec.PYTHON}. Return plain Python or NumPy values, or open it from Python "
                f"{error.python}: sparkgap.attach(spark, {self.id!r}).result()"
            ) from error
        except Exception as error:
            raise ResultError(
                f"run {self.id} has succeeded, but what rank {rank} returned cannot be opened here: {type(error).__name__}: {error}. "
                f"{_missing_here(error)}Return what needs nothing but Python and NumPy: numbers, arrays, the path of what the run has written to "
                "storage; of a model its state_dict(), where this client has torch (model.module.state_dict() where DDP wraps it). "
                f"Logs and metrics of the run are there: attach(spark, {self.id!r}), or this error's .run",
                self,
            ) from error


def _missing_here(error: Exception) -> str:
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"This client has no module {name!r}: install it, or return something else. " if name else ""
