"""How fast a prediction column is, against pyspark's `predict_batch_udf` and an Arrow iterator function that computes nothing.

All ways in turn, on the same server, data and settings, the prediction column alone written to nowhere:

    python tests/bench/inference.py [--rows 120000] [--rounds 5] [--only binary] [--json FILE]
    python tests/bench/inference.py --growth FILE.png [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from growth import growth
from prediction_models import convolutional, make_convolutional, make_embedding, make_mlp, make_tabular, make_upper
from prediction_tables import PIXELS, write_tables
from ways import (
    NOTHING,
    PYSPARK,
    SPARKGAP,
    WORKERS,
    Query,
    Sessions,
    medians,
    nothing,
    predict,
    predict_by_pyspark,
    sessions,
    time_in_turn,
)

CONVOLUTION = "convolutional net, CPU seconds"
IMAGES = 12_000
PLAIN = "plain torch loop"


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder, sessions() as spark:
        if options.growth is not None:
            results: Any = growth(spark, Path(folder), options.rounds, options.growth)
        else:
            write_tables(Path(folder), options.rows, IMAGES)
            results = {"rows": options.rows, "seconds": compare(spark, folder, options)}
            if options.only in CONVOLUTION:
                results[CONVOLUTION] = convolution(spark, folder, options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


def compare(spark: Sessions, folder: str, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    tensors = Query(f"{folder}/arrays", ["x"], make_mlp, "array<float>", shapes=[[PIXELS]])
    binaries = Query(
        f"{folder}/binaries", ["x"], make_mlp, "array<float>", shapes=[[PIXELS]], options={"input_dtypes": ["float32"]}
    )
    scalars = [f"c{index}" for index in range(8)]
    tabular = Query(f"{folder}/scalars", scalars, make_tabular, "struct<sum: double, mean: double>")
    texts = Query(f"{folder}/texts", ["text"], make_upper, "string")
    embedding = Query(f"{folder}/numbers", ["x"], make_embedding, "array<float>")
    # What is predicted, how pyspark does it, and whether an Arrow function takes part.
    queries = {
        f"array<float>[{PIXELS}] in, small MLP": (tensors, tensors, True),
        "the same tensors as binary; pyspark's as array": (binaries, tensors, False),
        "eight scalars in, struct out": (tabular, tabular, False),
        "strings in, strings out": (texts, texts, True),
        "a scalar in, array<float>[384] out": (embedding, embedding, False),
    }
    results = {}
    for name, (ours, theirs, with_nothing) in queries.items():
        if options.only not in name:
            continue
        ways = {SPARKGAP: predict(spark.direct, ours), WORKERS: predict(spark.workers, ours)}
        if with_nothing:
            ways[NOTHING] = nothing(spark.direct, ours)
        ways[PYSPARK] = predict_by_pyspark(spark.direct, theirs)
        results[name] = time_in_turn(name, ways, options.rounds)
        report(name, results[name])
    return results


def report(name: str, seconds: dict[str, list[float]]) -> None:
    found = medians(seconds)
    print(f"\n{name}\n{'':<36}{'median':>9}{'times pyspark':>15}")
    for way, median in found.items():
        print(f"{way:<36}{median:>7.2f} s{found[PYSPARK] / median:>15.2f}")


def convolution(spark: Sessions, folder: str, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of the whole model host during a query, against those of a plain torch loop over the same batches; one torch thread each."""
    query = Query(
        f"{folder}/images", ["x"], make_convolutional, "array<float>", 256, [[1, 28, 28]], {"input_dtypes": ["float32"]}
    )
    rows = pq.read_table(f"{folder}/images")["x"].to_pylist()
    images = np.frombuffer(b"".join(rows), np.float32).reshape(-1, 1, 28, 28).copy()
    run = predict(spark.direct, query)
    known = set(psutil.pids())
    run()
    hosts = [process for process in psutil.Process().children(recursive=True) if process.pid not in known]
    model = convolutional()
    seconds: dict[str, list[float]] = {SPARKGAP: [], PLAIN: []}
    for number in range(rounds + 1):
        before = sum(map(cpu_seconds, hosts))
        run()
        used = sum(map(cpu_seconds, hosts)) - before
        plain = plain_loop(model, images)
        if number:
            seconds[SPARKGAP].append(used)
            seconds[PLAIN].append(plain)
        print(f"{CONVOLUTION}: round {number} of {rounds}", file=sys.stderr)
    found = medians(seconds)
    print(f"\n{CONVOLUTION}, {len(images)} images\n{'':<36}{'median':>9}{'times torch':>15}")
    for name, median in found.items():
        print(f"{name:<36}{median:>7.2f} s{median / found[PLAIN]:>15.2f}")
    return seconds


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def plain_loop(model: Any, images: Any, batch_size: int = 256) -> float:
    """In this process."""
    import torch

    torch.set_num_threads(1)
    began = time.process_time()
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            model(torch.from_numpy(images[start : start + batch_size])).numpy()
    return time.process_time() - began


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, default=120_000, help="of the tensors; scalars and texts have five times as many"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="TEXT", help="comparisons with this in their name")
    parser.add_argument("--growth", type=Path, metavar="FILE.png", help="instead: how times grow, as table and plot")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
