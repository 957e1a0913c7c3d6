"""Calibration of the probabilities of one label: expected calibration error and Brier score, over every voxel.

Each label is taken against the rest. ECE (Guo et al. 2017, arXiv:1706.04599; by label as in Kull et al. 2019,
arXiv:1910.12656): 15 bins of equal width, the lower edge inside and the last bin closed; the mean over voxels of the
bin's |mean probability - share of voxels that are the label|. Brier (1950): the mean of (probability - truth)², truth 0
or 1. Background far from the structure counts, which makes both small for small structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segscse.errors import InputError

BINS = 15
_SLAB_VOXELS = 1 << 20
_ROUNDING = 1e-3  # float16 files may leave [0, 1] by this much


@dataclass(frozen=True, slots=True)
class Calibration:
    """Expected calibration error and Brier score of one label."""

    ece: float
    brier: float


def calibration(probability: np.ndarray, truth: np.ndarray, file: str | Path | None = None) -> Calibration:
    """Measure the calibration of one label.

    Args:
        probability: the label's probability in each voxel, `(*S)`.
        truth: where the reference holds the label, boolean `(*S)`.
        file: that the probabilities come from, for the message.

    Raises:
        InputError: a probability is not finite or not from 0 to 1.
    """
    count, confidence, hits = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    squares = 0.0
    flat, flat_truth = probability.ravel("F"), truth.ravel("F")
    for start in range(0, flat.size, _SLAB_VOXELS):
        slab = flat[start : start + _SLAB_VOXELS].astype(np.float64)
        if not (slab.min() >= -_ROUNDING and slab.max() <= 1 + _ROUNDING):  # NaN fails both
            raise InputError(
                f"probabilities must lie from 0 to 1, got {slab.min():g} to {slab.max():g}",
                file=file,
                remedy="Give the softmax or sigmoid of the network's output",
            )
        wanted = flat_truth[start : start + _SLAB_VOXELS]
        place = np.clip((slab * BINS).astype(np.int64), 0, BINS - 1)
        count += np.bincount(place, minlength=BINS)
        confidence += np.bincount(place, slab, minlength=BINS)
        hits += np.bincount(place, wanted, minlength=BINS)
        squares += float(np.square(slab - wanted).sum())
    return Calibration(float(np.abs(confidence - hits).sum() / flat.size), squares / flat.size)
