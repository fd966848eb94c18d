"""A project folder at the client, and none of it on the workers: its modules travel with functions, models and scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
from pyspark.sql.connect.session import SparkSession
from sparkgap import TorchDistributor, attach

pytestmark = pytest.mark.timeout(180)

PROJECT = {
    "project/__init__.py": "from .settings import Settings",
    "project/settings.py": """
        from dataclasses import dataclass

        @dataclass
        class Settings:
            factor: int

        class OutOfRange(Exception):
            pass
        """,
    "project/models/__init__.py": "",
    "project/models/net.py": """
        from ..settings import OutOfRange
        from . import layers

        def apply(settings, x):
            if settings.factor > 100:
                raise OutOfRange(settings.factor)  # the line that the traceback shows
            return layers.scaled(x, settings.factor)
        """,
    "project/models/layers.py": "def scaled(x, factor): return x * factor",
    "lazy.py": "def name_of(value): return type(value).__qualname__",
    "entry.py": """
        from project import Settings
        from project.models import net

        def train(settings, x):
            import lazy

            return Settings(net.apply(settings, x)), lazy.name_of(settings)

        def make():
            import lazy

            settings = Settings(3)
            return lambda x: net.apply(settings, x) + len(lazy.name_of(settings))
        """,
    "number.py": "import torch.multiprocessing\ndef of_child(index, queue):\n    queue.put(index + 40)",
}

PRELUDE = """
import sys
from pyspark.sql import SparkSession
from sparkgap import PlanError, TorchDistributor, TrainingError, predict_batch_udf

spark = SparkSession.builder.remote(sys.argv[1]).create()

def cpu(ranks=1, **more):
    return TorchDistributor(ranks, use_gpu=False, spark=spark, **more)

def predicted(make, **more):
    predict = predict_batch_udf(make, return_type="long", batch_size=4, **more)
    return [row[0] for row in spark.range(3).select(predict("id")).collect()]
