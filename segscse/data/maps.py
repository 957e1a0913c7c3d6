"""Maps of numbers between 0 and 1 as NIfTI, a byte a voxel."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segscse.data.io import Volume, nifti_like
from segscse.files import atomic_path

MAP_SLOPE = 1 / 255


def write_map(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write bytes `(X, Y, Z)` or `(X, Y, Z, C)` that stand for multiples of 1/255, on the grid of `like`, atomically.

    The slope goes into the header, so that readers see values in [0, 1], each within 1/510 of what was rounded to it.
    Voxels are compressed volume by volume: of an array in a file no more than that is in memory.
    """
    image = nifti_like(array, like)
    header = image.header
    header.set_slope_inter(MAP_SLOPE, 0.0)
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    with atomic_path(path) as temporary, temporary.open("wb") as file, _gzip(file) as stream:
        stream.write(header.binaryblock + b"\0" * (int(header["vox_offset"]) - header.sizeof_hdr))
        for volume in np.moveaxis(array, -1, 0) if array.ndim == 4 else [array]:
            for plane in np.moveaxis(volume, -1, 0):
                stream.write(plane.tobytes(order="F"))


def _gzip(file: BinaryIO) -> gzip.GzipFile:
    """Compress without the name and the time that gzip puts into its header: equal maps are equal files."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0)
