"""What of a scan is not its empty surroundings: voxels above the image's minimum that are not exactly zero.

Zero is what skull-stripping, masking and resampling leave around the anatomy, also where interpolation undershoots to
values below it; nnU-Net crops to the voxels that are not zero. The minimum is that of a CT's air.
"""

from __future__ import annotations

import numpy as np


def content_mask(image: np.ndarray) -> np.ndarray:
    """Return `(X, Y, Z)`, True where any channel of `(C, X, Y, Z)` has content; everywhere where none has any."""
    found = np.zeros(image.shape[1:], bool)
    for channel in image:
        if channel.dtype.kind == "f":  # compared as the network sees it, in 32 bits
            channel = channel.astype(np.float32, copy=False)
        found |= (channel > channel.min()) & (channel != 0)
    return found if found.any() else ~found


def content_box(image: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """Return the box around the content of `(C, X, Y, Z)`, with a margin of voxels where the image has them."""
    found, box = content_mask(image), []
    for axis, extent in enumerate(found.shape):
        rows = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(rows[0]) - margin), min(extent, int(rows[-1]) + 1 + margin)))
    return tuple(box)
