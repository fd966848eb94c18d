"""A rank is a process like one that was started for its function or script alone: random numbers, arguments, `__main__`, working directory."""

from __future__ import annotations

import os
import pickletools
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from nursery_client import NurseryProcess, Rank, gone, start_plan, start_rank
from sparkgap_protos.v1 import plan_pb2
from sparkgap_server.train.leftovers import found

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


# ---- Threads of a function ----


def test_a_thread_of_a_function_writes_before_the_value_is_told(nursery: NurseryProcess, tmp_path: Path) -> None:
    def train(path: Path) -> str:
        import threading
        import time

        def write() -> None:
            while (
                threading.main_thread().is_alive()
            ):  # as under python, the main thread has ended when threads are awaited
                time.sleep(0.01)
            path.write_text("weights")

        threading.Thread(target=write).start()
        return "done"

    rank = start_rank(nursery, train, tmp_path / "checkpoint")
    rank.read_until(lambda: rank.returned)
    assert (tmp_path / "checkpoint").read_text() == "weights"
    assert rank.to_end().result() == "done"


def test_an_executor_finishes_what_it_was_given(nursery: NurseryProcess, tmp_path: Path) -> None:
    def train(folder: Path) -> Any:
        import time
        from concurrent.futures import ThreadPoolExecutor, thread

        def write(number: int) -> None:
            while not thread._shutdown:  # type: ignore[attr-defined]  # until the function has returned
                time.sleep(0.01)
            (folder / str(number)).touch()

        pool = ThreadPoolExecutor(2)
        for number in range(5):
            pool.submit(write, number)

    rank = start_rank(nursery, train, tmp_path)
    rank.read_until(lambda: rank.returned)
    assert len(list(tmp_path.iterdir())) == 5
    assert rank.to_end().result() is None


def test_an_asynchronous_checkpoint_is_whole(nursery: NurseryProcess, tmp_path: Path) -> None:
    def train(folder: Path) -> None:
        import torch
        import torch.distributed as dist
        import torch.distributed.checkpoint as checkpoint

        dist.init_process_group("gloo")
        checkpoint.async_save({"weights": torch.ones(2_000_000)}, checkpoint_id=str(folder / "checkpoint"))

    rank = start_rank(nursery, train, tmp_path)
    rank.read_until(lambda: rank.returned or rank.failure is not None)
    assert rank.failure is None, rank.failure
    assert (tmp_path / "checkpoint" / ".metadata").exists()
    rank.to_end()


def test_a_child_process_of_a_function_is_awaited(nursery: NurseryProcess, tmp_path: Path) -> None:
    def train(path: Path) -> None:
        import multiprocessing
        import time

        def write() -> None:
            time.sleep(0.5)
            path.write_text("written")

        multiprocessing.get_context("fork").Process(target=write).start()

    rank = start_rank(nursery, train, tmp_path / "file")
    rank.read_until(lambda: rank.returned)
    assert (tmp_path / "file").read_text() == "written"
    rank.to_end()


def test_a_daemon_thread_is_not_awaited(nursery: NurseryProcess) -> None:
    def train() -> int:
        import threading

        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return 1

    assert start_rank(nursery, train).to_end().result() == 1


def never_ends() -> str:
    import atexit
    import threading

    def wait_for_a_lock() -> None:
        threading.Event().wait()

    atexit.register(print, "exit handler")
    threading.Thread(target=wait_for_a_lock, name="writer").start()
    print("last line", end="")
    return "value"


def test_the_value_counts_although_a_thread_never_ends(nursery: NurseryProcess) -> None:
    rank = start_rank(nursery, never_ends, thread_seconds=1).to_end()
    assert rank.result() == "value"
    assert rank.exit is not None
    assert rank.exit.status == 0
    assert rank.failure is None
    assert "last lineexit handler" in rank.lines
    [notice] = rank.notices
    assert notice.text.startswith(
        "returned and waited 1 s (spark.sparkgap.threads.timeout) in vain for thread 'writer' (test_rank_process.py:"
    )
    assert " in wait_for_a_lock)" in notice.text
    assert "thread 'writer' still runs:" in rank.lines
    assert any("wait_for_a_lock" in line for line in rank.lines)


def test_the_value_counts_although_a_child_process_never_ends(nursery: NurseryProcess) -> None:
    def train() -> Any:
        import multiprocessing
        import time

        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), name="saver")
        child.start()
        return child.pid

    rank = start_rank(nursery, train, thread_seconds=0).to_end()
    assert rank.exit is not None
    assert rank.exit.status == 0
    assert f" in vain for process 'saver' ({rank.result()}): " in rank.notices[0].text
    assert gone(rank.result())


def test_a_value_that_cannot_be_pickled_fails_the_rank_after_the_wait_too(nursery: NurseryProcess) -> None:
    def train() -> Any:
        import threading

        threading.Thread(target=threading.Event().wait).start()
        return threading.Lock()

    rank = start_rank(nursery, train, thread_seconds=0).to_end()
    assert not rank.returned
    assert rank.failure is not None
    assert "cannot be pickled" in rank.failure.message


