"""Builders of single faults: each writes one image file that is healthy but for one thing, and returns its path.

A builder takes the path without suffix, the healthy voxels, their affine and a random generator. Everything is made
from the generator's seed; nothing is stored.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

Builder = Callable[[Path, np.ndarray, np.ndarray, np.random.Generator], Path]
# Where a bit of the stream is flipped, as shares of it: 20 places, the same in every run.
FLIP_PLACES = tuple(np.random.default_rng(707).uniform(0.01, 0.99, 20).round(4))


def packed(content: bytes) -> bytes:
    """Return a gzip stream without a time in it, so that the same seed gives the same bytes."""
    return gzip.compress(content, compresslevel=1, mtime=0)


def nifti(
    array: np.ndarray,
    affine: np.ndarray,
    *,
    qform: int = 1,
    sform: int = 1,
    units: str = "mm",
    image_class: type = nib.Nifti1Image,
    **fields: object,
) -> bytes:
    """Return an uncompressed NIfTI file whose named header fields are overwritten after all is written.

    `pixdim_0` ... and `dim_0` ... address one element of those fields.
    """
    image = image_class(array, None, dtype=array.dtype)
    if qform:
        rigid = affine.copy()  # a qform holds no shear: where there is one, it gets the nearest rotation
        image.set_qform(rigid, qform, strip_shears=True)
    image.set_sform(affine if sform else None, sform)
    if not qform:
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    image.header.set_xyzt_units(units)
    content = bytearray(image.to_bytes())
    size = image.header.sizeof_hdr
    header = np.frombuffer(bytes(content[:size]), image.header.template_dtype).copy()
    header["qform_code"], header["sform_code"] = qform, sform  # nibabel sets them by itself where both are absent
    for name, value in fields.items():
        field, _, place = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        if field in ("pixdim", "dim"):
            header[field][0, int(place)] = value
        else:
            header[name] = value
    content[:size] = header.tobytes()
    return bytes(content)


def plain_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """Return the healthy file, uncompressed."""
    return nifti(array, affine)


def write(stem: Path, suffix: str, content: bytes) -> Path:
    """Write a file beside `stem`'s place and return its path."""
    path = stem.parent / f"{stem.name}{suffix}"
    path.write_bytes(content)
    return path


def healthy(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write the file without any fault."""
    return write(stem, ".nii.gz", packed(nifti(array, affine)))


def with_header(**edits: object) -> Builder:
    """Return a builder that changes header fields, or what `nifti` takes."""

    def build(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
        return write(stem, ".nii.gz", packed(nifti(array, affine, **edits)))

    return build


def with_array(change: Callable[[np.ndarray], np.ndarray], **edits: object) -> Builder:
    """Return a builder that changes the voxels."""

    def build(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
        return write(stem, ".nii.gz", packed(nifti(change(array), affine, **edits)))

    return build


def with_affine(change: Callable[[np.ndarray], np.ndarray], **edits: object) -> Builder:
    """Return a builder that changes the affine, in both forms."""

    def build(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
        return write(stem, ".nii.gz", packed(nifti(array, change(affine), **edits)))

    return build


def with_bytes(change: Callable[[bytes, np.random.Generator], bytes], suffix: str = ".nii.gz") -> Builder:
    """Return a builder that changes the finished file, compressed or not as the suffix says."""

    def build(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
        content = nifti(array, affine)
        return write(stem, suffix, change(packed(content) if suffix == ".nii.gz" else content, rng))

    return build


def structured(kind: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change to voxels of several bytes each, such as RGB."""

    def change(array: np.ndarray) -> np.ndarray:
        out = np.zeros(array.shape, kind)
        for name in kind.names or ():
            out[name] = np.clip(array, 0, 255).astype(np.uint8)
        return out

    return change


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
RGBA = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])


