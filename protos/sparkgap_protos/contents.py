"""What a value holds, under the names that its owner knows, for the codec: where something lies that cannot go into a pickle."""

from __future__ import annotations

import copyreg
import dis
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping

#: Objects looked at before the search gives up: a value may hold millions.
_MOST = 200_000

_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray)


def find(
    values: Mapping[str, object], wanted: Callable[[object], bool], by_name: Callable[[object], bool]
) -> tuple[str, object] | None:
    """The wanted object that lies nearest to one of the named values, and the way to it in words.

    Parameters
    ----------
    values
        By the names that the way begins with, "argument 1" for example.
    wanted
        Says of an object whether it is sought.
    by_name
        Says of a function, class or module whether it goes into the pickle as a name: what is behind a name does not go along.
    """
    agenda = deque(values.items())
    kept = [*values.values()]  # what is made on the way has to live on, or its id may come again
    seen = set(map(id, kept))
    while agenda and len(kept) < _MOST:
        path, value = agenda.popleft()
        if wanted(value):
            return path, value
        for name, part in parts(value, by_name):
            if not isinstance(part, _PLAIN) and id(part) not in seen:
                seen.add(id(part))
                kept.append(part)
                agenda.append((path + name, part))
    return None


def parts(value: object, by_name: Callable[[object], bool]) -> Iterator[tuple[str, object]]:
    """What goes into a pickle of `value` one step further inside, each with the words that lead to it."""
    if isinstance(value, _PLAIN) or (
        isinstance(value, (types.FunctionType, type, types.ModuleType)) and by_name(value)
    ):
        return
    if isinstance(value, (tuple, list)) and type(value).__reduce__ is object.__reduce__:
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    if isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield "", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args[{index}]", part) for index, part in enumerate(value.args))
        yield from ((f".keywords[{key!r}]", part) for key, part in value.keywords.items())
    elif isinstance(value, (staticmethod, classmethod)):
        yield "", value.__func__
    elif isinstance(value, property):
        yield from (("", part) for part in (value.fget, value.fset, value.fdel))
    elif isinstance(value, type):
        yield from ((f": its base {base.__name__}", base) for base in value.__bases__)
        yield from _attributes(vars(value))
    elif isinstance(value, types.ModuleType):
        yield from _attributes(vars(value))
    elif isinstance(value, dict):
        yield from ((f"[{_shown(key)}]", part) for key, part in value.items())
        yield from ((": one of its keys", key) for key in value)
    elif isinstance(value, (set, frozenset)):
        yield from ((": one of its elements", part) for part in value)
    if not isinstance(value, (types.FunctionType, type, types.ModuleType)) and type(value) not in _BUILTIN:
        yield from _reduced(value)


_BUILTIN = (tuple, list, dict, set, frozenset, types.MethodType, functools.partial, staticmethod, classmethod, property)


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f": its closure variable {name!r}", cell.cell_contents
        except ValueError:
            continue  # an empty cell
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f": its global {name!r}", function.__globals__[name]
    yield from ((f": its default {index}", part) for index, part in enumerate(function.__defaults__ or ()))
    yield from ((f": its default of {name!r}", part) for name, part in (function.__kwdefaults__ or {}).items())
    yield from ((f": its annotation of {name!r}", part) for name, part in function.__annotations__.items())
    yield from _attributes(vars(function))


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from dict.fromkeys(each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _shown(key: object) -> str:
    return repr(key)[:80] if isinstance(key, _PLAIN) else f"<{type(key).__qualname__}>"


def _attributes(of: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    yield from ((f".{name}", part) for name, part in of.items())


def _reduced(value: object) -> Iterator[tuple[str, object]]:
    """What the object itself, or whoever has registered for its class, says that a pickle of it holds."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        said = reduce(value) if reduce else value.__reduce_ex__(4)
        if not isinstance(said, tuple):
            return
        arguments, state, items, pairs = (*said[1:5], None, None, None)[:4]
        slots: object = None
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            state, slots = state
        for each in (state, slots):
            if isinstance(each, dict):
                yield from ((f".{name}", part) for name, part in each.items())
            elif each is not None:
                yield " (inside it)", each
        yield from ((f"[{index}]", part) for index, part in enumerate(items or ()))
        yield from ((f"[{_shown(key)}]", part) for key, part in pairs or ())
        words = ".args" if isinstance(value, BaseException) else " (inside it)"
        yield from ((f"{words}[{index}]" if words == ".args" else words, part) for index, part in enumerate(arguments))
    except Exception:
        return  # an object that cannot be pickled either holds nothing that one could name
