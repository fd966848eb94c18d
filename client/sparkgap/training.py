"""For code inside `main_fn`: what a rank can tell whoever watches the run."""

from __future__ import annotations

from sparkgap_protos import reporting

__all__ = ["attempt", "report", "session_conf"]


def report(step: int, total: int | None = None, **metrics: float) -> None:
    """Tell step and figures; they become the progress bar of `run` and the rows of `Run.metrics`.

    Called by any rank, usually once a step; some 5 µs, and a no-op outside a run, so that the same code runs anywhere. A report after a pause is sent
    at once, others ten times a second, together. All of them arrive up to 2,000 a second; of more than 4,000 every second, third, … one does, and the
    others are counted. The last one always arrives, unless the process is killed or leaves by `os._exit`.

    Parameters
    ----------
    step
        Steps done, from 1.
    total
        Steps to do, if known.
    **metrics
        Figures of this step, anything that `float` takes: ``report(step, total, loss=loss.item())``.

    Raises
    ------
    ValueError
        A metric has the name of a column that `Run.metrics` has anyway.
    TypeError, ValueError
        Something is no number; the text names it.
    """
    if reporting.sink is None:
        return
    if not _TAKEN.isdisjoint(metrics):
        name = sorted(_TAKEN.intersection(metrics))[0]
        raise ValueError(f"a metric cannot be called {name!r}, which every report has anyway: choose another name")
    try:
        values = {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise _culprit(metrics, error) from None
    steps, goal = int(step), None if total is None else int(total)
    if abs(steps) > _MOST or (goal is not None and abs(goal) > _MOST):
        raise ValueError(f"step and total are counts of at most {_MOST}, got {steps} and {goal}")
    reporting.sink(reporting.Report(steps, goal, values))


def attempt() -> int:
    """Which attempt of the run this rank belongs to, 0 at first and outside a run; costs nothing.

    ``TorchDistributor(max_failures=)`` has failed runs started again.
    """
    return reporting.context.attempt


def session_conf() -> dict[str, str]:
    """The settings of the session that submitted the run, as they were then: those that it does not share with the server.

    Called by any rank; a copy, at no other cost. Empty outside a run. Strings as ``spark.conf.set`` got them.
    """
    return dict(reporting.context.session_conf)


_MOST = 2**63 - 1
_TAKEN = frozenset(reporting.COLUMNS)


def _culprit(metrics: dict[str, float], error: Exception) -> Exception:
    for name, value in metrics.items():
        try:
            float(value)
        except (TypeError, ValueError):
            return type(error)(f"the metric {name!r} has to be a number, got a {type(value).__qualname__}: {error}")
    return error
