"""`pyspark.TaskContext.get()` in user code: whoever sends batches says once which task it is, and the host shows that task while its turn lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sparkgap_protos.v1 import node_pb2 as pb
from sparkgap_protos.v1 import plan_pb2

if TYPE_CHECKING:
    from pyspark import TaskContext


def own_task() -> pb.TaskContext | None:
    """The task of this Python worker of Spark's, or None outside of one."""
    from pyspark import TaskContext

    task = TaskContext.get()
    if task is None:
        return None
    return pb.TaskContext(
        stage_id=task.stageId(),
        partition_id=task.partitionId(),
        attempt_number=task.attemptNumber(),
        task_attempt_id=task.taskAttemptId(),
        cpus=task.cpus(),
        resources=[pb.TaskResource(name=name, addresses=each.addresses) for name, each in task.resources().items()],
        local_properties=[
            plan_pb2.Setting(key=key, value=value)
            for key, value in (task._localProperties or {}).items()  # it has no public list of them
        ],
    )


def to_pyspark(task: pb.TaskContext) -> TaskContext:
    """The same as Spark's own Python workers show it."""
    from pyspark import TaskContext
    from pyspark.resource import ResourceInformation

    context = object.__new__(TaskContext)  # TaskContext() gives the one that is shown now
    context.__init__(
        stageId=task.stage_id,
        partitionId=task.partition_id,
        attemptNumber=task.attempt_number,
        taskAttemptId=task.task_attempt_id,
        cpus=task.cpus,
        resources={each.name: ResourceInformation(each.name, list(each.addresses)) for each in task.resources},
        localProperties={each.key: each.value for each in task.local_properties},
    )
    return context


@contextmanager
def shown(context: TaskContext | None) -> Iterator[None]:
    """Have `TaskContext.get()` give this task, and None afterwards, as nobody is served then."""
    if context is None:
        yield
        return
    from pyspark import TaskContext

    TaskContext._taskContext = context
    try:
        yield
    finally:
        TaskContext._taskContext = None
