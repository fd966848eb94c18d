"""Bytes of every message as released: today's code has to write exactly these and to read them as the same values.

The files in ``golden/`` never change once a version of the messages is released. ``python tests/wire/test_golden.py`` writes those that are
missing, for new messages.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.message import Message
from sparkgap_protos import PROTOCOL
from sparkgap_protos.v1 import node_pb2, plan_pb2, run_pb2

GOLDEN = Path(__file__).parent / "golden" / "v1"
CLIENT = "sparkgap 0.1.0, Python 3.11.7"


def payload() -> plan_pb2.Payload:
    return plan_pb2.Payload(python="3.11", cloudpickle="3.1.2", data=b"\x80\x05K\x07.")


def train_plan(**body: Message) -> plan_pb2.TrainPlan:
    return plan_pb2.TrainPlan(run_id="run-1", name="main_fn", num_processes=2, local_mode=True, use_gpu=True, **body)


def script() -> plan_pb2.Script:
    return plan_pb2.Script(name="train.py", source=b"print('hello')\n", arguments=["--epochs", "3", ""])


def follow() -> plan_pb2.FollowRun:
    return plan_pb2.FollowRun(run_id="run-1", from_sequence=2**40, no_wait=True, with_result=True)


def command(**kind: Message) -> plan_pb2.Command:
    return plan_pb2.Command(protocol=1, client=CLIENT, **kind)


def query(**kind: Message) -> plan_pb2.Query:
    return plan_pb2.Query(protocol=1, client=CLIENT, **kind)


def source_modules() -> list[plan_pb2.SourceModule]:
    return [
        plan_pb2.SourceModule(name="project", source=b"# -*- coding: latin-1 -*-\nNAME = '\xe9'\n", package=True),
        plan_pb2.SourceModule(name="project.net", source=b"from . import NAME\n"),
    ]


def predict_plan() -> plan_pb2.PredictPlan:
    plan = plan_pb2.PredictPlan(
        protocol=1, client=CLIENT, name="make_digits", return_type="label int, scores array<float>", batch_size=512,
        input_shapes=plan_pb2.InputShapes(
            shapes=[plan_pb2.InputShape(index=0, given=True, dimensions=[1, 28, 28]), plan_pb2.InputShape(index=1)]
        ),
        make_predict_fn=payload(), digest="0f" * 32, deterministic=True, argument_names=["image", "weight"],
        session_files=True,
    )  # fmt: skip
    for value in (b"\x1a\x07\x0a\x05image", b"\x1a\x08\x0a\x06weight"):
        plan.arguments.add(type_url="type.googleapis.com/spark.connect.Expression", value=value)
    return plan


def predict_plan_options() -> plan_pb2.PredictPlan:
    """What came after the first PredictPlan."""
    return plan_pb2.PredictPlan(
        input_dtypes=plan_pb2.InputDtypes(
            dtypes=[plan_pb2.InputDtype(index=0, name="float32"), plan_pb2.InputDtype(index=1)]
        ),
        nulls=plan_pb2.PredictPlan.NULLS_SKIP, time_zone="Europe/Dublin", version="2024-07 é",
    )  # fmt: skip


def predict_plan_uploaded() -> plan_pb2.PredictPlan:
    """As the executor hands it to the model host, with 5 GB of weights in a file."""
    return plan_pb2.PredictPlan(
        protocol=1, client=CLIENT, name="make_digits", return_type='"integer"', batch_size=512, digest="0f" * 32,
        make_predict_fn=plan_pb2.Payload(python="3.11", cloudpickle="3.1.2", uploaded_bytes=5 * 2**30), argument_names=["image"],
        broadcast=0, payload_file="/local/blockmgr-1/0f/broadcast_0_python", unchecked_casts=True,
    )  # fmt: skip


def failure() -> run_pb2.RankFailure:
    return run_pb2.RankFailure(
        rank=1, host="node-7", pid=4711, time=1_700_000_000_123_456, exception="ValueError", message="no é weights",
        traceback="Traceback (most recent call last):\n  ...\n", pickled=payload(), exit_code=-1, signal=9, in_collective=True,
        last_lines=["epoch 1", ""],
    )  # fmt: skip


def status() -> run_pb2.RunStatus:
    return run_pb2.RunStatus(
        run_id="run-1", name="main_fn", state=run_pb2.FAILED, num_processes=2, attempt=1, submitted_at=1_700_000_000_000_000,
        started_at=1_700_000_000_000_001, ended_at=1_700_000_000_000_002, reason="rank 1 failed", failures=[failure()],
        next_sequence=77, result_bytes=5, complete=True,
    )  # fmt: skip


def lost_status() -> run_pb2.RunStatus:
    return run_pb2.RunStatus(
        run_id="run-2", name="main_fn", state=run_pb2.LOST, num_processes=1, notice="no space left on device"
    )


def server_report() -> run_pb2.ServerReport:
    return run_pb2.ServerReport(
        protocol=1, spark="4.2.1", java="17.0.15", master="local[4]", slots=4, busy_slots=1, active_runs=2, queued_runs=1,
        executors=[
            run_pb2.ExecutorReport(
                id="driver", host="node-7", cores=4, running_tasks=1, gpus=["0", "1"], python="3.11", sparkgap="0.1.0",
                torch="2.13.0+cpu",
            ),
            run_pb2.ExecutorReport(id="1", failure="the nursery ended with status 1"),
        ],
        settings=[plan_pb2.Setting(key="spark.task.cpus", value="1")], runs_dir_problem="no space left on device",
        session_files=True,
    )  # fmt: skip


def event(**kind: Message) -> run_pb2.RunEvent:
    return run_pb2.RunEvent(attempt=1, rank=1, time=1_700_000_000_123_456, **kind)


def log_lines() -> run_pb2.LogLines:
    return run_pb2.LogLines(stream=run_pb2.LogLines.STDERR, lines=["epoch 1 …", ""], dropped=3)


MESSAGES: dict[str, Message] = {
    # plan.proto: what a client sends
    "command_submit_function": command(submit=plan_pb2.SubmitRun(plan=train_plan(function=payload()), follow=follow())),
    "command_submit_script": command(submit=plan_pb2.SubmitRun(plan=train_plan(script=script()))),
    "payload_modules": plan_pb2.Payload(
        python="3.11", cloudpickle="3.1.2", data=b"\x80\x05K\x07.", modules=source_modules()
    ),
    "script_modules": plan_pb2.Script(name="train.py", source=b"import project.net\n", modules=source_modules()),
    "command_submit_all_results": command(
        submit=plan_pb2.SubmitRun(
            plan=plan_pb2.TrainPlan(run_id="run-1", name="main_fn", num_processes=2, function=payload(), all_results=True)
        )
    ),
    "command_submit_limits": command(
        submit=plan_pb2.SubmitRun(
            plan=plan_pb2.TrainPlan(
                run_id="run-1", num_processes=2, max_failures=3, refuse_to_wait=True,
                resources=plan_pb2.RankResources(cpus=4, gpus=2),
            )
        )
    ),
    "command_submit_submission": command(submit=plan_pb2.SubmitRun(plan=train_plan(script=script()), submission="0f" * 16)),
    "payload_files": plan_pb2.Payload(
        python="3.11", files=[plan_pb2.SourceFile(path="conf/base é.yaml", data=b"lr: 1\n")]
    ),
    "script_folder": plan_pb2.Script(
        name="project", files=[plan_pb2.SourceFile(path="project/__main__.py", data=b"print('hello')\n")]
    ),
    "payload_portable": plan_pb2.Payload(python="3.12", cloudpickle="3.1.2", data=b"\x80\x05N.", portable=True),
    "payload_of_ranks": plan_pb2.Payload(ranks=[payload(), payload()]),
    "command_follow": command(follow=follow()),
    "command_follow_as_call": command(follow=plan_pb2.FollowRun(run_id="run-1", cancel_on_interrupt=True)),
    "command_cancel": command(cancel=plan_pb2.CancelRun(run_id="run-1", reason="interrupted at the client (Ctrl-C)")),
    "command_cancel_submission": command(
        cancel=plan_pb2.CancelRun(run_id="run-1", reason="interrupted at the client (Ctrl-C)", submission="0f" * 16)
    ),
    "command_register": command(register=plan_pb2.RegisterFunction(name="classify", plan=predict_plan())),
    "query_run": query(run=plan_pb2.RunQuery(run_id="run-1")),
    "query_list": query(list=plan_pb2.ListRunsQuery()),
    "query_server": query(server=plan_pb2.ServerQuery()),
    "query_payload": query(payload=plan_pb2.PayloadQuery(digest="0f" * 32, bytes=5 * 2**30, name="make_digits")),
    "query_hello": query(hello=plan_pb2.HelloQuery()),
    "predict_plan": predict_plan(),
    "predict_plan_uploaded": predict_plan_uploaded(),
    "input_shapes_sparse": plan_pb2.InputShapes(
        sparse=True, shapes=[plan_pb2.InputShape(index=3, given=True, dimensions=[2**31 - 1])]
    ),
    "predict_plan_options": predict_plan_options(),
    "input_dtypes_sparse": plan_pb2.InputDtypes(sparse=True, dtypes=[plan_pb2.InputDtype(index=3, name="bool")]),
    # run.proto: what the server answers
    "reply_refusal": run_pb2.Reply(
        refusal=run_pb2.Refusal(reason=run_pb2.Refusal.RESOURCES, message="3 slots are needed, 2 are there")
    ),
    "reply_status": run_pb2.Reply(status=status()),
    "reply_status_queued": run_pb2.Reply(
        status=run_pb2.RunStatus(
            run_id="run-3", state=run_pb2.QUEUED, queue_position=2, waiting_for="4 task slots; 2 of 4 are taken", max_failures=3
        )
    ),
    "reply_server": run_pb2.Reply(server=server_report()),
    "reply_list": run_pb2.Reply(list=run_pb2.RunList(runs=[lost_status(), status()])),
    "reply_events": run_pb2.Reply(
        events=run_pb2.RunEvents(
            sequences=[12, 2**40], events=[event(log=log_lines()), event(failure=failure())], dropped=2, next_sequence=2**40 + 1,
            next_line=2**41,
        )
    ),
    "reply_result": run_pb2.Reply(result=run_pb2.ResultChunk(data=bytes(range(256)))),
    "reply_payload": run_pb2.Reply(payload=run_pb2.PayloadAnswer(way=run_pb2.PayloadAnswer.UPLOAD)),
    "reply_hello": run_pb2.Reply(hello=run_pb2.Hello(protocol=1, spark="4.2.1")),
    "run_segment": run_pb2.RunSegment(
        user="é/..", plan_digest=bytes(range(32)), server="1700000000000-0f0f0f0f", written_at=1_700_000_000_123_456, status=status(),
        sequences=[7, 2**40], events=[event(log=log_lines()).SerializeToString(deterministic=True), b""], lines_before=[3, 2**41],
        result=[b"\x00" * 3, b""], last=True,
    ),
    "run_segment_merged": run_pb2.RunSegment(sequences=[7, 2**40], first_sequences=[7, 3], merged=[0, 2**33]),
    "event_started": event(started=run_pb2.RankStarted(host="node-7", pid=4711)),
    "event_log": event(log=log_lines()),
    "event_metrics": event(metrics=run_pb2.Metrics(step=10, total=100, values={"loss": 0.25, "accuracy": 1.0, "nan": 0.0})),
    "event_metrics_thinned": event(metrics=run_pb2.Metrics(step=11, values={"loss": 0.5}, dropped=2**40)),
    "event_metrics_together": event(
        metrics=run_pb2.Metrics(
            step=-1, total=7, thinned=2**40, earlier=run_pb2.EarlierReports(
                steps=[10, -3, 2**62], times=[-(2**40), 500, 600], totals=[7, 0, 2**62],
                metrics=[
                    run_pb2.MetricColumn(name="loss", values=[0.5, float("inf"), -1e-300]),
                    run_pb2.MetricColumn(name="é", values=[0.0], reports=[2]),
                ],
            ),
        )
    ),
    "event_failure": event(failure=failure()),
    # node.proto: what the processes of one node say to each other
    "open_rank": node_pb2.Open(rank=node_pb2.OpenRank(run_id="run-1", rank=1)),
    "open_rank_of_gang": node_pb2.Open(rank=node_pb2.OpenRank(run_id="run-1", rank=1, gang="8c1f")),
    "open_keeper": node_pb2.Open(keeper=node_pb2.OpenKeeper(gang="8c1f", end=True)),
    "keeper_end": node_pb2.KeeperEnd(status=-9, words="Traceback: é", unknown=True),
    "open_model": node_pb2.Open(
        model=node_pb2.OpenModel(key="0f" * 32, name="make_digits", python_path=["/artifacts/a", "/artifacts/b.zip"])
    ),
    "rank_placement": node_pb2.RankPlacement(
        run_id="run-1", attempt=1, rank=3, local_rank=1, world_size=4, local_world_size=2, node_rank=1, num_nodes=2, host="10.0.0.7",
        gpus=["0", "1"], cpus=8, max_result_bytes=512 << 20,
    ),
    "rank_placement_session": node_pb2.RankPlacement(
        run_id="run-1", python_path=["/work/artifacts/0f", "/work/artifacts/0f/package.zip"]
    ),
    "rank_placement_conf": node_pb2.RankPlacement(
        run_id="run-1", session_conf=[plan_pb2.Setting(key="spark.example.é", value="a=b")], max_failures=3
    ),
    "rank_placement_threads": node_pb2.RankPlacement(run_id="run-1", thread_seconds=600),
    "rank_notice": node_pb2.RankNotice(rank=3, text="left 1 file: é.pt (4 bytes)"),
    "meeting_point": node_pb2.MeetingPoint(host="10.0.0.7", port=29500),
    "rank_exit": node_pb2.RankExit(status=-9, pid=4711, last_lines=["epoch 1", ""]),
    "refused": node_pb2.Refused(message="[Errno 11] Resource temporarily unavailable"),
    "task_context": node_pb2.TaskContext(
        stage_id=7, partition_id=3, attempt_number=1, task_attempt_id=2**40, cpus=2,
        resources=[node_pb2.TaskResource(name="gpu", addresses=["0", "1"])],
        local_properties=[plan_pb2.Setting(key="spark.job.description", value="é")],
    ),
    "batch": node_pb2.Batch(length=2**33),
    "grow": node_pb2.Grow(capacity=2**33),
    "model_ready": node_pb2.ModelReady(pid=4711, descriptor=12, capacity=1 << 20, load_seconds=1.5, slot=1),
    "predicted_batch": node_pb2.PredictedBatch(offset=128, length=4096, model_seconds=0.125),
    "model_failure": node_pb2.ModelFailure(
        loading=True, exception="ValueError", message="no weights", traceback="Traceback (most recent call last):\n",
        shown="ValueError",
    ),
    "column_batch": node_pb2.ColumnBatch(
        rows=3, length=448, columns=[node_pb2.Column(nodes=[3, 0, 6, 1], buffers=[0, 0, 0, 16, 64, 1, 128, 24])], slot=1
    ),
    "predicted_column": node_pb2.PredictedColumn(
        column=node_pb2.Column(nodes=[3, 0], buffers=[0, 0, 448, 24]), length=472, model_seconds=0.125, slot=1
    ),
}  # fmt: skip


def golden(name: str) -> Path:
    return GOLDEN / f"{name}.bin"


def encoded(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", MESSAGES)
def test_todays_code_writes_the_released_bytes(name):
    assert encoded(MESSAGES[name]) == golden(name).read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_todays_code_reads_the_released_bytes_as_the_same_values(name):
    message = type(MESSAGES[name]).FromString(golden(name).read_bytes())
    assert message == MESSAGES[name]
    assert not unknown_fields(message)


def unknown_fields(message: Message) -> bool:
    """Whether anything inside was read without being understood: reading and writing again would hide it."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return encoded(copy) != encoded(message)


def test_every_file_has_its_message():
    assert {path.stem for path in GOLDEN.iterdir()} == set(MESSAGES)


def test_every_field_of_every_message_is_set_in_some_file():
    """Otherwise a field could change its number, and no file would notice."""
    seen: set[str] = set()
    for message in MESSAGES.values():
        collect_fields(message, seen)
    declared = {
        field.full_name
        for module in (plan_pb2, run_pb2, node_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert declared - seen == set()


def collect_fields(message: Message, seen: set[str]) -> None:
    for field, value in message.ListFields():
        seen.add(field.full_name)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in [value] if isinstance(value, Message) else value:
            collect_fields(each, seen)


def test_the_golden_version_is_the_one_that_is_spoken():
    assert GOLDEN.name == f"v{PROTOCOL}"


if __name__ == "__main__":
    for each, content in MESSAGES.items():
        if not golden(each).exists():
            golden(each).write_bytes(encoded(content))
            print("wrote", golden(each))
