"""`predict_batch_udf`: makes a function on columns whose expression carries a plan for the server; `register` gives it a name in SQL."""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sparkgap_protos import PROTOCOL, codec
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import channel
from sparkgap.entrance import entrance
from sparkgap.errors import PlanError
from sparkgap.modules import Chosen, Modules, Needs, checked, with_function
from sparkgap.options import Dtypes, PlanOptions, by_input, check_return_type, label

if TYPE_CHECKING:
    from pyspark.sql import Column
    from pyspark.sql.types import DataType

_LARGEST = 2**31 - 1

#: A longer pickle is uploaded once instead of travelling with each query's plan.
_INLINE_BYTES = 256 << 10

Shapes = Sequence["Sequence[int] | None"] | Mapping[int, "Sequence[int]"]


@entrance
def predict_batch_udf(
    make_predict_fn: Callable[[], Callable[..., Any]],
    *,
    return_type: DataType | str,
    batch_size: int,
    input_tensor_shapes: Shapes | None = None,
    input_dtypes: Dtypes | None = None,
    nulls: str = "keep",
    name: str | None = None,
    version: str | None = None,
    modules: Modules | None = None,
) -> PredictFunction:
    """Make a function on columns from a function that loads a model; a drop-in for `pyspark.ml.functions.predict_batch_udf`.

    Nothing is sent before a query runs. The model is then loaded once in each executor that has rows for it, in a process of its own, and found
    again there by the content of `make_predict_fn`: another query, another session of the same user, and a new object made by this function from the
    same content do not load it again. Files that it opened while it loaded are looked at for each query; where weights change otherwise, pass another
    `version` to have them loaded. Weights that it captures travel to the server once for each content, and from there once to each executor.

    Parameters
    ----------
    make_predict_fn
        Called without arguments in the model's process; returns ``predict(*arrays)``, which takes one NumPy array for each input and returns an
        array, a dict of arrays or a list of dicts for as many rows. The inputs are valid during the call only: copy what is to be kept.
        As in pyspark, each parameter of `predict` is an input, those with a default and those of `functools.partial` by name too, ``*args`` and
        ``**kwargs`` one each; the bound ``self`` of a method is none. What is no input is bound by a function of its own:
        ``return lambda x: model.predict(x, scale=2.0)``.
    return_type
        Type of one prediction, as DataType or DDL string: a scalar for arrays (N,) and (N, 1), an array for (N, M), nested arrays for more
        dimensions, a struct of scalars and arrays for dicts. A scalar is a number, a boolean, a string, a binary, a date or a timestamp;
        naive datetime64 and datetime values of a timestamp are the session's local time, NaT is null.
    batch_size
        Rows of one call, at least 1; the last batch of a partition may have fewer.
    input_tensor_shapes
        Shape of one row of each tensor input without the batch dimension, as a list with None for scalar inputs, or as a dict from the input's
        position to its shape. Tensors are stored flat, row-major: as arrays of numbers, as vectors of `pyspark.ml.linalg`, or as binary values
        with an entry in `input_dtypes`.
    input_dtypes
        Dtype of each input as a list, None for an input that is left as it is, or as a dict from the input's position to its dtype: bool, int8 to
        int64, uint8 to uint64, float16, float32 or float64, by name or as NumPy's own. A binary column with a shape and a dtype holds
        little-endian tensors, which the model sees without a copy; numbers are converted as by `astype`, null becomes NaN and an error
        where the dtype has none.
    nulls
        What becomes of rows with a null in a column, in a struct's field or in an array's element. "keep": the model sees NaN or None, and a null
        tensor fails; "error": the query fails before the model sees the batch; "skip": the model does not see such rows, and their
        prediction is null.
    name
        Of the model, in column names, query plans and errors; `make_predict_fn`'s own by default. It has no part in the model's identity.
    version
        Part of the model's identity: another version is another model, loaded for itself. For weights whose change `make_predict_fn`
        does not show, those that it downloads for example: ``version="2026-11-25"``, or a fresh ``str(uuid.uuid4())`` to load anew in any case.
    modules
        Modules, or their names, whose sources travel with `make_predict_fn` and are part of the model's identity; as for `TorchDistributor`, by
        default those of the user's own project that it needs, as their files are when a column is made. So are files and folders, as
        `pathlib.Path`; the model finds them in `sparkgap.files`.

    Returns
    -------
    PredictFunction
        Takes columns or their names and returns a column.

    Raises
    ------
    PlanError
        An argument can never work (also a ValueError). A return type in DDL that no prediction can have is refused by the server, when the
        query is analysed.

    Notes
    -----
    The column may stand wherever pyspark's may, in aggregates and join conditions too. Spark's optimizer is told that predictions are not
    deterministic, so that it copies none; `pyspark.ml.functions.predict_batch_udf` leaves that to `asNondeterministic`.
    """
    if not callable(make_predict_fn):
        raise PlanError(f"make_predict_fn has to be a function, got a {type(make_predict_fn).__qualname__}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 0 < batch_size <= _LARGEST:
        raise PlanError(f"batch_size has to be a positive integer, got {batch_size!r}")
    check_return_type(return_type)
    own_name = getattr(make_predict_fn, "__name__", type(make_predict_fn).__name__)
    return PredictFunction(
        make_predict_fn,
        return_type,
        batch_size,
        _shapes(input_tensor_shapes),
        options=PlanOptions.of(input_dtypes, nulls, version),
        name=own_name if name is None else label("name", name),
        modules=checked(modules),
    )


@entrance
class PredictFunction:
    """A function on columns; made by `predict_batch_udf`."""

    def __init__(
        self,
        make_predict_fn: Callable[[], Callable[..., Any]],
        return_type: DataType | str,
        batch_size: int,
        shapes: pb.InputShapes | None,
        *,
        options: PlanOptions,
        name: str,
        modules: Chosen,
    ) -> None:
        self.func = make_predict_fn
        self.deterministic = False
        self._return_type = return_type
        self._batch_size = batch_size
        self._shapes = shapes
        self._options = options
        self._name = name
        self._modules = modules

    def __repr__(self) -> str:
        return f"PredictFunction({self._name}, batch_size={self._batch_size})"

    @property
    def returnType(self) -> DataType:
        """Type of one prediction; a DDL string is parsed by the active session's server."""
        if not isinstance(self._return_type, str):
            return self._return_type
        from pyspark.sql.types import _parse_datatype_string

        return cast("DataType", _parse_datatype_string(self._return_type))

    @property
    def evalType(self) -> int:
        """pyspark's `spark.udf.register` asks for it, and would then send `make_predict_fn` itself as the function to be called with rows.

        Raises
        ------
        PlanError
            Always.
        """
        raise PlanError(
            f"{self._name} is no UDF of Spark's Python workers, and spark.udf.register does not take it: register it with "
            "sparkgap.register(spark, name, udf)"
        )

    def asNondeterministic(self) -> PredictFunction:
        """The same function: predictions are non-deterministic to Spark already."""
        return copy.copy(self)

    def __call__(self, *cols: Column | str) -> Column:
        """The prediction for these columns; pickles `make_predict_fn`, 0.2 s for 100 MB, and sends nothing.

        Raises
        ------
        PlanError
            `make_predict_fn` cannot be pickled, or holds what works in this process alone (a session, a DataFrame), with the culprit's name.
        ExtensionError
            A column belongs to a classic session.
        """
        from sparkgap.expression import prediction_column

        if not cols:
            raise PlanError(f"{self._name} was called without columns")
        plan, large = self.to_plan()
        return prediction_column(plan, cols, large)

    def to_plan(self) -> tuple[pb.PredictPlan, _Pickled | None]:
        """The plan without arguments, and the pickle of `make_predict_fn` where it is too large to stand in the plan."""
        pickled = self._pickled()
        plan = pb.PredictPlan(
            protocol=PROTOCOL,
            client=channel.client_name(),
            name=self._name,
            return_type=self._return_type if isinstance(self._return_type, str) else self._return_type.json(),
            batch_size=self._batch_size,
            input_shapes=self._shapes,
            make_predict_fn=pickled.payload,
            digest=pickled.digest,
            deterministic=self.deterministic,
        )
        self._options.write(plan)
        if len(pickled.data) > _INLINE_BYTES:
            return plan, pickled
        plan.make_predict_fn.data = pickled.data
        return plan, None

    def _pickled(self) -> _Pickled:
        """What `make_predict_fn` is now; columns of one content share their bytes."""
        what, needs = f"make_predict_fn ({self._name})", Needs()
        try:
            payload, data = codec.apart(self.func, what, note=needs)
        except codec.NotPicklable as error:
            raise PlanError(str(error)) from error.__cause__
        luggage = with_function(self._modules, needs, what)
        payload.modules.extend(luggage.modules)
        payload.files.extend(luggage.files)
        digest = codec.digest(payload, data)
        return _pickles.setdefault(digest, _Pickled(payload, data, digest))


@dataclass(frozen=True, eq=False)
class _Pickled:
    payload: pb.Payload  # without the data, which may be too large for a message
    data: bytes
    digest: str


_pickles: weakref.WeakValueDictionary[str, _Pickled] = weakref.WeakValueDictionary()


def _shapes(given: Shapes | None) -> pb.InputShapes | None:
    if given is None:
        return None
    sparse, found = by_input("input_tensor_shapes", "shapes", given)
    return pb.InputShapes(sparse=sparse, shapes=[_shape(shape, index) for index, shape in found])


def _shape(shape: Sequence[int] | None, index: int) -> pb.InputShape:
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
