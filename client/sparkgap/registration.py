"""`register`: makes a prediction known to a session under a name, which its SQL then calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import channel
from sparkgap.entrance import entrance
from sparkgap.errors import PlanError
from sparkgap.predict import PredictFunction

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@entrance
def register(spark: SparkSession, name: str, udf: PredictFunction) -> PredictFunction:
    """Make a prediction callable by name in the SQL of this session: queries, temporary views, `selectExpr`, `expr`.

    Sends `make_predict_fn` to the server once, some milliseconds; calls in SQL then carry only the name. The model is loaded when rows arrive, and
    is the same one that `udf` itself uses. Registering the name again replaces the function, for temporary views too.

    Parameters
    ----------
    spark
        A Spark Connect session; other sessions do not see the function.
    name
        Letters, digits and underscores; upper and lower case mean the same. Names of Spark's own functions are refused.
    udf
        What `predict_batch_udf` returned.

    Returns
    -------
    PredictFunction
        `udf`, as pyspark's `spark.udf.register` does.

    Raises
    ------
    PlanError
        The name or the function can never work.
    ExtensionError
        The session is a classic one, or its server lacks the extension or another Python.
    """
    if not isinstance(udf, PredictFunction):
        raise PlanError(f"a function made by predict_batch_udf is needed, got a {type(udf).__qualname__}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PlanError(f"{name!r} is no name for a function: letters, digits and '_' are needed, no digit first")
    session = channel.connect_session(spark)
    plan, large = udf.to_plan()
    if large is not None:
        channel.put_pickle(channel.client_of(session), plan, large.data)
    channel.require_sendable(plan, f"the function {name}")
    for _ in channel.execute(session, register=pb.RegisterFunction(name=name, plan=plan)):
        pass
    return udf
