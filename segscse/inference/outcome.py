"""What became of the cases of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segscse.inference.memory import Estimate


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be predicted, and why."""

    case: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """What became of the cases.

    Attributes:
        written: label maps made now.
        verified: label maps that were there, from the same input, model and settings.
        failures: cases without one.
        warnings: `(file or case, note)` on what is unusual about an input but no obstacle.
        windows: numbers of windows evaluated and left out.
        memory: what was estimated for the largest case; None where no header told.
    """

    written: list[Path] = field(default_factory=list)
    verified: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    windows: list[int] = field(default_factory=lambda: [0, 0])
    memory: Estimate | None = None


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what became of all processes' cases."""
    whole = Outcome(memory=outcomes[0].memory)
    for outcome in outcomes:
        whole.written += outcome.written
        whole.verified += outcome.verified
        whole.failures += outcome.failures
        whole.warnings += [one for one in outcome.warnings if one not in whole.warnings]
        whole.windows = [a + b for a, b in zip(whole.windows, outcome.windows, strict=True)]
    return whole
