"""Voxels drawn from a large volume by their rank, slab by slab: no list of all voxels is ever made."""

from __future__ import annotations

import numpy as np

# Enough places per class to sample from, few enough to keep for every case.
PLACES_PER_CLASS = 2000
_SLAB = 2**22


def nth_voxels(mask: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return where the voxels of a mask with these ranks lie: `np.flatnonzero(mask)[ranks]`, without that list.

    Args:
        mask: any shape, boolean.
        ranks: sorted whole numbers, each below the number of true voxels.

    Returns:
        Indices into the flattened mask, int64, as many as `ranks`.
    """
    flat = mask.reshape(-1)
    slabs = range(0, flat.size, _SLAB)
    before = np.concatenate([[0], np.cumsum([np.count_nonzero(flat[start : start + _SLAB]) for start in slabs])])
    return _in_slabs(flat, 1, before, ranks)


def find_places(label: np.ndarray, case_id: str) -> dict[int, np.ndarray]:
    """Return up to 2000 voxels of each foreground number in `(X, Y, Z)`, drawn without replacement, seeded by id.

    Returns:
        Per number `(N, 3)` int32, in the order of the volume.
    """
    generator = np.random.default_rng(list(case_id.encode()))
    flat = label.reshape(-1)
    slabs = [flat[start : start + _SLAB] for start in range(0, flat.size, _SLAB)]
    counts = np.stack([np.bincount(slab, minlength=int(flat.max()) + 1) for slab in slabs])
    before = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])
    places = {}
    for number in (np.flatnonzero(before[-1][1:]) + 1).tolist():
        total = before[-1, number]
        ranks = np.sort(generator.choice(total, min(PLACES_PER_CLASS, total), replace=False))
        chosen = _in_slabs(flat, number, before[:, number], ranks)
        places[number] = np.stack(np.unravel_index(chosen, label.shape), axis=1).astype(np.int32)
    return places


def _in_slabs(flat: np.ndarray, value: int, before: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Look the ranks up in the slabs that hold them; `before[n]` voxels of that value lie before slab n."""
    found = [np.empty(0, np.int64)]
    for number in np.unique(np.searchsorted(before, ranks, side="right") - 1):
        start = int(number) * _SLAB
        here = ranks[(ranks >= before[number]) & (ranks < before[number + 1])] - before[number]
        found.append(start + np.flatnonzero(flat[start : start + _SLAB] == value)[here])
    return np.concatenate(found)
