"""Steps after the arg max. There is one: of a label keep the largest piece, where a cross-validation says it helps."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

LARGEST = "largest_component"
# A voxel's mask, the number of its piece, and whether it goes.
BYTES_TO_FIND_PIECES = 6


def largest_step(label: int) -> str:
    """Return the step that keeps the largest piece of a label, as it stands in `model.json`."""
    return f"{LARGEST}:{label}"


def label_of_step(step: object) -> int | None:
    """Return the label whose largest piece a step keeps; None for what is no step."""
    match = re.fullmatch(LARGEST + r":([1-9]\d{0,18})", step) if isinstance(step, str) else None
    return None if match is None else int(match[1])


def apply_steps(labels: np.ndarray, steps: Sequence[str]) -> dict[int, int]:
    """Take the steps on a label map `(X, Y, Z)`, in place; return the number of voxels that each label lost."""
    chosen = [label for step in steps if (label := label_of_step(step)) is not None]
    return {label: keep_largest(labels, label) for label in chosen}


def keep_largest(labels: np.ndarray, label: int) -> int:
    """Turn all voxels of a label but its largest piece into background, in place; return how many they were.

    Voxels that touch at a corner are one piece; of equal pieces the first stays.
    """
    from scipy import ndimage  # takes a quarter of a second to import

    mask = labels == label
    box = ndimage.find_objects(mask.view(np.uint8))
    if not box:
        return 0
    inside = mask[box[0]]
    pieces = np.empty(inside.shape, np.int32)
    number = int(ndimage.label(inside, np.ones((3, 3, 3)), output=pieces))
    if number < 2:
        return 0
    sizes = np.zeros(number + 1, np.int64)
    for plane in pieces:  # counting takes a copy in 64 bits
        sizes += np.bincount(plane.ravel(), minlength=number + 1)
    sizes[0] = 0
    spare = inside & (pieces != sizes.argmax())
    labels[box[0]][spare] = 0
    return int(spare.sum())
