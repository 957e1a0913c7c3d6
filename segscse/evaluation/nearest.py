"""Distance from each voxel of one set to the nearest of another, exact, in 1D to 3D with any spacing.

Two segmentations of one structure mostly lie a few voxels apart, so short offsets are tried first, in order of their
length in mm: the first that meets the target is the distance. What is left lies far away and is searched by a tree, or
by a distance transform where that is quicker.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

_MAX_STEPS = 257  # offsets tried before the search of what is left
_MAX_STEPS_TO_LIMIT = 1500  # offsets tried when only distances up to a limit matter
_MAX_REACH = 6  # voxels along an axis
EQUAL = 1e-6  # relative; headers store spacing as float32
_TREE_NS, _TRANSFORM_NS = 6000, 180  # per point left and per voxel of the frame, on one core
_SAMPLE = 1000  # points of the first tree


@dataclass(frozen=True, slots=True)
class Steps:
    """Offsets in voxels by rising length.

    Attributes:
        groups: length in mm and the offsets `(n, ndim)` that have it; no shorter offset is left out.
        reach: the largest offset along each axis.
        covered_mm: every distance up to here is found.
    """

    groups: tuple[tuple[float, np.ndarray], ...]
    reach: tuple[int, ...]
    covered_mm: float


def nearest_mm(
    source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float], limit_mm: float | None = None
) -> np.ndarray:
    """Return the distance in mm from each voxel of `source` to the nearest of `target`.

    Args:
        source: flat indices `(n,)` into `target`.
        target: boolean map `(*S)`, C-contiguous, not empty, with a margin around all that `source` and `target` hold:
            one less than `margin(spacing_mm, limit_mm)`.
        spacing_mm: voxel size along each axis.
        limit_mm: distances above it may be returned as infinite; all are exact if not given.
    """
    steps = steps_for(tuple(spacing_mm), limit_mm)
    found = np.full(len(source), math.inf)
    flat = target.reshape(-1)
    strides = np.array([math.prod(target.shape[axis + 1 :]) for axis in range(target.ndim)])
    left, place = source, np.arange(len(source))
    for length, offsets in steps.groups:
        if not len(left):
            return found
        hit = _hits(flat, left, offsets @ strides)
        found[place[hit]] = length
        left, place = left[~hit], place[~hit]
    if len(left) and (limit_mm is None or steps.covered_mm < limit_mm):
        found[place] = _search(left, target, spacing_mm)
    return found


def margin(spacing_mm: Sequence[float], limit_mm: float | None = None) -> tuple[int, ...]:
    """Return a margin in voxels along each axis, enough for `nearest_mm` among voxels and among their corners."""
    return tuple(reach + 1 for reach in steps_for(tuple(spacing_mm), limit_mm).reach)


@lru_cache(maxsize=256)
def steps_for(spacing_mm: tuple[float, ...], limit_mm: float | None = None) -> Steps:
    """Return the offsets to try for a spacing: all up to `limit_mm` when these are not too many, else the shortest."""
    if limit_mm is not None:
        reach = [math.floor(limit_mm * (1 + EQUAL) / step) for step in spacing_mm]
        if math.prod(2 * size + 1 for size in reach) <= 2 * _MAX_STEPS_TO_LIMIT:
            return _steps(spacing_mm, reach, limit_mm * (1 + EQUAL), _MAX_STEPS_TO_LIMIT * 2)
    shortest_outside = min((_MAX_REACH + 1) * step for step in spacing_mm) * (1 - EQUAL)
    reach = [min(_MAX_REACH, math.floor(shortest_outside / step)) for step in spacing_mm]
    return _steps(spacing_mm, reach, shortest_outside, _MAX_STEPS)


def _steps(spacing_mm: tuple[float, ...], reach: Sequence[int], longest_mm: float, at_most: int) -> Steps:
    offsets = np.array(list(itertools.product(*(range(-size, size + 1) for size in reach))))
    lengths = np.sqrt(((offsets * spacing_mm) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= longest_mm]
    offsets, lengths = offsets[order], lengths[order]
    starts = np.flatnonzero(np.diff(lengths, prepend=-1) > lengths * 1e-12)  # lengths that differ by rounding are one
    stops = [stop for stop in [*starts[1:].tolist(), len(lengths)] if stop <= at_most]
    groups = [(float(lengths[start]), offsets[start:stop]) for start, stop in zip(starts, stops, strict=False)]
    covered = longest_mm if stops[-1] == len(lengths) else groups[-1][0]
    largest = np.abs(offsets[: stops[-1]]).max(axis=0)
    return Steps(tuple(groups), tuple(largest.tolist()), covered)


def _hits(flat: np.ndarray, places: np.ndarray, jumps: np.ndarray) -> np.ndarray:
    hit = flat[places + jumps[0]]
    for jump in jumps[1:]:
        hit |= flat[places + jump]
    return hit


def _search(left: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    if len(left) * _TREE_NS > target.size * _TRANSFORM_NS:
        return by_transform(left, target, spacing_mm)
    return by_tree(left, target, spacing_mm)


def by_transform(source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the distances of `nearest_mm` from a Euclidean distance transform of the whole frame."""
    return ndimage.distance_transform_edt(~target, sampling=spacing_mm).reshape(-1)[source]


def by_tree(source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return the distances of `nearest_mm` from search trees over the voxels of `target`.

    A tree over a few of them bounds all distances; the second holds only what lies within that of the sources.
    """
    spacing = np.asarray(spacing_mm, float)
    points, queries = (
        np.stack(np.unravel_index(indices, target.shape), axis=1) * spacing for indices in (indices_of(target), source)
    )
    bound = _tree(points[:: max(1, len(points) // _SAMPLE)]).query(queries)[0].max() * (1 + EQUAL)
    near = (points >= queries.min(axis=0) - bound) & (points <= queries.max(axis=0) + bound)
    distances, _ = _tree(points[near.all(axis=1)]).query(queries)
    return distances


def indices_of(mask: np.ndarray) -> np.ndarray:
    """Return the flat indices of the voxels of a boolean `mask`, C-contiguous; quick where most words are empty."""
    flat = mask.reshape(-1)
    whole = flat.size - flat.size % 8
    words = flat[:whole].view(np.uint64)
    full = np.flatnonzero(words)
    inside = np.flatnonzero(words[full].view(bool))
    head = full[inside >> 3] * 8 + (inside & 7)
    return np.concatenate([head, np.flatnonzero(flat[whole:]) + whole])


def _tree(points: np.ndarray) -> cKDTree:
    return cKDTree(points, balanced_tree=False, compact_nodes=False)