def one_voxel(value: float, dtype: type = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change of one voxel."""

    def change(array: np.ndarray) -> np.ndarray:
        out = array.astype(dtype)
        out[5, 6, 4] = value
        return out

    return change


def cropped(*shape: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change to the middle of the volume, where the objects are."""

    def change(array: np.ndarray) -> np.ndarray:
        starts = [min(4, size - wanted) for size, wanted in zip(array.shape, shape, strict=True)]
        return array[tuple(slice(start, start + wanted) for start, wanted in zip(starts, shape, strict=True))].copy()

    return change


def huge_header(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write a header of 32767 x 32767 x 32767 voxels before 1000 bytes."""
    content = nifti(array, affine, dim_1=32767, dim_2=32767, dim_3=32767)
    return write(stem, ".nii.gz", packed(content[:352] + b"\0" * 1000))


def flipped_bit(number: int) -> Builder:
    """Return a builder that flips one bit at the number-th of the fixed places in the compressed stream."""

    def change(content: bytes, rng: np.random.Generator) -> bytes:
        out = bytearray(content)
        # Between the member's header and its trailer; a flipped time stamp changes no voxel.
        place = 10 + int(FLIP_PLACES[number] * (len(out) - 18))
        start = int(rng.integers(8))
        for step in range(8):
            bit = 1 << (start + step) % 8
            out[place] ^= bit
            if _unpacked(bytes(out)) != _unpacked(content):  # padding and unused codes change nothing
                return bytes(out)
            out[place] ^= bit
        raise ValueError(f"no bit of byte {place} makes a difference")

    return with_bytes(change)


def _unpacked(content: bytes) -> bytes:
    """Return what a stream's deflated part unpacks to, whatever its checksum; nothing where it cannot be."""
    try:
        return zlib.decompressobj(-15).decompress(content[10:])
    except zlib.error:
        return b""


def flip_byte(place: int) -> Callable[[bytes, np.random.Generator], bytes]:
    """Return a change of one byte."""

    def change(content: bytes, rng: np.random.Generator) -> bytes:
        out = bytearray(content)
        out[place] ^= 0xFF
        return bytes(out)

    return change


def two_members(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write the file as two gzip members, one after the other."""
    content = nifti(array, affine)
    cut = int(rng.integers(400, len(content) - 1))
    return write(stem, ".nii.gz", packed(content[:cut]) + packed(content[cut:]))


def bomb(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write a healthy volume and then 256 MiB of zeros, packed a thousand to one."""
    return write(stem, ".nii.gz", packed(nifti(array, affine)) + _many_zeros())


@cache
def _many_zeros() -> bytes:
    worker = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join([*(worker.compress(b"\0" * 2**20) for _ in range(256)), worker.flush()])


def endless_name(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write a gzip header that says a file name follows, which does not end within 8 MiB."""
    return write(stem, ".nii.gz", b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n" * 2**23)


def pointer(text: bytes) -> Builder:
    """Return a builder of what version control leaves in place of a file."""
    return with_bytes(lambda content, rng: text)


def nifti2(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write NIfTI-2."""
    return write(stem, ".nii.gz", packed(nifti(array, affine, image_class=nib.Nifti2Image)))


def float128(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write voxels of 16 bytes, which the header calls float128."""
    wide = np.repeat(array.astype(np.float64), 2, axis=0)
    return write(stem, ".nii.gz", packed(nifti(wide, affine, datatype=1536, bitpix=128, dim_1=len(array))))


def big_endian(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write all in the other byte order."""
    image = nib.Nifti1Image(array, affine, nib.Nifti1Header(endianness=">"), dtype=array.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    return write(stem, ".nii.gz", packed(image.to_bytes()))


def scaled(slope: float, inter: float = 0.0, dtype: type = np.int16) -> Builder:
    """Return a builder that stores integers with a slope and an intercept, so that the values stay what they were."""

    def build(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
        useful = np.isfinite(slope) and slope != 0
        stored = np.rint(array / slope - (inter / slope if np.isfinite(inter) else 0)) if useful else np.rint(array)
        return write(stem, ".nii.gz", packed(nifti(stored.astype(dtype), affine, scl_slope=slope, scl_inter=inter)))

    return build


def headerless_pair(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write the voxels of a NIfTI pair without its header file."""
    return write(stem, ".img", np.asfortranarray(array).tobytes(order="F"))


def bad_extension(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write an extension that says it is longer than what lies before the voxels."""
    content = bytearray(nifti(array, affine, vox_offset=368))
    return write(
        stem, ".nii", bytes(content[:348]) + b"\1\0\0\0" + struct.pack("<ii", 2**20, 4) + b"\0" * 8 + content[352:]
    )


def folder(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Make a folder of that name."""
    path = stem.parent / f"{stem.name}.nii.gz"
    path.mkdir()
    return path


def dangling_link(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Make a link to nowhere."""
    path = stem.parent / f"{stem.name}.nii.gz"
    path.symlink_to(stem.parent / "nowhere.nii.gz")
    return path


def unreadable(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Make a file that nobody can read: without permission, and where this is no obstacle, a link to one that fails."""
    path = stem.parent / f"{stem.name}.nii.gz"
    if os.geteuid():
        healthy(stem, array, affine, rng)
        path.chmod(0)
    else:
        path.symlink_to("/proc/self/mem")  # opens, but reading its first byte is an error for root, too
    return path


def turned(degrees: float, axis: str = "x") -> Callable[[np.ndarray], np.ndarray]:
    """Return a rotation of the voxel grid about the world's axis."""

    def change(affine: np.ndarray) -> np.ndarray:
        out = affine.copy()
        out[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() @ affine[:3, :3]
        return out

    return change


def sheared(tangent: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a shear of the second axis towards the first."""

    def change(affine: np.ndarray) -> np.ndarray:
        out = affine.copy()
        out[:3, 1] += tangent * affine[:3, 0]
        return out

    return change


def shifted(*offset_mm: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a move in the world."""

    def change(affine: np.ndarray) -> np.ndarray:
        out = affine.copy()
        out[:3, 3] += offset_mm
        return out

    return change


def spaced(*factors: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return other voxel sizes, by factor."""
    return lambda affine: affine @ np.diag([*factors, 1.0])


def reoriented(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Write the same voxels at the same places in the world, stored in another order."""
    turn = np.array([[2, -1], [0, 1], [1, -1]])
    stored = nib.apply_orientation(array, turn)
    return write(stem, ".nii.gz", packed(nifti(stored, affine @ nib.orientations.inv_ornt_aff(turn, array.shape))))
