"""Folders and files that travel from a client that alone has them: a folder run as a script, and files beside functions, scripts and models."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import sparkgap
from pyspark import cloudpickle
from sparkgap import TorchDistributor, predict_batch_udf

# The workers cannot import this file, so what it defines travels with the plan.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def cpu(spark):
    """`cpu(2)` is a distributor of 2 ranks that need no GPU."""
    return functools.partial(TorchDistributor, use_gpu=False, spark=spark)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(**{name: text})` writes files into a folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)

    def write(**texts):
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


MAIN = """
import sys
from pathlib import Path
import by_name, by_name_too

here = Path(__file__).parent
assert __name__ == "__main__"
assert here == Path(sys.argv[0]) == Path(sys.path[0])
assert here.parent != Path(sys.argv[-1])  # the client's
print(here.name, (here / "conf.yaml").read_text(), (here / "more/x").read_text(), by_name.value, by_name_too.value, sys.argv[1:-1])
print(here)
"""


def test_a_folder_runs_as_python_runs_it_and_nothing_is_left(cpu, written, capsys, eventually, monkeypatch):
    root = written(
        **{
            "project/__main__.py": MAIN,
            "project/by_name.py": "import deep.er\nvalue = deep.er.value",
            "project/deep/er.py": "import folders_lib\nvalue = folders_lib.value + 1",
            "project/by_name_too/__init__.py": "import statistics\nvalue = statistics.of_the_folder",
            "project/statistics.py": "of_the_folder = 3",  # a name of the standard library
            "project/conf.yaml": "epochs: 3",
            "lib/folders_lib.py": "value = 41",
            "more/x": "more",
        }
    )
    monkeypatch.syspath_prepend(root / "lib")
    assert cpu(2, modules=[Path("more")]).run("project/", "--epochs", 3, root) is None
    printed = sorted(capsys.readouterr().out.splitlines())
    said = "project epochs: 3 more 42 3 ['--epochs', '3']"
    assert [line for line in printed if said in line] == [f"[rank 0] {said}", f"[rank 1] {said}"]
    folders = [Path(line.split()[-1]) for line in printed if line.endswith("/project")]
    assert len(set(folders)) == 2
    eventually(lambda: not any(folder.parent.exists() for folder in folders), 5, "the ranks' copies are removed")


def test_the_exit_status_of_a_folder_is_the_runs(cpu, written):
    written(**{"project/__main__.py": "import sys\nsys.exit(int(sys.argv[1]))"})
    assert cpu(1).run(Path("project"), 0) is None
    with pytest.raises(sparkgap.TrainingError, match=r"rank 0 of 1 of project failed .* exit status 3") as caught:
        cpu(1).run(Path("project"), 3)
    assert caught.value.exit_code == 3
    assert "runpy" not in caught.value.traceback
    assert "__main__.py" in caught.value.traceback


def test_files_lie_beside_a_script(cpu, written, capsys):
    written(
        **{
            "scripts/train.py": "from pathlib import Path\nfrom tools import tool\nprint(tool.text(Path(__file__).parent))",
            "conf/base.yaml": "a: 1",
            "elsewhere/tools/tool.py": "def text(folder): return (folder / 'conf' / 'base.yaml').read_text()",
        }
    )
    cpu(1, modules=[Path("conf"), Path("elsewhere/tools")]).run("scripts/train.py")
    assert "[rank 0] a: 1" in capsys.readouterr().out.splitlines()


def read_by_a_child(queue):
    queue.put((sparkgap.files() / "conf" / "base.yaml").read_text())


def test_a_function_and_its_children_find_their_files(cpu, written):
    def main():
        import multiprocessing
        import subprocess

        import tool  # travels as a file

        source = "import sparkgap; print((sparkgap.files() / 'conf/base.yaml').read_text(), end='')"
        child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        context.Process(target=read_by_a_child, args=(queue,)).start()
        return tool.value, (sparkgap.files() / "conf" / "base.yaml").read_text(), child.stdout, queue.get(timeout=60)

    written(**{"conf/base.yaml": "a: 1", "tool.py": "value = 42"})
    assert cpu(1, modules=[Path("conf"), Path("tool.py")]).run(main) == (42, "a: 1", "a: 1", "a: 1")
    assert sparkgap.files() == Path.cwd()


def test_a_model_finds_its_files_and_another_content_is_another_model(either_way, written):
    weights = np.ones(1 << 16)  # more than a plan holds: they take another way than the files

    def make():
        factor = int((sparkgap.files() / "conf" / "factor").read_text())
        return lambda x: x * factor * weights[: len(x)].astype("int64")

    def predicted():
        udf = predict_batch_udf(make, return_type="long", batch_size=4, modules=[Path("conf")])
        return [row[0] for row in either_way.range(3).select(udf("id")).collect()]

    written(**{"conf/factor": "2"})
    assert predicted() == [0, 2, 4]
    written(**{"conf/factor": "3"})
    assert predicted() == [0, 3, 6]
    written(**{"conf/factor": "2"})
    assert predicted() == [0, 2, 4]  # by the first host, if it still lives


def test_a_model_that_is_loaded_again_finds_its_files_and_is_then_kept(spark, written):
    def make(weights):
        def make_predict_fn():
            import os

            loaded = os.getpid(), os.urandom(8)
            factor = int((sparkgap.files() / "factor").read_text()) * int(Path(weights).read_text())
            return lambda x: np.array([f"{loaded} {value * factor}" for value in x])

        return make_predict_fn

    def predicted():
        return spark.range(1, 2).select(udf("id")).head()[0].rsplit(" ", 1)

    root = written(factor="2", weights="10")
    udf = predict_batch_udf(make(str(root / "weights")), return_type="string", batch_size=4, modules=[Path("factor")])
    first = predicted()
    assert first[1] == "20"
    assert predicted() == first
    written(weights="100")
    second = predicted()
    assert second[1] == "200"
    assert predicted() == second  # files that were written again are no reason to load a third time
