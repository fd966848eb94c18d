"""Finds the files of the user's own modules by name, and what these import in turn, for modules.py; imports none of them."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from pathlib import Path

from sparkgap import imports

#: Both sides have these, each in its own version.
_ON_BOTH_SIDES = frozenset(["__main__", "__mp_main__", "pyspark", "sparkgap", "sparkgap_protos", "sparkgap_server"])
_STANDARD_LIBRARY = tuple(os.path.join(sysconfig.get_path(kind), "") for kind in ("stdlib", "platstdlib"))


@dataclass(frozen=True)
class Source:
    """A module that has a file of Python source here."""

    name: str
    path: Path
    is_package: bool

    @property
    def package(self) -> str:
        """What relative imports in the file are relative to."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def root(self) -> Path:
        """The folder on ``sys.path`` that the module was found in."""
        return self.path.parents[self.name.count(".") + self.is_package]


class Finder:
    """Finds modules as this process imports them, or as a script would: beside itself first."""

    def __init__(self, beside: Path | None = None) -> None:
        self._beside = beside
        self._specs: dict[str, ModuleSpec | None] = {}

    def reachable(self, names: Iterable[str]) -> list[Source]:
        """The user's own modules among `names`, their packages, and what all these import, in the order of their names.

        A package with a compiled module among them is left out as a whole: it has to be built where it runs.
        """
        found: dict[str, Source] = {}
        seen: set[str] = set()
        compiled: set[str] = set()
        agenda = list(names)
        while agenda:
            name = agenda.pop()
            top, _, inner = name.partition(".")
            if name in seen or top in compiled or top in _ON_BOTH_SIDES or top in sys.stdlib_module_names:
                continue
            seen.add(name)
            if inner:
                agenda.append(name.rpartition(".")[0])
            source = self.source(name)
            if source is None:
                if inner and self._is_compiled(name):
                    compiled.add(top)
            elif not _is_installed(source):
                try:
                    agenda += imports.in_file(source.path, source.package)
                except OSError:
                    continue  # gone since it was imported
                found[name] = source
        return [found[name] for name in sorted(found) if name.partition(".")[0] not in compiled]

    def whole(self, name: str) -> list[Source]:
        """A module with the packages around it; a package with everything below it. Empty where there is no source."""
        spec = self._spec(name)
        if spec is None:
            return []
        inside = [source for folder in spec.submodule_search_locations or () for source in _below(name, Path(folder))]
        own = [source] if (source := self.source(name)) else []
        if not own and not inside:
            return []
        parts = name.split(".")
        around = [self.source(".".join(parts[:length])) for length in range(1, len(parts))]
        return [*(source for source in around if source), *own, *inside]

    def source(self, name: str) -> Source | None:
        """The module's file of Python source."""
        spec = self._spec(name)
        if spec is None or not spec.has_location or not (spec.origin or "").endswith(".py"):
            return None
        return Source(name, Path(os.path.abspath(spec.origin or "")), spec.submodule_search_locations is not None)

    def _is_compiled(self, name: str) -> bool:
        spec = self._spec(name)
        return spec is not None and (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))

    def _spec(self, name: str) -> ModuleSpec | None:
        if name not in self._specs:
            self._specs[name] = self._find(name)
        return self._specs[name]

    def _find(self, name: str) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if parent:
            package = self._spec(parent)
            if package is None or package.submodule_search_locations is None:
                return None
            return PathFinder.find_spec(name, package.submodule_search_locations)
        beside = PathFinder.find_spec(name, [str(self._beside)]) if self._beside else None
        if beside is not None and beside.has_location:
            return beside
        try:
            return importlib.util.find_spec(name) or beside
        except (ImportError, ValueError):  # one that was made by hand
            return beside


def _is_installed(source: Source) -> bool:
    if not {"site-packages", "dist-packages"}.isdisjoint(source.path.parts):
        return True
    return str(source.path).startswith(_STANDARD_LIBRARY) or _has_distributions(source.root)


@lru_cache(maxsize=256)
def _has_distributions(folder: Path) -> bool:
    """As below ``pip install --target``."""
    try:
        return any(entry.endswith(".dist-info") for entry in os.listdir(folder))
    except OSError:
        return False


def _below(package: str, folder: Path) -> Iterator[Source]:
    for path in sorted(folder.rglob("*.py")):
        *folders, file = path.relative_to(folder).parts
        names = [*folders, *([] if file == "__init__.py" else [file.removesuffix(".py")])]
        if names and all(each.isidentifier() for each in names):
            yield Source(".".join([package, *names]), path, file == "__init__.py")
