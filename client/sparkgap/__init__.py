"""Train and apply deep-learning models on a Spark cluster from a client with no JVM, over Spark Connect."""

from sparkgap.distributor import TorchDistributor
from sparkgap.errors import (
    ExtensionError,
    PlanError,
    ProtocolError,
    ResourceError,
    ResultError,
    RunCancelledError,
    RunLostError,
    RunNotFoundError,
    SessionEndedError,
    SparkgapError,
    TrainingError,
    VersionError,
)
from sparkgap.listing import runs
from sparkgap.logs import LogLine
from sparkgap.predict import predict_batch_udf
from sparkgap.registration import register
from sparkgap.run import Run, attach
from sparkgap.sent import files

__version__ = "0.1.0"

__all__ = [
    "ExtensionError",
    "LogLine",
    "PlanError",
    "ProtocolError",
    "ResourceError",
    "ResultError",
    "Run",
    "RunCancelledError",
    "RunLostError",
    "RunNotFoundError",
    "SessionEndedError",
    "SparkgapError",
    "TorchDistributor",
    "TrainingError",
    "VersionError",
    "attach",
    "files",
    "predict_batch_udf",
    "register",
    "runs",
]
