"""NIfTI headers: what is wrong with one, and what nibabel would repair in silence, in words.

A header that contradicts itself is refused where two readers would place the voxels differently (NIfTI-1 standard,
"3D image orientation and location in space"); what has one sensible reading is read that way and noted.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from segscse.data.container import MOST_PACKED, first_bytes
from segscse.data.geometry import affine_problem, same_grid
from segscse.errors import InputError

# nibabel grades what it finds in a header: from here on it says so, and from 40 on it refuses.
REPAIRED, REFUSED = 30, 40
SPACING_TOLERANCE = 1e-3
UNITS = {0: "unknown", 1: "metres", 2: "mm", 3: "micrometres"}
SET_BOTH = "Decide which is right and set both alike (fslorient -copysform2qform or -copyqform2sform)"


def nifti_class(start: bytes) -> Any:
    """Return the NIfTI-1 or NIfTI-2 image class that the first bytes of a file call for, or None."""
    for image in (nib.Nifti1Image, nib.Nifti2Image):
        size = image.header_class.sizeof_hdr
        if len(start) >= size and image.header_class.may_contain_header(start[:size]):
            return image
    return None


def announced_bytes(start: bytes) -> int | None:
    """Return how long a NIfTI file is by its own header; None where the header does not tell."""
    image = nifti_class(start)
    if image is None:
        return None
    header = image.header_class(start[: image.header_class.sizeof_hdr], check=False)
    try:
        end = voxel_end(header) if int(header["sizeof_hdr"]) == header.sizeof_hdr else 0
        return end if end > 0 else None
    except (HeaderDataError, ValueError, OverflowError, KeyError):
        return None


def peek_header(path: Path) -> Any:
    """Return the header of a NIfTI file from its first bytes, or None where it has none that can be true."""
    start = first_bytes(path)
    image = nifti_class(start)
    if image is None:
        return None
    try:
        header, _ = _repaired(image.header_class(start[: image.header_class.sizeof_hdr], check=False))
        return header if voxel_end(header) <= MOST_PACKED * path.stat().st_size else None
    except (HeaderDataError, ValueError, OverflowError, KeyError, OSError):
        return None


def voxel_end(header: Any) -> int:
    """Return where the voxels end that a header announces, in bytes from the file's start."""
    shape = [int(size) for size in header.get_data_shape()]
    voxels = int(np.prod(shape, dtype=object)) if shape else 0
    return int(header.get_data_offset()) + max(voxels, 0) * header.get_data_dtype().itemsize


def checked_content(content: bytes, image_class: Any, path: Path) -> tuple[bytes, tuple[str, ...]]:
    """Return a file's bytes with its header repaired and without extensions, and what was repaired or is left over.

    Raises:
        InputError: voxel sizes that are not finite or zero where they are needed, or an extension out of bounds.
        HeaderDataError: nibabel refuses the header.
    """
    size = image_class.header_class.sizeof_hdr
    raw = image_class.header_class(content[:size], check=False)
    if int(raw["sizeof_hdr"]) != size:  # nibabel takes a number of axes out of 1 to 7 for the other byte order
        raise InputError("its header has no valid number of axes", file=path, remedy="Export the image again")
    _check_voxel_sizes(raw, path)
    end = _extensions_end(raw, content, path)
    header, notes = _repaired(raw)
    if (extra := len(content) - voxel_end(header)) > 0:
        notes += (f"holds {extra} bytes after its voxels",)
    flag = b"\0\0\0\0" if end > size + 4 else content[size : size + 4]
    start = header.binaryblock + flag
    if start != content[: size + 4]:
        content = start + content[size + 4 :]
    return content, notes


def placement_notes(image: Any, path: Path) -> tuple[str, ...]:
    """Return what is unusual about where a NIfTI image lies, one phrase each.

    Args:
        image: as nibabel has it.
        path: the file, for messages.

    Raises:
        InputError: qform and sform are set and put the voxels in different places, or the qform is no rotation.
    """
    header = image.header
    notes = []
    if len(image.shape) == 2:
        notes.append("is 2D and taken as a single slice")
    notes += _form_notes(image, path)
    unit = UNITS.get(int(header["xyzt_units"]) & 7, "no known unit")
    if unit != "mm":
        notes.append(
            "does not say its units, so they are taken as mm"
            if unit == "unknown"
            else f"gives {unit} as its unit, but its numbers are taken as mm"
        )
    return tuple(notes)


def _form_notes(image: Any, path: Path) -> list[str]:
    header = image.header
    shape = (*image.shape, 1, 1)[:3]  # of a single slice, too
    try:
        qform, q_code = header.get_qform(coded=True)
    except ValueError as error:
        raise InputError(f"the qform's quaternion is no rotation ({error})", file=path, remedy=SET_BOTH) from error
    sform, s_code = header.get_sform(coded=True)
    if not q_code and not s_code:
        return ["neither qform nor sform is set, so the orientation is a guess"]
    if not s_code or affine_problem(sform) is not None:  # the affine is examined after this
        return []
    if q_code and (difference := same_grid(shape, qform, shape, sform)):
        raise InputError(f"qform and sform disagree ({difference})", file=path, remedy=SET_BOTH)
    axes = min(len(image.shape), 3)
    stated = np.abs(header["pixdim"][1 : axes + 1].astype(np.float64))
    used = np.linalg.norm(sform[:3, :3], axis=0)[:axes]
    if np.allclose(stated, used, rtol=SPACING_TOLERANCE, atol=0):
        return []
    return [f"pixdim says {_show(stated)} mm and the sform {_show(used)} mm, which counts"]


def _check_voxel_sizes(header: Any, path: Path) -> None:
    axes = min(max(int(header["dim"][0]), 0), 3)
    sizes = header["pixdim"][1 : axes + 1]
    if not np.isfinite(sizes).all():
        raise InputError("pixdim holds NaN or infinity", file=path, remedy="Set the voxel size in the header")
    if (sizes == 0).any() and int(header["sform_code"]) <= 0:
        problem = "pixdim is 0 and no sform is set, so the voxel size is not known"
        raise InputError(problem, file=path, remedy="Set the voxel size in the header")


def _extensions_end(header: Any, content: bytes, path: Path) -> int:
    """Return where the header's extensions end; the first byte after the header says whether there are any."""
    place = header.sizeof_hdr + 4
    if content[place - 4 : place - 3] in (b"", b"\0"):
        return place
    stop = int(header["vox_offset"])
    order: Literal["little", "big"] = "little" if header.endianness == "<" else "big"
    while place + 16 <= stop:
        length = int.from_bytes(content[place : place + 4], order, signed=True)
        if length < 8 or place + length > stop:
            problem = f"a header extension of {length} bytes does not fit before the voxels"
            raise InputError(problem, file=path, remedy="Export the image again")
        place += length
    return place


def _repaired(header: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the header as nibabel repairs it, and its words for what is changed by that."""
    said: list[str] = []
    logger = logging.Logger("header")
    logger.addHandler(_Collector(said))
    before = header.binaryblock
    header.check_fix(logger=logger, error_level=REFUSED)
    # Some findings are no more than a remark, "leaving at current value".
    changes = tuple(text for text in said if "leaving" not in text)
    return header, changes if header.binaryblock != before else ()


class _Collector(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(REPAIRED)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"its header is repaired: {record.getMessage()}")


def _show(values: np.ndarray) -> str:
    return "x".join(f"{value:.4g}" for value in values)
