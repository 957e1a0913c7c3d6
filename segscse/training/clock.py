"""RunClock: how far a run is, from 0 to 1, by steps or by time; the schedule and the sampler follow it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import Any

# The first steps allocate memory and choose kernels; they say nothing about the rest.
WARM_UP_STEPS = 3
RECENT_STEPS = 30
# So many step times are no accident: a run does not end for the sake of its last validation before.
SURE_STEPS = 5
VALIDATION_SHARE = 0.05


@dataclass
class RunClock:
    """Progress of a run.

    By steps, progress is `step / max_steps`. By time, the number of steps that still fit is estimated after
    every step from the median of the recent step times and the time that the validations to come will take,
    and progress advances by its share; so the schedule always ends when the budget does. Validations that would
    take more than a twentieth of the budget become fewer. Where a single one of all cases would, it takes those that
    fit, which stay the same to the end of the run.

    Attributes:
        budget_s: seconds for steps and validations, when `max_steps` is None.
        max_steps: number of steps, or None.
        validations: number of validations wanted; one ends each of as many rounds.
        validation_calls: network calls by validation case, of each process; a validation's time is estimated by them
            until it is known.
        validated: the cases that a validation takes, once the first one is over.
        now: the clock, replaceable in tests.
    """

    budget_s: float
    max_steps: int | None
    validations: int
    validation_calls: Sequence[Mapping[str, int]] = ()
    now: Callable[[], float] = monotonic
    step: int = 0
    progress: float = 0.0
    elapsed_s: float = 0.0
    validation_s: float = 0.0
    validations_done: int = 0
    validated: list[str] | None = None
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    _mark: float | None = None
    _fresh: int = 0

    def start(self) -> None:
        """Start counting; what came before (set-up, a pause before a resume) is not the run's time."""
        self._mark = self.now()

    def lap(self) -> float:
        """Add the time since the last call to the run's time and return it, in seconds."""
        mark = self.now()
        seconds = mark - (self._mark if self._mark is not None else mark)
        self._mark = mark
        self.elapsed_s += seconds
        return seconds

    def finish_step(self) -> None:
        """Count one optimiser step."""
        seconds = self.lap()
        self.step += 1
        self._fresh += 1
        if self._fresh > WARM_UP_STEPS or self.max_steps is not None:
            self._recent.append(seconds)
        if self.max_steps is not None:
            self.progress = min(1.0, self.step / self.max_steps)
        elif self.elapsed_s >= self.budget_s:  # the first steps may take it all
            self.progress = 1.0
        elif self._recent:
            left = self._steps_left()
            if left >= 1.0:
                self.progress += (1.0 - self.progress) / (left + 1.0)
            elif len(self._recent) >= SURE_STEPS or self.elapsed_s + median(self._recent) >= self.budget_s:
                self.progress = 1.0

    def finish_validation(self) -> None:
        """Count one validation."""
        self.validated = self.validation_cases()
        self.validation_s = self.lap()
        self.validations_done += 1

    def validation_cases(self) -> list[str]:
        """Return the cases that a validation takes, sorted."""
        if self.validated is not None:
            return self.validated
        if self.max_steps is not None or not self.step:
            return sorted(name for part in self.validation_calls for name in part)
        return affordable_cases(self.validation_calls, VALIDATION_SHARE * self.budget_s / self._call_s())

    @property
    def round_done(self) -> bool:
        """Whether the next validation is due."""
        due = (self.validations_done + 1) / self._rounds()
        return self.progress >= min(1.0, due) - 1e-9

    @property
    def done(self) -> bool:
        """Whether the run has used its steps or its time."""
        return self.progress >= 1.0

    @property
    def seconds_left(self) -> float:
        """Estimate of the time to the end; NaN until a step was measured."""
        if self.max_steps is None:
            return max(0.0, self.budget_s - self.elapsed_s)
        if not self._recent:
            return math.nan
        steps = self.max_steps - self.step
        return steps * median(self._recent) + self._validations_left() * self._validation_estimate()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        names = ("step", "progress", "elapsed_s", "validation_s", "validations_done", "validated")
        return {name: getattr(self, name) for name in (*names, "budget_s", "max_steps")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; a run that is now to be longer or shorter is that much less or more done."""
        length = (self.budget_s, self.max_steps)
        saved = (state.get("budget_s", self.budget_s), state.get("max_steps", self.max_steps))
        for name, value in state.items():
            setattr(self, name, value)
        self.budget_s, self.max_steps = length
        if self.validations_done and self.validated is None:  # of a version that validated on all cases
            self.validated = sorted(name for part in self.validation_calls for name in part)
        if saved != length:
            used = self.elapsed_s / self.budget_s if self.max_steps is None else self.step / self.max_steps
            self.progress = min(1.0, used)
            self.validations_done = min(self.validations_done, int(self.progress * self.validations))

    def _call_s(self) -> float:
        """Return the seconds of a network call of a validation: a third of a step is the forward pass.

        A call takes whole batches, of which a step takes a process' part.
        """
        a_step = median(self._recent) if self._recent else self.elapsed_s / max(self.step, 1)
        return max(len(self.validation_calls), 1) * max(a_step, 1e-6) / 3

    def _validation_estimate(self) -> float:
        """Return the seconds of a validation: as measured, or from the steps."""
        if self.validation_s or not self._recent:
            return self.validation_s
        taken = set(self.validation_cases())
        calls = [sum(number for name, number in part.items() if name in taken) for part in self.validation_calls]
        return max(calls, default=0) * self._call_s()

    def _rounds(self) -> int:
        if self.max_steps is not None:
            return self.validations
        affordable = VALIDATION_SHARE * self.budget_s / max(self._validation_estimate(), 1e-6)
        return max(1, min(self.validations, int(affordable)))

    def _validations_left(self) -> int:
        return max(1, self._rounds() - self.validations_done)

    def _steps_left(self) -> float:
        reserved = self._validations_left() * self._validation_estimate()
        return max(0.0, self.budget_s - self.elapsed_s - reserved) / max(median(self._recent), 1e-6)


def affordable_cases(parts: Sequence[Mapping[str, int]], calls: float) -> list[str]:
    """Return the cases, sorted, with which no process makes more than `calls` network calls; one at least.

    Args:
        parts: calls by case, of each process. Cases are taken in the order of their names; where none fits, it is the
            smallest of all.
        calls: what a process may make.
    """
    taken: list[str] = []
    for part in parts:
        left = calls
        for name in sorted(part):
            if part[name] <= left:
                taken.append(name)
                left -= part[name]
    if not taken and any(parts):
        taken = [min((number, name) for part in parts for name, number in part.items())[1]]
    return sorted(taken)
