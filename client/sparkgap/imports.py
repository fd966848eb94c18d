"""Which modules a piece of code imports, read from its source or its bytecode without running it; sources.py finds their files."""

from __future__ import annotations

import ast
import dis
import os
import types
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path


def in_file(path: Path, package: str) -> frozenset[str]:
    """Dotted names that may be modules; a file is parsed again when it has changed.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    state = os.stat(path)
    return _in_file(path, package, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _in_file(path: Path, package: str, changed: int, size: int) -> frozenset[str]:
    return in_source(path.read_bytes(), package)


def in_source(source: bytes, package: str) -> frozenset[str]:
    """Names that a file of `package` imports, inside its functions too; what is there for type checkers only does not count.

    ``from a import b`` gives ``a`` and ``a.b``, since `b` may be a module. A file that is no Python of this version imports nothing.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    return frozenset(name for node in _nodes(tree) for name in _imported(node, package))


def in_code(code: types.CodeType, package: str) -> frozenset[str]:
    """The same for a function that travels by value, and the functions inside it."""
    names: set[str] = set()
    operands: list[object] = [0, ()]
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, members = operands
            names.update(_named(level, instruction.argval, members or (), package))  # type: ignore[arg-type]
        operands = [operands[1], instruction.argval]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= in_code(constant, package)
    return frozenset(names)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    agenda = [tree]
    while agenda:
        node = agenda.pop()
        yield node
        agenda += node.orelse if _for_type_checkers(node) else ast.iter_child_nodes(node)  # type: ignore[attr-defined]


def _for_type_checkers(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
    return name == "TYPE_CHECKING"


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from _named(node.level, node.module or "", tuple(alias.name for alias in node.names), package)


def _named(level: int, module: str, members: tuple[str, ...], package: str) -> Iterator[str]:
    if level:
        parents = package.split(".") if package else []
        if level > len(parents):
            return
        module = ".".join([*parents[: len(parents) - level + 1], *([module] if module else [])])
    yield module
    yield from (f"{module}.{member}" for member in members if member != "*")
