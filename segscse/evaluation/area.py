"""Surface distances weighted by area, as DeepMind's surface-distance and the Medical Segmentation Decathlon measure.

The surface runs between voxels: every cell of 2 x 2 x 2 neighbouring voxel centres (2 x 2 in 2D) that is neither
wholly inside nor wholly outside holds a piece of it, with the area (mm², in 2D the length in mm) that marching cubes
gives to its pattern. Distances run between the centres of such cells. What lies beyond the image is outside.
Nikolov et al. 2021, arXiv:1809.04430; github.com/google-deepmind/surface-distance. One difference: a distance counts as
within a tolerance when it exceeds it by less than a millionth of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from segscse.evaluation.nearest import EQUAL, indices_of, margin, nearest_mm
from segscse.evaluation.surface import framed

# Triangles of marching cubes in each pattern from 0 to 127; pattern 255 - k has those of k. Three digits a triangle:
# the absolute components of its area vector in eighths of a cell's sides. From lookup_tables.py of surface-distance
# 0.1, Copyright 2018 Google Inc., Apache License 2.0; signs dropped, since only lengths of the vectors matter.
_TRIANGLES = (
    "000 111 111 220220 111 202202 111111 400222111 111 111111 202202 400222111 220220 400222111 400222111 400400 "
    "111 022022 111111 040222111 111111 004222111 111111111 111222222111 111111 022022111 202202111 111333022202 "
    "111220220 333022111220 400111222111 400111222 111 111111 022022 040111222 111111 111202202 022022111 "
    "333022111202 111111 111111111 004222111 222222111111 111220220 400222111111 022333111220 400222111 220220 "
    "040222111 040111222 040040 220220111 333202111220 111040222111 040222111 111220220 040222111111 333220111202 "
    "040222111 220220220220 220220111 111220220 220220 111 111111 111111 111220220 022022 004222111 022022111 "
    "333022111220 111111 111111111 111202202 400222111111 040222111 222222111111 202333022111 400222111 202202 "
    "004222111 111202202 202333220111 004222111 004004 111111222004 111222004 202202111 004222111111 202202202202 "
    "111202202 202333220111 004222111 111202202 202202 111111 111111111 111022022 040111222111 022022111 "
    "004222111111 022022022022 022022111 111111111 111111111111 004222111111 111111111 040222111111 111111111 "
    "022022111 111111 400222111 222111222111 333022111202 040222111 333220022111 111222004 111022022 022022 "
    "400222111111 111111111 202202111 111111 220220111 111111 111111 111"
)


@dataclass(frozen=True, slots=True)
class AreaDistances:
    """Distances in mm between two surfaces and the area that each stands for, by piece of surface.

    An empty mask has no surface: its own lists are empty and all distances of the other are infinite.
    """

    pred_to_ref_mm: np.ndarray
    ref_to_pred_mm: np.ndarray
    areas_pred: np.ndarray
    areas_ref: np.ndarray

    def nsd(self, tolerance_mm: float) -> float:
        """Return the surface Dice: the area of both surfaces within `tolerance_mm` of the other over the whole area.

        NaN when both masks are empty, 0 when one is.
        """
        whole = self.areas_pred.sum() + self.areas_ref.sum()
        within = [area[distance <= tolerance_mm * (1 + EQUAL)].sum() for distance, area in self._parts]
        return float(sum(within) / whole) if whole else math.nan

    def overlaps(self, tolerance_mm: float) -> tuple[float, float]:
        """Return the share of the prediction's and of the reference's area within `tolerance_mm` of the other."""
        first, second = (
            _ratio(area[distance <= tolerance_mm * (1 + EQUAL)].sum(), area.sum()) for distance, area in self._parts
        )
        return first, second

    def means_mm(self) -> tuple[float, float]:
        """Return the mean distance from prediction to reference and back; inf from a mask to an empty one, else NaN."""
        first, second = (_ratio((distance * area).sum(), area.sum()) for distance, area in self._parts)
        return first, second

    def percentile_mm(self, percent: float) -> float:
        """Return the larger directed percentile: the first distance up to which `percent` of the area lies.

        Infinite when a mask is empty, also when both are.
        """
        return max(_percentile(distance, area, percent) for distance, area in self._parts)

    @property
    def _parts(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        return (self.pred_to_ref_mm, self.areas_pred), (self.ref_to_pred_mm, self.areas_ref)


def area_distances(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float], limit_mm: float | None = None
) -> AreaDistances:
    """Measure the distances between the surfaces of two masks.

    Args:
        pred: prediction `(*S)`, boolean, 1D to 3D.
        ref: reference, same shape.
        spacing_mm: voxel size along each axis, in the order of the array's axes.
        limit_mm: distances above it may be infinite, which is quicker; all are exact if not given.
    """
    return framed_area_distances(*framed(pred, ref, margin(spacing_mm, limit_mm)), spacing_mm, limit_mm)


def framed_area_distances(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[float], limit_mm: float | None = None
) -> AreaDistances:
    """Measure as `area_distances` two masks that `framed` has cut out with a margin that is wide enough."""
    table = areas_of_patterns(tuple(spacing_mm))
    (surface_pred, in_pred, areas_pred), (surface_ref, in_ref, areas_ref) = (
        _surface(mask, table) for mask in (pred, ref)
    )
    if not len(in_pred) or not len(in_ref):
        there, back = (np.full(len(own), math.inf) for own in (in_pred, in_ref))
    else:
        there = nearest_mm(in_pred, surface_ref, spacing_mm, limit_mm)
        back = nearest_mm(in_ref, surface_pred, spacing_mm, limit_mm)
    return AreaDistances(there, back, areas_pred, areas_ref)


@lru_cache(maxsize=64)
def areas_of_patterns(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Return the area of surface in a cell by pattern: mm² in 3D `(256,)`, mm in 2D `(16,)`, a count in 1D `(4,)`."""
    if len(spacing_mm) == 1:
        return np.array([0.0, 1.0, 1.0, 0.0])
    if len(spacing_mm) == 2:
        down, right = spacing_mm
        corner = math.hypot(down, right) / 2
        half = [0, corner, corner, right, corner, down, 2 * corner, corner]
        return np.array(half + half[::-1])
    faces = [math.prod(spacing_mm) / step / 8 for step in spacing_mm]
    half = [_area(triangles, faces) for triangles in _TRIANGLES.split()]
    return np.array(half + half[::-1])


