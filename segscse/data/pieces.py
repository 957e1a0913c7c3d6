"""Pieces: connected parts of a label."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, prod

import numpy as np

# Label ids beyond this are numbered anew before their boxes are looked for.
MOST_IDS = 1 << 16


def count_pieces(labels: np.ndarray, ids: Sequence[int], *, most: float = inf) -> dict[int, int]:
    """Return how many pieces each label has; voxels that touch at a corner are one piece.

    Args:
        labels: label map `(X, Y, Z)`.
        ids: of foreground, ascending; all that the map holds.
        most: as many times the map's voxels may lie in the labels' boxes, each of which is searched by itself; beyond
            that nothing is returned.
    """
    from scipy import ndimage  # takes a quarter of a second, which a network need not wait for

    numbers = dict(zip(ids, ids, strict=True))
    if ids and ids[-1] > MOST_IDS:  # a box is looked for at every number up to the largest
        labels = np.searchsorted(np.array([0, *ids], labels.dtype), labels)
        numbers = {label: number for number, label in enumerate(ids, start=1)}
    boxes = ndimage.find_objects(labels, max(numbers.values(), default=0))
    if sum(prod(side.stop - side.start for side in box) for box in boxes if box is not None) > most * labels.size:
        return {}
    corners = np.ones((3, 3, 3))
    inside = {label: (boxes[number - 1], number) for label, number in numbers.items()}
    return {
        label: 0 if box is None else int(ndimage.label(labels[box] == number, corners)[1])
        for label, (box, number) in inside.items()
    }
