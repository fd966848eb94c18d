"""Packs a script or a folder with a `__main__.py` for distributor.py, as ``python PATH`` would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparkgap_protos import unsendable
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap.errors import PlanError
from sparkgap.folders import name_of
from sparkgap.modules import Chosen, with_folder, with_script

_MAX_SCRIPT_BYTES = 16 << 20


def script(path: Path, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Chosen) -> pb.Script:
    """The script or folder at `path` with what travels with it.

    Raises
    ------
    PlanError
        It cannot be read or run, or is too large; an argument means nothing in another process.
    """
    if kwargs:
        raise PlanError(
            f"a script takes positional arguments only, got {', '.join(sorted(kwargs))} by name: pass '--name', 'value' instead"
        )
    for index, argument in enumerate(args):
        if (advice := unsendable.advice(type(argument))) is not None:
            raise PlanError(
                f"argument {index} of the script is a {type(argument).__module__}.{type(argument).__qualname__}, of which it would get a text. "
                f"{advice}"
            )
    packed = _folder(path, chosen) if path.is_dir() else _file(path, chosen)
    packed.arguments.extend(str(argument) for argument in args)
    return packed


def _file(path: Path, chosen: Chosen) -> pb.Script:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PlanError(f"the script cannot be read on this machine: {error}") from error
    if len(source) > _MAX_SCRIPT_BYTES:
        raise PlanError(f"{path} has {len(source)} bytes, a script may have {_MAX_SCRIPT_BYTES}")
    luggage = with_script(chosen, path, source)
    return pb.Script(name=path.name, source=source, modules=luggage.modules, files=luggage.files)


def _folder(path: Path, chosen: Chosen) -> pb.Script:
    if not (path / "__main__.py").is_file():
        raise PlanError(
            f"the folder {path} has no __main__.py, with which it would be run as by `python {path}`: give the path of the script that "
            "is to run, and a folder that it needs with modules=[pathlib.Path(...)]"
        )
    luggage = with_folder(chosen, path)
    return pb.Script(name=name_of(path), modules=luggage.modules, files=luggage.files)
