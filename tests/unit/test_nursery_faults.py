"""A real nursery whose system runs out of something, and keepers that fail, freeze or are killed: who asks is told why, and nobody else notices."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import pytest
from nursery_client import (
    NurseryProcess,
    Rank,
    gone,
    keeper_end,
    keeper_of,
    running_nursery,
    start_rank,
    until,
)
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2
from sparkgap_server import wire

pytestmark = pytest.mark.timeout(120)


def wait_for(path: Path) -> str:
    print("ready", flush=True)
    while not path.exists():
        time.sleep(0.01)
    return "done"


def started(rank: Rank) -> Rank:
    rank.read_until(lambda: rank.pid != 0 and "ready" in rank.lines)
    assert rank.pid, (rank.failure, rank.refused, rank.exit)
    return rank


@pytest.fixture
def door(tmp_path: Path) -> Path:
    return tmp_path / "door"


def alone(nursery: NurseryProcess, door: Path, gang: str) -> Rank:
    return started(start_rank(nursery, wait_for, door, gang=gang))


# ---- One keeper for the ranks of an attempt ----


def test_ranks_of_a_gang_share_a_keeper_and_the_plan_travels_once(nursery: NurseryProcess, door: Path) -> None:
    def main_fn(door: Path) -> int:
        wait_for(door)
        return int(os.environ["RANK"])

    first, *others = ranks = [
        start_rank(
            nursery, main_fn, door, gang="four", rank=number, world_size=4, local_world_size=4, local_rank=number
        )
        for number in range(4)
    ]
    _meet(ranks)
    for rank in ranks:
        started(rank)
    assert [rank.asked for rank in ranks].count(True) == 1
    assert len({keeper_of(rank).pid for rank in ranks}) == 1
    door.touch()
    assert first.to_end().result() == 0
    assert all(rank.to_end().exit.status == 0 for rank in others)  # type: ignore[union-attr]
    assert keeper_end(nursery, "four").status == 0


def test_what_a_rank_leaves_ends_with_it_and_not_with_its_neighbours(nursery: NurseryProcess, door: Path) -> None:
    def leave(door: Path) -> int:
        import subprocess

        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if os.environ["RANK"] == "0":
            return child.pid
        print("child", child.pid, flush=True)
        wait_for(door)
        child.kill()
        child.wait()
        return 0

    first, second = (start_rank(nursery, leave, door, gang="two", rank=number, world_size=2) for number in range(2))
    _meet([first, second])
    orphan = first.to_end().result()
    assert gone(orphan)
    started(second)
    neighbour = int(next(line for line in second.lines if line.startswith("child")).split()[1])
    assert not gone(neighbour)
    door.touch()
    second.to_end()
    assert gone(neighbour)


def _meet(ranks: list[Rank]) -> None:
    """Take frames of all, since whom the keeper asks for the plan is its own choice, until rank 0 tells where, and tell all."""
    address = b""
    for rank in ranks:
        rank.connection.settimeout(0.2)
    deadline = time.monotonic() + 60
    while not address:
        assert time.monotonic() < deadline
        for rank in ranks:
            try:
                frame = wire.receive(rank.connection)
            except TimeoutError:
                continue
            assert frame is not None
            if frame.kind == pb.ADDRESS:
                address = frame.body
            else:
                rank.take(frame)
    for rank in ranks:
        rank.connection.settimeout(60)
        wire.send(rank.connection, pb.MEETING_POINT, address)


# ---- Keepers that end or freeze ----


def test_who_killed_the_keeper_is_told(nursery: NurseryProcess, door: Path) -> None:
    rank = alone(nursery, door, "killed")
    keeper_of(rank).kill()
    assert rank.to_end().exit is None
    end = keeper_end(nursery, "killed")
    assert (end.status, end.words) == (-signal.SIGKILL, "")


def test_a_keeper_that_fails_says_what_it_raised(nursery: NurseryProcess, door: Path) -> None:
    rank = alone(nursery, door, "failed")
    rank.connection.sendall(b"\x04\xff\xff\xff\xff")  # a frame that nobody can send
    rank.to_end()
    end = keeper_end(nursery, "failed")
    assert end.status == 1
    assert "BrokenFrame: a frame of 4294967295 bytes" in end.words
    assert "Traceback" in end.words
    until(lambda: gone(rank.pid), 10)


def test_a_frozen_keeper_can_be_ended_with_its_rank_and_its_children(nursery: NurseryProcess) -> None:
    def main_fn() -> None:
        import subprocess

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        print("ready", flush=True)
        time.sleep(1000)

    rank = started(start_rank(nursery, main_fn, gang="frozen"))
    family = [rank.pid, *(child.pid for child in psutil.Process(rank.pid).children(recursive=True))]
    frozen = keeper_of(rank)
    frozen.suspend()
    rank.connection.close()
    assert keeper_end(nursery, "frozen", end=True).status == -signal.SIGKILL
    until(lambda: all(gone(pid) for pid in [frozen.pid, *family]), 10)
    assert not list(nursery.folder.glob(f"rank-{frozen.pid}*"))


def test_a_killed_keeper_costs_no_other_run_and_no_model_anything(
    nursery: NurseryProcess, tmp_path: Path, door: Path
) -> None:
    """A model host that has been replaced serves the tasks that it has to their end."""
    weights = tmp_path / "weights"
    weights.write_text("1")
    plan = plan_pb2.PredictPlan(
        name="m",
        batch_size=1,
        return_type='"double"',
        make_predict_fn=codec.pack((lambda: load(weights)), "make_predict_fn"),
    )
    kind, ready = open_model(nursery, plan)
    assert kind == pb.MODEL_READY
    weights.write_text("broken")
    assert open_model(nursery, plan)[0] == pb.MODEL_FAILURE  # the host takes no further tasks
    weights.write_text("2")

    def another() -> int:
        kind, other = open_model(nursery, plan)
        return pb.ModelReady.FromString(other).pid if kind == pb.MODEL_READY else 0

    replaced = pb.ModelReady.FromString(ready).pid
    until(lambda: another() not in (0, replaced), 30)
    neighbour = alone(nursery, door, "neighbour")
    victim = alone(nursery, tmp_path / "never", "victim")
    keeper_of(victim).kill()
    assert keeper_end(nursery, "victim").status == -signal.SIGKILL
    until(lambda: gone(victim.pid), 10)
    assert not gone(replaced)
    door.touch()
    assert neighbour.to_end().result() == "done"


def load(weights: Path) -> Any:
    factor = float(weights.read_text())
    return lambda x: x * factor


def open_model(nursery: NurseryProcess, plan: plan_pb2.PredictPlan) -> tuple[int, bytes]:
    connection = nursery.connect()
    wire.send(connection, pb.OPEN, pb.Open(model=pb.OpenModel(key="key", name="m")))
    try:
        wire.send(connection, pb.PREDICT_PLAN, plan)
        frame = wire.receive(connection)
        if frame is not None and frame.kind == pb.PLAN_WANTED:
            wire.send(connection, pb.PREDICT_PLAN, plan)
            frame = wire.receive(connection)
    except (OSError, wire.BrokenFrame):
        frame = None
    return (0, b"") if frame is None else (frame.kind, frame.body)


# ---- A system that runs out of something ----


@contextmanager
def limited(nursery: NurseryProcess, what: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(nursery.process.pid, what)
    resource.prlimit(nursery.process.pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(nursery.process.pid, what, before)


def test_without_descriptors_one_request_is_refused_and_the_others_go_on(nursery: NurseryProcess, door: Path) -> None:
    before = alone(nursery, door, "before")
    with limited(nursery, resource.RLIMIT_NOFILE, with_room_for(nursery.process.pid, 8)):
        ranks = [start_rank(nursery, wait_for, door) for _ in range(40)]
        refused = [rank for rank in ranks if not rank.pid and "ready" not in rank.lines and _is_refused(rank)]
        assert refused
        assert {rank.refused for rank in refused} == {"Too many open files (errno 24)"}
    door.touch()
    for rank in ranks:
        assert rank in refused or rank.to_end().result() == "done"
    assert before.to_end().result() == "done"
    assert start_rank(nursery, lambda: "after").to_end().result() == "after"


def with_room_for(pid: int, descriptors: int) -> int:
    """The limit under which a process can open so many more: numbers below it that are free."""
    used = {int(each) for each in os.listdir(f"/proc/{pid}/fd")}
    return list(islice((number for number in count() if number not in used), descriptors + 1))[-1]


def _is_refused(rank: Rank) -> bool:
    rank.read_until(lambda: bool(rank.refused) or "ready" in rank.lines)
    return bool(rank.refused)


def test_without_process_ids_one_request_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """Root is exempt from this limit, so the nursery runs as somebody else."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_nursery(user=_nobody()) as nursery:
        door = tmp_path / "door"
        tmp_path.chmod(0o777)
        for above in tmp_path.parents:
            if above.stat().st_uid == os.getuid() and above != Path("/tmp") and "pytest" in above.name:
                above.chmod(0o755)
        before = alone(nursery, door, "before")
        with without_process_ids(nursery):
            rank = start_rank(nursery, wait_for, door).to_end()
            assert rank.refused == "Resource temporarily unavailable (errno 11)"
            assert open_model(nursery, plan_pb2.PredictPlan(name="m"))[0] == pb.REFUSED
        door.touch()
        assert before.to_end().result() == "done"
        assert start_rank(nursery, lambda: "after").to_end().result() == "after"


