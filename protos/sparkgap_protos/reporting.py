"""What `sparkgap.training` finds inside a rank: where reports go and what the rank knows of its run; a rank sets both before user code runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: The columns of `Run.metrics` that every report has; no metric may have such a name.
COLUMNS = ("rank", "attempt", "step", "total", "time")


@dataclass(frozen=True)
class Report:
    """Figures of one training step."""

    step: int
    total: int | None = None
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RankContext:
    """What a rank knows of its run beside torchrun's variables; the defaults hold outside a run."""

    attempt: int = 0
    session_conf: Mapping[str, str] = field(default_factory=dict)


context = RankContext()
sink: Callable[[Report], None] | None = None
