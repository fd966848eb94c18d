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
from collections.abc import Callable, Mapping
from typing import IO, Any

from sparkgap_protos import contents, unsendable
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
    """A payload holds bytecode of another minor version of Python, `python`, which means something else here."""

    def __init__(self, python: str) -> None:
        super().__init__(
            f"it holds bytecode of Python {python}, and this is Python {PYTHON}: both need the same minor version"
        )
        self.python = python


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
        The pickle, with the versions that wrote it, and whether other versions of Python can open it.

    Raises
    ------
    NotPicklable
        Naming the culprit inside `value`, before anything is sent.
    """
    payload, data = apart(value, what, parts, note, advice)
    payload.data = data
    return payload


def apart(
    value: object,
    what: str,
    parts: Mapping[str, object] | None = None,
    note: Note | None = None,
    advice: str = CARRIED,
) -> tuple[pb.Payload, bytes]:
    """What `pack` makes, with the data beside its payload, for whoever may have too much of it for a message; see there."""
    from pyspark import cloudpickle

    buffer = io.BytesIO()
    pickler = _pickler()(buffer, note)
    try:
        pickler.dump(value)
    except Exception as error:
        stranger = error.value if isinstance(error, _Unsendable) else None
        found = contents.find(parts or {what: value}, _is_unsendable, _by_name)
        if found is not None or stranger is not None:
            path, leaf = found or (f"something inside {what}", stranger)
            raise NotPicklable(
                f"{what} cannot be sent: {path} is a {_class_name(leaf)}. {unsendable.advice(type(leaf))}"
            ) from None
        suspects = [
            (name, part, reason) for name, part in (parts or {what: value}).items() if (reason := _refusal(part))
        ]
        path, leaf, reason = _culprit(*(suspects or [(what, value, error)])[0], seen=set())
        raise NotPicklable(
            f"{what} cannot be pickled: {path} is a {_class_name(leaf)}, and "
            f"{type(reason).__name__}: {reason}. {advice}"
        ) from error
    return pb.Payload(python=PYTHON, cloudpickle=cloudpickle.__version__, portable=pickler.portable), buffer.getvalue()


def unpack(payload: pb.Payload, file: IO[bytes] | None = None) -> Any:
    """Open a payload; runs code that whoever made it chose, so only ranks, model hosts and the client itself call it.

    One without bytecode is opened whatever minor version of Python has pickled it.

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
    if payload.python != PYTHON and not payload.portable:
        raise WrongPython(payload.python)
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


class _Unsendable(Exception):
    """Ends the pickling."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.value = value


@functools.cache
def _pickler() -> Any:
    from pyspark import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # pyspark has no types that mypy follows
        """Writes what cloudpickle itself writes; Python asks `reducer_override` about every object that is no plain value."""

        def __init__(self, file: IO[bytes], note: Note | None = None) -> None:
            super().__init__(file)
            self.portable = True
            self._note = note
            self._sendable: dict[int, type] = {}  # by id: a class may be unhashable

        def reducer_override(self, value: Any) -> Any:
            kind = type(value)
            if id(kind) not in self._sendable:
                if unsendable.advice(kind) is not None:
                    raise _Unsendable(value)
                self._sendable[id(kind)] = kind
            if kind is types.CodeType:
                self.portable = False
            reduced = super().reducer_override(value)
            if self._note is not None:
                self._note(value, reduced is not NotImplemented)
            return reduced

    return Pickler


def _is_unsendable(value: object) -> bool:
    return unsendable.advice(type(value)) is not None


def _by_name(value: object) -> bool:
    from pyspark.cloudpickle import cloudpickle

    return bool(cloudpickle._should_pickle_by_reference(value))


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _culprit(path: str, value: object, error: Exception, seen: set[int]) -> tuple[str, object, Exception]:
    seen.add(id(value))
    for name, part in contents.parts(value, _by_name):
        if id(part) not in seen and (reason := _refusal(part)) is not None:
            return _culprit(f"{path}{name}", part, reason, seen)
    return path, value, error


def _refusal(value: object) -> Exception | None:
    try:
        _pickler()(io.BytesIO()).dump(value)
    except Exception as error:
        return error
    return None