def test_a_rank_says_for_whom_it_waits(nursery: NurseryProcess, tmp_path: Path) -> None:
    def train(go: Path) -> str:
        import threading
        import time

        def wait_for_the_test() -> None:
            while not go.exists():
                time.sleep(0.01)

        threading.Thread(target=wait_for_the_test, name="saver").start()
        return "value"

    rank = start_rank(nursery, train, tmp_path / "go", thread_seconds=80)
    rank.read_until(lambda: any("saver" in line for line in rank.lines))
    assert not rank.returned
    assert rank.lines[-1].startswith(
        "sparkgap: the main thread has come to its end and waits for thread 'saver' (test_rank_process.py:"
    )
    assert rank.lines[-1].endswith(" in wait_for_the_test), for 80 s at most (spark.sparkgap.threads.timeout)")
    (tmp_path / "go").touch()
    assert rank.to_end().result() == "value"
    assert not rank.notices


def test_reports_of_awaited_threads_arrive(nursery: NurseryProcess) -> None:
    def train() -> None:
        import threading

        from sparkgap.training import report

        def finish() -> None:
            threading.main_thread().join()
            report(7, loss=1.0)

        threading.Thread(target=finish).start()

    assert [each.step for each in start_rank(nursery, train).to_end().metrics] == [7]


# ---- What a rank leaves in its working directory ----


def test_files_that_a_rank_leaves_are_named_in_its_output_and_in_a_notice(nursery: NurseryProcess) -> None:
    def train() -> int:
        from pathlib import Path

        Path("model.pt").write_bytes(b"x" * 5000)
        Path("logs").mkdir()
        Path("logs/events").write_text("one")
        return 1

    rank = start_rank(nursery, train).to_end()
    text = (
        "left 2 files in its working directory, which was removed after its end: model.pt (5 kB), logs/events (3 bytes)"
    )
    assert rank.result() == 1
    assert [(each.rank, each.text.partition(". ")[0]) for each in rank.notices] == [(0, text)]
    assert any(line.startswith(f"sparkgap: rank 0 {text}") for line in rank.lines)
    assert not list(nursery.folder.glob("rank-*"))


@pytest.mark.parametrize("end", ["raise ValueError", "os.kill(os.getpid(), 9)", "sys.exit(3)", "os._exit(0)"])
def test_files_are_named_however_the_rank_ends(nursery: NurseryProcess, end: str) -> None:
    rank = run_script(nursery, f"import os, sys\nopen('last.pt', 'w').write('weights')\n{end}")
    assert [each.text.partition(": ")[2].partition(". ")[0] for each in rank.notices] == ["last.pt (7 bytes)"]


def test_files_are_named_when_the_task_has_been_killed_and_still_listens(nursery: NurseryProcess) -> None:
    def train() -> None:
        import time
        from pathlib import Path

        Path("model.pt").touch()
        print("ready", flush=True)
        time.sleep(1000)

    rank = start_rank(nursery, train)
    rank.read_until(lambda: "ready" in rank.lines)
    rank.connection.shutdown(socket.SHUT_WR)
    assert [each.text.partition(": ")[2].partition(". ")[0] for each in rank.to_end().notices] == ["model.pt (0 bytes)"]


def test_what_was_sent_is_not_left(nursery: NurseryProcess) -> None:
    script = plan_pb2.Script(name="job.py", source=b"import beside; print(beside.VALUE)")
    script.modules.add(name="beside", source=b"VALUE = 5")
    script.files.add(path="conf/base.yaml", data=b"lr: 1")
    rank = start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script)).to_end()
    assert rank.lines == ["5"]
    assert not rank.notices


def test_of_many_files_the_largest_are_named(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}").write_bytes(b"x" * number)
    (tmp_path / "link").symlink_to("29")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").touch()
    left = found(tmp_path)
    assert (left.count, left.size, left.complete) == (30, sum(range(30)), True)
    assert left.largest == tuple((f"{number:02}", number) for number in range(29, 9, -1))
    assert " and 10 more (45 bytes). " in str(left)


def test_any_name_becomes_one_line_of_text(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n")).touch()
    assert found(tmp_path).largest == (("'\\udcff\\n'", 0),)


def test_nothing_is_said_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(found(tmp_path)) == str(found(tmp_path / "missing")) == ""


# ---- What a client of any Python can open, and a module that is missing while the code runs ----


@pytest.mark.parametrize("everybody", [True, False])
def test_the_value_of_a_script_has_no_code_in_it(nursery: NurseryProcess, everybody: bool) -> None:
    """A client of another Python minor version has to open it."""
    script = plan_pb2.Script(name="job.py", source=b"pass")
    plan = plan_pb2.TrainPlan(run_id="r", script=script, all_results=everybody)
    payload = plan_pb2.Payload.FromString(start_plan(nursery, plan).to_end().value)
    for each in payload.ranks if everybody else [payload]:
        assert {opcode.name for opcode, _, _ in pickletools.genops(each.data)} == {"PROTO", "NONE", "STOP"}


def test_a_module_that_is_missing_while_a_function_runs_comes_with_advice(nursery: NurseryProcess) -> None:
    def train(name: str) -> None:
        import importlib

        importlib.import_module(name)

    missing, part = (start_rank(nursery, train, name).to_end().failure for name in ("nowhere_at_all", "json.nowhere"))
    assert missing is not None
    assert part is not None
    assert missing.message == (
        "No module named 'nowhere_at_all'. The training code needs the module 'nowhere_at_all', which is not installed on the workers "
        "and was not sent along: install it there, or name the module in modules="
    )
    assert part.message == "No module named 'json.nowhere'"  # the package is there, but another version of it
