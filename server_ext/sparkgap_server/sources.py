"""Puts the modules and files that travelled with a plan where this process finds them; ranks and model hosts call it before they open the plan.

They become files and not an importer in memory: processes that user code spawns (a `DataLoader`'s workers) take over ``sys.path`` and no importers,
and `inspect` and tracebacks find the lines.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter
from pathlib import Path

from sparkgap_protos import places
from sparkgap_protos.v1 import plan_pb2


def install(modules: Iterable[plan_pb2.SourceModule], folder: Path, files: Iterable[plan_pb2.SourceFile] = ()) -> None:
    """Write modules and files into a folder of this process alone, which comes before everything installed.

    Raises
    ------
    ValueError
        A name is none of a module, or a path leads out of the folder; nothing is written then.
    """
    modules = list(modules)
    contents = {places.of_module(module): module.source for module in modules}
    lying = {places.of_file(file.path): file.data for file in files}
    contents |= lying
    os.environ[places.FOLDER] = str(folder)
    if not contents:
        return
    for path, data in contents.items():
        _write(folder, path, data)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    _forget({module.name for module in modules} | set(_importable(lying)))


def advice_on(error: BaseException) -> str:
    """How a file would have travelled that user code has not found where it would lie beside it, for the error's text; empty for other errors."""
    folder = os.environ.get(places.FOLDER)
    if not folder or not isinstance(error, FileNotFoundError) or not isinstance(error.filename, (str, bytes)):
        return ""
    name = os.fsdecode(error.filename)
    if not os.path.isabs(name):
        return (
            f". It was looked for in the working directory of this process, {os.getcwd()}; a file of the client travels with "
            f"modules=[pathlib.Path({name!r})] and is found as sparkgap.files() / {os.path.basename(name)!r}"
        )
    path = Path(os.path.normpath(name))
    if not path.is_relative_to(folder):
        return ""
    top, *inner = path.relative_to(folder).parts or (".",)
    if inner and Path(folder, top).is_dir():
        return (
            ". It did not travel: with the modules of a package go the files beside them, without hidden ones, notebooks and links, and none where "
            f"they are many or large. Give the folder of the package to have all of it: modules=[pathlib.Path('path/to/{top}')]"
        )
    return f". It did not travel: beside a script and modules of no package lies only what is given, modules=[pathlib.Path('path/to/{top}')] for this"


def _write(folder: Path, path: str, data: bytes) -> None:
    *parents, name = path.split("/")
    for parent in ("", *parents):
        folder = folder / parent
        folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / name
    # Not through os.open with a mode: the witness of a model host hears that too, and takes the file for one that the model has read.
    target.write_bytes(data)
    target.chmod(0o600)


def _importable(paths: Iterable[str]) -> Iterator[str]:
    """Modules at the top of the folder, but those that Python has before it looks into any folder."""
    for path in paths:
        top, _, rest = path.partition("/")
        name = top if rest else top.removesuffix(".py")
        if (name != top or rest == "__init__.py") and name != "__main__" and not _is_fixed(name):
            yield name


def _is_fixed(name: str) -> bool:
    return BuiltinImporter.find_spec(name) is not None or FrozenImporter.find_spec(name) is not None


def _forget(names: set[str]) -> None:
    """What the nursery had imported under the same names was inherited with its fork."""
    inside = tuple(f"{name}." for name in names)
    for loaded in list(sys.modules):
        if loaded in names or loaded.startswith(inside):
            del sys.modules[loaded]
