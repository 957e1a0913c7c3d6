"""Overlap of two label maps: exact integer counts of every label in one pass, and the scores from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

_SLAB_VOXELS = 1 << 20  # bounds the memory of the temporaries, whatever the size of the volume


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
    """Return `array` `(*S)` with `labels[k]` replaced by `k + 1` and every other value by 0."""
    layout = layout_of(array)
    flat = array.ravel(layout)
    compact = np.zeros(flat.size, np.min_scalar_type(len(labels)))
    order = np.argsort(np.asarray(labels, np.int64))
    known = np.asarray(labels, np.int64)[order]
    table = _lookup_table(known, order, compact.dtype)
    for slab in _slabs(flat.size):
        values = flat[slab].astype(np.int64)
        if table is not None:
            compact[slab] = table[values.clip(0, len(table) - 1)]
        elif len(known):
            place = np.searchsorted(known, values).clip(max=len(known) - 1)
            compact[slab] = np.where(known[place] == values, order[place] + 1, 0)
    return compact.reshape(array.shape, order=layout)


def joint_histogram(pred: np.ndarray, ref: np.ndarray, n_labels: int) -> np.ndarray:
    """Count voxels by reference (row) and prediction (column): int64 `(n_labels + 1, n_labels + 1)`."""
    size = n_labels + 1
    layout = layout_of(pred, ref)
    flat_pred, flat_ref = pred.ravel(layout), ref.ravel(layout)
    joint = np.zeros(size * size, np.int64)
    for slab in _slabs(flat_ref.size):
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


def labels_in(array: np.ndarray) -> set[int]:
    """Return the values that occur in a label map `(*S)`; of a boolean mask always {0, 1}, empty or not."""
    if array.dtype == bool:
        return {0, 1}
    flat = array.ravel(layout_of(array))
    return {int(value) for slab in _slabs(flat.size) for value in np.unique(flat[slab])}


def layout_of(*arrays: np.ndarray) -> Literal["C", "F"]:
    """Return the order in which the voxels lie in memory: Fortran's for NIfTI."""
    return "F" if all(array.flags.f_contiguous for array in arrays) else "C"


def _slabs(size: int) -> Iterator[slice]:
    return (slice(start, start + _SLAB_VOXELS) for start in range(0, size, _SLAB_VOXELS))


def _lookup_table(known: np.ndarray, order: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return the table label to compact index, its ends 0; None when the labels are too large or negative."""
    if not len(known) or known[0] < 1 or known[-1] > 1 << 20:
        return None
    table = np.zeros(int(known[-1]) + 2, dtype)
    table[known] = order + 1
    return table


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
