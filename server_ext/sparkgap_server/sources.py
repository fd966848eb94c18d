"""Puts the modules that travelled with a plan where this process imports them from; ranks and model hosts call it before they open the plan.

They become files and not an importer in memory: processes that user code spawns (a `DataLoader`'s workers) take over ``sys.path`` and no importers,
and `inspect` and tracebacks find the lines.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from sparkgap_protos.v1 import plan_pb2


def install(modules: Iterable[plan_pb2.SourceModule], folder: Path) -> None:
    """Write the modules into a folder of this process alone, which comes before everything installed.

    Raises
    ------
    ValueError
        A name is none of a module; nothing is written outside the folder.
    """
    names = []
    for module in modules:
        parts = module.name.split(".")
        if not all(part.isidentifier() for part in parts):
            raise ValueError(f"{module.name!r} travelled with the plan and is no name of a module")
        path = (
            folder.joinpath(*parts, "__init__.py")
            if module.package
            else folder.joinpath(*parts[:-1], f"{parts[-1]}.py")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module.source)
        names.append(module.name)
    if not names:
        return
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    _forget(names)


def _forget(names: list[str]) -> None:
    """What the nursery had imported under the same names was inherited with its fork."""
    inside = tuple(f"{name}." for name in names)
    for loaded in list(sys.modules):
        if loaded in names or loaded.startswith(inside):
            del sys.modules[loaded]