"""


@pytest.fixture
def client(sparkgap_server, tmp_path):
    """`client(source, **files)` runs a client program in a project folder that only it has, and gives the lines that it printed."""

    def run(source, files=PROJECT):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        (tmp_path / "client.py").write_text(PRELUDE + textwrap.dedent(source) + "\nspark.stop()\n")
        done = subprocess.run(
            [sys.executable, "client.py", sparkgap_server.url], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


def test_a_function_of_a_module_trains_and_its_classes_go_and_come_back(client):
    lines = client(
        """
        import entry
        from project import Settings

        value, name = cpu(2).run(entry.train, Settings(2), x=21)
        assert type(value) is Settings
        print(value, name)
        """
    )
    assert lines[-1] == "Settings(factor=42) Settings"


def test_a_function_of_main_takes_along_what_it_refers_to_and_imports(client):
    lines = client(
        """
        from project.models import net

        def main(factor):
            import lazy
            from project import Settings

            return lazy.name_of(Settings(1)), net.apply(Settings(factor), "ab")

        print(cpu().run(main, 2))
        """
    )
    assert lines[-1] == "('Settings', 'abab')"


def test_an_exception_comes_back_as_its_class_with_the_lines_of_the_project(client):
    lines = client(
        """
        import entry
        from project.settings import OutOfRange, Settings

        try:
            cpu().run(entry.train, Settings(101), 1)
        except TrainingError as error:
            assert type(error.__cause__) is OutOfRange
            assert "the line that the traceback shows" in error.traceback, error.traceback
            print("as raised")
        """
    )
    assert lines[-1] == "as raised"


def test_a_process_that_a_rank_spawns_imports_them_too(client):
    lines = client(
        """
        def main():
            import multiprocessing
            import number

            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            child = context.Process(target=number.of_child, args=(2, queue))
            child.start()
            answer = queue.get(timeout=60)
            child.join()
            return answer

        if __name__ == "__main__":
            print(cpu().run(main))
        """
    )
    assert lines[-1] == "42"


def test_a_model_predicts_and_another_source_is_another_model(client):
    program = """
        import entry
        from sparkgap_protos import codec
        print(predicted(entry.make))
        """
    assert client(program)[-1] == "[8, 11, 14]"
    changed = {"project/models/layers.py": "def scaled(x, factor): return x * factor + 100"}
    assert client(program, changed)[-1] == "[108, 111, 114]"
    assert client(program, PROJECT)[-1] == "[8, 11, 14]"  # by the first host, if it still lives


def test_the_way_through_sparks_workers_finds_them_too(client):
    program = """
        import entry
        spark.conf.set("spark.sparkgap.predict.direct", "false")
        print(predicted(entry.make))
        """
    assert client(program)[-1] == "[8, 11, 14]"


CONFIGURED = {
    "pkg/__init__.py": "",
    "pkg/conf.json": "[1, 2]",
    "pkg/net.py": """
        import json
        from pathlib import Path

        def factor():
            return sum(json.loads((Path(__file__).parent / "conf.json").read_text()))

        def make():
            number = factor()
            return lambda x: x * number
        """,
    "helper.py": """
        from pathlib import Path

        def text():
            return (Path(__file__).parent / "conf.txt").read_text()

        def make():
            return text()
        """,
    "conf.txt": "given",
}


def test_data_beside_the_modules_of_a_package_travels_and_the_error_says_how_other_data_would(client):
    lines = client(
        """
        from pathlib import Path

        from pkg import net
        import helper

        print(cpu().run(net.factor), predicted(net.make))
        Path("pkg", "conf.json").write_text("[1, 2, 3]")
        print(cpu().run(net.factor), predicted(net.make))

        words = "modules=[pathlib.Path('path/to/conf.txt')]"
        try:
            cpu().run(helper.text)
        except TrainingError as error:
            print(words in str(error), type(error.__cause__).__name__)
        try:
            predicted(helper.make)
        except Exception as error:
            print(words in str(error), "FileNotFoundError" in str(error))
        print(cpu(modules=[Path("conf.txt")]).run(helper.text))
        """,
        CONFIGURED,
    )
    assert [line for line in lines if not line.startswith("[rank")] == [
        "3 [0, 3, 6]", "6 [0, 6, 12]", "True FileNotFoundError", "True True", "given",
    ]  # fmt: skip


def test_without_them_the_error_names_the_module(client):
    lines = client(
        """
        import entry
        from project import Settings

        def failing(action):
            try:
                action()
            except Exception as error:
                print(str(error).replace("\\n", " "))

        failing(lambda: cpu(modules=[]).run(entry.train, Settings(1), 1))
        failing(lambda: predicted(entry.make, modules=[]))
        failing(lambda: cpu(modules=["entry", "project"]).run(entry.train, Settings(1), 1))
        print(cpu(modules=["entry", "project", "lazy"]).run(entry.train, Settings(1), 1))
        """
    )
    training, prediction, partial, whole = [line for line in lines if not line.startswith("[rank")]
    assert (
        "No module named 'entry'. The function needs the module 'entry', which is not installed on the workers"
        in training
    )
    assert (
        "No module named 'entry'. The model needs the module 'entry', which is not installed on the workers"
        in prediction
    )
    assert "No module named 'lazy'" in partial
    assert whole == "(Settings(factor=1), 'Settings')"


def test_a_script_finds_the_modules_beside_it(client):
    files = {
        "scripts/train.py": """
            import sys
            import beside
            from parts import part

            print("value", beside.value(part.start), sys.argv[1:])
            """,
        "scripts/beside.py": "from parts.other import more\ndef value(x): return x + more",
        "scripts/parts/__init__.py": "",
        "scripts/parts/part.py": "start = 40",
        "scripts/parts/other.py": "more = 2",
    }
    program = """
        cpu().run("scripts/train.py", "--epochs", 3)
        try:
            cpu(modules=[]).run("scripts/train.py")
        except TrainingError as error:
            print(error)
        """
    lines = client(program, files)
    assert "[rank 0] value 42 ['--epochs', '3']" in lines
    assert "ModuleNotFoundError: No module named 'beside'" in lines[-1]


BROUGHT = """
    import time
    from pathlib import Path

    def main(door):
        while not Path(door).exists():
            time.sleep(0.01)
        import brought_along, packed
        from pyspark import SparkFiles

        note = Path(SparkFiles.get("note.txt")).read_text()
        unpacked = Path(SparkFiles.get("data")).joinpath("inner.txt").read_text()
        return brought_along.FACTOR, packed.FACTOR, note, unpacked
"""


@pytest.mark.parametrize("released", [False, True])
def test_files_of_a_session_reach_its_ranks_also_when_it_has_ended(sparkgap_server, tmp_path, released):
    def bring(session, factor):
        folder = tmp_path / str(factor)
        folder.mkdir()
        (folder / "brought_along.py").write_text(f"FACTOR = {factor}\n")
        (folder / "note.txt").write_text(f"note {factor}")
        for name, member, text in (
            ("packed.zip", "packed.py", f"FACTOR = {factor + 1}"),
            ("data.zip", "inner.txt", "inner"),
        ):
            with zipfile.ZipFile(folder / name, "w") as archive:
                archive.writestr(member, text)
        session.addArtifacts(str(folder / "brought_along.py"), str(folder / "packed.zip"), pyfile=True)
        session.addArtifacts(str(folder / "note.txt"), file=True)
        session.addArtifacts(f"{folder / 'data.zip'}#data", archive=True)

    scope = {"__name__": "__main__"}
    exec(textwrap.dedent(BROUGHT), scope)  # from __main__, so by value
    sessions = [SparkSession.builder.remote(sparkgap_server.url).create() for _ in range(2)]
    runs = []
    for factor, session in zip((2, 5), sessions, strict=True):
        bring(session, factor)
        cpu = TorchDistributor(2, use_gpu=False, spark=session)
        runs.append(cpu.submit(scope["main"], str(tmp_path / "door")).id)
        if released:
            session.stop()
    (tmp_path / "door").write_text("open")
    watching = SparkSession.builder.remote(sparkgap_server.url).create()
    values = [attach(watching, run).result(timeout=60) for run in runs]
    assert values == [(2, 3, "note 2", "inner"), (5, 6, "note 5", "inner")]
    for session in [watching, *([] if released else sessions)]:
        session.stop()
