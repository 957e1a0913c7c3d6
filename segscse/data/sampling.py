"""Training patches: which case, where, how much around it; patch i of batch k is a function of seed, k and i alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from segscse.data.paging import read_ahead
from segscse.data.plan import Plan
from segscse.data.store import CaseStore, StoredCase
from segscse.ranks import share

# A rotated or zoomed-out patch reads from beyond its border: cut this much more, where the image has it.
SPATIAL_MARGIN = 1.3
# What random numbers are for, so that none serve twice.
_COUNT, _CUT, _AUGMENT = range(3)


@dataclass(frozen=True, slots=True)
class PatchSampler:
    """Cuts batches of patches from stored cases.

    Attributes:
        cut_size: voxels cut along each window axis; at least the plan's patch, the rest is for augmentation.
        foreground_share: share of patches centred on a voxel of a random class that the case has; at least one of
            every batch of two or more, unless 0.
        labelled: cases that such patches come from, which have foreground; all if there is none.
    """

    store: CaseStore
    cases: tuple[str, ...]
    plan: Plan
    cut_size: tuple[int, ...]
    foreground_share: float
    seed: int
    labelled: tuple[str, ...] = ()

    def batch(self, step: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
        """Return what process `rank` of `world` takes of the batch of step number `step`.

        The processes' parts together are the batch of one process, patch by patch.

        Returns:
            `image` `(B, C, *cut_size)` and `label` `(B, *cut_size)`, with B the batch size divided by `world`, and
            `cases`, the ids.
        """
        size = self.plan.batch_size
        n_foreground = int(np.floor(size * self.foreground_share + self._rng(step, _COUNT).random()))
        if size > 1 and self.foreground_share > 0:  # of one patch a batch, the others would never be seen
            n_foreground = max(n_foreground, 1)
        cuts = [
            self._cut(self._rng(step, _CUT, index), foreground=index < n_foreground)
            for index in share(range(size), rank, world)
        ]
        return {
            "image": stack_copies([image for image, _, _ in cuts]),
            "label": stack_copies([label for _, label, _ in cuts]),
            "cases": [case for _, _, case in cuts],
        }

    def augmentation(self, step: int, rank: int = 0, world: int = 1) -> list[np.random.Generator]:
        """Return the random numbers that augment each patch of `batch(step, rank, world)`."""
        return [self._rng(step, _AUGMENT, index) for index in share(range(self.plan.batch_size), rank, world)]

    def _rng(self, step: int, purpose: int, index: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, step, purpose, index])

    def _cut(self, rng: np.random.Generator, *, foreground: bool) -> tuple[torch.Tensor, torch.Tensor, str]:
        cases = self.labelled if foreground and self.labelled else self.cases
        case = self.store[cases[int(rng.integers(len(cases)))]]
        centre = _random_place(case, rng) if foreground and case.places else None
        image, label = case.image, case.label
        axes = self.plan.window_axes
        if self.plan.slice_axis is not None:
            axis = self.plan.slice_axis
            number = int(rng.integers(label.shape[axis])) if centre is None else int(centre[axis])
            image, label = image.select(axis + 1, number), label.select(axis, number)
        corner = [
            _corner(extent, patch, cut, rng, None if centre is None else int(centre[axis]))
            for axis, extent, patch, cut in zip(axes, label.shape, self.plan.patch_size, self.cut_size, strict=True)
        ]
        label = cut_padded(label[None], corner, self.cut_size, mapped=case.mapped)[0]
        return cut_padded(image, corner, self.cut_size, mapped=case.mapped), label, case.id


def cut_size(plan: Plan, shapes: Sequence[tuple[int, ...]], *, spatial: bool) -> tuple[int, ...]:
    """Return how many voxels to cut along each window axis: the patch, plus a margin where some case has it."""
    if not spatial:
        return plan.patch_size
    largest = [max(shape[axis] for shape in shapes) for axis in plan.window_axes]
    return tuple(
        max(patch, min(int(np.ceil(patch * SPATIAL_MARGIN)), extent))
        for patch, extent in zip(plan.patch_size, largest, strict=True)
    )


def stack_copies(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors of one shape stacked along a new first axis, on the calling thread alone.

    torch would start threads of its own for the thread that samples, beside those of the training step.
    """
    return torch.from_numpy(np.stack([part.numpy() for part in parts]))


def cut_padded(
    volume: torch.Tensor, corner: Sequence[int], size: Sequence[int], *, mapped: bool = False
) -> torch.Tensor:
    """Return `volume[:, corner : corner + size]` of a `(C, *S)` tensor, zero where it leaves the volume.

    What lies inside as a whole is returned as a view; of a `mapped` volume, its pages are on their way then.
    """
    source, target = [slice(None)], [slice(None)]
    for low, length, extent in zip(corner, size, volume.shape[1:], strict=True):
        source.append(slice(min(max(low, 0), extent), max(min(low + length, extent), 0)))
        target.append(slice(source[-1].start - low, source[-1].stop - low))
    inside = volume[tuple(source)]
    if mapped:
        read_ahead(inside)
    if inside.shape[1:] == tuple(size):
        return inside
    array = inside.numpy()
    out = np.zeros((len(array), *size), array.dtype)
    out[tuple(target)] = array
    return torch.from_numpy(out)


def _random_place(case: StoredCase, rng: np.random.Generator) -> np.ndarray:
    places = case.places[list(case.places)[int(rng.integers(len(case.places)))]]
    return places[int(rng.integers(len(places)))]


def _corner(extent: int, patch: int, cut: int, rng: np.random.Generator, centre: int | None) -> int:
    """Return where to cut so that the patch, in the middle of the cut, lies inside the image where it can."""
    low, high = min(0, extent - patch), max(0, extent - patch)
    if extent < patch:
        low = high = -((patch - extent) // 2)
    start = int(rng.integers(low, high + 1)) if centre is None else int(np.clip(centre - patch // 2, low, high))
    return start - (cut - patch) // 2