def _nobody() -> int | None:
    return 65534 if os.getuid() == 0 else None


@contextmanager
def without_process_ids(nursery: NurseryProcess) -> Iterator[None]:
    """A process's limits are its own user's to change."""
    as_its_user = [] if _nobody() is None else ["setpriv", "--reuid", str(_nobody()), "--clear-groups"]
    prlimit = [*as_its_user, "prlimit", "--pid", str(nursery.process.pid)]
    before = subprocess.run(
        [*prlimit, "--nproc", "--noheadings", "--raw", "-o", "SOFT"], check=True, capture_output=True, text=True
    )
    subprocess.run([*prlimit, "--nproc=0:"], check=True)
    try:
        yield
    finally:
        subprocess.run([*prlimit, f"--nproc={before.stdout.strip()}:"], check=True)


@pytest.mark.parametrize("room", [0, 3])  # not even for the connection, and for the connection but no rank
def test_a_keeper_without_descriptors_says_so_for_the_one_rank(nursery: NurseryProcess, door: Path, room: int) -> None:
    first = alone(nursery, door, f"crowded-{room}")
    process = keeper_of(first)
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (with_room_for(process.pid, room), before[1]))
    for _ in range(2):
        second = start_rank(nursery, wait_for, door, gang=f"crowded-{room}", rank=1, world_size=2).to_end()
        if room:
            assert second.failure is not None
            assert (second.failure.rank, second.failure.exception) == (1, "OSError")
            assert "Too many open files" in second.failure.message
        else:
            assert second.refused == "Too many open files (errno 24)"
    door.touch()
    assert first.to_end().result() == "done"