def _area(triangles: str, faces: Sequence[float]) -> float:
    vectors = np.array([int(digit) for digit in triangles], float).reshape(-1, 3) * faces
    return float(np.linalg.norm(vectors, axis=1).sum())


def _surface(mask: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells that hold surface as a map and as flat indices `(n,)`, and the area in each `(n,)`."""
    patterns = _patterns(mask)
    surface = patterns != 0
    surface &= patterns != len(table) - 1
    indices = indices_of(surface)
    return surface, indices, table[patterns.reshape(-1)[indices]]


def _patterns(mask: np.ndarray) -> np.ndarray:
    """Return the pattern of each cell of 2 x 2 x 2 voxels: uint8, each axis one shorter than `mask`'s."""
    pattern: np.ndarray = mask.view(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        along = np.moveaxis(pattern, axis, 0)
        shifted = along[:-1] << (1 << step)
        shifted |= along[1:]
        pattern = np.moveaxis(shifted, 0, axis)
    return np.ascontiguousarray(pattern)


def _percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    if not len(distances):
        return math.inf
    order = np.argsort(distances)
    reached = np.cumsum(areas[order]) / areas.sum()
    place = int(np.searchsorted(reached, percent / 100))
    return float(distances[order][min(place, len(distances) - 1)])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
