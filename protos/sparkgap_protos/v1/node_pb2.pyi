from sparkgap_protos.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_KIND_UNSPECIFIED: _ClassVar[FrameKind]
    OPEN: _ClassVar[FrameKind]
    PLACEMENT: _ClassVar[FrameKind]
    TRAIN_PLAN: _ClassVar[FrameKind]
    MEETING_POINT: _ClassVar[FrameKind]
    ADDRESS: _ClassVar[FrameKind]
    EVENT: _ClassVar[FrameKind]
    RESULT: _ClassVar[FrameKind]
    FAILURE: _ClassVar[FrameKind]
    EXIT: _ClassVar[FrameKind]
    PREDICT_PLAN: _ClassVar[FrameKind]
    BATCH: _ClassVar[FrameKind]
    GROW: _ClassVar[FrameKind]
    PLAN_WANTED: _ClassVar[FrameKind]
    MODEL_READY: _ClassVar[FrameKind]
    PREDICTED: _ClassVar[FrameKind]
    MODEL_FAILURE: _ClassVar[FrameKind]
    SCHEMA: _ClassVar[FrameKind]
    COLUMN_BATCH: _ClassVar[FrameKind]
    PREDICTED_COLUMN: _ClassVar[FrameKind]
    REFUSED: _ClassVar[FrameKind]
    TASK_CONTEXT: _ClassVar[FrameKind]
    KEEPER_END: _ClassVar[FrameKind]
    NOTICE: _ClassVar[FrameKind]
FRAME_KIND_UNSPECIFIED: FrameKind
OPEN: FrameKind
PLACEMENT: FrameKind
TRAIN_PLAN: FrameKind
MEETING_POINT: FrameKind
ADDRESS: FrameKind
EVENT: FrameKind
RESULT: FrameKind
FAILURE: FrameKind
EXIT: FrameKind
PREDICT_PLAN: FrameKind
BATCH: FrameKind
GROW: FrameKind
PLAN_WANTED: FrameKind
MODEL_READY: FrameKind
PREDICTED: FrameKind
MODEL_FAILURE: FrameKind
SCHEMA: FrameKind
COLUMN_BATCH: FrameKind
PREDICTED_COLUMN: FrameKind
REFUSED: FrameKind
TASK_CONTEXT: FrameKind
KEEPER_END: FrameKind
NOTICE: FrameKind

class Open(_message.Message):
    __slots__ = ("rank", "model", "keeper")
    RANK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KEEPER_FIELD_NUMBER: _ClassVar[int]
    rank: OpenRank
    model: OpenModel
    keeper: OpenKeeper
    def __init__(self, rank: _Optional[_Union[OpenRank, _Mapping]] = ..., model: _Optional[_Union[OpenModel, _Mapping]] = ..., keeper: _Optional[_Union[OpenKeeper, _Mapping]] = ...) -> None: ...

class OpenRank(_message.Message):
    __slots__ = ("run_id", "rank", "gang")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    GANG_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    rank: int
    gang: str
    def __init__(self, run_id: _Optional[str] = ..., rank: _Optional[int] = ..., gang: _Optional[str] = ...) -> None: ...

class OpenKeeper(_message.Message):
    __slots__ = ("gang", "end")
    GANG_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    gang: str
    end: bool
    def __init__(self, gang: _Optional[str] = ..., end: bool = ...) -> None: ...

class KeeperEnd(_message.Message):
    __slots__ = ("status", "words", "unknown")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    status: int
    words: str
    unknown: bool
    def __init__(self, status: _Optional[int] = ..., words: _Optional[str] = ..., unknown: bool = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class OpenModel(_message.Message):
    __slots__ = ("key", "name", "python_path")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PYTHON_PATH_FIELD_NUMBER: _ClassVar[int]
    key: str
    name: str
    python_path: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, key: _Optional[str] = ..., name: _Optional[str] = ..., python_path: _Optional[_Iterable[str]] = ...) -> None: ...

