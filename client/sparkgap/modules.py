"""The user's own modules and files that travel with a function or a script, for distributor.py, scripts.py and predict.py.

Sources travel, and not pickles of what is inside them as with cloudpickle's `register_pickle_by_value`: that is a switch of the whole process, it
makes each class anew for each pickle, and neither an import inside a function nor one inside a package finds anything.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkgap_protos import places
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap import imports, package_data
from sparkgap.errors import PlanError
from sparkgap.folders import File, listed
from sparkgap.sources import Finder, Source

Modules = Sequence["types.ModuleType | str | os.PathLike[str]"]

_MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Chosen:
    """What `modules=` says: names of modules, None where those that are needed are to be found, and paths that travel as they are."""

    names: tuple[str, ...] | None = None
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Luggage:
    """What travels with a function or a script, each thing once."""

    modules: list[pb.SourceModule]
    files: list[pb.SourceFile]


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


def checked(given: Modules | None) -> Chosen:
    """What `modules=` was given; paths are meant from the folder that is the current one now, and looked at when something is sent.

    Raises
    ------
    PlanError
        It is no list of modules, names and paths.
    """
    if given is None:
        return Chosen()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise PlanError(f"modules has to be a list of modules, their names, or paths, got {given!r}")
    names: list[str] = []
    paths: list[Path] = []
    for each in given:
        name = each.__name__ if isinstance(each, types.ModuleType) else each
        if isinstance(name, os.PathLike):
            paths.append(Path(os.fsdecode(name)).absolute())
        elif isinstance(name, str) and all(part.isidentifier() for part in name.split(".")):
            names.append(name)
        else:
            raise PlanError(
                f"modules has {name!r}: a module, its dotted name, or the pathlib.Path of a file or folder is needed"
            )
    return Chosen(tuple(names) if names or not paths else None, tuple(paths))


def with_function(chosen: Chosen, needs: Needs, what: str) -> Luggage:
    """What travels with a pickle: the chosen modules, or those that it needs, and the chosen files.

    Raises
    ------
    PlanError
        One that was chosen is not here, or all together are too large or too many.
    """
    return _packed(chosen, Finder(), lambda: needs.names, files=listed(None, chosen.paths, what), what=what)


def with_script(chosen: Chosen, path: Path, source: bytes) -> Luggage:
    """What travels with a script: the chosen modules, or those that it imports; those beside it go before others of the same name."""
    finder = Finder(path.absolute().parent)
    files = listed(None, chosen.paths, path.name)
    script = {path.name: source}
    return _packed(chosen, finder, lambda: imports.in_source(source, ""), files=files, what=path.name, script=script)


def with_folder(chosen: Chosen, folder: Path) -> Luggage:
    """A folder's own files, and what travels with them: the chosen modules, or those outside it that any of its files imports."""
    files = listed(folder, chosen.paths, str(folder))
    own = [file for file in files if file.path.is_relative_to(folder)]
    return _packed(chosen, Finder(folder.absolute()), lambda: _imported(own), files=files, what=str(folder))


def _imported(files: Iterable[File]) -> set[str]:
    names: set[str] = set()
    for file in files:
        if file.name.endswith(".py"):
            names |= imports.in_source(file.read(), file.name.rpartition("/")[0].replace("/", "."))
    return names


def _packed(
    chosen: Chosen,
    finder: Finder,
    needed: Callable[[], set[str] | frozenset[str]],
    *,
    files: list[File],
    what: str,
    script: Mapping[str, bytes] | None = None,
) -> Luggage:
    """`script` lies beside what travels, and goes its own way."""
    sizes = [(file.name, file.size) for file in files]
    _require_small(what, sizes)  # before any is read
    sources = finder.reachable(needed()) if chosen.names is None else _chosen(chosen.names, finder)
    lying = {file.name for file in files}
    modules = {places.of_module(module): module for module in map(_read, sources)}
    sizes += [(module.name, len(module.source)) for place, module in modules.items() if place not in lying]
    _require_small(what, sizes)
    room = _MAX_BYTES - sum(size for _, size in sizes)
    own = lying | set(script or ())
    beside = [file for file in package_data.beside(sources, room) if file.name not in own]
    contents = dict(script or {})
    for name, data in [
        *((file.name, file.read()) for file in [*files, *beside]),
        *((place, module.source) for place, module in modules.items()),
    ]:
        if contents.setdefault(name, data) != data:
            raise PlanError(f"two files with different contents would travel with {what} as {name}: rename one of them")
    _require_apart(contents, what)
    return Luggage(
        [module for place, module in modules.items() if place not in lying],
        [
            pb.SourceFile(path=name, data=contents[name])
            for name in sorted((lying | {file.name for file in beside}) - set(script or ()))
        ],
    )


def _require_small(what: str, sizes: list[tuple[str, int]]) -> None:
    total = sum(size for _, size in sizes)
    if total > _MAX_BYTES:
        largest, size = max(sizes, key=lambda each: each[1])
        raise PlanError(
            f"the modules and files that {what} needs have {total} bytes, {_MAX_BYTES} may travel with it; the largest is {largest} with "
            f"{size} bytes: install modules on the workers and name the others with modules=[...], and put data where the workers can read it"
        )


def _require_apart(contents: Mapping[str, bytes], what: str) -> None:
    for name in contents:
        for parent in Path(name).parents:
            if parent.as_posix() in contents:
                raise PlanError(
                    f"{parent} would travel with {what} as a file and as the folder of {name}: rename one of them"
                )


def _chosen(names: tuple[str, ...], finder: Finder) -> list[Source]:
    found: dict[str, Source] = {}
    for name in names:
        sources = finder.whole(name)
        if not sources:
            raise PlanError(
                f"modules has {name!r}, of which there is no Python source here: only .py files travel as modules, install others on the workers"
            )
        found |= {source.name: source for source in sources}
    return [found[name] for name in sorted(found)]


def _read(source: Source) -> pb.SourceModule:
    try:
        return pb.SourceModule(name=source.name, source=source.path.read_bytes(), package=source.is_package)
    except OSError as error:
        raise PlanError(f"the module {source.name} cannot be read on this machine: {error}") from error
