"""Lesions: connected components of two masks, and how many of each the other mask touches.

Voxels that share a face, an edge or a corner belong to one lesion (26 neighbours in 3D, 8 in 2D), as in MetricsReloaded
and the BraTS lesion-wise scores. A lesion is found when the other mask holds at least one of its voxels. F1 is the
harmonic mean of lesion sensitivity and precision (Commowick et al. 2018, doi:10.1038/s41598-018-31911-7, who ask for a
larger overlap).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from segscse.evaluation.nearest import indices_of
from segscse.evaluation.surface import with_margin


@dataclass(frozen=True, slots=True)
class LesionCounts:
    """Lesions of the reference and of the prediction, and those of each that the other mask touches."""

    n_ref: int
    n_pred: int
    n_ref_found: int
    n_pred_true: int

    @property
    def sensitivity(self) -> float:
        """Share of the reference's lesions that were found; NaN when it has none."""
        return self.n_ref_found / self.n_ref if self.n_ref else math.nan

    @property
    def precision(self) -> float:
        """Share of the prediction's lesions that touch the reference; NaN when it has none."""
        return self.n_pred_true / self.n_pred if self.n_pred else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 when one mask is empty or no lesion is found, NaN when both are empty."""
        if not self.n_ref and not self.n_pred:
            return math.nan
        if not self.n_ref_found:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def count_lesions(pred: np.ndarray, ref: np.ndarray) -> LesionCounts:
    """Count the lesions of two boolean masks `(*S)`, 1D to 3D.

    Runs of voxels along the last axis are joined instead of voxels: there are far fewer of them.
    """
    there, back = (_Runs.of(with_margin(mask, [1] * mask.ndim)) for mask in (pred, ref))
    n_ref, n_ref_found = _components(back, there)
    n_pred, n_pred_true = _components(there, back)
    return LesionCounts(n_ref, n_pred, n_ref_found, n_pred_true)


@dataclass(frozen=True, slots=True)
class _Runs:
    """The runs of a mask `shape` inside a margin of background, as flat indices in rising order; `stops` exclusive."""

    starts: np.ndarray
    stops: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def of(cls, frame: np.ndarray) -> _Runs:
        flat = frame.reshape(-1)
        ends = indices_of(flat[1:] != flat[:-1]) + 1
        return cls(ends[::2], ends[1::2], frame.shape)

    def pairs(self, jump: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of runs, and of those that touch them, corners included, in the line `jump` further on."""
        first = np.searchsorted(self.stops, self.starts + jump)
        counts = np.searchsorted(self.starts, self.stops + jump, side="right") - first
        places = np.repeat(np.arange(len(first)), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, first[places] + within

    def touched_by(self, other: _Runs) -> np.ndarray:
        """Return which runs share a voxel with one of `other`, `(n,)`."""
        started = np.searchsorted(other.starts, self.stops)
        ended = np.searchsorted(other.stops, self.starts, side="right")
        touched: np.ndarray = started > ended
        return touched


def _components(runs: _Runs, other: _Runs) -> tuple[int, int]:
    """Return the number of components of a mask, and of those that share a voxel with the other."""
    count, component = len(runs.starts), np.arange(len(runs.starts))
    strides = [math.prod(runs.shape[axis + 1 :]) for axis in range(len(runs.shape) - 1)]
    for offset in itertools.product((-1, 0, 1), repeat=len(strides)):
        if offset >= (0,) * len(strides):
            break  # what follows are the same pairs of lines, the other way around
        one, two = runs.pairs(sum(step * stride for step, stride in zip(offset, strides, strict=True)))
        joined = coo_array((np.ones(len(one), bool), (component[one], component[two])), shape=(count, count))
        count, renumbered = connected_components(joined, directed=False)
        component = renumbered[component]
    return int(count), len(np.unique(component[runs.touched_by(other)]))
