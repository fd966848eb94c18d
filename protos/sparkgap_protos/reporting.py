"""Where `sparkgap.training.report` hands its figures over: a rank installs a sink before user code runs; elsewhere there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: The columns of `Run.metrics` that every report has; no metric may have such a name.
COLUMNS = ("rank", "attempt", "step", "total", "time")


@dataclass(frozen=True)
class Report:
    """Figures of one training step."""

    step: int
    total: int | None = None
    values: dict[str, float] = field(default_factory=dict)


sink: Callable[[Report], None] | None = None
