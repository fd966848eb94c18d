from sparkgap_protos.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    QUEUED: _ClassVar[RunState]
    STARTING: _ClassVar[RunState]
    RUNNING: _ClassVar[RunState]
    SUCCEEDED: _ClassVar[RunState]
    FAILED: _ClassVar[RunState]
    CANCELLED: _ClassVar[RunState]
    LOST: _ClassVar[RunState]
    RETRYING: _ClassVar[RunState]
RUN_STATE_UNSPECIFIED: RunState
QUEUED: RunState
STARTING: RunState
RUNNING: RunState
SUCCEEDED: RunState
FAILED: RunState
CANCELLED: RunState
LOST: RunState
RETRYING: RunState

class Reply(_message.Message):
    __slots__ = ("refusal", "status", "events", "result", "hello", "list", "server", "payload")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    status: RunStatus
    events: RunEvents
    result: ResultChunk
    hello: Hello
    list: RunList
    server: ServerReport
    payload: PayloadAnswer
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ..., status: _Optional[_Union[RunStatus, _Mapping]] = ..., events: _Optional[_Union[RunEvents, _Mapping]] = ..., result: _Optional[_Union[ResultChunk, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., list: _Optional[_Union[RunList, _Mapping]] = ..., server: _Optional[_Union[ServerReport, _Mapping]] = ..., payload: _Optional[_Union[PayloadAnswer, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "spark")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SPARK_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    spark: str
    def __init__(self, protocol: _Optional[int] = ..., spark: _Optional[str] = ...) -> None: ...

class ServerReport(_message.Message):
    __slots__ = ("protocol", "spark", "java", "master", "slots", "busy_slots", "active_runs", "queued_runs", "executors", "settings", "runs_dir_problem", "session_files")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SPARK_FIELD_NUMBER: _ClassVar[int]
    JAVA_FIELD_NUMBER: _ClassVar[int]
    MASTER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_SLOTS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_RUNS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_RUNS_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RUNS_DIR_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SESSION_FILES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    spark: str
    java: str
    master: str
    slots: int
    busy_slots: int
    active_runs: int
    queued_runs: int
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorReport]
    settings: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Setting]
    runs_dir_problem: str
    session_files: bool
    def __init__(self, protocol: _Optional[int] = ..., spark: _Optional[str] = ..., java: _Optional[str] = ..., master: _Optional[str] = ..., slots: _Optional[int] = ..., busy_slots: _Optional[int] = ..., active_runs: _Optional[int] = ..., queued_runs: _Optional[int] = ..., executors: _Optional[_Iterable[_Union[ExecutorReport, _Mapping]]] = ..., settings: _Optional[_Iterable[_Union[_plan_pb2.Setting, _Mapping]]] = ..., runs_dir_problem: _Optional[str] = ..., session_files: bool = ...) -> None: ...

class ExecutorReport(_message.Message):
    __slots__ = ("id", "host", "cores", "running_tasks", "gpus", "python", "sparkgap", "torch", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TASKS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    SPARKGAP_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: str
    host: str
    cores: int
    running_tasks: int
    gpus: _containers.RepeatedScalarFieldContainer[str]
    python: str
    sparkgap: str
    torch: str
    failure: str
    def __init__(self, id: _Optional[str] = ..., host: _Optional[str] = ..., cores: _Optional[int] = ..., running_tasks: _Optional[int] = ..., gpus: _Optional[_Iterable[str]] = ..., python: _Optional[str] = ..., sparkgap: _Optional[str] = ..., torch: _Optional[str] = ..., failure: _Optional[str] = ...) -> None: ...

class PayloadAnswer(_message.Message):
    __slots__ = ("way",)
    class Way(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAY_UNSPECIFIED: _ClassVar[PayloadAnswer.Way]
        HELD: _ClassVar[PayloadAnswer.Way]
        UPLOAD: _ClassVar[PayloadAnswer.Way]
        INLINE: _ClassVar[PayloadAnswer.Way]
    WAY_UNSPECIFIED: PayloadAnswer.Way
    HELD: PayloadAnswer.Way
    UPLOAD: PayloadAnswer.Way
    INLINE: PayloadAnswer.Way
    WAY_FIELD_NUMBER: _ClassVar[int]
    way: PayloadAnswer.Way
    def __init__(self, way: _Optional[_Union[PayloadAnswer.Way, str]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Refusal.Reason]
        PLAN: _ClassVar[Refusal.Reason]
        VERSION: _ClassVar[Refusal.Reason]
        RESOURCES: _ClassVar[Refusal.Reason]
        RUN_NOT_FOUND: _ClassVar[Refusal.Reason]
    REASON_UNSPECIFIED: Refusal.Reason
    PLAN: Refusal.Reason
    VERSION: Refusal.Reason
    RESOURCES: Refusal.Reason
    RUN_NOT_FOUND: Refusal.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: Refusal.Reason
    message: str
    def __init__(self, reason: _Optional[_Union[Refusal.Reason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run_id", "name", "state", "num_processes", "attempt", "submitted_at", "started_at", "ended_at", "reason", "failures", "next_sequence", "result_bytes", "complete", "notice", "queue_position", "waiting_for", "max_failures")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    state: RunState
    num_processes: int
    attempt: int
    submitted_at: int
    started_at: int
    ended_at: int
    reason: str
    failures: _containers.RepeatedCompositeFieldContainer[RankFailure]
    next_sequence: int
    result_bytes: int
    complete: bool
    notice: str
    queue_position: int
    waiting_for: str
    max_failures: int
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., num_processes: _Optional[int] = ..., attempt: _Optional[int] = ..., submitted_at: _Optional[int] = ..., started_at: _Optional[int] = ..., ended_at: _Optional[int] = ..., reason: _Optional[str] = ..., failures: _Optional[_Iterable[_Union[RankFailure, _Mapping]]] = ..., next_sequence: _Optional[int] = ..., result_bytes: _Optional[int] = ..., complete: bool = ..., notice: _Optional[str] = ..., queue_position: _Optional[int] = ..., waiting_for: _Optional[str] = ..., max_failures: _Optional[int] = ...) -> None: ...

class RunList(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunStatus]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunStatus, _Mapping]]] = ...) -> None: ...

class RunEvents(_message.Message):
    __slots__ = ("sequences", "events", "dropped", "next_sequence", "next_line")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NEXT_LINE_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedCompositeFieldContainer[RunEvent]
    dropped: int
    next_sequence: int
    next_line: int
    def __init__(self, sequences: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[_Union[RunEvent, _Mapping]]] = ..., dropped: _Optional[int] = ..., next_sequence: _Optional[int] = ..., next_line: _Optional[int] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("attempt", "rank", "time", "started", "log", "metrics", "failure")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    rank: int
    time: int
    started: RankStarted
    log: LogLines
    metrics: Metrics
    failure: RankFailure
    def __init__(self, attempt: _Optional[int] = ..., rank: _Optional[int] = ..., time: _Optional[int] = ..., started: _Optional[_Union[RankStarted, _Mapping]] = ..., log: _Optional[_Union[LogLines, _Mapping]] = ..., metrics: _Optional[_Union[Metrics, _Mapping]] = ..., failure: _Optional[_Union[RankFailure, _Mapping]] = ...) -> None: ...

class RankStarted(_message.Message):
    __slots__ = ("host", "pid")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    host: str
    pid: int
    def __init__(self, host: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class LogLines(_message.Message):
    __slots__ = ("stream", "lines", "dropped")
    class Stream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STREAM_UNSPECIFIED: _ClassVar[LogLines.Stream]
        STDOUT: _ClassVar[LogLines.Stream]
        STDERR: _ClassVar[LogLines.Stream]
    STREAM_UNSPECIFIED: LogLines.Stream
    STDOUT: LogLines.Stream
    STDERR: LogLines.Stream
    STREAM_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    stream: LogLines.Stream
    lines: _containers.RepeatedScalarFieldContainer[str]
    dropped: int
    def __init__(self, stream: _Optional[_Union[LogLines.Stream, str]] = ..., lines: _Optional[_Iterable[str]] = ..., dropped: _Optional[int] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("step", "total", "values", "dropped", "earlier", "thinned")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    THINNED_FIELD_NUMBER: _ClassVar[int]
    step: int
    total: int
    values: _containers.ScalarMap[str, float]
    dropped: int
    earlier: EarlierReports
    thinned: int
    def __init__(self, step: _Optional[int] = ..., total: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ..., dropped: _Optional[int] = ..., earlier: _Optional[_Union[EarlierReports, _Mapping]] = ..., thinned: _Optional[int] = ...) -> None: ...

class EarlierReports(_message.Message):
    __slots__ = ("steps", "times", "totals", "metrics")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    times: _containers.RepeatedScalarFieldContainer[int]
    totals: _containers.RepeatedScalarFieldContainer[int]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricColumn]
    def __init__(self, steps: _Optional[_Iterable[int]] = ..., times: _Optional[_Iterable[int]] = ..., totals: _Optional[_Iterable[int]] = ..., metrics: _Optional[_Iterable[_Union[MetricColumn, _Mapping]]] = ...) -> None: ...

class MetricColumn(_message.Message):
    __slots__ = ("name", "values", "reports")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    reports: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., reports: _Optional[_Iterable[int]] = ...) -> None: ...

class RankFailure(_message.Message):
    __slots__ = ("rank", "host", "pid", "time", "exception", "message", "traceback", "pickled", "exit_code", "signal", "in_collective", "last_lines")
    RANK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    PICKLED_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    IN_COLLECTIVE_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    host: str
    pid: int
    time: int
    exception: str
    message: str
    traceback: str
    pickled: _plan_pb2.Payload
    exit_code: int
    signal: int
    in_collective: bool
    last_lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., time: _Optional[int] = ..., exception: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., pickled: _Optional[_Union[_plan_pb2.Payload, _Mapping]] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., in_collective: bool = ..., last_lines: _Optional[_Iterable[str]] = ...) -> None: ...

class ResultChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class RunSegment(_message.Message):
    __slots__ = ("user", "plan_digest", "server", "written_at", "status", "sequences", "events", "result", "last", "lines_before", "first_sequences", "merged")
    USER_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    LINES_BEFORE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    user: str
    plan_digest: bytes
    server: str
    written_at: int
    status: RunStatus
    sequences: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedScalarFieldContainer[bytes]
    result: _containers.RepeatedScalarFieldContainer[bytes]
    last: bool
    lines_before: _containers.RepeatedScalarFieldContainer[int]
    first_sequences: _containers.RepeatedScalarFieldContainer[int]
    merged: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, user: _Optional[str] = ..., plan_digest: _Optional[bytes] = ..., server: _Optional[str] = ..., written_at: _Optional[int] = ..., status: _Optional[_Union[RunStatus, _Mapping]] = ..., sequences: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[bytes]] = ..., result: _Optional[_Iterable[bytes]] = ..., last: bool = ..., lines_before: _Optional[_Iterable[int]] = ..., first_sequences: _Optional[_Iterable[int]] = ..., merged: _Optional[_Iterable[int]] = ...) -> None: ...
