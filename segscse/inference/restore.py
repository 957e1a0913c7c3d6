"""From logits on the network's grid to a label map on the scan's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from segscse.data.geometry import axis_map, canonical_grid, from_canonical, orthogonal
from segscse.data.transforms import Prepared

# Voxels of float32 logits that are interpolated at once: 256 MB.
SLAB_ELEMENTS = 64_000_000


def restore(logits: torch.Tensor, prepared: Prepared, label_ids: Sequence[int]) -> np.ndarray:
    """Return label ids `(X, Y, Z)` on the grid of the scan's file.

    Logits are interpolated linearly, axis by axis, and the largest wins; voxels outside the network's grid (where
    the image was cropped as empty) are background.

    Args:
        logits: `(K, X', Y', Z')` on `prepared.affine`.
        prepared: the preprocessed case, which knows both grids.
        label_ids: id of each of the K channels.
    """
    numbers, _ = _resample(logits, prepared, probabilities=False)
    ids = np.array(label_ids)[numbers]
    return from_canonical(ids, prepared.source.affine)


def restore_probabilities(logits: torch.Tensor, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Return channel numbers `(X, Y, Z)` and probabilities `(X, Y, Z, K)` on the grid of the scan's file.

    Probabilities are the softmax of the interpolated logits; outside the network's grid background has all.
    """
    numbers, probabilities = _resample(logits, prepared, probabilities=True)
    affine = prepared.source.affine
    return from_canonical(numbers, affine), from_canonical(probabilities, affine)


def _resample(logits: torch.Tensor, prepared: Prepared, *, probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
    shape, affine = canonical_grid(prepared.source.array.shape, orthogonal(prepared.source.affine))
    scale, offset = axis_map(prepared.affine, affine)
    places = [scale[axis] * np.arange(shape[axis]) + offset[axis] for axis in range(3)]
    inside = [(place >= -0.5) & (place <= extent - 0.5) for place, extent in zip(places, logits.shape[1:], strict=True)]
    numbers = np.zeros(shape, np.int64)
    kept = np.zeros((*shape, len(logits)) if probabilities else (0,), np.float32)
    rows = max(1, SLAB_ELEMENTS // (len(logits) * shape[1] * shape[2]))
    for start in range(0, shape[0], rows):
        slab = slice(start, min(start + rows, shape[0]))
        values = logits
        for axis, place in enumerate([places[0][slab], places[1], places[2]]):
            values = _lerp(values, place, axis + 1)
        outside = ~(inside[0][slab, None, None] & inside[1][None, :, None] & inside[2][None, None])
        chosen = values.argmax(dim=0).cpu().numpy()
        chosen[outside] = 0
        numbers[slab] = chosen
        if probabilities:
            kept[slab] = values.softmax(dim=0).movedim(0, -1).cpu().numpy()
            kept[slab][outside] = np.eye(1, len(logits), dtype=np.float32)
    return numbers, kept


def _lerp(values: torch.Tensor, place: np.ndarray, axis: int) -> torch.Tensor:
    """Interpolate linearly along one axis at fractional indices; the border value continues outwards."""
    place = np.clip(place, 0, values.shape[axis] - 1)
    low = np.minimum(np.floor(place + 1e-6).astype(np.int64), values.shape[axis] - 1)
    share = np.clip(place - low, 0, 1)
    below = torch.from_numpy(low).to(values.device)
    first = values.index_select(axis, below)
    if share.max(initial=0) < 1e-5:
        return first
    second = values.index_select(axis, (below + 1).clamp(max=values.shape[axis] - 1))
    weight = torch.from_numpy(share.astype(np.float32)).to(values.device)
    return torch.lerp(first, second, weight.reshape(-1, *[1] * (values.ndim - 1 - axis)))
