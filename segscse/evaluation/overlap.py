"""Overlap of two masks: exact integer counts, the scores from them, and label maps made ready for counting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_SLAB_VOXELS = 1 << 20
_LARGEST_KEPT = 65_535


@dataclass(frozen=True, slots=True)
class Counts:
    """Voxels of one label: in both masks (`tp`), in one (`fp` prediction, `fn` reference), in neither (`tn`).

    Python integers: exact for any volume, where float32 sums stop counting at 2**24. A score whose
    denominator is zero is NaN, so Dice and IoU are NaN when both masks are empty and 0 when one is.
    """

    tp: int
    fp: int
    fn: int
    tn: int

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

    @property
    def specificity(self) -> float:
        """Share of the image outside the reference that the prediction leaves out, too: tn / (tn + fp)."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def volume_similarity(self) -> float:
        """Taha and Hanbury (2015, doi:10.1186/s12880-015-0068-x): 1 - |n_pred - n_ref| / (n_pred + n_ref)."""
        return 1 - _ratio(abs(self.fp - self.fn), self.n_pred + self.n_ref)


@dataclass(frozen=True, slots=True)
class LabelPair:
    """Two label maps made ready for counting.

    Attributes:
        pred: prediction `(*S)`, C-contiguous, uint8, uint16 or uint32, as `ref`.
        ref: reference, same shape.
        values: the label that each value of the maps stands for; None where values are the labels themselves.
        flipped: the axes are in the reverse order of the maps that came in, which lay so in memory.
    """

    pred: np.ndarray
    ref: np.ndarray
    values: tuple[int, ...] | None
    flipped: bool

    def label_of(self, value: int) -> int:
        """Return the label that a value stands for."""
        return value if self.values is None else self.values[value]

    def value_of(self, label: int) -> int:
        """Return the value that stands for a label; one that does not occur when the label does not."""
        if self.values is None:
            return label
        return self.values.index(label) if label in self.values else len(self.values)


def label_pair(pred: np.ndarray, ref: np.ndarray) -> LabelPair:
    """Make two integer or boolean label maps `(*S)` ready for counting; no copy where they are so already.

    Labels from 0 to 65535 keep their values in the smallest type. Where there are others, labels are numbered from 0
    in rising order, the background first.
    """
    flipped = pred.flags.f_contiguous and ref.flags.f_contiguous and not ref.flags.c_contiguous  # NIfTI is read so
    maps = [np.ascontiguousarray(array.T if flipped else array) for array in (pred, ref)]
    maps = [array.view(np.uint8) if array.dtype == bool else array for array in maps]
    if all(array.dtype == np.uint8 for array in maps):
        return LabelPair(maps[0], maps[1], None, flipped)
    lowest, highest = min(int(array.min()) for array in maps), max(int(array.max()) for array in maps)
    if lowest >= 0 and highest <= _LARGEST_KEPT:
        kind = np.min_scalar_type(highest)
        return LabelPair(maps[0].astype(kind, copy=False), maps[1].astype(kind, copy=False), None, flipped)
    found = {int(value) for array in maps for slab in _slabs(array) for value in np.unique(slab)}
    values = [0, *sorted(found - {0})]
    return LabelPair(_numbered(maps[0], values), _numbered(maps[1], values), tuple(values), flipped)


def count(pred: np.ndarray, ref: np.ndarray, n_voxels: int) -> Counts:
    """Count two boolean masks `(*S)` cut out of images of `n_voxels`."""
    n_pred, n_ref, tp = (int(np.count_nonzero(mask)) for mask in (pred, ref, pred & ref))
    return Counts(tp, n_pred - tp, n_ref - tp, n_voxels - n_pred - n_ref + tp)


def _slabs(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a C-contiguous array in pieces, which bounds the memory of what is made of them."""
    flat = array.reshape(-1)
    return (flat[start : start + _SLAB_VOXELS] for start in range(0, flat.size, _SLAB_VOXELS))


def _numbered(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return the place of each voxel's label in `values`, which hold them all."""
    limits = np.iinfo(array.dtype)  # the other map's labels may not fit
    rising = sorted((value, place) for place, value in enumerate(values) if limits.min <= value <= limits.max)
    known, places = np.array([value for value, _ in rising], array.dtype), np.array([place for _, place in rising])
    numbers = np.empty(array.size, np.min_scalar_type(len(values)))
    for start, slab in zip(range(0, array.size, _SLAB_VOXELS), _slabs(array), strict=True):
        numbers[start : start + len(slab)] = places[np.searchsorted(known, slab)]
    return numbers.reshape(array.shape)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
