"""What one task's plan asks of a batch, read from the message once when the task connects to its model host."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pyspark.sql.types import DataType, _parse_datatype_json_string
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap_server.predict.tensors import InputLayout
from sparkgap_server.predict.values import Conversion


@dataclass(frozen=True)
class Task:
    """A task's own part of the plan; the model is shared with others.

    Parameters
    ----------
    layout
        How columns become arguments.
    return_type
        Of one prediction.
    batch_size
        Rows of one call of the predict function.
    nulls
        A value of `PredictPlan.Nulls`.
    conversion
        How predictions become values of the return type.
    """

    layout: InputLayout
    return_type: DataType
    batch_size: int
    nulls: int = pb.PredictPlan.NULLS_UNSPECIFIED
    conversion: Conversion = field(default_factory=Conversion)


def task_of(plan: pb.PredictPlan) -> Task:
    """The task's part of a plan; its make_predict_fn is not looked at."""
    return Task(
        _layout(plan),
        _parse_datatype_json_string(plan.return_type),
        plan.batch_size,
        plan.nulls,
        Conversion(plan.time_zone or "UTC", not plan.unchecked_casts),
    )


def _layout(plan: pb.PredictPlan) -> InputLayout:
    shapes = sparse_shapes = dtypes = sparse_dtypes = None
    if plan.HasField("input_shapes"):
        declared = plan.input_shapes.shapes
        if plan.input_shapes.sparse:
            sparse_shapes = {each.index: tuple(each.dimensions) for each in declared}
        else:
            shapes = tuple(tuple(each.dimensions) if each.given else None for each in declared)
    if plan.HasField("input_dtypes"):
        if plan.input_dtypes.sparse:
            sparse_dtypes = {each.index: np.dtype(each.name) for each in plan.input_dtypes.dtypes if each.name}
        else:
            dtypes = tuple(np.dtype(each.name) if each.name else None for each in plan.input_dtypes.dtypes)
    return InputLayout(tuple(plan.argument_names), shapes, sparse_shapes, dtypes, sparse_dtypes)
