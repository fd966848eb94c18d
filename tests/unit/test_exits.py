"""How a script ends in a rank is how it ends under python, and so under torchrun: its status, what it prints, and what it waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from nursery_client import NurseryProcess, Rank, start_plan, start_rank
from sparkgap_protos.v1 import plan_pb2

ENDS = {
    "the end of the file": "print('done')",
    "nothing": "sys.exit()",
    "None": "sys.exit(None)",
    "0": "sys.exit(0)",
    "False": "sys.exit(False)",
    "True": "sys.exit(True)",
    "3": "sys.exit(3)",
    "a multiple of 256": "sys.exit(256)",
    "more than a byte": "sys.exit(259)",
    "a negative number": "sys.exit(-1)",
    "a number that no message holds": "sys.exit(10**30)",
    "a text": "sys.exit('no such data set')",
    "an empty text": "sys.exit('')",
    "a float": "sys.exit(0.0)",
    "a tuple": "raise SystemExit(0, 'zero')",
    "the class": "raise SystemExit",
    "a class of its own": "class Stop(SystemExit): pass\nraise Stop(5)",
    "argparse": "import argparse\nargparse.ArgumentParser(prog='job').parse_args()",
    "a handler above": "try:\n    sys.exit(3)\nexcept SystemExit as end:\n    sys.exit(end.code + 1)",
    "os._exit(3)": "os._exit(3)",
    "os._exit(0)": "print('out', flush=True)\nos._exit(0)",
    "a signal": "os.kill(os.getpid(), 9)",
    "an exception": "raise ValueError('wrong')",
    "sys.exit in a thread": "thread = threading.Thread(target=sys.exit, args=(3,))\nthread.start()\nthread.join()\nprint('on')",
    "an exception in a thread": "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\nprint('on')",
    "os._exit in a thread": "threading.Thread(target=os._exit, args=(4,)).start()\ntime.sleep(60)",
    "a thread that goes on": "threading.Thread(target=lambda: (time.sleep(0.3), print('written'))).start()\nsys.exit(0)",
    "a thread of a pool": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "ThreadPoolExecutor(1).submit(lambda: (time.sleep(0.3), print('written')))"
    ),
    "a daemon that goes on": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "a child that goes on": (
        "import multiprocessing\n"
        "def child():\n    time.sleep(0.3)\n    print('written', flush=True)\n"
        "multiprocessing.get_context('fork').Process(target=child).start()"
    ),
    "exit handlers": "import atexit\natexit.register(print, 'second')\natexit.register(print, 'first')",
    "an exit handler that fails": "import atexit\natexit.register(print, 'second')\natexit.register(int, 'no number')",
    "a status from an exit handler": "import atexit\natexit.register(os._exit, 6)\nprint('out', flush=True)",
}


def ended(nursery: NurseryProcess, source: str) -> Rank:
    script = plan_pb2.Script(name="job.py", source=source.encode(), arguments=["--surplus"])
    return start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script)).to_end()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_script_ends_as_under_python(nursery: NurseryProcess, end: str) -> None:
    source = f"import os, sys, threading, time\n{end}\n"
    python = subprocess.run(
        [sys.executable, "-c", source, "--surplus"], capture_output=True, text=True, timeout=60, check=False
    )
    rank = ended(nursery, source)
    assert rank.exit is not None
    assert rank.exit.status == python.returncode
    assert (rank.failure is None and rank.returned) is (python.returncode == 0)
    if rank.failure is not None and rank.failure.exception != "ValueError":
        assert rank.failure.exit_code == python.returncode
    if rank.returned:
        assert rank.result() is None
    assert said(rank.lines) == said(python.stdout.splitlines() + python.stderr.splitlines())


def said(lines: list[str]) -> list[str]:
    """Without the frames of a traceback, which has further ones in a rank."""
    return sorted(line for line in lines if not line.startswith((" ", "Traceback")))


def test_a_function_that_leaves_with_status_0_has_returned_nothing(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import os

        os._exit(0)

    rank = start_rank(nursery, main_fn).to_end()
    assert not rank.returned
    assert rank.exit is not None
    assert rank.exit.status == 0


def test_every_rank_of_all_results_has_one_when_it_leaves_with_status_0(nursery: NurseryProcess) -> None:
    script = plan_pb2.Script(name="job.py", source=b"import os\nos._exit(0)")
    rank = start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script, all_results=True)).to_end()
    assert len(plan_pb2.Payload.FromString(rank.value).ranks) == 1