class RankPlacement(_message.Message):
    __slots__ = ("run_id", "attempt", "rank", "local_rank", "world_size", "local_world_size", "node_rank", "num_nodes", "host", "gpus", "cpus", "max_result_bytes", "python_path", "session_conf", "max_failures", "thread_seconds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    LOCAL_RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    NODE_RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_NODES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PYTHON_PATH_FIELD_NUMBER: _ClassVar[int]
    SESSION_CONF_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    THREAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    attempt: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    num_nodes: int
    host: str
    gpus: _containers.RepeatedScalarFieldContainer[str]
    cpus: int
    max_result_bytes: int
    python_path: _containers.RepeatedScalarFieldContainer[str]
    session_conf: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Setting]
    max_failures: int
    thread_seconds: int
    def __init__(self, run_id: _Optional[str] = ..., attempt: _Optional[int] = ..., rank: _Optional[int] = ..., local_rank: _Optional[int] = ..., world_size: _Optional[int] = ..., local_world_size: _Optional[int] = ..., node_rank: _Optional[int] = ..., num_nodes: _Optional[int] = ..., host: _Optional[str] = ..., gpus: _Optional[_Iterable[str]] = ..., cpus: _Optional[int] = ..., max_result_bytes: _Optional[int] = ..., python_path: _Optional[_Iterable[str]] = ..., session_conf: _Optional[_Iterable[_Union[_plan_pb2.Setting, _Mapping]]] = ..., max_failures: _Optional[int] = ..., thread_seconds: _Optional[int] = ...) -> None: ...

class MeetingPoint(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class RankExit(_message.Message):
    __slots__ = ("status", "pid", "last_lines")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    status: int
    pid: int
    last_lines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, status: _Optional[int] = ..., pid: _Optional[int] = ..., last_lines: _Optional[_Iterable[str]] = ...) -> None: ...

class RankNotice(_message.Message):
    __slots__ = ("rank", "text")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    text: str
    def __init__(self, rank: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class TaskContext(_message.Message):
    __slots__ = ("stage_id", "partition_id", "attempt_number", "task_attempt_id", "cpus", "resources", "local_properties")
    STAGE_ID_FIELD_NUMBER: _ClassVar[int]
    PARTITION_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    TASK_ATTEMPT_ID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    stage_id: int
    partition_id: int
    attempt_number: int
    task_attempt_id: int
    cpus: int
    resources: _containers.RepeatedCompositeFieldContainer[TaskResource]
    local_properties: _containers.RepeatedCompositeFieldContainer[_plan_pb2.Setting]
    def __init__(self, stage_id: _Optional[int] = ..., partition_id: _Optional[int] = ..., attempt_number: _Optional[int] = ..., task_attempt_id: _Optional[int] = ..., cpus: _Optional[int] = ..., resources: _Optional[_Iterable[_Union[TaskResource, _Mapping]]] = ..., local_properties: _Optional[_Iterable[_Union[_plan_pb2.Setting, _Mapping]]] = ...) -> None: ...

class TaskResource(_message.Message):
    __slots__ = ("name", "addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("length",)
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    length: int
    def __init__(self, length: _Optional[int] = ...) -> None: ...

class Grow(_message.Message):
    __slots__ = ("capacity",)
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    capacity: int
    def __init__(self, capacity: _Optional[int] = ...) -> None: ...

class ModelReady(_message.Message):
    __slots__ = ("pid", "descriptor", "capacity", "load_seconds", "slot")
    PID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    pid: int
    descriptor: int
    capacity: int
    load_seconds: float
    slot: int
    def __init__(self, pid: _Optional[int] = ..., descriptor: _Optional[int] = ..., capacity: _Optional[int] = ..., load_seconds: _Optional[float] = ..., slot: _Optional[int] = ...) -> None: ...

class PredictedBatch(_message.Message):
    __slots__ = ("offset", "length", "model_seconds")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MODEL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    model_seconds: float
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., model_seconds: _Optional[float] = ...) -> None: ...

class ModelFailure(_message.Message):
    __slots__ = ("loading", "exception", "message", "traceback", "shown")
    LOADING_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    SHOWN_FIELD_NUMBER: _ClassVar[int]
    loading: bool
    exception: str
    message: str
    traceback: str
    shown: str
    def __init__(self, loading: bool = ..., exception: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., shown: _Optional[str] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("nodes", "buffers")
    NODES_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    buffers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, nodes: _Optional[_Iterable[int]] = ..., buffers: _Optional[_Iterable[int]] = ...) -> None: ...

class ColumnBatch(_message.Message):
    __slots__ = ("rows", "length", "columns", "slot")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    rows: int
    length: int
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    slot: int
    def __init__(self, rows: _Optional[int] = ..., length: _Optional[int] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., slot: _Optional[int] = ...) -> None: ...

class PredictedColumn(_message.Message):
    __slots__ = ("column", "length", "model_seconds", "slot")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    MODEL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    column: Column
    length: int
    model_seconds: float
    slot: int
    def __init__(self, column: _Optional[_Union[Column, _Mapping]] = ..., length: _Optional[int] = ..., model_seconds: _Optional[float] = ..., slot: _Optional[int] = ...) -> None: ...
