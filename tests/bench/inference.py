"""How fast a prediction column is, against pyspark's `predict_batch_udf` and an Arrow iterator function that computes nothing.

All ways in turn, on the same server, data and settings, the prediction column alone written to nowhere; the first round of each is not counted:

    python tests/bench/inference.py [--rows 120000] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.functions import predict_batch_udf as pyspark_predict
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType
from sparkgap import predict_batch_udf as sparkgap_predict
from sparkgap_server.local import LocalServer

Run = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One kind of table and model: what each way of predicting does with it."""

    name: str
    columns: list[str]
    make_predict_fn: Callable[[], Callable[..., Any]]
    return_type: str
    frame: DataFrame
    batch_size: int = 1024
    shapes: list[list[int]] | None = None


def make_mlp() -> Callable[[Any], Any]:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(784, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()

    def predict(x: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return predict


def make_tabular() -> Callable[..., Any]:
    def predict(*columns: Any) -> Any:
        total = sum(columns)
        return {"sum": total, "mean": total / len(columns)}

    def eight(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
        return predict(a, b, c, d, e, f, g, h)

    return eight


def make_upper() -> Callable[[Any], Any]:
    def predict(texts: Any) -> Any:
        import numpy as np

        return np.array([text.upper() for text in texts], dtype=object)

    return predict


def main() -> None:
    options = parse_options()
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory())
        server = cleanup.enter_context(LocalServer("local[2]"))
        spark = SparkSession.builder.remote(server.url).create()
        cleanup.callback(spark.stop)
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 10000)
        workers = SparkSession.builder.remote(server.url).create()
        cleanup.callback(workers.stop)
        workers.conf.set("spark.sparkgap.predict.direct", "false")
        results = {}
        for case in cases(spark, folder, options.rows):
            other = next(each for each in cases(workers, folder, options.rows) if each.name == case.name)
            results[case.name] = measure(case, other, options)
            report(case.name, results[case.name], options.rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"rows": options.rows, "seconds": results}, indent=2))


def cases(spark: SparkSession, folder: str, rows: int) -> Iterator[Case]:
    path = Path(folder)
    if not (path / "tensors").exists():
        write_tables(spark, folder, rows)
    tensors = spark.read.parquet(f"{folder}/tensors")
    yield Case("array<float>[784], small MLP", ["x"], make_mlp, "array<float>", tensors, shapes=[[784]])
    scalars = spark.read.parquet(f"{folder}/scalars")
    names = [f"c{index}" for index in range(8)]
    yield Case("eight scalars in, struct out", names, make_tabular, "struct<sum: double, mean: double>", scalars)
    texts = spark.read.parquet(f"{folder}/texts")
    yield Case("strings in, strings out", ["text"], make_upper, "string", texts)


def write_tables(spark: SparkSession, folder: str, rows: int) -> None:
    """Written by pyarrow into two files each, so that both cores have one."""
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    for part in range(2):
        count = rows // 2
        pixels = pa.array(generator.random(count * 784, dtype=np.float32))
        offsets = pa.array(np.arange(0, count * 784 + 1, 784, dtype=np.int32))
        tables = {
            "tensors": pa.table({"x": pa.ListArray.from_arrays(offsets, pixels)}),
            "scalars": pa.table({f"c{index}": generator.random(count * 5) for index in range(8)}),
            "texts": pa.table({"text": [f"row number {index} of part {part}" for index in range(count * 5)]}),
        }
        for name, table in tables.items():
            Path(folder, name).mkdir(exist_ok=True)
            pq.write_table(table, f"{folder}/{name}/part-{part}.parquet")


def measure(case: Case, workers: Case, options: argparse.Namespace) -> dict[str, list[float]]:
    make, shapes = case.make_predict_fn, case.shapes
    settings = {"return_type": case.return_type, "batch_size": case.batch_size, "input_tensor_shapes": shapes}
    direct = sparkgap_predict(make, **settings)
    peer = pyspark_predict(make, **{**settings, "return_type": DataType.fromDDL(case.return_type)})

    @F.arrow_udf("boolean")
    def nothing(batches: Iterator[pa.Array]) -> Iterator[pa.Array]:
        import pyarrow

        for batch in batches:
            first = batch[0] if isinstance(batch, tuple) else batch
            yield pyarrow.nulls(len(first), pyarrow.bool_())

    ways: dict[str, tuple[DataFrame, Any]] = {
        "sparkgap": (case.frame, direct),
        "sparkgap, in Python workers": (workers.frame, direct),
        "Arrow function, computes nothing": (case.frame, nothing if len(case.columns) == 1 else None),
        "pyspark predict_batch_udf": (case.frame, peer),
    }
    seconds: dict[str, list[float]] = {name: [] for name, (_, function) in ways.items() if function is not None}
    for number in range(options.rounds + 1):
        for name, times in seconds.items():
            frame, function = ways[name]
            began = time.perf_counter()
            frame.select(function(*case.columns).alias("p")).write.format("noop").mode("overwrite").save()
            if number:
                times.append(time.perf_counter() - began)
        print(f"{case.name}: round {number} of {options.rounds}", file=sys.stderr)
    return seconds


def report(case: str, seconds: dict[str, list[float]], rows: int) -> None:
    peer = statistics.median(seconds["pyspark predict_batch_udf"])
    print(f"\n{case}\n{'':<36}{'median':>9}{'times pyspark':>15}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<36}{median:>7.2f} s{peer / median:>15.2f}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=120_000, help="of the tensors; scalars and texts have five times as many"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
