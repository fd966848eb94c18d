"""The two ways from Arrow columns to the arguments of a model: ours, and pyspark's own over pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import (
    _batched,
    _has_tensor_cols,
    _validate_and_transform_multiple_inputs,
    _validate_and_transform_single_input,
)
from pyspark.sql.conversion import ArrowBatchTransformer
from sparkgap_server.predict.tensors import InputLayout, to_arguments

NEW_YORK = "America/New_York"


def arguments(*columns, shapes=None, sparse=None, model=1):
    names = tuple(f"c{index}" for index in range(len(columns)))
    dense = None if shapes is None else tuple(None if shape is None else tuple(shape) for shape in shapes)
    return to_arguments(columns, InputLayout(names, dense, sparse), model)


def pyspark_arguments(columns: Sequence[Any], shapes: Any, model: int) -> list[np.ndarray]:
    """The body of pyspark's predict_batch_udf for one batch that is also one Arrow batch."""
    batch = pa.RecordBatch.from_arrays(list(columns), [f"c{index}" for index in range(len(columns))])
    series = ArrowBatchTransformer.to_pandas(batch, timezone=NEW_YORK, df_for_struct=True)
    data = series[0] if len(series) == 1 else tuple(series)
    if isinstance(shapes, dict):
        shapes = [shapes.get(index) for index in range(model)]
    has_tensors = _has_tensor_cols(data)
    if has_tensors and not shapes:
        raise ValueError("Tensor columns require input_tensor_shapes")
    (frame,) = _batched(data, len(batch))
    if len(frame.columns) == model and model > 1:
        return _validate_and_transform_multiple_inputs(frame, shapes, len(frame.columns))
    if model == 1:
        return [_validate_and_transform_single_input(frame, shapes, has_tensors, isinstance(data, tuple))]
    raise ValueError(f"Model expected {model} inputs, but received {len(frame.columns)} columns")
