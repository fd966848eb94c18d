"""The Connect expression behind a prediction column: carries the plan and its argument columns in its protobuf, for the shim to take up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pyspark.sql.connect import proto
from pyspark.sql.connect.column import Column
from pyspark.sql.connect.expressions import Expression
from sparkgap_protos import MOST_NESTED_PREDICTIONS
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import channel
from sparkgap.entrance import entrance
from sparkgap.errors import ExtensionError, PlanError

if TYPE_CHECKING:
    from pyspark.sql.connect.client import SparkConnectClient

_NAME_CHARACTERS = 80


class Pickled(Protocol):
    """A pickle that is too large for a plan."""

    @property
    def data(self) -> bytes:
        """Uploaded when a query needs it."""


def prediction_column(plan: pb.PredictPlan, arguments: Sequence[Any], large: Pickled | None = None) -> Any:
    """A column for a plan that lacks its arguments, each a Connect column or a column's name, and its pickle where that is large."""
    prediction = _Prediction(plan, [_column(argument)._expr for argument in arguments], large)
    if prediction.depth > MOST_NESTED_PREDICTIONS:
        raise _too_deep(plan.name)
    return Column(prediction)


def _too_deep(name: str) -> PlanError:
    return PlanError(
        f"{name} is given a prediction of a prediction, more than {MOST_NESTED_PREDICTIONS} deep: make columns of the inner ones first, "
        "with withColumn"
    )


def _column(argument: Any) -> Column:
    from pyspark.sql.connect.functions import col

    if isinstance(argument, Column):
        return argument
    if isinstance(argument, str):
        if _classic_only():
            raise ExtensionError(_CLASSIC.format("the active session is a classic one"))
        return col(argument)
    if type(argument).__module__.startswith("pyspark.sql.classic"):
        raise ExtensionError(_CLASSIC.format("this column belongs to a classic session"))
    raise PlanError(f"a column or the name of a column is needed, got a {type(argument).__qualname__}")


_CLASSIC = 'sparkgap needs a Spark Connect session, {}: create it with SparkSession.builder.remote("sc://HOST:PORT").getOrCreate()'


def _classic_only() -> bool:
    from pyspark.sql.connect.session import SparkSession

    context = sys.modules.get("pyspark.core.context")
    classic = context is not None and context.SparkContext._active_spark_context is not None
    return classic and SparkSession.getActiveSession() is None


class _Prediction(Expression):  # type: ignore[misc]  # pyspark has no types that mypy follows
    def __init__(self, plan: pb.PredictPlan, arguments: Sequence[Expression], large: Pickled | None) -> None:
        super().__init__()
        self._plan = plan
        self._arguments = list(arguments)
        self._large = large
        self.depth: int = 1 + max((getattr(each, "depth", 0) for each in self._arguments), default=0)

    @entrance
    def to_plan(self, session: SparkConnectClient) -> proto.Expression:
        channel.require_extension(session)
        plan = pb.PredictPlan()
        plan.CopyFrom(self._plan)
        if self._large is not None:
            channel.put_pickle(session, plan, self._large.data)
        try:
            for argument in self._arguments:
                plan.arguments.add().Pack(argument.to_plan(session))
                plan.argument_names.append(repr(argument)[:_NAME_CHARACTERS])
        except RecursionError:  # with functions of Spark between the predictions, whose depth only Python's stack tells
            raise _too_deep(self._plan.name) from None
        channel.require_sendable(plan, f"the prediction {self._plan.name}")
        expression = self._create_proto_expression()
        expression.extension.Pack(plan)
        return expression

    @property
    def children(self) -> Sequence[Expression]:
        return self._arguments

    def __repr__(self) -> str:
        return f"{self._plan.name}({', '.join(map(repr, self._arguments))})"
