"""`predict_batch_udf`: makes a function on columns whose expression carries a plan for the server; `register` gives it a name in SQL."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sparkgap_protos import PROTOCOL, codec
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import channel
from sparkgap.errors import PlanError

if TYPE_CHECKING:
    from pyspark.sql import Column, SparkSession
    from pyspark.sql.types import DataType

_LARGEST = 2**31 - 1
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")

Shapes = Sequence["Sequence[int] | None"] | Mapping[int, "Sequence[int]"]


def predict_batch_udf(
    make_predict_fn: Callable[[], Callable[..., Any]],
    *,
    return_type: DataType | str,
    batch_size: int,
    input_tensor_shapes: Shapes | None = None,
) -> PredictFunction:
    """Make a function on columns from a function that loads a model; a drop-in for `pyspark.ml.functions.predict_batch_udf`.

    Nothing is sent before a query runs. The model is then loaded once in each executor that has rows for it, in a process of its own, and found
    again there by the content of `make_predict_fn`: another query, another session of the same user does not load it again.

    Parameters
    ----------
    make_predict_fn
        Called without arguments in the model's process; returns ``predict(*arrays)``, which takes one NumPy array for each input and returns an
        array, a dict of arrays or a list of dicts for as many rows. The inputs are valid during the call only: copy what is to be kept.
    return_type
        Type of one prediction, as DataType or DDL string: a scalar for arrays (N,) and (N, 1), an array for (N, M), a struct for dicts.
    batch_size
        Rows of one call, at least 1; the last batch of a partition may have fewer.
    input_tensor_shapes
        Shape of one row of each tensor input without the batch dimension, as a list with None for scalar inputs, or as a dict from the input's
        position to its shape. Tensors are stored flat, as arrays of numbers.

    Returns
    -------
    PredictFunction
        Takes columns or their names and returns a column.

    Raises
    ------
    PlanError
        An argument can never work (also a ValueError).

    Notes
    -----
    The column may stand wherever pyspark's may, in aggregates and join conditions too. Spark's optimizer is told that predictions are not
    deterministic, so that it copies none; `pyspark.ml.functions.predict_batch_udf` leaves that to `asNondeterministic`.
    """
    if not callable(make_predict_fn):
        raise PlanError(f"make_predict_fn has to be a function, got a {type(make_predict_fn).__qualname__}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 0 < batch_size <= _LARGEST:
        raise PlanError(f"batch_size has to be a positive integer, got {batch_size!r}")
    _check_type(return_type)
    return PredictFunction(make_predict_fn, return_type, batch_size, _shapes(input_tensor_shapes))


class PredictFunction:
    """A function on columns; made by `predict_batch_udf`."""

    def __init__(
        self,
        make_predict_fn: Callable[[], Callable[..., Any]],
        return_type: DataType | str,
        batch_size: int,
        shapes: pb.InputShapes | None,
    ) -> None:
        self.func = make_predict_fn
        self.deterministic = False
        self._return_type = return_type
        self._batch_size = batch_size
        self._shapes = shapes
        self._name = getattr(make_predict_fn, "__name__", type(make_predict_fn).__name__)

    def __repr__(self) -> str:
        return f"PredictFunction({self._name}, batch_size={self._batch_size})"

    @property
    def returnType(self) -> DataType:
        """Type of one prediction; a DDL string is parsed by the active session's server."""
        if not isinstance(self._return_type, str):
            return self._return_type
        from pyspark.sql.types import _parse_datatype_string

        return cast("DataType", _parse_datatype_string(self._return_type))

    def asNondeterministic(self) -> PredictFunction:
        """The same function: predictions are non-deterministic to Spark already."""
        return copy.copy(self)

    def __call__(self, *cols: Column | str) -> Column:
        """The prediction for these columns; pickles `make_predict_fn`, and sends nothing.

        Raises
        ------
        PlanError
            `make_predict_fn` cannot be pickled, with the culprit's name.
        ExtensionError
            A column belongs to a classic session.
        """
        from sparkgap.expression import prediction_column

        if not cols:
            raise PlanError(f"{self._name} was called without columns")
        return prediction_column(self._plan(), cols)

    def _plan(self) -> pb.PredictPlan:
        try:
            payload = codec.pack(self.func, f"make_predict_fn ({self._name})")
        except codec.NotPicklable as error:
            raise PlanError(str(error)) from error
        return pb.PredictPlan(
            protocol=PROTOCOL,
            client=channel.client_name(),
            name=self._name,
            return_type=self._return_type if isinstance(self._return_type, str) else self._return_type.json(),
            batch_size=self._batch_size,
            input_shapes=self._shapes,
            make_predict_fn=payload,
            digest=codec.digest(payload),
            deterministic=self.deterministic,
        )


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
    plan = udf._plan()
    channel.require_sendable(plan, f"the function {name}")
    for _ in channel.execute(session, register=pb.RegisterFunction(name=name, plan=plan)):
        pass
    return udf


def _check_type(return_type: object) -> None:
    from pyspark.sql.types import DataType

    if not isinstance(return_type, (str, DataType)):
        raise PlanError(f"return_type has to be a DataType or a DDL string, got {return_type!r}")


def _shapes(given: Shapes | None) -> pb.InputShapes | None:
    if given is None:
        return None
    if isinstance(given, Mapping):
        return pb.InputShapes(sparse=True, shapes=[_shape(shape, index) for index, shape in given.items()])
    if not isinstance(given, (list, tuple)):
        raise PlanError(f"input_tensor_shapes has to be a list or a dict of shapes, got {given!r}")
    return pb.InputShapes(shapes=[_shape(shape, index) for index, shape in enumerate(given)])


def _shape(shape: Sequence[int] | None, index: int) -> pb.InputShape:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise PlanError(f"input_tensor_shapes has the key {index!r}: the position of an input is needed")
    if shape is None:
        return pb.InputShape(index=index)
    try:
        sizes = [operator.index(size) for size in shape]  # NumPy's integers are welcome
    except TypeError:
        sizes = [0]
    if not all(0 < size <= _LARGEST for size in sizes):
        raise PlanError(
            f"input_tensor_shapes has the shape {shape!r} for input {index}: a list of positive sizes is needed, without the batch"
        )
    return pb.InputShape(index=index, given=True, dimensions=sizes)
