"""A scan on the network's grid, without MONAI: the same steps as the training transforms, in less time and memory.

`segscse.data.transforms` brings training cases there by MONAI's transforms, which need the whole sampling grid in
memory and seconds to import. Prediction does the same axis by axis: the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from segscse.data.content import content_box
from segscse.data.examine import intensity_problem, read_channels
from segscse.data.geometry import affine_problem, orthogonal, to_canonical
from segscse.data.io import Volume
from segscse.data.plan import Normalisation, Plan
from segscse.errors import InputError

# MONAI's tolerance for affines.
SAME_SPACING_MM = 1e-3
# Differences of indices, in voxels, that are rounding.
NEAR = 1e-5


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case as the network sees it.

    Attributes:
        image: `(C, X, Y, Z)` float32, canonical orientation, at the plan's spacing, normalised.
        label: `(X, Y, Z)` output-channel numbers (not ids), or None.
        affine: `(4, 4)` of this grid, RAS mm.
        source: the first file's volume; its grid and header are the way back.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    affine: np.ndarray
    source: Volume


@dataclass(frozen=True, slots=True)
class Lerp:
    """Where the samples of one axis lie between the voxels of another grid.

    Attributes:
        low: the voxel below each sample; the one above is `low + 1`, or `low` where `share` is zero.
        share: weight of the voxel above, float32 in [0, 1).
        inside: whether the sample lies within the voxels' extent, half a voxel beyond the outer centres.
    """

    low: np.ndarray
    share: np.ndarray
    inside: np.ndarray

    @property
    def high(self) -> np.ndarray:
        """The last voxel that each sample needs."""
        return self.low + (self.share > 0)


def lerp_places(place: np.ndarray, extent: int) -> Lerp:
    """Return how to interpolate `extent` voxels linearly at fractional indices; the border value continues outwards.

    Indices within 1e-5 of a voxel centre take the voxel as it is, so that equal grids exchange values unchanged; what
    lies as little beyond the extent is inside.
    """
    inside = (place >= -0.5 - NEAR) & (place <= extent - 0.5 + NEAR)
    clipped = np.clip(place, 0, extent - 1)
    nearest = np.rint(clipped)
    clipped = np.where(np.abs(clipped - nearest) < NEAR, nearest, clipped)
    low = np.floor(clipped).astype(np.int64)
    return Lerp(low, (clipped - low).astype(np.float32), inside)


def prepare_files(images: Sequence[Path], plans: Mapping[str, Plan]) -> dict[str, Prepared]:
    """Load one case and bring it to the grid and intensities of each plan.

    Raises:
        InputError: a file cannot be used.
    """
    channels, source = read_channels(images)
    return {key: _prepare(check_channels(channels, source, plan), source, plan) for key, plan in plans.items()}


def preprocess_array(array: np.ndarray, affine: np.ndarray, plan: Plan) -> Prepared:
    """Bring an image in memory to the plan's grid and intensities; `array` is left as it is.

    Args:
        array: `(X, Y, Z)` or `(X, Y, Z, C)`.
        affine: `(4, 4)`, RAS mm.
        plan: spacing and normalisation.

    Raises:
        InputError: the array or the affine cannot be used.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(f"an image must be (X, Y, Z) or (X, Y, Z, C), got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise InputError(f"an image must hold real numbers, got {array.dtype}")
    if affine.shape != (4, 4) or affine_problem(affine):
        raise InputError(f"the affine cannot be used: {affine_problem(affine) or affine.shape}")
    channels = np.moveaxis(array if array.ndim == 4 else array[..., None], -1, 0)
    source = Volume(array, affine)
    return _prepare(check_channels(channels, source, plan), source, plan)


def check_channels(channels: np.ndarray, source: Volume, plan: Plan) -> np.ndarray:
    """Return `(C, X, Y, Z)` channels that the plan's network can take.

    Raises:
        InputError: their number is another, or their intensities are not finite in 32 bits.
    """
    if len(channels) != len(plan.normalisation):
        raise InputError(
            f"the image has {len(channels)} channels, the plan has {len(plan.normalisation)}",
            file=source.path,
            remedy="Give all channels of the case, in the plan's order",
        )
    if problem := intensity_problem(channels):
        raise InputError(problem, file=source.path, remedy="Replace those voxels")
    return channels


def normalise(channel: torch.Tensor, scheme: Normalisation) -> torch.Tensor:
    """Return one channel `(X, Y, Z)` normalised, float32; a constant image becomes zero."""
    if scheme.scheme == "ct":
        return (channel.clamp(scheme.low, scheme.high) - scheme.mean) / max(scheme.std, 1e-8)
    nonzero = scheme.scheme == "zscore_nonzero"
    count = max(1, int(torch.count_nonzero(channel))) if nonzero else channel.numel()
    centred = channel - channel.sum(dtype=torch.float64) / count
    if nonzero:
        centred.masked_fill_(channel == 0, 0.0)
    std = torch.linalg.vector_norm(centred, dtype=torch.float64) / math.sqrt(count)
    return centred.div_(std.clamp(min=1e-8))


def network_shape(shape: Sequence[int], spacing_mm: Sequence[float], plan: Plan) -> tuple[int, ...]:
    """Return the canonical shape that a scan has at the plan's spacing when nothing of it is cropped.

    Args:
        shape: canonical `(X, Y, Z)` of the scan.
        spacing_mm: its voxel size, in the same order.
        plan: the target spacing.
    """
    target = _target_spacing(spacing_mm, plan)
    return tuple(round((size - 1) * own / new + 1.0) for size, own, new in zip(shape, spacing_mm, target, strict=True))


def _target_spacing(spacing_mm: Sequence[float], plan: Plan) -> list[float]:
    """Return the plan's spacing, but an axis's own where it is so close that MONAI's `Spacingd` keeps it too."""
    pairs = enumerate(zip(spacing_mm, plan.spacing_mm, strict=True))
    return [own if axis == plan.slice_axis or abs(own - new) <= SAME_SPACING_MM else new for axis, (own, new) in pairs]


def _prepare(channels: np.ndarray, source: Volume, plan: Plan) -> Prepared:
    """Orient, crop what lies outside of the scan's content, resample and normalise."""
    turned, affine = to_canonical(np.moveaxis(channels, 0, -1), orthogonal(source.affine))
    image = np.moveaxis(turned, -1, 0)
    box = content_box(image, zeros=plan.zeros_are_content)
    image = image[:, *box]
    affine = affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(affine, [side.start for side in box])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    target = np.array(_target_spacing(tuple(spacing), plan))
    shape = network_shape(image.shape[1:], tuple(spacing), plan)
    moved = affine.copy()
    moved[:3, :3] = affine[:3, :3] / spacing * target
    axes = [lerp_places(np.arange(shape[axis]) * (target / spacing)[axis], image.shape[axis + 1]) for axis in range(3)]
    out = torch.empty((len(image), *shape))
    for number, (channel, scheme) in enumerate(zip(image, plan.normalisation, strict=True)):
        if scheme.before_resampling:
            channel = normalise(torch.from_numpy(channel.astype(np.float32)), scheme).numpy()
        resampled = torch.from_numpy(_resampled(channel, axes))
        out[number] = resampled if scheme.before_resampling else normalise(resampled, scheme)
    return Prepared(out, None, moved, source)


def _resampled(channel: np.ndarray, axes: Sequence[Lerp]) -> np.ndarray:
    """Interpolate `(X, Y, Z)` along Z, Y and X, float32.

    The order is that of the strides in most files. It is the same for every file, because rounding depends on it.
    """
    values = channel.T
    for number, axis in enumerate(reversed(axes)):
        values = _lerp_axis(values, axis, number)
    out = np.ascontiguousarray(values.T)
    # An axis of one voxel counts as contiguous whatever its stride is; torch takes no negative one.
    return out if min(out.strides) > 0 else out.copy()


def _lerp_axis(values: np.ndarray, axis: Lerp, number: int) -> np.ndarray:
    """Interpolate an array along its axis `number`, plane by plane, so that nothing but the result is allocated."""
    if len(axis.low) == values.shape[number] and not axis.share.any() and (np.diff(axis.low) == 1).all():
        return values.astype(np.float32, copy=False)
    shape = list(values.shape)
    shape[number] = len(axis.low)
    out = np.empty(shape, np.float32)
    source, target = np.moveaxis(values, number, 0), np.moveaxis(out, number, 0)
    for sample, (low, share) in enumerate(zip(axis.low, axis.share, strict=True)):
        target[sample] = source[low]
        if share > 0:
            target[sample] += share * (source[low + 1].astype(np.float32) - target[sample])
    return out
