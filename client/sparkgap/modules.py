"""The user's own modules that travel with a function or a script as their sources, for distributor.py and predict.py.

Sources travel, and not pickles of what is inside them as with cloudpickle's `register_pickle_by_value`: that is a switch of the whole process, it
makes each class anew for each pickle, and neither an import inside a function nor one inside a package finds anything.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path

from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import imports
from sparkgap.errors import PlanError
from sparkgap.sources import Finder, Source

Modules = Sequence["types.ModuleType | str"]

_MAX_BYTES = 16 << 20


class Needs:
    """Names of the modules that a pickle refers to, or that functions inside it import; the codec tells it of each object."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, value: object, by_value: bool) -> None:
        """Take note of one object; called in the midst of pickling."""
        if isinstance(value, types.ModuleType):
            self.names.add(value.__name__)
        elif isinstance(value, types.FunctionType) and by_value:
            self.names |= imports.in_code(value.__code__, value.__globals__.get("__package__") or "")
        elif not by_value:
            kind = value if isinstance(value, (type, types.FunctionType)) else type(value)
            if isinstance(kind.__module__, str):
                self.names.add(kind.__module__)


def checked(given: Modules | None) -> tuple[str, ...] | None:
    """The names that `modules=` was given, or None for whatever is needed.

    Raises
    ------
    PlanError
        It is no list of modules and names.
    """
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise PlanError(f"modules has to be a list of modules or their names, got {given!r}")
    names = [each.__name__ if isinstance(each, types.ModuleType) else each for each in given]
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise PlanError(f"modules has {name!r}: a module or its dotted name is needed")
    return tuple(names)


def with_function(chosen: tuple[str, ...] | None, needs: Needs, what: str) -> list[pb.SourceModule]:
    """What travels with a pickle: the chosen modules, or those that it needs.

    Raises
    ------
    PlanError
        One that was chosen has no source here, or all together are too large.
    """
    return _collected(chosen, Finder(), lambda: needs.names, what)


def with_script(chosen: tuple[str, ...] | None, path: Path, source: bytes) -> list[pb.SourceModule]:
    """What travels with a script: the chosen modules, or those that it imports; those beside it go before others of the same name."""
    return _collected(chosen, Finder(path.absolute().parent), lambda: imports.in_source(source, ""), path.name)


def _collected(
    chosen: tuple[str, ...] | None, finder: Finder, needed: Callable[[], set[str] | frozenset[str]], what: str
) -> list[pb.SourceModule]:
    sources = finder.reachable(needed()) if chosen is None else _chosen(chosen, finder)
    modules = [_read(source) for source in sources]
    total = sum(len(module.source) for module in modules)
    if total > _MAX_BYTES:
        largest = max(modules, key=lambda module: len(module.source))
        raise PlanError(
            f"the modules that {what} needs have {total} bytes, {_MAX_BYTES} may travel with it; the largest is {largest.name} with "
            f"{len(largest.source)} bytes: install them on the workers, and name the others with modules=[...]"
        )
    return modules


def _chosen(names: tuple[str, ...], finder: Finder) -> list[Source]:
    found: dict[str, Source] = {}
    for name in names:
        sources = finder.whole(name)
        if not sources:
            raise PlanError(
                f"modules has {name!r}, of which there is no Python source here: only .py files travel, install others on the workers"
            )
        found |= {source.name: source for source in sources}
    return [found[name] for name in sorted(found)]


def _read(source: Source) -> pb.SourceModule:
    try:
        return pb.SourceModule(name=source.name, source=source.path.read_bytes(), package=source.is_package)
    except OSError as error:
        raise PlanError(f"the module {source.name} cannot be read on this machine: {error}") from error
