"""Distances between the borders of two masks in mm, in 2D and 3D: Hausdorff, averages, surface Dice by count.

Border voxels are those of a mask that touch its outside along an axis (mask XOR erosion); what lies beyond the image is
outside. The distance from A to B is taken from the centre of every border voxel of A to the nearest of B. Conventions
as in Maier-Hein et al., Nature Methods 2024, doi:10.1038/s41592-023-02151-z, and MONAI: HD95 is the larger of the two
directed 95th percentiles with linear interpolation, ASSD the mean of both sets of distances together, MASD the mean of
the two directed means, NSD the share of both sets within a tolerance. MedPy pools the two sets for HD95; DeepMind's
surface-distance weights by area (`segscse.evaluation.area`). Both masks empty: NaN. One mask empty: infinity, NSD 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from segscse.evaluation.nearest import EQUAL, indices_of, margin, nearest_mm


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Directed distances in mm, one value per border voxel: from prediction to reference and back.

    An empty mask has no border: its own list is empty and all distances of the other are infinite.
    """

    pred_to_ref_mm: np.ndarray
    ref_to_pred_mm: np.ndarray

    @property
    def hd_mm(self) -> float:
        """The Hausdorff distance: the largest of all distances."""
        return self._undefined if self._one_is_empty else float(max(part.max() for part in self._parts))

    @property
    def hd95_mm(self) -> float:
        """The larger of the two directed 95th percentiles (linear interpolation)."""
        return self.percentile_mm(95)

    @property
    def assd_mm(self) -> float:
        """Average symmetric surface distance: the mean over all border voxels of both masks."""
        if self._one_is_empty:
            return self._undefined
        return float(sum(part.sum() for part in self._parts) / sum(map(len, self._parts)))

    @property
    def masd_mm(self) -> float:
        """Mean average surface distance: the mean of the two directed means."""
        return self._undefined if self._one_is_empty else float(np.mean([part.mean() for part in self._parts]))

    def percentile_mm(self, percent: float) -> float:
        """Return the larger directed percentile; NaN when both masks are empty, inf when one is."""
        if self._one_is_empty:
            return self._undefined
        return float(max(np.percentile(part, percent) for part in self._parts))

    def nsd(self, tolerance_mm: float) -> float:
        """Return the normalised surface Dice by count: border voxels within `tolerance_mm` over all border voxels.

        A distance counts as within when it exceeds the tolerance by less than a millionth of it, since headers
        store voxel sizes as float32.
        """
        total = sum(map(len, self._parts))
        within = sum(int(np.count_nonzero(part <= tolerance_mm * (1 + EQUAL))) for part in self._parts)
        return within / total if total else math.nan

    @property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pred_to_ref_mm, self.ref_to_pred_mm

    @property
    def _one_is_empty(self) -> bool:
        return not all(map(len, self._parts))

    @property
    def _undefined(self) -> float:
        return math.inf if any(map(len, self._parts)) else math.nan


def surface_distances(pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Measure the distances between the borders of two masks.

    Args:
        pred: prediction `(*S)`, boolean.
        ref: reference, same shape.
        spacing_mm: voxel size along each axis, in the order of the array's axes.
    """
    return framed_distances(*framed(pred, ref, margin(spacing_mm)), spacing_mm)


def framed_distances(pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Measure as `surface_distances` two masks that `framed` has cut out, with `margin(spacing_mm)`."""
    borders = border(pred), border(ref)
    indices = [indices_of(each) for each in borders]
    if all(map(len, indices)):
        return SurfaceDistances(
            nearest_mm(indices[0], borders[1], spacing_mm), nearest_mm(indices[1], borders[0], spacing_mm)
        )
    return SurfaceDistances(*(np.full(len(own), math.inf) for own in indices))


def border(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of `mask` `(*S)` with a neighbour along an axis outside the mask or the image."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        along, within = np.moveaxis(mask, axis, 0), np.moveaxis(inside, axis, 0)  # views
        within[1:] &= along[:-1]
        within[:-1] &= along[1:]
        within[[0, -1]] = False
    return np.greater(mask, inside, out=inside)


def framed(pred: np.ndarray, ref: np.ndarray, margin_voxels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut two boolean masks `(*S)` out at the box around both and put a margin of background around them."""
    box = ndimage.find_objects((pred | ref).view(np.uint8), max_label=1)[0]
    if box is None:
        box = (slice(0, 0),) * pred.ndim
    return with_margin(pred[box], margin_voxels), with_margin(ref[box], margin_voxels)


def with_margin(mask: np.ndarray, margin_voxels: Sequence[int]) -> np.ndarray:
    """Return a boolean mask `(*S)`, C-contiguous, inside a margin of background."""
    frame = np.zeros([size + 2 * width for size, width in zip(mask.shape, margin_voxels, strict=True)], bool)
    frame[tuple(slice(width, width + size) for width, size in zip(margin_voxels, mask.shape, strict=True))] = mask
    return frame
