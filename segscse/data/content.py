"""What of a scan is not its empty surroundings: voxels above the image's minimum that are not exactly zero.

Zero is what skull-stripping, masking and resampling leave around the anatomy, also where interpolation undershoots to
values below it; nnU-Net crops to the voxels that are not zero. The minimum is that of a CT's air.
"""

from __future__ import annotations

import numpy as np


def content_mask(image: np.ndarray, *, zeros: bool = False) -> np.ndarray:
    """Return `(X, Y, Z)`, True where any channel of `(C, X, Y, Z)` has content; everywhere where none has any.

    Values are compared in 32 bits, as the network sees them.

    Args:
        image: intensities.
        zeros: whether voxels of exactly zero count, too, as in the first plans.
    """
    found = np.zeros_like(image[0], dtype=bool)
    slowest = int(np.argmax(np.abs(found.strides)))  # along it, planes are contiguous and copies of them small
    planes = np.moveaxis(found, slowest, 0)
    for channel in image:
        lowest = _in_32_bits(channel.min())
        for plane, values in zip(planes, np.moveaxis(channel, slowest, 0), strict=True):
            values = _in_32_bits(values)
            plane |= values > lowest if zeros else (values > lowest) & (values != 0)
    return found if found.any() else ~found


def content_box(image: np.ndarray, margin: int = 1, *, zeros: bool = False) -> tuple[slice, ...]:
    """Return the box around the content of `(C, X, Y, Z)`, with a margin of voxels where the image has them."""
    found, box = content_mask(image, zeros=zeros), []
    for axis, extent in enumerate(found.shape):
        rows = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(rows[0]) - margin), min(extent, int(rows[-1]) + 1 + margin)))
    return tuple(box)


def _in_32_bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values
