"""Resampling along voxel axes, linear or nearest, one axis after the other; exact where a place falls on a voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

Mode = Literal["linear", "nearest"]
# Sampling places further than this from a voxel's centre are interpolated, in voxels; headers round to float32.
ON_VOXEL = 1e-3


def zoom_grid(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float | None]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the sampling places along each axis, as voxel indices, and the affine of the grid that they make.

    The first voxel stays where it is, and the last one's centre within half a voxel, as in MONAI's `Spacing`.

    Args:
        shape: `(X, Y, Z)`.
        affine: `(4, 4)` with axes at right angles, mm.
        spacing_mm: voxel size per axis; None keeps the axis as it is. So does one that moves no voxel visibly.
    """
    out = affine.copy()
    places: list[np.ndarray] = []
    for axis, (extent, target) in enumerate(zip(shape, spacing_mm, strict=True)):
        own = float(np.linalg.norm(affine[:3, axis]))
        step = 1.0 if target is None else target / own
        count = int(np.round((extent - 1) / step + 1))
        if abs(step - 1) * max(extent - 1, 1) < ON_VOXEL:
            places.append(np.arange(extent, dtype=np.float64))
            continue
        places.append(np.arange(count) * step)
        out[:3, axis] = affine[:3, axis] * step
    return tuple(places), out


def resample(volume: torch.Tensor, places: Sequence[np.ndarray], mode: Mode) -> torch.Tensor:
    """Sample `(C, *S)` at the outer product of `places`, one array of voxel indices per spatial axis.

    Beyond the border its value continues. Axes that shrink most come first, which is the least work.
    """
    order = sorted(range(len(places)), key=lambda axis: len(places[axis]) / volume.shape[axis + 1])
    for axis in order:
        volume = sample_axis(volume, places[axis], axis + 1, mode)
    return volume


def sample_axis(values: torch.Tensor, place: np.ndarray, axis: int, mode: Mode = "linear") -> torch.Tensor:
    """Sample a tensor along one axis at fractional indices; the border value continues outwards."""
    extent = values.shape[axis]
    place = np.clip(place, 0, extent - 1)
    nearest = np.rint(place).astype(np.int64)
    if len(place) == extent and np.array_equal(nearest, np.arange(extent)) and np.abs(place - nearest).max() < 1e-6:
        return values
    if mode == "nearest":
        return values.index_select(axis, torch.from_numpy(nearest).to(values.device))
    low = np.minimum(np.floor(place + 1e-6).astype(np.int64), extent - 1)
    high = np.minimum(low + 1, extent - 1)
    fraction = np.clip(place - low, 0, 1).astype(np.float32)
    shape = [-1 if dim == axis else 1 for dim in range(values.ndim)]
    weight = torch.from_numpy(fraction).to(values.device).reshape(shape)
    below = values.index_select(axis, torch.from_numpy(low).to(values.device))
    return below.lerp_(values.index_select(axis, torch.from_numpy(high).to(values.device)), weight)
