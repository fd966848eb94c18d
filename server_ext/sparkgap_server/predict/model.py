"""Loads the model: the host's main thread calls `load` with the whole plan of whichever task comes first, and `talk` predicts with what it gives."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sparkgap_protos import codec
from sparkgap_protos.v1 import plan_pb2 as pb

from sparkgap_server import program, sources
from sparkgap_server.predict.witness import FileWitness


@dataclass(frozen=True)
class Model:
    """What make_predict_fn returned, the number of its arguments, and the seconds that it took."""

    predict: Callable[..., object]
    arguments: int
    load_seconds: float


class LoadFailed(Exception):
    """make_predict_fn raised `reason`."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


def load(plan: pb.PredictPlan, private: Path, witness: FileWitness) -> Model:
    """Call make_predict_fn under the eyes of `witness`; `private` is its folder, with a working directory."""
    from sparkgap_server.predict.tensors import model_arguments

    # Opened before the watch begins: Spark may remove the file while the model lives.
    with _payload(plan) as file, witness.watch():
        began = time.perf_counter()
        try:
            sent = program.begin(private, [plan.name])
            sources.install(plan.make_predict_fn.modules, sent, plan.make_predict_fn.files)
            predict = codec.unpack(plan.make_predict_fn, file)()
            if not callable(predict):
                raise TypeError(f"make_predict_fn must return a function, it returned a {type(predict).__qualname__}")
            return Model(predict, model_arguments(predict), time.perf_counter() - began)
        except BaseException as error:  # SystemExit would end the host and say nothing
            raise LoadFailed(error) from error


@contextmanager
def _payload(plan: pb.PredictPlan) -> Iterator[IO[bytes] | None]:
    """The file with what make_predict_fn carries, or None where the plan holds it."""
    if not plan.payload_file:
        yield None
        return
    try:
        descriptor = os.open(plan.payload_file, os.O_RDONLY)
    except OSError as error:
        text = f"what make_predict_fn carries cannot be read on this node: {error}. Run the query again from its client, which sends it again"
        raise LoadFailed(type(error)(text)) from error
    with open(descriptor, "rb", 1 << 20) as file:
        yield file
