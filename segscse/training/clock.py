"""RunClock: how far a run is, from 0 to 1, by steps or by time; the schedule and the sampler follow it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import Any

# The first steps allocate memory and choose kernels; they say nothing about the rest.
WARM_UP_STEPS = 3
RECENT_STEPS = 30
VALIDATION_SHARE = 0.05


@dataclass
class RunClock:
    """Progress of a run.

    By steps, progress is `step / max_steps`. By time, the number of steps that still fit is estimated after
    every step from the median of the recent step times and the time that the validations to come will take,
    and progress advances by its share; so the schedule always ends when the budget does. Validations that would
    take more than a twentieth of the budget become fewer, and where one of all cases would, it takes a share of them.

    Attributes:
        budget_s: seconds for steps and validations, when `max_steps` is None.
        max_steps: number of steps, or None.
        validations: number of validations wanted; one ends each of as many rounds.
        validation_batches: network calls that a validation of all cases takes; its time is estimated by them until it
            is known.
        validation_share: share of the cases that a validation takes; 1 by steps, None until a step was measured.
        now: the clock, replaceable in tests.
    """

    budget_s: float
    max_steps: int | None
    validations: int
    validation_batches: int = 0
    now: Callable[[], float] = monotonic
    step: int = 0
    progress: float = 0.0
    elapsed_s: float = 0.0
    validation_s: float = 0.0
    validations_done: int = 0
    validation_share: float | None = None
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
            self._decide_share()
            left = self._steps_left()
            self.progress = 1.0 if left < 1.0 else self.progress + (1.0 - self.progress) / (left + 1.0)

    def finish_validation(self) -> None:
        """Count one validation."""
        self.validation_s = self.lap()
        self.validations_done += 1

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
        names = ("step", "progress", "elapsed_s", "validation_s", "validations_done", "validation_share")
        return {name: getattr(self, name) for name in (*names, "budget_s", "max_steps")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; a run that is now to be longer or shorter is that much less or more done."""
        length = (self.budget_s, self.max_steps)
        saved = (state.get("budget_s", self.budget_s), state.get("max_steps", self.max_steps))
        for name, value in state.items():
            setattr(self, name, value)
        self.budget_s, self.max_steps = length
        if saved != length:
            used = self.elapsed_s / self.budget_s if self.max_steps is None else self.step / self.max_steps
            self.progress = min(1.0, used)
            self.validations_done = min(self.validations_done, int(self.progress * self.validations))
            self.validation_s, self.validation_share = 0.0, None

    def validated(self, number: int) -> list[int]:
        """Return which of `number` cases a validation takes, evenly spread; at least one, and the same every time."""
        count = max(1, round(number * (1.0 if self.validation_share is None else self.validation_share)))
        return [place * number // count for place in range(count)]

    def _decide_share(self) -> None:
        if self.validation_share is None:
            every = self.validation_batches * self._call_s()
            self.validation_share = min(1.0, VALIDATION_SHARE * self.budget_s / max(every, 1e-6))

    def _call_s(self) -> float:
        """Return the seconds of a network call of a validation: a third of a step is the forward pass."""
        return median(self._recent) / 3

    def _validation_estimate(self) -> float:
        """Return the seconds of a validation: as measured, or from the steps."""
        if self.validation_s or not self._recent:
            return self.validation_s
        return self.validation_batches * self._call_s() * (self.validation_share or 1.0)

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
