from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("protocol", "client", "submit", "follow", "cancel", "register")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    REGISTER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client: str
    submit: SubmitRun
    follow: FollowRun
    cancel: CancelRun
    register: RegisterFunction
    def __init__(self, protocol: _Optional[int] = ..., client: _Optional[str] = ..., submit: _Optional[_Union[SubmitRun, _Mapping]] = ..., follow: _Optional[_Union[FollowRun, _Mapping]] = ..., cancel: _Optional[_Union[CancelRun, _Mapping]] = ..., register: _Optional[_Union[RegisterFunction, _Mapping]] = ...) -> None: ...

class SubmitRun(_message.Message):
    __slots__ = ("plan", "follow", "submission")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    plan: TrainPlan
    follow: FollowRun
    submission: str
    def __init__(self, plan: _Optional[_Union[TrainPlan, _Mapping]] = ..., follow: _Optional[_Union[FollowRun, _Mapping]] = ..., submission: _Optional[str] = ...) -> None: ...

class FollowRun(_message.Message):
    __slots__ = ("run_id", "from_sequence", "no_wait", "with_result", "cancel_on_interrupt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NO_WAIT_FIELD_NUMBER: _ClassVar[int]
    WITH_RESULT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_ON_INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    from_sequence: int
    no_wait: bool
    with_result: bool
    cancel_on_interrupt: bool
    def __init__(self, run_id: _Optional[str] = ..., from_sequence: _Optional[int] = ..., no_wait: bool = ..., with_result: bool = ..., cancel_on_interrupt: bool = ...) -> None: ...

class CancelRun(_message.Message):
    __slots__ = ("run_id", "reason", "submission")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SUBMISSION_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    reason: str
    submission: str
    def __init__(self, run_id: _Optional[str] = ..., reason: _Optional[str] = ..., submission: _Optional[str] = ...) -> None: ...

class RegisterFunction(_message.Message):
    __slots__ = ("name", "plan")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    name: str
    plan: PredictPlan
    def __init__(self, name: _Optional[str] = ..., plan: _Optional[_Union[PredictPlan, _Mapping]] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("protocol", "client", "run", "hello", "list", "server", "payload")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client: str
    run: RunQuery
    hello: HelloQuery
    list: ListRunsQuery
    server: ServerQuery
    payload: PayloadQuery
    def __init__(self, protocol: _Optional[int] = ..., client: _Optional[str] = ..., run: _Optional[_Union[RunQuery, _Mapping]] = ..., hello: _Optional[_Union[HelloQuery, _Mapping]] = ..., list: _Optional[_Union[ListRunsQuery, _Mapping]] = ..., server: _Optional[_Union[ServerQuery, _Mapping]] = ..., payload: _Optional[_Union[PayloadQuery, _Mapping]] = ...) -> None: ...

class HelloQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunQuery(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListRunsQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerQuery(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PayloadQuery(_message.Message):
    __slots__ = ("digest", "bytes", "name")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    digest: str
    bytes: int
    name: str
    def __init__(self, digest: _Optional[str] = ..., bytes: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("python", "portable", "cloudpickle", "data", "uploaded_bytes", "modules", "files", "ranks")
    PYTHON_FIELD_NUMBER: _ClassVar[int]
    PORTABLE_FIELD_NUMBER: _ClassVar[int]
    CLOUDPICKLE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    UPLOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    python: str
    portable: bool
    cloudpickle: str
    data: bytes
    uploaded_bytes: int
    modules: _containers.RepeatedCompositeFieldContainer[SourceModule]
    files: _containers.RepeatedCompositeFieldContainer[SourceFile]
    ranks: _containers.RepeatedCompositeFieldContainer[Payload]
    def __init__(self, python: _Optional[str] = ..., portable: bool = ..., cloudpickle: _Optional[str] = ..., data: _Optional[bytes] = ..., uploaded_bytes: _Optional[int] = ..., modules: _Optional[_Iterable[_Union[SourceModule, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[SourceFile, _Mapping]]] = ..., ranks: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ...) -> None: ...

class SourceModule(_message.Message):
    __slots__ = ("name", "source", "package")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: bytes
    package: bool
    def __init__(self, name: _Optional[str] = ..., source: _Optional[bytes] = ..., package: bool = ...) -> None: ...

class SourceFile(_message.Message):
    __slots__ = ("path", "data")
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    path: str
    data: bytes
    def __init__(self, path: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Script(_message.Message):
    __slots__ = ("name", "source", "arguments", "modules", "files")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    source: bytes
    arguments: _containers.RepeatedScalarFieldContainer[str]
    modules: _containers.RepeatedCompositeFieldContainer[SourceModule]
    files: _containers.RepeatedCompositeFieldContainer[SourceFile]
    def __init__(self, name: _Optional[str] = ..., source: _Optional[bytes] = ..., arguments: _Optional[_Iterable[str]] = ..., modules: _Optional[_Iterable[_Union[SourceModule, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[SourceFile, _Mapping]]] = ...) -> None: ...

class TrainPlan(_message.Message):
    __slots__ = ("run_id", "name", "num_processes", "local_mode", "use_gpu", "function", "script", "all_results", "max_failures", "refuse_to_wait", "resources")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_PROCESSES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_MODE_FIELD_NUMBER: _ClassVar[int]
    USE_GPU_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SCRIPT_FIELD_NUMBER: _ClassVar[int]
    ALL_RESULTS_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURES_FIELD_NUMBER: _ClassVar[int]
    REFUSE_TO_WAIT_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    num_processes: int
    local_mode: bool
    use_gpu: bool
    function: Payload
    script: Script
    all_results: bool
    max_failures: int
    refuse_to_wait: bool
    resources: RankResources
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., num_processes: _Optional[int] = ..., local_mode: bool = ..., use_gpu: bool = ..., function: _Optional[_Union[Payload, _Mapping]] = ..., script: _Optional[_Union[Script, _Mapping]] = ..., all_results: bool = ..., max_failures: _Optional[int] = ..., refuse_to_wait: bool = ..., resources: _Optional[_Union[RankResources, _Mapping]] = ...) -> None: ...

class RankResources(_message.Message):
    __slots__ = ("cpus", "gpus")
    CPUS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    cpus: int
    gpus: int
    def __init__(self, cpus: _Optional[int] = ..., gpus: _Optional[int] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class PredictPlan(_message.Message):
    __slots__ = ("protocol", "client", "name", "return_type", "batch_size", "input_shapes", "make_predict_fn", "digest", "deterministic", "arguments", "argument_names", "session_files", "input_dtypes", "nulls", "time_zone", "version", "broadcast", "payload_file", "unchecked_casts")
    class Nulls(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NULLS_UNSPECIFIED: _ClassVar[PredictPlan.Nulls]
        NULLS_KEEP: _ClassVar[PredictPlan.Nulls]
        NULLS_ERROR: _ClassVar[PredictPlan.Nulls]
        NULLS_SKIP: _ClassVar[PredictPlan.Nulls]
    NULLS_UNSPECIFIED: PredictPlan.Nulls
    NULLS_KEEP: PredictPlan.Nulls
    NULLS_ERROR: PredictPlan.Nulls
    NULLS_SKIP: PredictPlan.Nulls
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RETURN_TYPE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPES_FIELD_NUMBER: _ClassVar[int]
    MAKE_PREDICT_FN_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENT_NAMES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FILES_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPES_FIELD_NUMBER: _ClassVar[int]
    NULLS_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FILE_FIELD_NUMBER: _ClassVar[int]
    UNCHECKED_CASTS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client: str
    name: str
    return_type: str
    batch_size: int
    input_shapes: InputShapes
    make_predict_fn: Payload
    digest: str
    deterministic: bool
    arguments: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    argument_names: _containers.RepeatedScalarFieldContainer[str]
    session_files: bool
    input_dtypes: InputDtypes
    nulls: PredictPlan.Nulls
    time_zone: str
    version: str
    broadcast: int
    payload_file: str
    unchecked_casts: bool
    def __init__(self, protocol: _Optional[int] = ..., client: _Optional[str] = ..., name: _Optional[str] = ..., return_type: _Optional[str] = ..., batch_size: _Optional[int] = ..., input_shapes: _Optional[_Union[InputShapes, _Mapping]] = ..., make_predict_fn: _Optional[_Union[Payload, _Mapping]] = ..., digest: _Optional[str] = ..., deterministic: bool = ..., arguments: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ..., argument_names: _Optional[_Iterable[str]] = ..., session_files: bool = ..., input_dtypes: _Optional[_Union[InputDtypes, _Mapping]] = ..., nulls: _Optional[_Union[PredictPlan.Nulls, str]] = ..., time_zone: _Optional[str] = ..., version: _Optional[str] = ..., broadcast: _Optional[int] = ..., payload_file: _Optional[str] = ..., unchecked_casts: bool = ...) -> None: ...

class InputShapes(_message.Message):
    __slots__ = ("sparse", "shapes")
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    sparse: bool
    shapes: _containers.RepeatedCompositeFieldContainer[InputShape]
    def __init__(self, sparse: bool = ..., shapes: _Optional[_Iterable[_Union[InputShape, _Mapping]]] = ...) -> None: ...

class InputShape(_message.Message):
    __slots__ = ("index", "given", "dimensions")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    given: bool
    dimensions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., given: bool = ..., dimensions: _Optional[_Iterable[int]] = ...) -> None: ...

class InputDtypes(_message.Message):
    __slots__ = ("sparse", "dtypes")
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    sparse: bool
    dtypes: _containers.RepeatedCompositeFieldContainer[InputDtype]
    def __init__(self, sparse: bool = ..., dtypes: _Optional[_Iterable[_Union[InputDtype, _Mapping]]] = ...) -> None: ...

class InputDtype(_message.Message):
    __slots__ = ("index", "name")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...
