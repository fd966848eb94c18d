"""What `sparkgap.training` finds inside a rank: where reports go and what the rank knows of its run; a rank sets both before user code runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: The columns of `Run.metrics` that every report has; no metric may have such a name.
COLUMNS = ("rank", "attempt", "step", "total", "time")


class Report(NamedTuple):
    """Figures of one training step; a tuple, as a frozen dataclass would cost a rank a microsecond more."""

    step: int
    total: int | None
    values: dict[str, float]


@dataclass(frozen=True)
class RankContext:
    """What a rank knows of its run beside torchrun's variables; the defaults hold outside a run."""

    attempt: int = 0
    session_conf: Mapping[str, str] = field(default_factory=dict)


context = RankContext()
sink: Callable[[Report], None] | None = None
