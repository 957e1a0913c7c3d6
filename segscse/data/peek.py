"""The size of a scan from its header, before any voxel is read."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from segscse.data.container import MOST_PACKED
from segscse.data.dicom import peek_series
from segscse.data.io import NIBABEL_SUFFIXES, SITK_SUFFIXES, UNREADABLE, image_suffix, itk_affine, itk_format
from segscse.data.nifti_header import peek_header
from segscse.data.text_header import peek_text_header


class Peeked(NamedTuple):
    """What a header tells.

    Attributes:
        shape: `(X, Y, Z)` and further axes; of NIfTI there may be fewer than three.
        affine: `(4, 4)`, RAS mm.
        itemsize: bytes a voxel takes in the file, over the channels that are no axis of `shape`.
        scaled: whether voxels become 64 bits on reading.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    itemsize: int
    scaled: bool = False


def peek_scan(path: Path) -> Peeked | None:
    """Return what the header of an image file, or those of a DICOM series, tell about its size.

    Returns:
        None where they tell nothing, or more than the file can hold; reading it will say why.
    """
    suffix = image_suffix(path)
    try:
        if path.is_dir():
            found = peek_series(path)
            return None if found is None else Peeked(*found)
        if suffix in SITK_SUFFIXES:
            return _peek_itk(path)
        if suffix in NIBABEL_SUFFIXES:
            return _peek_mgh(path) if suffix in (".mgh", ".mgz") else _peek_nifti(path)
    except UNREADABLE:
        pass
    return None


def _peek_nifti(path: Path) -> Peeked | None:
    if (header := peek_header(path)) is None:
        return None
    scaled = header.get_slope_inter() not in ((None, None), (1.0, 0.0))
    shape = tuple(int(size) for size in header.get_data_shape())
    return Peeked(shape, header.get_best_affine(), header.get_data_dtype().itemsize, scaled)


def _peek_mgh(path: Path) -> Peeked | None:
    image: Any = nib.load(path.absolute())
    found = Peeked(image.shape, image.affine, image.get_data_dtype().itemsize)
    return found if prod(image.shape) * found.itemsize <= MOST_PACKED * path.stat().st_size else None


def _peek_itk(path: Path) -> Peeked | None:
    """Return what an NRRD or a MetaImage tells; its geometry as ITK understands it."""
    import SimpleITK as sitk  # noqa: N813, the field's idiom

    header = peek_text_header(path)  # first, because ITK ends the whole process on some files
    if header is None or header.expected > MOST_PACKED * header.data[0].stat().st_size:
        return None
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(itk_format(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    shape = tuple(int(size) for size in reader.GetSize())
    return Peeked(shape, itk_affine(reader), header.expected // prod(shape)) if len(shape) == 3 else None
