"""The models that inference.py and growth.py time; they travel to the model hosts by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
    def predict(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
        total = a + b + c + d + e + f + g + h
        return {"sum": total, "mean": total / 8}

    return predict


def make_upper() -> Callable[[Any], Any]:
    def predict(texts: Any) -> Any:
        import numpy as np

        return np.array([text.upper() for text in texts], dtype=object)

    return predict


def make_embedding() -> Callable[[Any], Any]:
    import numpy as np

    weights = np.random.default_rng(0).random((1, 384), dtype=np.float32)
    return lambda x: x.astype(np.float32)[:, None] * weights


def make_total(columns: int) -> Callable[[], Callable[..., Any]]:
    """A model of so many scalar inputs; pyspark counts the parameters, so they have to be written out."""

    def make() -> Callable[..., Any]:
        names = ", ".join(f"c{index}" for index in range(columns))
        found: dict[str, Any] = {}
        exec(f"def predict({names}):\n    return {' + '.join(names.split(', '))}", found)
        return found["predict"]  # type: ignore[no-any-return]

    return make


def convolutional() -> Any:
    """A torch model of 28 x 28 images that takes its time."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 10),
    ).eval()  # fmt: skip


def make_convolutional() -> Callable[[Any], Any]:
    import torch

    torch.set_num_threads(1)
    model = convolutional()

    def predict(x: Any) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return predict
