"""A rank is a process like one that was started for its function or script alone: random numbers, arguments, `__main__`, working directory."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from nursery_client import NurseryProcess, Rank, start_plan, start_rank
from sparkgap_protos.v1 import plan_pb2

pytestmark = pytest.mark.timeout(120)


def run_script(nursery: NurseryProcess, source: str, *arguments: str) -> Rank:
    script = plan_pb2.Script(name="job.py", source=source.encode(), arguments=list(arguments))
    return start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script)).to_end()


# ---- Random numbers ----


def test_ranks_of_one_nursery_draw_different_numbers(nursery: NurseryProcess) -> None:
    def draw() -> Any:
        import random

        import numpy as np
        import torch

        return {
            "random": random.random(),
            "numpy": float(np.random.random()),
            "default_rng": float(np.random.default_rng().random()),
            "torch": torch.rand(1, dtype=torch.float64).item(),
            "torch's seed": torch.initial_seed(),
        }

    drawn = [start_rank(nursery, draw).to_end().result() for _ in range(3)]
    for name in drawn[0]:
        assert len({each[name] for each in drawn}) == 3, f"{name} repeats: {[each[name] for each in drawn]}"


def test_the_seed_that_the_user_sets_holds(nursery: NurseryProcess) -> None:
    def draw() -> float:
        import torch

        torch.manual_seed(7)
        return torch.rand(1).item()

    assert start_rank(nursery, draw).to_end().result() == start_rank(nursery, draw).to_end().result()


# ---- Arguments, __main__, working directory ----


def test_a_function_sees_no_options_of_the_nursery(nursery: NurseryProcess) -> None:
    def parse() -> Any:
        import argparse
        import sys

        parser = argparse.ArgumentParser()
        parser.add_argument("--folder", default="mine")
        return parser.parse_args().folder, sys.argv, sys.orig_argv[1:]

    assert start_rank(nursery, parse).to_end().result() == ("mine", [""], [""])


def test_a_function_has_an_empty_main(nursery: NurseryProcess) -> None:
    def look() -> Any:
        import sys

        main = sys.modules["__main__"]
        return sorted(vars(main)), main is sys.modules["__mp_main__"]

    names = ["__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"]
    assert start_rank(nursery, look).to_end().result() == (names, True)


CHILDREN = """
import multiprocessing, os, sys

class Result:
    def __init__(self, value):
        self.value = value

def work(value):
    return Result(value + 1)

if __name__ == "__main__":
    assert sys.modules["__main__"].__file__ == __file__ == sys.argv[0]
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        result = pool.map(work, [41])[0]
    assert type(result) is Result
    print("from a child:", result.value)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_children_of_a_script_send_back_instances_of_its_classes(nursery: NurseryProcess, method: str) -> None:
    rank = run_script(nursery, CHILDREN, method)
    assert "from a child: 42" in rank.lines, (rank.lines, rank.failure)
    assert rank.returned


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_function_may_have_children_of_any_kind(nursery: NurseryProcess, method: str) -> None:
    def count(method: str) -> Any:
        import multiprocessing
        import os

        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.apply(os.getcwd) == os.getcwd(), pool.apply(pow, (2, 5))

    assert start_rank(nursery, count, method).to_end().result() == (True, 32)


def test_threads_and_exit_handlers_of_a_script_still_find_its_main(nursery: NurseryProcess) -> None:
    source = (
        "import atexit, pickle, sys, threading\n"
        "class Mine: pass\n"
        "def look():\n    pickle.dumps(Mine()), print('found', sys.modules['__main__'].Mine is Mine)\n"
        "over = threading.Event()\n"
        "def later():\n    threading.main_thread().join(), look()\n"
        "threading.Thread(target=later).start()\n"
        "atexit.register(look)\n"
    )
    rank = run_script(nursery, source)
    assert rank.lines == ["found True", "found True"]


def test_the_main_of_a_folder_is_that_of_python(nursery: NurseryProcess) -> None:
    source = b"print(__name__, __spec__.name, __package__ == '', __file__.endswith('project/__main__.py'))"
    script = plan_pb2.Script(name="project", files=[plan_pb2.SourceFile(path="__main__.py", data=source)])
    rank = start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script)).to_end()
    assert rank.lines == ["__main__ __main__ True True"]


def test_each_rank_has_a_working_directory_of_its_own(nursery: NurseryProcess) -> None:
    def write(text: str) -> Any:
        import os
        import stat
        from pathlib import Path

        found = os.listdir()
        Path("state").write_text(text)
        return found, stat.S_IMODE(os.stat(".").st_mode), os.getcwd()

    (empty, mode, one), (_, _, other) = (start_rank(nursery, write, text).to_end().result() for text in "ab")
    assert (empty, mode) == ([], 0o700)
    assert one != other
    assert one.startswith(str(nursery.folder))


def test_what_travels_with_a_plan_lies_outside_the_working_directory(nursery: NurseryProcess) -> None:
    """Whatever its name."""

    def look() -> Any:
        import os

        import work

        return work.VALUE, os.listdir(), os.listdir(os.environ["SPARKGAP_FILES"])

    from sparkgap_protos import codec

    payload = codec.pack((look, (), {}), "function")
    payload.modules.add(name="work", package=True, source=b"VALUE = 1")
    rank = start_plan(nursery, plan_pb2.TrainPlan(run_id="r", function=payload)).to_end()
    assert rank.result() == (1, [], ["work"])


def test_interpreters_that_a_rank_starts_find_what_pythonpath_named_beside_the_nursery(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nursery_client import running_nursery
    from pyspark import cloudpickle

    def import_it() -> str:
        import subprocess
        import sys

        return subprocess.check_output([sys.executable, "-c", "import beside; print(beside.VALUE)"], text=True)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    folder = tmp_path_factory.mktemp("project")
    (folder / "lib").mkdir()
    (folder / "lib" / "beside.py").write_text("VALUE = 3")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", "lib")
    with running_nursery() as nursery:
        assert start_rank(nursery, import_it).to_end().result() == "3\n"