def test_a_rank_that_waits_for_a_slow_plan_or_for_its_turn_is_not_sent_away(
    tmp_path: Path,
) -> None:
    """On a busy machine a plan may take longer than a task has for its next word, and so may the forks of a hundred ranks."""
    with keeping(tmp_path, 0.5) as connect:
        ranks = [connect(number) for number in range(2)]
        readable, _, _ = select.select([rank.connection for rank in ranks], [], [], 30)
        asked, other = sorted(ranks, key=lambda rank: rank.connection not in readable)
        assert wire.receive(asked.connection) == wire.Frame(pb.PLAN_WANTED, b"")
        plan = wire.encode(pb.TRAIN_PLAN, asked.plan)
        pieces = [plan[start : start + len(plan) // 8 + 1] for start in range(0, len(plan), len(plan) // 8 + 1)]
        for piece in pieces:
            time.sleep(0.25)  # the slow task: 2 s together
            asked.connection.sendall(piece)
        _meet([asked, other])
        for rank in ranks:
            assert rank.to_end().exit is not None
            assert rank.exit.status == 0, rank.failure  # type: ignore[union-attr]


def test_a_task_that_says_nothing_does_not_keep_a_keeper(tmp_path: Path) -> None:
    with keeping(tmp_path, 0.5) as connect:
        silent = connect(0)
        assert wire.receive(silent.connection) == wire.Frame(pb.PLAN_WANTED, b"")
        assert silent.to_end().failure is not None
        assert "has sent nothing for 0.5 s" in silent.failure.message  # type: ignore[union-attr]


KEEPER = """
import socket, sys
from pathlib import Path
from sparkgap_server import processes
from sparkgap_server.nursery import keeper

folder, seconds, first, door, lifeline = sys.argv[1:]
keeper._TASK_SECONDS = float(seconds)
processes.adopt_orphans()
spec = keeper.KeeperSpec(Path(folder), 1024)
sys.exit(keeper.keep(socket.socket(fileno=int(first)), socket.socket(fileno=int(door)), int(lifeline), spec))
"""


@contextmanager
def keeping(folder: Path, task_seconds: float) -> Iterator[Callable[[int], Rank]]:
    """A keeper without a nursery; gives `connect(number)`, a rank of two whose task has sent its placement."""
    (door, far_door), (task, far_task), (lifeline, end) = socket.socketpair(), socket.socketpair(), os.pipe()
    passed = (far_task.fileno(), far_door.fileno(), lifeline)
    command = [sys.executable, "-c", KEEPER, str(folder), str(task_seconds), *map(str, passed)]
    with ExitStack() as cleanup, subprocess.Popen(command, pass_fds=passed):
        for each in (far_task, far_door):
            each.close()
        os.close(lifeline)
        cleanup.callback(os.close, end)
        cleanup.callback(door.close)

        def connect(number: int) -> Rank:
            ours, theirs = (task, None) if number == 0 else socket.socketpair()
            cleanup.callback(ours.close)
            ours.settimeout(60)
            if theirs is not None:
                socket.send_fds(door, [b"c"], [theirs.fileno()])
                theirs.close()
            plan = plan_pb2.TrainPlan(run_id="r", function=codec.pack((lambda: number, (), {}), "function"))
            place = pb.RankPlacement(rank=number, world_size=2, host="127.0.0.1", cpus=1, max_result_bytes=1 << 20)
            wire.send(ours, pb.PLACEMENT, place)
            return Rank(ours, plan)

        try:
            yield connect
        finally:
            cleanup.close()  # before the process is waited for


def test_a_rank_has_the_limit_of_descriptors_that_the_executor_gave(nursery: NurseryProcess) -> None:
    def main_fn() -> Any:
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert start_rank(nursery, main_fn).to_end().result() == resource.getrlimit(resource.RLIMIT_NOFILE)
