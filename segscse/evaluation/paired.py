"""The paired difference of two sides over the same cases: interval, test, effect size, verdict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from segscse.evaluation.bootstrap import group_codes, mean_interval, units_in_words
from segscse.evaluation.metrics import named_metric

ALPHA = 0.05
_DECIMALS = 12  # finer differences are rounding, and would break ties


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Paired difference of a metric, b - a, over the cases where both are defined.

    A *unit* is a subject where subjects are known (its difference is the mean over its cases), else a case.

    Attributes:
        what: "foreground" (each case's mean over its labels) or a label's name.
        a: the baseline's name.
        b: the contender's name.
        metric: the column compared.
        n: pairs (cases) with both sides defined.
        n_units: units among them.
        mean_a: mean of a over these pairs.
        mean_b: mean of b over these pairs.
        difference: mean of b - a.
        low: lower end of its 95 % bootstrap interval; NaN for fewer than two units.
        high: upper end.
        method: how the interval was found, as in `Interval`.
        p_value: Wilcoxon signed-rank test over units, two-sided; 1 when no pair differs.
        p_holm: the same after Holm's correction over the comparisons it was made with.
        effect_size: matched-pairs rank-biserial correlation (Kerby 2014, doi:10.2466/11.IT.3.1), the share of
            Wilcoxon's rank sum that speaks for b minus the share for a: -1 to 1, above 0 where b is better (or higher,
            when neither direction is better); 0 when nothing differs, NaN without pairs.
        wins: units where b is better (or higher).
        ties: units that are equal.
        losses: units where a is.
        n_only_a_undefined: pairs left out because only a is undefined; for most metrics a is rightly empty then, and
            b a false positive.
        n_only_b_undefined: the reverse.
    """

    what: str
    a: str
    b: str
    metric: str
    n: int
    n_units: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    method: str
    p_value: float
    p_holm: float
    effect_size: float
    wins: int
    ties: int
    losses: int
    n_only_a_undefined: int
    n_only_b_undefined: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0 and the corrected test rejects at 5 %, both towards the same side."""
        return not self.low <= 0 <= self.high and self.p_holm < ALPHA and self._agree

    @property
    def _agree(self) -> bool:
        towards_b = -self.difference if named_metric(self.metric).better in ("lower", "near 0") else self.difference
        return towards_b * self.effect_size > 0

    @property
    def verdict(self) -> str:
        """What interval and test together allow one to say, in plain words."""
        if self.n_units < 2:
            return f"cannot be judged from {units_in_words(self.n, self.n_units)}"
        if not self.shown:
            if self.low <= 0 <= self.high:
                return "no difference shown"
            if not self._agree:
                return "no difference shown (the mean and the ranks point different ways)"
            return (
                f"no difference shown (the interval leaves out 0, but the test does not reject: p = {self.p_holm:.2g})"
            )
        metric = named_metric(self.metric)
        upwards = self.difference > 0
        winner = self.b if upwards != (metric.better in ("lower", "near 0")) else self.a
        word = "higher" if metric.better == "neither" else "better"
        return f"{winner} is {word} by {metric.text(abs(self.difference), metric.digits + 1)} {metric.title}"


def paired_difference(
    a: pd.Series,
    b: pd.Series,
    *,
    what: str,
    names: tuple[str, str] = ("a", "b"),
    metric: str = "dice",
    subjects: dict[str, str] | None = None,
) -> PairedDifference:
    """Compare two series of finite values over the same cases; NaN on either side leaves the pair out."""
    a = a.sort_index()  # the seeded interval must not depend on the order of rows
    b = b.reindex(a.index)
    both = a.notna() & b.notna()
    delta = np.round((b[both] - a[both]).to_numpy(float), _DECIMALS)
    groups = None if subjects is None else [subjects[str(case)] for case in a.index[both]]
    interval = mean_interval(delta, groups)
    units = _means_by_unit(delta, groups)
    towards_b = -units if named_metric(metric).better in ("lower", "near 0") else units
    p_value = wilcoxon_p(units)
    return PairedDifference(
        what=what, a=names[0], b=names[1], metric=metric, n=len(delta), n_units=len(units),
        mean_a=float(a[both].mean()), mean_b=float(b[both].mean()),
        difference=float(delta.mean()) if len(delta) else math.nan,
        low=interval.low, high=interval.high, method=interval.method,
        p_value=p_value, p_holm=p_value, effect_size=rank_biserial(towards_b),
        wins=int((towards_b > 0).sum()), ties=int((units == 0).sum()), losses=int((towards_b < 0).sum()),
        n_only_a_undefined=int((a.isna() & b.notna()).sum()), n_only_b_undefined=int((a.notna() & b.isna()).sum()),
    )  # fmt: skip


def wilcoxon_p(differences: np.ndarray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; 1 when nothing differs, NaN without pairs.

    Zeros are dropped (Wilcoxon 1945), before scipy takes the exact test for few pairs without ties and the normal
    approximation for others: with zeros it would take that for few, too, whose p is then too small.
    """
    from scipy import stats

    if not len(differences):
        return math.nan
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties switch to the normal approximation, which is meant
        return float(stats.wilcoxon(differences).pvalue)


def rank_biserial(differences: np.ndarray) -> float:
    """Return (W+ - W-) / (W+ + W-) of Wilcoxon's rank sums; zeros are dropped; 0 when nothing differs."""
    from scipy import stats

    if not len(differences):
        return math.nan
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0
    ranks = stats.rankdata(np.abs(differences))
    return float((ranks * np.sign(differences)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction (Holm 1979), in the order given; NaN counts for nothing."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = list(p_values)
    largest = 0.0
    for done, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - done)))
        corrected[place] = largest
    return corrected


def correct(rows: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """Return the rows with Holm's correction over all of them."""
    corrected = holm([row.p_value for row in rows])
    return tuple(replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True))


def _means_by_unit(delta: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    codes = group_codes(groups, len(delta))
    if not len(delta):
        return delta
    return np.round(np.bincount(codes, weights=delta) / np.bincount(codes), _DECIMALS)
