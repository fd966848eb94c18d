"""`entrance` marks everything that users call: what sparkgap refuses there is raised at the user's own line, without the frames below it.

The marked functions and classes go on as before. An error that no sentence of ours was written for, a bug of ours for example, keeps all its frames.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import sparkgap_protos

from sparkgap.errors import ProtocolError, SparkgapError

T = TypeVar("T")

_CALLS = ("__init__", "__call__", "__next__")
_OWN = tuple(os.path.join(os.path.dirname(file), "") for file in (__file__, sparkgap_protos.__file__))


def entrance(marked: T) -> T:
    """Decorate a public function, or a class: its constructor, calls, public methods and properties.

    One frame stays, that of the wrapper, since Python adds each frame that an exception passes; IPython and pytest leave it out.
    """
    if not isinstance(marked, type):
        return cast("T", _guarded(cast("Callable[..., Any]", marked)))
    for name, member in list(vars(marked).items()):
        if name.startswith("_") and name not in _CALLS:
            continue
        if isinstance(member, types.FunctionType):
            setattr(marked, name, _guarded(member))
        elif isinstance(member, property) and member.fget is not None:
            setattr(marked, name, property(_guarded(member.fget), member.fset, member.fdel, member.__doc__))
        elif isinstance(member, classmethod):
            setattr(marked, name, classmethod(_guarded(member.__func__)))
    return marked


def _guarded(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except ProtocolError:
            raise  # what cannot be understood has to be looked into
        except SparkgapError as error:
            refusal = _shortened(error)
        try:
            raise refusal
        finally:
            del refusal  # it holds this frame

    return call


def _shortened(error: SparkgapError) -> SparkgapError:
    """The error without a traceback of its own, and what caused it without our frames, once each."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        each.__traceback__ = None if isinstance(each, SparkgapError) else _without_ours(each.__traceback__)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return error


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    frames = []
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_OWN):
            frames.append(trace)
        trace = trace.tb_next
    kept: types.TracebackType | None = None
    for frame in reversed(frames):
        kept = types.TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept
