"""Where modules and files that travel with a plan lie in the folder that a rank or a model host writes them to; both sides ask here."""

from __future__ import annotations

from sparkgap_protos.v1 import plan_pb2 as pb

#: Environment variable of ranks, model hosts and the processes that they start: that folder.
FOLDER = "SPARKGAP_FILES"


def of_module(module: pb.SourceModule) -> str:
    """The path of a module's source.

    Raises
    ------
    ValueError
        Its name is none of a module.
    """
    return of_name(module.name, module.package)


def of_name(name: str, is_package: bool) -> str:
    """The same for a module's name; see there."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{name!r} travelled with the plan and is no name of a module")
    return "/".join([*parts, "__init__.py"] if is_package else [*parts[:-1], f"{parts[-1]}.py"])


def of_file(path: str) -> str:
    """The path itself, if it stays inside the folder.

    Raises
    ------
    ValueError
        It is empty, absolute, leads upwards, or has a part that is no name of a file.
    """
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} travelled with the plan and is no path inside a folder")
    return path
