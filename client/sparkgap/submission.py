"""One call's request for a run, for distributor.py: sends the plan, and takes it back when the call ends before its run.

The request goes on in a thread of its own (background.py): it may not have been sent, be on its way, wait at the server for executors, or be a run
already. Nobody here knows which, so the server is told to end whatever has come from this call, and to remember that for what is still to come
(`CancelRun.submission`). To wait for the answer first would leave the run to a process that may have ended by then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import background, channel
from sparkgap.errors import ProtocolError, RunCancelledError, RunNotFoundError, SparkgapError
from sparkgap.run import Listener, Run

if TYPE_CHECKING:
    from pyspark.sql.connect.session import SparkSession

_CANCEL_SECONDS = 10.0
_INTERRUPTED = "interrupted at the client (Ctrl-C)"


class Submission:
    """A plan on its way. The server takes the same plan under the same id as the same run."""

    def __init__(self, session: SparkSession, plan: pb.TrainPlan) -> None:
        self._session = session
        self._request = pb.SubmitRun(plan=plan, submission=uuid.uuid4().hex)
        self._followed = False
        self._taking_back: background.Errand | None = None
        self._told = False

    def sent(self) -> Run:
        """The run, as soon as the server has it. A Ctrl-C, and an error that leaves open what has arrived, takes back what this call has started.

        Raises
        ------
        KeyboardInterrupt
            With a text where it is not known whether the run goes on: the server has not answered within 10 s, or before a second Ctrl-C.
        """
        return self._unless_interrupted(self._send)

    def followed(self, listener: Listener) -> Run:
        """The run at its end, shown to a listener. A Ctrl-C ends it, once it is followed also one that another call has started; see `sent`."""

        def follow() -> Run:
            run = self._send()
            self._followed = True
            run._follow_to_end(listener)
            return run

        return self._unless_interrupted(follow)

    def _unless_interrupted(self, work: Callable[[], Run]) -> Run:
        try:
            return work()
        except KeyboardInterrupt:
            # A second Ctrl-C may strike anywhere in here. To take back twice does no harm.
            while self._taking_back is None:
                try:
                    self._take_back(_INTERRUPTED).wait()
                except KeyboardInterrupt:
                    continue
            if not self._told:
                raise KeyboardInterrupt(
                    f"the server has not said whether run {self._id} has ended: sparkgap.attach(spark, {self._id!r}).cancel() ends it"
                ) from self._taking_back.error
            raise
        except SparkgapError:
            raise
        except Exception as error:
            # Of Spark's client or its connection: what has been sent may have arrived all the same.
            if not self._followed:
                taking_back = self._take_back(f"its client got no answer: {type(error).__name__}")
                if channel.is_interrupt(error):
                    taking_back.wait()
                    raise RunCancelledError(
                        f"run {self._id} was cancelled before it was there, by an interrupt through Spark: {error}"
                    ) from error
            raise

    @property
    def _id(self) -> str:
        return self._request.plan.run_id

    def _send(self) -> Run:
        channel.require_sendable(self._request.plan, f"the plan of {self._request.plan.name}")
        for reply in channel.execute(self._session, submit=self._request):
            if reply.HasField("status"):
                return Run(self._session, reply.status)
        raise ProtocolError("the server did not say what became of the plan")

    def _take_back(self, reason: str) -> background.Errand:
        submission = "" if self._followed else self._request.submission
        cancel = pb.CancelRun(run_id=self._id, reason=reason, submission=submission)
        self._taking_back = background.Errand(lambda: self._end(cancel), _CANCEL_SECONDS)
        return self._taking_back

    def _end(self, cancel: pb.CancelRun) -> None:
        try:
            for reply in channel.execute(self._session, cancel=cancel):
                self._told = True
                Run(self._session, reply.status).wait(_CANCEL_SECONDS)
        except RunNotFoundError:
            self._told = True  # a server of an earlier release does not know of what is to come
