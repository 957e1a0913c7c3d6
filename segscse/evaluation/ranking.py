"""How stable a ranking is: bootstrap of ranks over cases or subjects.

After Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing challenge results", Scientific
Reports 2021, doi:10.1038/s41598-021-82017-6: aggregate, then rank (the mean over cases decides); draw the cases with
replacement, rank again, and see how often the order holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segscse.evaluation.bootstrap import TIE, group_codes, resample_weights, units_in_words


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranks by the mean over the cases where all sides are defined, and how often resamples repeat them.

    Attributes:
        names: the sides, in the order given.
        n: cases.
        n_units: subjects among them where subjects are known, else cases.
        n_undefined: cases left out, because a side is undefined.
        means: mean of each side over them.
        ranks: 1 is best; equal means share the better rank.
        low: 2.5th percentile of each side's rank over the resamples.
        high: 97.5th percentile.
        shares: share of resamples in which side i has rank j + 1, `shares[i][j]`.
        kendall_tau: mean over resamples of Kendall's tau-a between their order and the full one, -1 to 1; NaN when
            there are fewer than two units.
    """

    names: tuple[str, ...]
    n: int
    n_units: int
    n_undefined: int
    means: tuple[float, ...]
    ranks: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    kendall_tau: float

    @property
    def text(self) -> str:
        """The ranking in one line of words."""
        if self.n_units < 2:
            return f"no ranking from {units_in_words(self.n, self.n_units)}"
        order = sorted(range(len(self.names)), key=lambda side: self.ranks[side])
        parts = [
            f"{self.ranks[side]}. {self.names[side]} (rank kept in {self.shares[side][self.ranks[side] - 1]:.0%} of "
            f"resamples, 95 % of ranks {self.low[side]} to {self.high[side]})"
            for side in order
        ]
        left_out = f"; over the {self.n} cases where all are defined, of {self.n + self.n_undefined}"
        return "; ".join(parts) + (left_out if self.n_undefined else "")


def rank_stability(
    values: np.ndarray,
    names: Sequence[str],
    *,
    better: Literal["higher", "lower"],
    groups: Sequence[object] | None = None,
) -> Ranking:
    """Rank the columns of `values` `(n, sides)` by their mean, and the same in every resample of the rows.

    Args:
        values: one row per case, one column per side; rows with NaN are left out.
        names: of the sides.
        better: which means are better.
        groups: the subject of every case; whole subjects are drawn.
    """
    defined = ~np.isnan(values).any(axis=1)
    codes = group_codes(None if groups is None else np.asarray(groups, object)[defined].tolist(), int(defined.sum()))
    values = values[defined] if better == "higher" else -values[defined]
    sides, n_units = len(names), int(codes.max(initial=-1)) + 1
    if n_units < 2:
        none, unknown = (0,) * sides, (math.nan,) * sides
        found = len(values), n_units, int((~defined).sum())
        return Ranking(tuple(names), *found, unknown, none, none, none, (unknown,) * sides, math.nan)
    sums = np.zeros((n_units, sides))
    counts = np.zeros((n_units, 1))
    np.add.at(sums, codes, values)
    np.add.at(counts, codes, 1)
    means = values.mean(axis=0)
    resampled = np.concatenate([(w @ sums) / (w @ counts) for w in resample_weights(n_units)])
    ranks = _ranks(resampled)
    low, high = np.quantile(ranks, [0.025, 0.975], axis=0, method="inverted_cdf").astype(int)
    return Ranking(
        names=tuple(names),
        n=len(values),
        n_units=n_units,
        n_undefined=int((~defined).sum()),
        means=tuple((means if better == "higher" else -means).tolist()),
        ranks=tuple(_ranks(means[None])[0].tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        shares=tuple(tuple((ranks[:, side] == rank).mean() for rank in range(1, sides + 1)) for side in range(sides)),
        kendall_tau=_kendall(means, resampled),
    )


def _ranks(means: np.ndarray) -> np.ndarray:
    """Return for each row of `(rows, sides)` one more than the number of sides that are higher."""
    return 1 + (means[:, None, :] > means[:, :, None] + TIE).sum(axis=2)


def _kendall(means: np.ndarray, resampled: np.ndarray) -> float:
    """Return the mean of Kendall's tau-a between `means` `(sides,)` and each row of `resampled`."""
    first, second = np.triu_indices(len(means), 1)
    return float((_sign(means[first] - means[second]) * _sign(resampled[:, first] - resampled[:, second])).mean())


def _sign(differences: np.ndarray) -> np.ndarray:
    return np.sign(np.where(np.abs(differences) <= TIE, 0.0, differences))
