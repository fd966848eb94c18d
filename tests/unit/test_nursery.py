"""A real nursery with real ranks, without Spark: what happens when any process of the family ends in any way."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from nursery_client import NurseryProcess, Rank, gone, running_nursery, start_plan, start_rank, until
from sparkgap_protos import PROTOCOL
from sparkgap_protos.codec import PYTHON
from sparkgap_protos.v1 import plan_pb2

pytestmark = pytest.mark.timeout(90)


def started(rank: Rank) -> Rank:
    rank.read_until(lambda: rank.pid != 0 and "ready" in rank.lines)
    assert rank.pid
    return rank


def sleep_for_ever() -> None:
    import time

    print("ready", flush=True)
    time.sleep(1000)


def test_it_says_hello_with_its_versions(nursery: NurseryProcess) -> None:
    installed = {name: metadata.version(name) for name in ("sparkgap", "torch")}
    assert nursery.hello == {"python": PYTHON, **installed, "protocol": PROTOCOL, "pid": nursery.process.pid}


def test_its_socket_is_private(nursery: NurseryProcess) -> None:
    assert stat.S_IMODE((nursery.folder / "nursery").stat().st_mode) == 0o600


def test_a_rank_returns_its_value_and_exits_with_0(nursery: NurseryProcess) -> None:
    rank = start_rank(nursery, lambda a, b: a * b, 6, 7).to_end()
    assert rank.result() == 42
    assert rank.exit is not None
    assert (rank.exit.status, rank.failure) == (0, None)


def test_a_rank_has_torch_without_importing_it(nursery: NurseryProcess) -> None:
    def main_fn() -> Any:
        import sys

        return "torch" in sys.modules

    assert start_rank(nursery, main_fn).to_end().result() is True


def test_two_ranks_reduce_over_gloo(nursery: NurseryProcess) -> None:
    from sparkgap_protos.v1 import node_pb2 as pb
    from sparkgap_server import wire

    def main_fn() -> float:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.ones(1) * (dist.get_rank() + 1)
        dist.all_reduce(total)
        dist.destroy_process_group()
        return total.item()

    first = start_rank(nursery, main_fn, world_size=2, rank=0)
    second = start_rank(nursery, main_fn, world_size=2, rank=1)
    address = wire.receive(first.connection)
    assert address is not None
    assert address.kind == pb.ADDRESS
    for rank in (first, second):
        wire.send(rank.connection, pb.MEETING_POINT, address.body)
    assert first.to_end().result() == 3.0
    assert second.to_end().returned
    assert second.value == b""


def test_a_ddp_model_that_outlives_its_group_does_no_harm(nursery: NurseryProcess) -> None:
    """Without care for the groups, about one in three of these hangs."""
    from sparkgap_protos.v1 import node_pb2 as pb
    from sparkgap_server import wire

    def main_fn() -> str:
        import torch
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel

        dist.init_process_group("gloo")
        model = DistributedDataParallel(torch.nn.Linear(8, 8))
        for _ in range(3):
            model(torch.ones(4, 8)).sum().backward()
        dist.all_reduce(torch.ones(100))
        dist.destroy_process_group()
        return "returned"

    for _ in range(15):
        ranks = [start_rank(nursery, main_fn, world_size=2, rank=number) for number in range(2)]
        address = wire.receive(ranks[0].connection)
        assert address is not None
        for rank in ranks:
            wire.send(rank.connection, pb.MEETING_POINT, address.body)
        assert ranks[0].to_end().result() == "returned"
        assert ranks[1].to_end().returned


def test_lines_of_both_streams_arrive_also_without_a_last_newline(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import os
        import sys

        print("out")
        print("err", file=sys.stderr)
        os.write(1, b"10%\r100%\nbytes \xff\nno end")

    rank = start_rank(nursery, main_fn).to_end()
    assert sorted(rank.lines) == sorted(["out", "err", "100%", "bytes \\xff", "no end"])


def test_lines_that_a_task_does_not_take_are_counted_up_to_the_last_one(
    nursery: NurseryProcess, tmp_path: Path
) -> None:
    def main_fn(printed: Path) -> None:
        for _ in range(100):
            print("\n".join(["x" * 999] * 500))
        printed.touch()

    rank = start_rank(nursery, main_fn, tmp_path / "printed")
    rank.read_until(lambda: rank.pid > 0)
    until(
        (tmp_path / "printed").exists, 30
    )  # nothing is read meanwhile, and no line comes later that could bring the count

    rank.to_end()
    assert rank.returned
    assert rank.dropped > 0
    assert len(rank.lines) + rank.dropped == 50_000


def test_ranks_do_not_share_random_numbers(nursery: NurseryProcess) -> None:
    def main_fn() -> Any:
        import random

        import numpy as np

        return random.random(), float(np.random.random())

    first, second = (start_rank(nursery, main_fn).to_end().result() for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_rank_inherits_no_descriptor_but_its_own(nursery: NurseryProcess) -> None:
    def main_fn() -> Any:
        import os
        import sys

        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        print(*sorted(link.partition(":")[0] for link in links), file=sys.stderr)

    from sparkgap_protos.v1 import node_pb2 as pb
    from sparkgap_server import wire

    sibling = started(start_rank(nursery, sleep_for_ever))
    rank = start_rank(nursery, main_fn, rank=1, world_size=2)  # rank 0 has the descriptors of its store besides
    wire.send(rank.connection, pb.MEETING_POINT, pb.MeetingPoint(host="127.0.0.1", port=1))
    rank.to_end()
    sibling.connection.close()
    assert rank.lines == ["/dev/null pipe pipe socket"]


def test_what_the_rank_raised_comes_with_its_traceback(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        raise ValueError("too small")

    rank = start_rank(nursery, main_fn).to_end()
    assert rank.failure is not None
    assert (rank.failure.exception, rank.failure.message) == ("ValueError", "too small")
    assert 'raise ValueError("too small")' in rank.failure.traceback
    assert "sparkgap_server" not in rank.failure.traceback
    assert not rank.returned


def test_a_value_over_the_limit_is_a_failure(nursery: NurseryProcess) -> None:
    rank = start_rank(nursery, lambda: b"x" * 2000, max_result_bytes=1000).to_end()
    assert rank.failure is not None
    assert "spark.sparkgap.result.maxBytes allows 1000" in rank.failure.message


def test_a_crash_leaves_its_last_words(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import ctypes
        import os

        os.write(2, b"about to crash\n")
        ctypes.string_at(0)

    rank = start_rank(nursery, main_fn).to_end()
    assert rank.exit is not None
    assert rank.exit.status == -signal.SIGSEGV
    assert "about to crash" in rank.exit.last_lines


def test_a_script_runs_as_main_with_its_arguments(nursery: NurseryProcess) -> None:
    source = b"import sys, os\nprint(__name__, sys.argv[1:], os.path.basename(sys.argv[0]))\nsys.exit(int(sys.argv[1]))"

    def run(code: str) -> Rank:
        script = plan_pb2.Script(name="job.py", source=source, arguments=[code, "b c"])
        return start_plan(nursery, plan_pb2.TrainPlan(run_id="r", script=script)).to_end()

    good, bad = run("0"), run("7")
    assert "__main__ ['0', 'b c'] job.py" in good.lines
    assert good.returned
    assert good.result() is None
    assert bad.failure is not None
    assert bad.failure.exit_code == 7
    assert not list(nursery.folder.glob("rank-*")), "the script's folder is still there"


def test_a_closed_task_ends_the_rank_and_its_children(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import signal
        import subprocess
        import sys
        import time

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
        print("ready", flush=True)
        time.sleep(1000)

    rank = started(start_rank(nursery, main_fn))
    family = [rank.pid, *(child.pid for child in psutil.Process(rank.pid).children(recursive=True))]
    assert len(family) == 3
    rank.connection.close()
    until(lambda: all(gone(pid) for pid in family), 5)


def test_a_rank_that_holds_the_interpreter_lock_can_be_ended(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import ctypes

        print("ready", flush=True)
        ctypes.PyDLL(None).sleep(1000)

    rank = started(start_rank(nursery, main_fn))
    rank.connection.close()
    until(lambda: gone(rank.pid), 5)


def test_children_that_a_rank_leaves_behind_are_ended(nursery: NurseryProcess) -> None:
    def main_fn() -> int:
        import subprocess
        import sys

        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True).pid

    rank = start_rank(nursery, main_fn).to_end()
    assert gone(rank.result())


def test_a_rank_that_does_not_end_after_its_value_has_succeeded(nursery: NurseryProcess) -> None:
    def main_fn() -> str:
        import atexit
        import time

        atexit.register(time.sleep, 1000)
        return "done"

    rank = start_rank(nursery, main_fn).to_end()
    assert rank.result() == "done"
    assert rank.exit is not None
    assert rank.exit.status == 0
    assert any("was killed" in line for line in rank.lines)


def test_a_killed_keeper_takes_its_rank_along(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import subprocess
        import sys
        import time

        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
        print("ready", flush=True)
        time.sleep(1000)

    rank = started(start_rank(nursery, main_fn))
    process = psutil.Process(rank.pid)
    family = [rank.pid, *(child.pid for child in process.children(recursive=True))]
    os.kill(process.ppid(), signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in family), 5)
    assert rank.to_end().exit is None
    assert start_rank(nursery, lambda: 1).to_end().result() == 1


def test_figures_of_a_rank_arrive(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import os

        from sparkgap.training import report

        report(1, 2, loss=0.5)
        if os.fork() == 0:
            report(9, 9, loss=9)  # a forked worker shares the channel and must not write into it
            os._exit(0)
        os.wait()
        report(2, 2, loss=0.25)

    rank = start_rank(nursery, main_fn).to_end()
    assert [(each.step, each.total, each.values["loss"]) for each in rank.metrics] == [(1, 2, 0.5), (2, 2, 0.25)]


def test_a_rank_that_gets_no_folder_says_why(nursery: NurseryProcess) -> None:
    """As on a full disk."""
    connection = nursery.connect()
    elsewhere = nursery.folder.rename(nursery.folder.with_name("elsewhere"))
    try:
        rank = start_rank(nursery, lambda: "never", connection=connection, rank=3).to_end()
    finally:
        elsewhere.rename(nursery.folder)
    assert rank.failure is not None
    assert (rank.failure.rank, rank.failure.exception) == (3, "FileNotFoundError")
    assert str(nursery.folder) in rank.failure.message
    assert start_rank(nursery, lambda: "back").to_end().result() == "back"


def test_strangers_are_refused_and_do_no_harm(nursery: NurseryProcess) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\xff\xff\xff\xff", b"\x01\x04\x00\x00\x00abcd", b""):
        connection = nursery.connect()
        connection.sendall(garbage)
        if not garbage:
            connection.shutdown(socket.SHUT_WR)
        assert refused(connection), garbage
    assert start_rank(nursery, lambda: 1).to_end().result() == 1


def test_when_the_executor_goes_the_whole_family_goes() -> None:
    with running_nursery() as nursery:
        rank = started(start_rank(nursery, by_value(sleep_for_ever)))
        family = [process.pid for process in nursery.descendants()]
        assert rank.pid in family
        assert nursery.process.stdin is not None
        nursery.process.stdin.close()
        assert nursery.process.wait(30) == 0
        assert all(gone(pid) for pid in family)
        assert not nursery.folder.exists()


def test_when_the_nursery_is_killed_its_ranks_go() -> None:
    with running_nursery() as nursery:
        rank = started(start_rank(nursery, by_value(sleep_for_ever)))
        family = [process.pid for process in nursery.descendants()]
        nursery.process.send_signal(signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in family), 10)
        assert rank.to_end().exit is None, (
            "the rank did not end by itself, so its exit status must not be passed for one"
        )


def test_it_imports_torch_but_starts_no_thread_and_no_cuda(nursery: NurseryProcess) -> None:
    def main_fn() -> Any:
        import threading

        import torch

        return threading.active_count(), torch.cuda.is_initialized()

    assert start_rank(nursery, main_fn).to_end().result() == (1, False)


def refused(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def by_value(function: Any) -> Any:
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return function
