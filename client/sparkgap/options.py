"""What `predict_batch_udf` takes beyond pyspark's: checked where it is given, and written into every plan that `predict` makes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sparkgap_protos import MOST_TYPE_CHARACTERS, MOST_TYPE_DEPTH
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap.errors import PlanError

if TYPE_CHECKING:
    from pyspark.sql.types import DataType

Dtypes = Sequence[Any] | Mapping[int, Any]

_DTYPES = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
_NULLS = {"keep": pb.PredictPlan.NULLS_KEEP, "error": pb.PredictPlan.NULLS_ERROR, "skip": pb.PredictPlan.NULLS_SKIP}
_LABEL_CHARACTERS = 128


@dataclass(frozen=True)
class PlanOptions:
    """Checked options, as they stand in a plan.

    Parameters
    ----------
    input_dtypes
        None where none is declared.
    nulls
        A value of `PredictPlan.Nulls`.
    version
        "" for none.
    """

    input_dtypes: pb.InputDtypes | None
    nulls: pb.PredictPlan.Nulls
    version: str

    @classmethod
    def of(cls, input_dtypes: Dtypes | None, nulls: str, version: str | None) -> PlanOptions:
        """The options that a user gave.

        Raises
        ------
        PlanError
            One of them can never work.
        """
        if not isinstance(nulls, str) or nulls not in _NULLS:
            raise PlanError(f'nulls has to be "keep", "error" or "skip", got {nulls!r}')
        return cls(_dtypes(input_dtypes), _NULLS[nulls], "" if version is None else label("version", version))

    def write(self, plan: pb.PredictPlan) -> None:
        """Complete a plan that has its digest: another version is another model."""
        if self.input_dtypes is not None:
            plan.input_dtypes.CopyFrom(self.input_dtypes)
        plan.nulls = self.nulls
        if self.version:
            plan.version = self.version
            plan.digest = hashlib.sha256(f"{plan.digest}\0{self.version}".encode()).hexdigest()


def label(what: str, given: str) -> str:
    """A name or a version as it was given.

    Raises
    ------
    PlanError
        It is no string that can be shown in one line.
    """
    if not isinstance(given, str) or not 0 < len(given) <= _LABEL_CHARACTERS or not given.isprintable():
        raise PlanError(f"{what} has to be a string of 1 to {_LABEL_CHARACTERS} printable characters, got {given!r}")
    return given


def check_return_type(return_type: object) -> None:
    """Refuse what predictions cannot be; a DDL string is left to the server.

    Raises
    ------
    PlanError
        Neither a type nor a string, or a type that no prediction has.
    """
    from pyspark.sql.types import DataType, StructType

    if not isinstance(return_type, (str, DataType)):
        raise PlanError(f"return_type has to be a DataType or a DDL string, got {return_type!r}")
    _check_size(return_type)
    if isinstance(return_type, StructType):
        for field in return_type.fields:
            _check_value_type(field.dataType, f" of field {field.name!r}")
    elif isinstance(return_type, DataType):
        _check_value_type(return_type, "")


def _check_size(return_type: DataType | str) -> None:
    """Parsers and printers of types, here and in the server, need stack for each level."""
    if isinstance(return_type, str):
        if len(return_type) > MOST_TYPE_CHARACTERS:
            raise PlanError(
                f"return_type has {len(return_type)} characters: at most {MOST_TYPE_CHARACTERS} are allowed"
            )
        depth = max(accumulate((each in "<({[") - (each in ">)}]") for each in return_type) if return_type else [0])
    else:
        depth, level = 0, [return_type]
        while level and depth <= MOST_TYPE_DEPTH:
            depth, level = depth + 1, [part for each in level for part in _parts(each)]
    if depth > MOST_TYPE_DEPTH:
        raise PlanError(f"return_type is nested too deep: at most {MOST_TYPE_DEPTH} levels are allowed")


def _parts(data_type: DataType) -> list[DataType]:
    from pyspark.sql import types as t

    if isinstance(data_type, t.ArrayType):
        return [data_type.elementType]
    if isinstance(data_type, t.MapType):
        return [data_type.keyType, data_type.valueType]
    return [field.dataType for field in data_type.fields] if isinstance(data_type, t.StructType) else []


def _check_value_type(data_type: DataType, where: str) -> None:
    from pyspark.sql import types as t

    leaf = data_type
    while isinstance(leaf, t.ArrayType):
        leaf = leaf.elementType
    numbers = (t.ByteType, t.ShortType, t.IntegerType, t.LongType, t.FloatType, t.DoubleType)
    if not isinstance(
        leaf,
        (*numbers, t.BooleanType, t.StringType, t.BinaryType, t.DateType, t.TimestampType, t.TimestampNTZType),
    ):
        raise PlanError(
            f"Unsupported return type {data_type.simpleString()}{where}: a prediction is a number, a boolean, a string, a binary, a date "
            "or a timestamp, an array of these, or a struct with such fields"
        )


def by_input(option: str, entries: str, given: Any) -> tuple[bool, list[tuple[int, Any]]]:
    """An option with an entry for each input: whether it is a dict, which may leave inputs out, and the entries with their positions.

    Raises
    ------
    PlanError
        It is neither a list nor a dict, or a key is no position.
    """
    if not isinstance(given, (list, tuple, Mapping)):
        raise PlanError(f"{option} has to be a list or a dict of {entries}, got {given!r}")
    sparse = isinstance(given, Mapping)
    found = list(given.items() if isinstance(given, Mapping) else enumerate(given))
    for index, _ in found:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise PlanError(f"{option} has the key {index!r}: the position of an input is needed")
    return sparse, found


def _dtypes(given: Dtypes | None) -> pb.InputDtypes | None:
    if given is None:
        return None
    sparse, found = by_input("input_dtypes", "dtypes", given)
    return pb.InputDtypes(sparse=sparse, dtypes=[_dtype(dtype, index) for index, dtype in found])


def _dtype(given: Any, index: int) -> pb.InputDtype:
    if given is None:
        return pb.InputDtype(index=index)
    name = given if isinstance(given, str) else None
    if name not in _DTYPES:
        name = _numpy_name(given)
    if name not in _DTYPES:
        raise PlanError(
            f"input_dtypes has {given!r} for input {index}: a NumPy dtype is needed, bool, int8 to int64, uint8 to uint64, "
            "float16, float32 or float64, in the machine's byte order"
        )
    return pb.InputDtype(index=index, name=name)


def _numpy_name(given: Any) -> str | None:
    import numpy as np  # only for what is no plain name: it takes longer to import than all of sparkgap

    try:
        dtype = np.dtype(given)
    except (TypeError, ValueError):
        return None
    return dtype.name if dtype.isnative else None
