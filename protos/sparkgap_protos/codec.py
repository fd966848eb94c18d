"""The only place that pickles: clients pack functions here, ranks and model hosts open them, and the way back is the same.

Server processes that do not run user code (the driver's JVM, the nursery, Spark's workers) pass payloads on unopened.
"""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from sparkgap_protos.identity import meaning
from sparkgap_protos.v1 import plan_pb2 as pb

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

#: Hears of each function, class, module and object that goes into a pickle, and whether by value, with its code, or as a name to be imported.
Note = Callable[[object, bool], None]

#: What to do about a value that cannot be pickled, for those who send it and for those who return it.
CARRIED = "Create it inside the function instead of carrying it along."
RETURNED = "Return instead what has to be kept of it: numbers, NumPy arrays, a model's state_dict(), or the path of what was written to storage."


class NotPicklable(ValueError):
    """A value cannot be pickled; the text names the part of it that is in the way."""


class WrongPython(RuntimeError):
    """A payload was pickled by another minor version of Python: its bytecode means something else here."""


def pack(
    value: object,
    what: str,
    parts: Mapping[str, object] | None = None,
    note: Note | None = None,
    advice: str = CARRIED,
) -> pb.Payload:
    """Pickle `value` by value where it was defined in ``__main__``, by reference where a module defines it.

    Parameters
    ----------
    value
        A function, a tuple of a function and its arguments, a result, an exception.
    what
        Name of the value for the error text, "main_fn" for example.
    parts
        Named parts of a composed value, among which the culprit is looked for.
    note
        Hears of everything that goes into the pickle.
    advice
        What to do about a culprit: `CARRIED` or `RETURNED`.

    Returns
    -------
    Payload
        The pickle, with the versions that wrote it.

    Raises
    ------
    NotPicklable
        Naming the culprit inside `value`, before anything is sent.
    """
    payload = versions()
    payload.data = pickled(value, what, parts, note, advice)
    return payload


def versions() -> pb.Payload:
    """A payload without data: what pickles here."""
    from pyspark import cloudpickle

    return pb.Payload(python=PYTHON, cloudpickle=cloudpickle.__version__)


def pickled(
    value: object,
    what: str,
    parts: Mapping[str, object] | None = None,
    note: Note | None = None,
    advice: str = CARRIED,
) -> bytes:
    """The data that `pack` puts into a payload, for whoever has too much of it for a message; see there."""
    from pyspark import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value)) if note is None else _noted(value, note)
    except Exception as error:
        suspects = [
            (name, part, reason) for name, part in (parts or {what: value}).items() if (reason := _refusal(part))
        ]
        path, leaf, reason = _culprit(*(suspects or [(what, value, error)])[0], seen=set())
        raise NotPicklable(
            f"{what} cannot be pickled: {path} is a {type(leaf).__module__}.{type(leaf).__qualname__}, and "
            f"{type(reason).__name__}: {reason}. {advice}"
        ) from error


def unpack(payload: pb.Payload, file: IO[bytes] | None = None) -> Any:
    """Open a payload; runs code that whoever made it chose, so only ranks, model hosts and the client itself call it.

    Parameters
    ----------
    payload
        What `pack` made.
    file
        Holds the data, where it is not in the payload itself.

    Raises
    ------
    WrongPython
        Before anything is unpickled.
    """
    if payload.python != PYTHON:
        raise WrongPython(
            f"pickled by Python {payload.python}, opened by Python {PYTHON}: both need the same minor version"
        )
    return pickle.loads(payload.data) if file is None else pickle.load(file)


def digest(payload: pb.Payload, data: bytes | None = None) -> str:
    """Hexadecimal identity of what a payload means, the same in every process that packs the same code; call it where it was packed.

    The sources of its modules, and its files, have their part in it. `data` is the pickle where it is not in the payload itself. Costs some 0.1 s for
    100 MB.
    """
    from pyspark.cloudpickle import cloudpickle

    pickler = f"{payload.python}\0{payload.cloudpickle}\0".encode()
    tracking_ids = set(cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.values())
    hashed = hashlib.sha256(pickler + meaning(payload.data if data is None else data, tracking_ids))
    for module in payload.modules:
        hashed.update(f"{module.name}\0{module.package:d}\0{len(module.source)}\0".encode())
        hashed.update(module.source)
    for file in payload.files:
        hashed.update(f"file {file.path}\0{len(file.data)}\0".encode())  # no module has a space in its name
        hashed.update(file.data)
    return hashed.hexdigest()


def _noted(value: object, note: Note) -> bytes:
    buffer = io.BytesIO()
    _noting_pickler()(buffer, note).dump(value)
    return buffer.getvalue()


@functools.cache
def _noting_pickler() -> Any:
    from pyspark import cloudpickle

    class Noting(cloudpickle.Pickler):  # type: ignore[misc]  # pyspark has no types that mypy follows
        """Writes what cloudpickle itself writes; Python asks `reducer_override` about every object that is no plain value."""

        def __init__(self, file: IO[bytes], note: Note) -> None:
            super().__init__(file)
            self._note = note

        def reducer_override(self, value: Any) -> Any:
            reduced = super().reducer_override(value)
            self._note(value, reduced is not NotImplemented)
            return reduced

    return Noting


def _culprit(path: str, value: object, error: Exception, seen: set[int]) -> tuple[str, object, Exception]:
    seen.add(id(value))
    for name, part in _parts(value):
        if id(part) not in seen and (reason := _refusal(part)) is not None:
            return _culprit(f"{path}{name}", part, reason, seen)
    return path, value, error


def _refusal(value: object) -> Exception | None:
    from pyspark import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return error
    return None


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield f": its closure variable {name!r}", cell.cell_contents
        for name in _global_names(value.__code__):
            if name in value.__globals__:
                yield f": its global {name!r}", value.__globals__[name]
        for index, default in enumerate(value.__defaults__ or ()):
            yield f": its default {index}", default
    elif isinstance(value, (tuple, list)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType)):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
