"""The slow and plain way, as the oracle: all logits in memory, then on the scan's grid, then the largest."""

from itertools import product

import numpy as np
import torch

from segscse.data.geometry import axis_map, canonical_grid, from_canonical, orthogonal
from segscse.inference.sliding_window import window_starts


def naive_logits(volume, network, *, window, slice_axis=None, overlap=0.5):
    """Return the Gaussian-weighted logits `(K, X, Y, Z)`: the sum of weighted windows over the sum of weights."""
    full = list(window)
    if slice_axis is not None:
        full.insert(slice_axis, 1)
    shape = volume.shape[1:]
    missing = [max(0, size - extent) for extent, size in zip(shape, full, strict=True)]
    pads = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
    padded = torch.from_numpy(np.pad(volume.numpy(), pads))
    weight = torch.ones((), dtype=torch.float64)
    for size in full:
        place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (place / (size / 8)) ** 2)
    total, weights = None, torch.zeros(padded.shape[1:], dtype=torch.float64)
    starts = [window_starts(extent, size, overlap) for extent, size in zip(padded.shape[1:], full, strict=True)]
    for corner in product(*starts):
        box = tuple(slice(low, low + size) for low, size in zip(corner, full, strict=True))
        crop = padded[:, *box][None]
        logits = network(crop if slice_axis is None else crop.squeeze(slice_axis + 2))
        logits = logits[0] if slice_axis is None else logits.unsqueeze(slice_axis + 2)[0]
        if total is None:
            total = torch.zeros((len(logits), *weights.shape), dtype=torch.float64)
        total[:, *box] += logits * weight
        weights[box] += weight
    inner = (slice(low, low + extent) for (low, _), extent in zip(pads[1:], shape, strict=True))
    return (total / weights)[:, *inner].float()


def naive_logits_on_scan(logits, prepared):
    """Return logits `(K, X, Y, Z)` on the scan's grid, canonical order, and where that lies inside the network's."""
    shape, affine = canonical_grid(prepared.source.array.shape, orthogonal(prepared.source.affine))
    scale, offset = axis_map(prepared.affine, affine)
    places = [scale[axis] * np.arange(shape[axis]) + offset[axis] for axis in range(3)]
    inside = [(place >= -0.5) & (place <= extent - 0.5) for place, extent in zip(places, logits.shape[1:], strict=True)]
    for axis, place in enumerate(places):
        extent = logits.shape[axis + 1]
        place = np.clip(place, 0, extent - 1)
        place = np.where(np.abs(place - np.rint(place)) < 1e-5, np.rint(place), place)
        low = np.floor(place).astype(int)
        share = torch.from_numpy((place - low).astype(np.float32)).reshape(-1, *[1] * (2 - axis))
        above = np.minimum(low + 1, extent - 1)
        logits = torch.lerp(
            logits.index_select(axis + 1, torch.from_numpy(low)),
            logits.index_select(axis + 1, torch.from_numpy(above)),
            share,
        )
    return logits, np.ix_(*inside)


def naive_restore(logits, prepared, ids):
    """Return label ids on the scan's grid and order, and probabilities `(X, Y, Z, K)`."""
    values, inside = naive_logits_on_scan(logits, prepared)
    numbers = np.zeros(values.shape[1:], int)
    numbers[inside] = values.argmax(dim=0).numpy()[inside]
    probabilities = np.zeros((*values.shape[1:], len(values)), np.float32)
    probabilities[..., 0] = 1
    probabilities[inside] = values.softmax(dim=0).movedim(0, -1).numpy()[inside]
    affine = prepared.source.affine
    return from_canonical(np.array(ids)[numbers], affine), from_canonical(probabilities, affine)
