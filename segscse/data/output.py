"""Writing label maps: as NIfTI or in the format of the scan, on the scan's own grid, its geometry as it came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader, MGHImage

from segscse.data.io import Volume, image_suffix, write_image
from segscse.data.text_header import TextHeader, write_meta, write_nrrd
from segscse.errors import InputError
from segscse.files import atomic_path

OutputFormat = Literal["nifti", "input"]
DICOM_SEG = ".dcm"
# A header in one file with its voxels: a pair of files could be half-written.
_SUFFIX = {".nhdr": ".nrrd", ".mhd": ".mha"}
_MGH_TYPES = (np.uint8, np.int16, np.int32)


def output_suffix(like: Volume, form: OutputFormat) -> str:
    """Return the suffix of a label map for a scan: `.nii.gz`, or the scan's own, `.dcm` (DICOM SEG) for a series.

    A scan from memory, and any with `nifti`, gives `.nii.gz`; a header with its voxels in a second file gives the
    same format in one file.
    """
    if form == "nifti" or like.path is None:
        return ".nii.gz"
    if like.files:
        return DICOM_SEG
    suffix = image_suffix(like.path) or ".nii.gz"
    return _SUFFIX.get(suffix, suffix)


def write_labels(path: str | Path, array: np.ndarray, like: Volume, labels: Mapping[int, str] | None = None) -> None:
    """Write a label map `(X, Y, Z)` on the grid of `like`, atomically, in the format that the name says.

    Args:
        path: `.nii`, `.nii.gz`; `.mgh`, `.mgz`; `.nrrd`; `.mha`; or `.dcm` for DICOM SEG.
        array: whole numbers; written in the smallest type of the format that holds its own type's range.
        like: the scan. NRRD, MetaImage and MGH take its header's geometry as it stands, when it is of that format.
        labels: id to name, for DICOM SEG.

    Raises:
        InputError: an unknown suffix, ids that the format cannot hold, or a format that `like` has no geometry for.
    """
    path = Path(path)
    suffix = DICOM_SEG if path.suffix.lower() == DICOM_SEG else image_suffix(path)
    if suffix in (".nii", ".nii.gz"):
        write_image(path, array, like)
    elif suffix in (".mgh", ".mgz"):
        _write_mgh(path, array, like)
    elif suffix in (".nrrd", ".mha"):
        fields = _geometry(like, "nrrd" if suffix == ".nrrd" else "meta")
        (write_nrrd if suffix == ".nrrd" else write_meta)(path, array, fields)
    elif suffix == DICOM_SEG:
        from segscse.data.dicom_seg import write_seg  # an extra

        write_seg(path, array, like, labels or {})
    else:
        raise InputError(
            "cannot be written: the suffix must be .nii.gz, .nii, .mgz, .mgh, .nrrd, .mha or .dcm",
            file=path,
            remedy="Choose one of them",
        )


def _write_mgh(path: Path, array: np.ndarray, like: Volume) -> None:
    info = next((kind for kind in _MGH_TYPES if _fits(array, kind)), None)
    if info is None:
        raise InputError("MGH holds no label ids beyond 32 bits", file=path, remedy="Write NIfTI")
    header = MGHHeader()
    header.set_data_dtype(info)
    if isinstance(like.header, MGHHeader):
        header["dims"] = [*array.shape, 1]
        for name in ("goodRASFlag", "delta", "Mdc", "Pxyz_c"):
            header[name] = like.header[name]
    image = MGHImage(array.astype(info), like.affine, header)
    with atomic_path(path) as temporary:
        nib.save(image, temporary.absolute())


def _fits(array: np.ndarray, kind: type[np.integer]) -> bool:
    own, other = np.iinfo(array.dtype), np.iinfo(kind)
    return other.min <= own.min and own.max <= other.max


def _geometry(like: Volume, form: str) -> Mapping[str, str]:
    """Return the geometry fields of a format: the scan's own text, or made from its affine."""
    if isinstance(like.header, TextHeader) and like.header.format == form:
        return like.header.fields
    columns = [_text(like.affine[:3, axis]) for axis in range(3)]
    if form == "nrrd":
        directions = " ".join(f"({','.join(column)})" for column in columns)
        origin = f"({','.join(_text(like.affine[:3, 3]))})"
        return {"space": "right-anterior-superior", "space directions": directions, "space origin": origin}
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ like.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return {
        "TransformMatrix": " ".join(_text((lps[:3, :3] / spacing).T.ravel())),
        "Offset": " ".join(_text(lps[:3, 3])),
        "ElementSpacing": " ".join(_text(spacing)),
    }


def _text(values: np.ndarray) -> list[str]:
    return [repr(float(value)) for value in values]
