"""Lesions: connected components of two masks, and how many of each the other mask touches.

Voxels that share a face, an edge or a corner belong to one lesion (26 neighbours in 3D, 8 in 2D), as in MetricsReloaded
and the BraTS lesion-wise scores. A lesion is found when the other mask holds at least one of its voxels. F1 is the
harmonic mean of lesion sensitivity and precision (Commowick et al. 2018, doi:10.1038/s41598-018-31911-7, who ask for a
larger overlap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage


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
    """Count the lesions of two boolean masks `(*S)`."""
    both = np.flatnonzero(pred & ref)
    n_ref, n_ref_found = _components(ref, both)
    n_pred, n_pred_true = _components(pred, both)
    return LesionCounts(n_ref, n_pred, n_ref_found, n_pred_true)


def _components(mask: np.ndarray, touched: np.ndarray) -> tuple[int, int]:
    """Return the number of components of a mask, and of those that hold one of the flat indices `touched`."""
    neighbours = np.ones((3,) * mask.ndim)
    components = np.empty(mask.shape, np.uint16)
    try:
        count = int(ndimage.label(mask, neighbours, output=components))
    except RuntimeError:  # more components than 16 bits count
        components = np.empty(mask.shape, np.int32)
        count = int(ndimage.label(mask, neighbours, output=components))
    seen = np.zeros(count + 1, bool)
    seen[components.reshape(-1)[touched]] = True
    return count, int(seen.sum())
