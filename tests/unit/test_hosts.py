"""A model host as its tasks see it: a real nursery forks it, and the function of Spark's Python workers talks to it from here."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from nursery_client import NurseryProcess, gone, running_nursery, until
from pyspark import TaskContext
from sparkgap_protos import codec
from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2
from sparkgap_server import wire
from sparkgap_server.predict import worker
from sparkgap_server.predict.context import shown, to_pyspark
from sparkgap_server.predict.memory import MappedMemory, SharedMemory, stream_size

pytestmark = pytest.mark.timeout(170)

SECONDS = 60


@pytest.fixture
def executor(nursery: NurseryProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NurseryProcess:
    return placed(nursery, tmp_path, monkeypatch)


def placed(nursery: NurseryProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NurseryProcess:
    """The nursery as an executor's worker finds it."""
    (tmp_path / worker.POINTER).write_text(str(nursery.folder / "nursery"))
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    return nursery


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file for which user code waits."""
    return tmp_path / "gate"


def plan_of(make: Callable[[], Any], return_type: str = '"double"', **changes: Any) -> plan_pb2.PredictPlan:
    payload = codec.pack(make, "make_predict_fn")
    plan = plan_pb2.PredictPlan(
        name=make.__name__, return_type=return_type, batch_size=4, digest=os.urandom(8).hex(), argument_names=["x"],
        make_predict_fn=payload,
    )  # fmt: skip
    plan.MergeFrom(plan_pb2.PredictPlan(**changes))
    return plan


def predicted(plan: plan_pb2.PredictPlan, values: Iterable[float] = range(8)) -> list[Any]:
    column = pa.array(list(values), pa.float64())
    return [value for part in worker.predict(plan.SerializeToString(), iter([column])) for value in part.to_pylist()]


def predicted_for_a_second_task(plan: plan_pb2.PredictPlan, values: Iterable[float] = range(8)) -> list[Any]:
    """By the model that another task has loaded."""
    predicted(plan, [1.0])
    return predicted(plan, values)


def journal_in(folder: Path, name: str = "journal") -> Callable[[object], None]:
    path = folder / name

    def note(what: object) -> None:
        with open(path, "a") as file:
            file.write(f"{what}\n")

    return note


def lines_of(folder: Path, name: str = "journal") -> list[str]:
    path = folder / name
    return path.read_text().splitlines() if path.exists() else []


class Connection:
    """A task of our own: says what it likes when it likes."""

    def __init__(self, nursery: NurseryProcess, plan: plan_pb2.PredictPlan) -> None:
        self.socket = nursery.connect()
        self.socket.settimeout(SECONDS)
        self._plan = plan
        wire.send(self.socket, pb.OPEN, pb.Open(model=pb.OpenModel(key=plan.digest, name=plan.name)))
        wire.send(self.socket, pb.PREDICT_PLAN, plan)

    def ready(self) -> Connection:
        frame = self.frame()
        if frame.kind == pb.PLAN_WANTED:
            wire.send(self.socket, pb.PREDICT_PLAN, self._plan)
            frame = self.frame()
        assert frame.kind == pb.MODEL_READY
        ready = pb.ModelReady.FromString(frame.body)
        self.host = ready.pid
        self._memory = MappedMemory(ready.pid, ready.descriptor)
        return self

    def send(self, *values: float) -> Connection:
        batch = pa.RecordBatch.from_arrays([pa.array(values, pa.float64())], names=["0"])
        wire.send(self.socket, pb.BATCH, pb.Batch(length=self._memory.write(batch, stream_size(batch))))
        return self

    def frame(self) -> wire.Frame:
        frame = wire.receive(self.socket)
        assert frame is not None, "the host has ended"
        return frame

    def predictions(self) -> list[Any]:
        frame = self.frame()
        assert frame.kind == pb.PREDICTED, frame
        answer = pb.PredictedBatch.FromString(frame.body)
        return self._memory.read(answer.offset, answer.length).column(0).to_pylist()

    def failure(self) -> pb.ModelFailure:
        frame = self.frame()
        assert frame.kind == pb.MODEL_FAILURE, frame
        return pb.ModelFailure.FromString(frame.body)

    def close(self) -> None:
        self.socket.close()
        self._memory.close()


class TestUserCodeHasTheMainThread:
    """What make_predict_fn does to its thread holds in predict, as in pyspark's workers."""

    def test_of_the_process(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            assert threading.current_thread() is threading.main_thread()
            return lambda x: np.full(len(x), threading.current_thread() is threading.main_thread(), np.float64)

        assert predicted_for_a_second_task(plan_of(make)) == [1.0] * 8

    def test_grad_mode(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            import torch

            torch.set_grad_enabled(False)
            layer = torch.nn.Linear(1, 1)
            return lambda x: layer(torch.from_numpy(x).float()[:, None]).numpy()

        assert len(predicted_for_a_second_task(plan_of(make))) == 8

    def test_default_device(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            import torch

            torch.set_default_device("meta")
            return lambda x: np.full(len(x), torch.empty(1).device.type == "meta", np.float64)

        assert predicted_for_a_second_task(plan_of(make)) == [1.0] * 8

    def test_numpys_error_state(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            np.seterr(divide="raise")
            return lambda x: 1.0 / x

        with pytest.raises(FloatingPointError, match="divide by zero"):
            predicted_for_a_second_task(plan_of(make))

    def test_signal_handlers(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            rung = []
            signal.signal(signal.SIGALRM, lambda *_: rung.append(1))

            def predict(x: Any) -> Any:
                signal.raise_signal(signal.SIGALRM)
                return x * 0.0 + len(rung)

            return predict

        assert predicted_for_a_second_task(plan_of(make), range(4)) == [2.0] * 4

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_an_event_loop(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)

            async def double(x: Any) -> Any:
                return 2 * x

            return lambda x: asyncio.get_event_loop().run_until_complete(double(x))

        assert predicted_for_a_second_task(plan_of(make), range(3)) == [0.0, 2.0, 4.0]

    def test_a_connection_of_sqlite(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            connection = sqlite3.connect(":memory:")
            connection.execute("create table names (id integer, name text)")
            connection.execute("insert into names values (1, 'one')")

            def predict(x: Any) -> Any:
                return x * 0 + connection.execute("select count(*) from names").fetchone()[0]

            return predict

        assert predicted_for_a_second_task(plan_of(make), range(3)) == [1.0] * 3

    def test_also_when_several_tasks_predict_at_once(self, executor: NurseryProcess, tmp_path: Path) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            note(threading.get_ident())

            def predict(x: Any) -> Any:
                note(threading.get_ident())
                return x + 1

            return predict

        plan = plan_of(make)
        tasks = [Connection(executor, plan).ready() for _ in range(4)]
        for number, task in enumerate(tasks):
            task.send(number)
        assert [task.predictions() for task in tasks] == [[1.0], [2.0], [3.0], [4.0]]
        assert len(lines_of(tmp_path)) == 5
        assert len(set(lines_of(tmp_path))) == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit, GeneratorExit])
    def test_what_would_end_the_main_thread_is_an_error_of_the_query(
        self, executor: NurseryProcess, error: type[BaseException], tmp_path: Path
    ) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            note("load")

            def predict(x: Any) -> Any:
                if x[0] == 1:
                    raise error("no more")
                return x

            return predict

        plan = plan_of(make)
        failure = Connection(executor, plan).ready().send(1.0).failure()
        assert (failure.exception, failure.message) == (error.__qualname__, "no more")
        assert predicted(plan, [2.0]) == [2.0]
        assert lines_of(tmp_path) == ["load"]


class TestTurns:
    def test_tasks_that_come_during_a_load_wait_for_it(
        self, executor: NurseryProcess, gate: Path, tmp_path: Path
    ) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            note("load")
            while not gate.exists():
                time.sleep(0.01)
            return lambda x: x

        plan = plan_of(make)
        got: list[list[Any]] = []
        tasks = [threading.Thread(target=lambda: got.append(predicted(plan, [1.0]))) for _ in range(3)]
        for task in tasks:
            task.start()
        until(lambda: lines_of(tmp_path) == ["load"], SECONDS)
        gate.touch()
        for task in tasks:
            task.join(SECONDS)
        assert got == [[1.0]] * 3
        assert lines_of(tmp_path) == ["load"]

    def test_a_task_is_welcome_while_another_is_predicted(self, executor: NurseryProcess, gate: Path) -> None:
        def make() -> Any:
            def predict(x: Any) -> Any:
                while x[0] == 1 and not gate.exists():
                    time.sleep(0.01)
                return x

            return predict

        plan = plan_of(make)
        slow = Connection(executor, plan).ready().send(1.0)
        other = Connection(executor, plan).ready().send(2.0)
        gate.touch()
        assert slow.predictions() == [1.0]
        assert other.predictions() == [2.0]

    def test_what_a_cancelled_task_had_sent_is_not_predicted(
        self, executor: NurseryProcess, gate: Path, tmp_path: Path
    ) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            def predict(x: Any) -> Any:
                first = float(x[0])  # its memory is written to meanwhile
                note(first)
                while first == 1 and not gate.exists():
                    time.sleep(0.01)
                return x

            return predict

        plan = plan_of(make)
        cancelled = Connection(executor, plan).ready().send(1.0)
        until(lambda: lines_of(tmp_path) == ["1.0"], SECONDS)
        running = threads(cancelled.host)
        cancelled.send(2.0).close()
        until(lambda: threads(cancelled.host) < running, SECONDS)
        next_task = Connection(executor, plan).ready()
        gate.touch()
        assert next_task.send(4.0).predictions() == [4.0]
        assert lines_of(tmp_path) == ["1.0", "4.0"]

    def test_a_task_that_does_not_read_its_failure_holds_nobody_up(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            def predict(x: Any) -> Any:
                if x[0] == 1:
                    raise ValueError("x" * (8 << 20))
                return x

            return predict

        plan = plan_of(make)
        deaf = Connection(executor, plan).ready().send(1.0)
        assert predicted(plan, [2.0, 3.0]) == [2.0, 3.0]
        assert len(deaf.failure().message) == 8 << 20

    def test_a_batch_with_other_columns_than_the_plan_names_is_refused_in_words(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            return lambda x: x

        with pytest.raises(ValueError, match="the plan names 2 arguments, and the batch has 1 columns"):
            predicted(plan_of(make, argument_names=["y"]))


class TestItsEnd:
    def test_a_host_that_could_not_load_ends_and_the_next_task_gets_another(
        self, executor: NurseryProcess, gate: Path, tmp_path: Path
    ) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            note(os.getpid())
            if not gate.exists():
                raise RuntimeError("no weights yet")
            return lambda x: x

        plan = plan_of(make)
        with pytest.raises(RuntimeError, match="no weights yet"):
            predicted(plan, [1.0])
        [first] = map(int, lines_of(tmp_path))
        until(lambda: gone(first), SECONDS)
        gate.touch()
        assert predicted(plan, [1.0]) == [1.0]

    def test_an_idle_host_ends_and_one_with_a_task_does_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def make() -> Any:
            return lambda x: x

        with running_nursery(idle_seconds=0.5) as nursery:
            placed(nursery, tmp_path, monkeypatch)
            busy = Connection(nursery, plan_of(make)).ready()
            idle = Connection(nursery, plan_of(make)).ready()
            idle.close()
            until(lambda: gone(idle.host), SECONDS)
            assert busy.send(1.0).predictions() == [1.0]
            busy.close()
            until(lambda: gone(busy.host), SECONDS)

    def test_a_host_whose_model_hangs_goes_with_its_nursery(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        note = journal_in(tmp_path)

        def make() -> Any:
            def predict(x: Any) -> Any:
                note("predict")
                time.sleep(3600)

            return predict

        with running_nursery() as nursery:
            placed(nursery, tmp_path, monkeypatch)
            hanging = Connection(nursery, plan_of(make)).ready().send(1.0)
            until(lambda: bool(lines_of(tmp_path)), SECONDS)
            nursery.process.kill()
            until(lambda: gone(hanging.host), SECONDS)

    def test_it_keeps_no_descriptor_of_tasks_that_have_gone(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            return lambda x: x

        plan = plan_of(make)
        first = Connection(executor, plan).ready()
        host = psutil.Process(first.host)
        before = host.num_fds()
        for number in range(20):
            task = Connection(executor, plan).ready()
            assert task.send(number).predictions() == [number]
            task.close()
        until(lambda: host.num_fds() <= before, SECONDS)


class TestTaskContext:
    """pyspark.TaskContext.get() is the task that loads, or whose batch it is."""

    def test_it_is_the_one_of_the_worker(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            def seen() -> str:
                task = TaskContext.get()
                if task is None:
                    return "None"
                gpus = {name: (each.name, each.addresses) for name, each in task.resources().items()}
                figures = (task.stageId(), task.partitionId(), task.attemptNumber(), task.taskAttemptId(), task.cpus())
                return repr((figures, gpus, task.getLocalProperty("a"), task.getLocalProperty("b")))

            loaded = seen()
            return lambda x: np.array([f"{loaded} {seen()}"] * len(x), dtype=object)

        def saw(number: int) -> str:
            return repr(((number, number + 1, 2, 2**40, 3), {"gpu": ("gpu", ["0", "1"])}, "é", None))

        plan = plan_of(make, '"string"')
        for number in (5, 6):
            with task(number):
                assert predicted(plan, [1.0]) == [f"{saw(5)} {saw(number)}"]
        assert predicted(plan, [1.0]) == [f"{saw(5)} None"]


@contextmanager
def task(number: int) -> Iterator[None]:
    message = pb.TaskContext(
        stage_id=number, partition_id=number + 1, attempt_number=2, task_attempt_id=2**40, cpus=3,
        resources=[pb.TaskResource(name="gpu", addresses=["0", "1"])],
        local_properties=[plan_pb2.Setting(key="a", value="é")],
    )  # fmt: skip
    with shown(to_pyspark(message)):
        yield


class TestReachingAHost:
    def test_a_nursery_that_cannot_fork_is_an_error_with_its_words(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (
            refusing(tmp_path, monkeypatch, "Cannot allocate memory"),
            pytest.raises(
                worker.HostRefused, match="the nursery could not start the model host of make: Cannot allocate memory"
            ),
        ):
            predicted(plan_pb2.PredictPlan(name="make", batch_size=1), [1.0])

    def test_connections_of_failed_attempts_are_closed(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            os._exit(3)

        kept: list[Exception] = []

        def fail() -> None:
            with pytest.raises(worker.HostDied) as error:
                predicted(plan_of(make), [1.0])
            kept.append(error.value)  # with the frames of its traceback, as a task's error may be

        fail()
        before = psutil.Process().num_fds()
        for _ in range(3):
            fail()
        assert psutil.Process().num_fds() == before

    def test_the_connection_of_a_failed_load_is_closed(self, executor: NurseryProcess) -> None:
        def make() -> Any:
            raise ValueError("no weights")

        kept = []
        before = psutil.Process().num_fds()
        for _ in range(2):
            with pytest.raises(ValueError, match="no weights") as error:
                predicted(plan_of(make), [1.0])
            kept.append(error.value)
        assert psutil.Process().num_fds() == before

    def test_memory_that_cannot_be_mapped_leaves_no_descriptor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = psutil.Process().num_fds()
        with pytest.raises((OSError, OverflowError, ValueError)):
            SharedMemory(1 << 62)
        empty = os.memfd_create("empty")
        with pytest.raises(ValueError, match="empty file"):
            MappedMemory(os.getpid(), empty)
        os.close(empty)
        assert psutil.Process().num_fds() == before


@contextmanager
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> Iterator[None]:
    """A nursery that answers as one does that cannot fork: it does not read on, and closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.listen()
        (tmp_path / worker.POINTER).write_text(str(tmp_path / "n"))
        monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                assert wire.receive(connection).kind == pb.OPEN
                wire.send(connection, pb.REFUSED, pb.Refused(message=words))

        nursery = threading.Thread(target=answer)
        nursery.start()
        yield
        nursery.join(SECONDS)


def threads(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))
