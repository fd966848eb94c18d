"""The list of a user's runs, for `sparkgap.runs`; `run.attach` takes one of them up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_protos.v1 import run_pb2

from sparkgap import channel
from sparkgap.entrance import entrance

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql.connect.session import SparkSession


@entrance
def runs(spark: SparkSession | None = None) -> pd.DataFrame:
    """All runs of this user that the server knows, the newest first.

    Costs one question; the server reads files for runs that are no longer in its memory.

    Parameters
    ----------
    spark
        Spark Connect session; the active one by default.

    Returns
    -------
    pandas.DataFrame
        One row a run: `id`, `name`, `state`, `error` (why it failed, was cancelled or is lost; empty otherwise) and `notice` (what it had to do
        without) as string; `submitted`, `started` and `ended` as UTC time, NaT while it has not happened; `world_size`, `attempts` and
        `queue_position` (0 for a run that does not wait in the queue) as int64; `waiting_for` as string.
        A pandas one, not Spark's: the rows come from the server's registry, no query runs.

    Raises
    ------
    ExtensionError
        The server lacks the extension, or cannot read the directory where it keeps runs (`ResourceError`).
    """
    session = channel.connect_session(spark)
    return _table(list(channel.ask(session, list=pb.ListRunsQuery()).list.runs))


def _table(found: list[run_pb2.RunStatus]) -> pd.DataFrame:
    import pandas as pd

    def text(values: list[str]) -> pd.Series[str]:
        return pd.Series(values, dtype="string")

    def times(values: list[int]) -> pd.Series[pd.Timestamp]:
        known = pd.array([value or None for value in values], dtype="Int64")
        return pd.Series(pd.to_datetime(known, unit="us", utc=True)).astype("datetime64[us, UTC]")

    return pd.DataFrame(
        {
            "id": text([each.run_id for each in found]),
            "name": text([each.name for each in found]),
            "state": text([run_pb2.RunState.Name(each.state) for each in found]),
            "submitted": times([each.submitted_at for each in found]),
            "started": times([each.started_at for each in found]),
            "ended": times([each.ended_at for each in found]),
            "world_size": pd.Series([each.num_processes for each in found], dtype="int64"),
            "attempts": pd.Series([each.attempt + 1 for each in found], dtype="int64"),
            "queue_position": pd.Series([each.queue_position for each in found], dtype="int64"),
            "waiting_for": text([each.waiting_for for each in found]),
            "error": text([each.reason for each in found]),
            "notice": text([each.notice for each in found]),
        }
    )
