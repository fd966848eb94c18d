"""For code inside `main_fn`: what a rank can tell whoever watches the run."""

from __future__ import annotations

from sparkgap_protos import reporting

__all__ = ["report"]


def report(step: int, total: int | None = None, **metrics: float) -> None:
    """Tell step and figures; they become the progress bar of `run` and the rows of `Run.metrics`.

    Called by any rank, usually once a step; some 20 µs, and a no-op outside a run, so that the same code runs anywhere.

    Parameters
    ----------
    step
        Steps done, from 1.
    total
        Steps to do, if known.
    **metrics
        Figures of this step, anything that `float` takes: ``report(step, total, loss=loss.item())``.
    """
    if reporting.sink is not None:
        values = {name: float(value) for name, value in metrics.items()}
        reporting.sink(reporting.Report(int(step), None if total is None else int(total), values))
