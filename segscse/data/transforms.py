"""From files to network input: read, orient, crop, resample and normalise as a plan says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from segscse.data.examine import intensity_problem, read_channels
from segscse.data.geometry import affine_problem, orthogonal, same_grid, to_canonical
from segscse.data.io import Volume, read_labels
from segscse.data.plan import Normalisation, Plan
from segscse.data.resample import resample, zoom_grid
from segscse.errors import InputError

# Goes into the key of cached cases: raise it when the result of `preprocess` changes.
PREPROCESSING_VERSION = 2


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


def normalise(channel: torch.Tensor, scheme: Normalisation) -> torch.Tensor:
    """Return one channel normalised; a constant image becomes zero."""
    if scheme.scheme == "ct":
        return (channel.clamp(scheme.low, scheme.high) - scheme.mean) / max(scheme.std, 1e-8)
    mean = channel.mean(dtype=torch.float64)
    std = (channel.double() - mean).square().mean().sqrt()
    return ((channel - mean) / std.clamp(min=1e-8)).to(channel.dtype)


def preprocess(images: Sequence[Path], label: Path | None, plan: Plan) -> Prepared:
    """Load one case and bring it to the plan's grid and intensities.

    Raises:
        InputError: a file cannot be used.
    """
    channels, source = read_channels(images)
    ids = None if label is None else read_labels(label)
    return _prepare(check_channels(channels, source, plan), source, ids, plan)


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
    if affine.shape != (4, 4) or affine_problem(affine):
        raise InputError(f"the affine cannot be used: {affine_problem(affine) or affine.shape}")
    channels = np.moveaxis(array if array.ndim == 4 else array[..., None], -1, 0)
    source = Volume(array, affine)
    return _prepare(check_channels(channels, source, plan), source, None, plan)


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


def _prepare(channels: np.ndarray, source: Volume, label: Volume | None, plan: Plan) -> Prepared:
    """Orient, crop, resample and normalise `(C, X, Y, Z)` channels; nothing is written into the source's array."""
    oriented, affine = to_canonical(np.moveaxis(channels, 0, -1), orthogonal(source.affine))
    image = torch.from_numpy(np.array(np.moveaxis(oriented, -1, 0), np.float32, order="C"))
    box = _foreground_box(image)
    affine = affine @ nib.affines.from_matvec(np.eye(3), [side.start for side in box])
    # In 2D slices are not mixed: their axis keeps its own spacing.
    target = [None if axis == plan.slice_axis else size for axis, size in enumerate(plan.spacing_mm)]
    places, zoomed = zoom_grid([side.stop - side.start for side in box], affine, target)
    image = resample(image[(slice(None), *box)], places, "linear").contiguous()
    for number, scheme in enumerate(plan.normalisation):
        image[number] = normalise(image[number], scheme)
    numbers = None if label is None else _label_on(label, plan, box, places, affine)
    return Prepared(image, numbers, zoomed, source)


def _label_on(
    label: Volume, plan: Plan, box: tuple[slice, ...], places: Sequence[np.ndarray], affine: np.ndarray
) -> torch.Tensor:
    """Return the label map's channel numbers `(X, Y, Z)` at the places where the image was sampled.

    Raises:
        InputError: the two lie on different grids.
    """
    numbers, own_affine = to_canonical(label_channels(label, plan.label_ids), orthogonal(label.affine))
    cropped = numbers[box]
    shape = [side.stop - side.start for side in box]
    own_affine = own_affine @ nib.affines.from_matvec(np.eye(3), [side.start for side in box])
    if difference := same_grid(shape, affine, cropped.shape, own_affine):
        raise InputError(
            f"label and image lie on different grids ({difference})",
            file=label.path,
            remedy="Resample the label map onto the image",
        )
    kept = torch.from_numpy(np.array(cropped, order="C")).to(_label_dtype(len(plan.labels)))
    return resample(kept[None], places, "nearest")[0].contiguous()


def label_channels(label: Volume, ids: Sequence[int]) -> np.ndarray:
    """Return the number of the output channel of every voxel; `ids`, one per channel, may have gaps.

    Raises:
        InputError: the label map holds an id that is not among `ids`.
    """
    order = np.argsort(ids)
    known = np.asarray(ids)[order]
    values, inverse = np.unique(label.array, return_inverse=True)
    if not (found := np.isin(values, known)).all():
        raise InputError(
            f"holds label ids {[int(value) for value in values[~found]][:10]}, the plan has {sorted(ids)}",
            file=label.path,
            remedy="Correct the label map or plan again",
        )
    return order[np.searchsorted(known, values)][inverse].reshape(label.array.shape)


def _label_dtype(n_labels: int) -> torch.dtype:
    return torch.uint8 if n_labels <= 256 else torch.int16


def _foreground_box(image: torch.Tensor) -> tuple[slice, ...]:
    """Return the box of what is not background padding, and one voxel around it, of an image `(C, X, Y, Z)`.

    Foreground is above the minimum in any channel; a constant image is all foreground.
    """
    above = (image > image.flatten(1).amin(dim=1).reshape(-1, *[1] * (image.ndim - 1))).any(dim=0)
    box = []
    for axis in range(above.ndim):
        others = [other for other in range(above.ndim) if other != axis]
        hits = above.amax(dim=others).nonzero().flatten().tolist() or [0, above.shape[axis] - 1]
        box.append(slice(max(0, hits[0] - 1), min(above.shape[axis], hits[-1] + 2)))
    return tuple(box)
