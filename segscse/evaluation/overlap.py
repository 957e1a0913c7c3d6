"""Overlap of two label maps: exact integer confusion counts of every label in one pass, and the scores from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SLAB_VOXELS = 1 << 22  # bounds the memory of the joint histogram, whatever the size of the volume


@dataclass(frozen=True, slots=True)
class Counts:
    """Voxels of one label: in both masks (`tp`), only in the prediction (`fp`), only in the reference (`fn`).

    Python integers: exact for any volume, where float32 sums stop counting at 2**24. A score whose
    denominator is zero is NaN, so Dice and IoU are NaN when both masks are empty and 0 when one is.
    """

    tp: int
    fp: int
    fn: int

    @property
    def n_ref(self) -> int:
        """Voxels of the label in the reference."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Voxels of the label in the prediction."""
        return self.tp + self.fp

    @property
    def dice(self) -> float:
        """Dice (1945): 2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard, 1912): tp / (tp + fp + fn)."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the reference that was found: tp / (tp + fn); NaN when the reference is empty."""
        return _ratio(self.tp, self.n_ref)

    @property
    def precision(self) -> float:
        """Share of the prediction that is right: tp / (tp + fp); NaN when the prediction is empty."""
        return _ratio(self.tp, self.n_pred)


def confusion_counts(pred: np.ndarray, ref: np.ndarray, labels: Sequence[int]) -> dict[int, Counts]:
    """Count every label of two integer label maps `(*S)` at once.

    Args:
        pred: prediction `(*S)`.
        ref: reference, same shape.
        labels: the labels to count, without the background; every other value counts as background.

    Returns:
        Label to `Counts`, in the order of `labels`.
    """
    joint = joint_histogram(compact_labels(pred, labels), compact_labels(ref, labels), len(labels))
    return counts_from_histogram(joint, labels)


def compact_labels(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return `array` with `labels[k]` replaced by `k + 1` and every other value by 0, in the smallest type.

    The result `(*S)` is C-contiguous, so that two compacted maps can be walked side by side.
    """
    dtype = np.min_scalar_type(len(labels))
    order = np.argsort(labels)
    known = np.asarray(labels, np.int64)[order]
    compact = np.zeros(array.shape, dtype)
    if not len(labels) or not array.size:
        return compact
    table = _lookup_table(known, order, dtype)
    for index in range(len(array)):  # by plane: the temporaries stay small
        plane = array[index]
        if table is not None:
            compact[index] = table[np.clip(plane, 0, len(table) - 1)]
        else:
            place = np.searchsorted(known, plane).clip(max=len(known) - 1)
            compact[index] = np.where(known[place] == plane, order[place] + 1, 0)
    return compact


def joint_histogram(pred: np.ndarray, ref: np.ndarray, n_labels: int) -> np.ndarray:
    """Return the int64 matrix `(n_labels + 1, n_labels + 1)` of voxels by reference (row) and prediction (column)."""
    size = n_labels + 1
    flat_pred, flat_ref = pred.reshape(-1), ref.reshape(-1)
    joint = np.zeros(size * size, np.int64)
    for start in range(0, flat_ref.size, _SLAB_VOXELS):
        slab = slice(start, start + _SLAB_VOXELS)
        joint += np.bincount(flat_ref[slab].astype(np.int64) * size + flat_pred[slab], minlength=size * size)
    return joint.reshape(size, size)


def counts_from_histogram(joint: np.ndarray, labels: Sequence[int]) -> dict[int, Counts]:
    """Read the counts of `labels[k]` off row and column `k + 1` of the matrix of `joint_histogram`."""
    in_ref, in_pred = joint.sum(axis=1), joint.sum(axis=0)
    counts = {}
    for index, label in enumerate(labels, start=1):
        tp = int(joint[index, index])
        counts[label] = Counts(tp=tp, fp=int(in_pred[index]) - tp, fn=int(in_ref[index]) - tp)
    return counts


def _lookup_table(known: np.ndarray, order: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return the table label to compact index, its ends 0; None when the labels are too large or negative."""
    if known[0] < 1 or known[-1] > 1 << 20:
        return None
    table = np.zeros(int(known[-1]) + 2, dtype)
    table[known] = order + 1
    return table


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
