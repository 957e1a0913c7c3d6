"""Axes along which every scan of a data set shows the anatomy the same way around, found by the images alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Blocks along each axis of the small image that stands for a scan.
BLOCKS = 8
# Enough voxels for their means.
MAX_VOXELS = 1_000_000
# By chance two scans can agree.
LEAST_CASES = 3
# How much further from the other scans a mirrored one must lie, and in how many of them.
FURTHER = 1.5
AGREEMENT = 0.9
# Copies of one scan do not differ at all.
MOST = 100.0


def coarse_image(channels: np.ndarray) -> np.ndarray:
    """Return the means of 8 x 8 x 8 blocks of `(C, X, Y, Z)` voxels as `(C, 8, 8, 8)`, mean 0 and spread 1 a channel.

    The blocks share the box of all voxels that are not 0. Large images are thinned out evenly.
    """
    small = channels[(slice(None), *_box(channels))]
    step = max(1, int(np.ceil((small[0].size / MAX_VOXELS) ** (1 / 3))))
    small = small[:, ::step, ::step, ::step].astype(np.float64)
    for axis in (1, 2, 3):
        small = np.moveaxis(np.tensordot(_means(small.shape[axis]), small, (1, axis)), 0, axis)
    rounding = 1e-9 * np.abs(small).max()
    small -= small.mean((1, 2, 3), keepdims=True)
    spread = small.std((1, 2, 3), keepdims=True)
    return np.where(spread > rounding, small / np.maximum(spread, rounding or 1), 0).astype(np.float32)


def find_directed(images: Sequence[np.ndarray]) -> dict[int, float]:
    """Return the axes (0, 1, 2) along which a mirrored scan is none of this data set.

    That is an axis along which 0.9 of the scans, mirrored, lie at least 1.5 times as far (mean squared difference) from
    the mean of the other scans as they do unmirrored. Fewer than three scans tell nothing.

    Args:
        images: one `coarse_image` a scan.

    Returns:
        For each axis found the median of how many times as far they lie.
    """
    if len(images) < LEAST_CASES:
        return {}
    scans = np.stack(images).astype(np.float64)
    others = (scans.sum(0) - scans) / (len(scans) - 1)
    apart = np.square(scans - others).mean((1, 2, 3, 4))
    found = {}
    for axis in range(3):
        mirrored = np.square(np.flip(scans, axis + 2) - others).mean((1, 2, 3, 4))
        further = np.divide(mirrored, apart, out=np.where(mirrored > 0, MOST, 1.0), where=apart > 0)
        if (further >= FURTHER).mean() >= AGREEMENT:
            found[axis] = round(float(min(MOST, np.median(further))), 2)
    return found


def _box(channels: np.ndarray) -> tuple[slice, ...]:
    """Return the box of the voxels `(C, X, Y, Z)` that are not 0 in some channel; all where there are none."""
    full = np.any(channels, axis=0)
    slices = []
    for axis in range(3):
        where = np.flatnonzero(full.any(tuple(other for other in range(3) if other != axis)))
        slices.append(slice(where[0], where[-1] + 1) if where.size else slice(None))
    return tuple(slices)


def _means(length: int) -> np.ndarray:
    """Return the `(8, length)` matrix that takes `length` voxels to the means of 8 equal stretches of them."""
    cuts = np.linspace(0, length, BLOCKS + 1)
    edges = np.arange(length)
    overlap = np.minimum(cuts[1:, None], edges + 1) - np.maximum(cuts[:-1, None], edges)
    return np.clip(overlap, 0, None) * (BLOCKS / length)
