"""What the nursery imports ahead of everybody, so that its children find it: nursery.py calls it before it serves and while nobody waits."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial

from sparkgap_server.nursery import pages

#: Imported before the first connection is served; a cluster for inference only may lack some.
ESSENTIAL = (
    "numpy",
    "pyarrow",
    "pyspark.cloudpickle",
    "pyspark.sql.types",
    "pyspark.sql.pandas.types",
    "torch",
    "torch.distributed",
)

#: Imported one by one while nobody waits: the first step of an optimizer loads torch._dynamo, 1 to 2 s in each rank otherwise.
EXTRA = ("torch.nn.parallel", "torch._dynamo", "torch.utils.data.distributed")


def essential() -> None:
    """Import what children cannot do without."""
    for module in ESSENTIAL:
        _import(module)
    gc.freeze()


def chores() -> Iterator[Callable[[], None]]:
    """What makes children faster, in steps of at most a second or two."""
    for module in EXTRA:
        yield partial(_import, module)
    yield _collect

    yield from pages.collapse()


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as problem:
        sys.stderr.write(f"sparkgap nursery: {module} cannot be imported here: {problem}\n")
        sys.stderr.flush()
    _spare_finalizers()


def _spare_finalizers() -> None:
    """Children do not take down at their exit what was built here: torch's libraries of operators alone cost each of them 50 ms."""
    for finalizer in list(getattr(weakref.finalize, "_registry", ())):
        finalizer.atexit = False


def _collect() -> None:
    """What is left is there to stay, and no child's collector has to look at it."""
    gc.collect()
    gc.freeze()
