"""Which file alone may do what: pickling, and reaching into pyspark's client."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("protos/sparkgap_protos", "client/sparkgap", "server_ext/sparkgap_server")


def sources(*packages: str) -> list[Path]:
    found = [
        path
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.stem.endswith("_pb2")
    ]
    assert found
    return found


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at its top or in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def attributes(path: Path) -> Iterator[str]:
    """Names behind a dot."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_only_the_codec_pickles():
    pickling = {
        relative(path)
        for path in sources(*PACKAGES)
        if any(
            part in ("pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve")
            for name in imports(path)
            for part in name.split(".")
        )
    }
    assert pickling == {"protos/sparkgap_protos/codec.py"}


def test_the_codec_is_opened_by_ranks_model_hosts_and_the_client_only():
    unpacking = {
        relative(path) for path in sources(*PACKAGES) if "unpack" in attributes(path) and "wire" not in path.stem
    }
    assert unpacking == {
        "client/sparkgap/errors.py",
        "client/sparkgap/run.py",
        "server_ext/sparkgap_server/predict/model.py",
        "server_ext/sparkgap_server/train/rank.py",
    }


#: pyspark.sql.connect is where its client's internals live; the session and the functions are what any user imports.
PUBLIC = ("pyspark.sql.connect.session.SparkSession", "pyspark.sql.connect.functions.col")
TOUCHING = {"client/sparkgap/channel.py", "client/sparkgap/expression.py"}


def test_only_channel_and_expression_import_pysparks_client_internals():
    importing = {
        relative(path)
        for path in sources("client/sparkgap")
        for name in imports(path)
        if name.startswith(("pyspark.sql.connect", "pyspark.errors.exceptions", "grpc")) and name not in PUBLIC
    }
    assert importing == TOUCHING


@pytest.mark.parametrize(
    "path", [path for path in sources("client/sparkgap") if relative(path) not in TOUCHING], ids=relative
)
def test_no_other_file_of_the_client_uses_private_names_of_pyspark(path):
    own = {
        node.name
        for each in sources("client/sparkgap")
        for node in ast.walk(ast.parse(each.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    own |= {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    private = {name for name in attributes(path) if name.startswith("_") and not name.startswith("__")}
    assert private - own == set()
    assert "client" not in attributes(path)  # session.client is where everything private begins


def test_asserts_compare_and_do_nothing_else():
    """`python -O` leaves them out."""
    others = [
        f"{relative(path)}:{node.lineno}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
        and not re.fullmatch(r"isinstance\(.*\)|.* is not None|[\w.]+ == '.*'", ast.unparse(node.test))
    ]
    assert others == []
