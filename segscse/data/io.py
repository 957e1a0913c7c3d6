"""Reading volumes: NIfTI and MGH by nibabel, NRRD, MetaImage and DICOM series by SimpleITK, nothing half-read."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError, MGHHeader
from nibabel.spatialimages import HeaderDataError

from segscse.data.container import read_content, refuse_stand_in
from segscse.data.dicom import is_series, read_series
from segscse.data.geometry import affine_problem, same_grid
from segscse.data.nifti_header import announced_bytes, checked_content, nifti_class, placement_notes
from segscse.data.text_header import TextHeader, read_text_header
from segscse.errors import InputError, of_system
from segscse.files import atomic_path

NIBABEL_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
SITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
META_SUFFIXES = (".mha", ".mhd")
SUFFIXES = NIBABEL_SUFFIXES + SITK_SUFFIXES
# The voxels of a NIfTI or Analyze pair: listed, so that they are refused and not passed over in silence.
PAIR_SUFFIXES = (".img.gz", ".img")
_IMAGE_CLASS: dict[str, Any] = {".mgz": nib.MGHImage, ".mgh": nib.MGHImage}
# What nibabel raises on damaged files; KeyError: an unknown data type in MGH.
UNREADABLE = (
    *(ImageFileError, HeaderDataError, MGHError, OSError, EOFError, zlib.error),
    *(TypeError, ValueError, OverflowError, KeyError),
)


@dataclass(frozen=True, slots=True)
class Volume:
    """An image with its place in the world.

    Attributes:
        array: voxels `(X, Y, Z)` or `(X, Y, Z, C)`.
        affine: `(4, 4)`, voxel index to RAS millimetres.
        header: the header of the file, whose geometry returns to the output: NIfTI's or MGH's as nibabel has them,
            NRRD's and MetaImage's as text; None for arrays and DICOM.
        path: where it came from.
        notes: what was unusual but harmless, one phrase each.
        files: the slices of a DICOM series, in the order of the third axis.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | MGHHeader | TextHeader | None = None
    path: Path | None = None
    notes: tuple[str, ...] = field(default=())
    files: tuple[Path, ...] = ()


def image_suffix(path: str | Path) -> str | None:
    """Return the image suffix of a path (`.nii.gz`, `.nrrd`, ...), or None when it is not an image name."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES + PAIR_SUFFIXES if name.endswith(suffix)), None)


def image_stem(path: str | Path) -> str:
    """Return the file name without its image suffix: `a/b.nii.gz` gives `b`."""
    name = Path(path).name
    return name[: -len(image_suffix(name) or "")] if image_suffix(name) else name


def is_image(path: Path) -> bool:
    """Return whether a path is an image by its name, or a folder with a DICOM series."""
    return (image_suffix(path) is not None and path.is_file()) or is_series(path)


def list_images(folder: str | Path) -> dict[str, Path]:
    """Return the images of a folder, stem to path, sorted by name; hidden files are left out.

    A folder in it that holds a DICOM series is one image.

    Raises:
        InputError: no such folder, it cannot be read, or two images share a stem.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("is not a folder", file=folder, remedy="Check the path")
    images: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=folder, remedy="Check permissions") from error
    for path in paths:
        if path.name.startswith(".") or not _may_be_image(path):
            continue
        stem = image_stem(path)
        if stem in images:
            raise InputError(
                f"shares the name {stem!r} with {images[stem].name}",
                file=path,
                remedy="Keep one of the two files",
            )
        images[stem] = path
    return images


def _may_be_image(path: Path) -> bool:
    """Return whether a path is an image by its name, holds a DICOM series, or is a folder that cannot be looked into.

    Reading the last one fails as one case does, instead of hiding a series.
    """
    try:
        return image_suffix(path) is not None or is_series(path)
    except InputError:
        return True


def read_image(path: str | Path) -> Volume:
    """Read a volume to the last byte and check its container, data type and geometry.

    A gzip stream is read to its end, so that a wrong checksum or a missing trailer is an error. Trailing
    axes of size one are dropped; a fourth axis longer than one holds channels.

    Raises:
        InputError: the file is missing, truncated, corrupt, of an unsupported type or badly placed in space.
    """
    path = Path(path)
    volume = _read_any(path)
    array = volume.array
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"must be 3D, or 4D with channels last, got shape {array.shape}",
            file=path,
            remedy="Split or squeeze it",
        )
    if problem := affine_problem(volume.affine):
        raise InputError(problem, file=path, remedy="Correct the header or resample the image")
    return replace(volume, array=array)


def _read_any(path: Path) -> Volume:
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a folder above it, or its name, is the obstacle
        raise of_system(error) from error
    if is_folder:
        array, affine, files, notes = read_series(path)
        return Volume(array, affine, None, path, notes, files)
    suffix = image_suffix(path)
    if suffix in PAIR_SUFFIXES:
        problem = "is half of a NIfTI or Analyze pair, an image format that is not supported"
        raise InputError(problem, file=path, remedy="Convert the pair to one .nii.gz")
    if suffix is None:
        raise InputError(f"is not an image; allowed: {', '.join(SUFFIXES)}", file=path, remedy="Convert it to NIfTI")
    if not is_file:
        raise InputError("no such file", file=path, remedy="Check the path")
    return _read_sitk(path) if suffix in SITK_SUFFIXES else _read_nibabel(path, suffix)


def read_labels(path: str | Path) -> Volume:
    """Read a label map: a 3D volume of whole numbers, returned as the integer type that it needs.

    Raises:
        InputError: as `read_image`, and when values are not finite or further than 1e-3 from a whole number.
    """
    volume = read_image(path)
    array = volume.array
    if array.ndim != 3:
        raise InputError(f"a label map must be 3D, got shape {array.shape}", file=path, remedy="Give one label map")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("label values hold NaN or infinity", file=path, remedy="Correct the label map")
        rounded = np.rint(array)
        if (off := np.abs(array - rounded)).max() > 1e-3:
            worst = float(array.flat[int(off.argmax())])
            raise InputError(
                f"label values must be whole numbers, got {worst:g}",
                file=path,
                remedy="Was it resampled with interpolation? Use nearest neighbour",
            )
        array = rounded
    try:
        array = as_labels(array)
    except InputError as error:
        raise InputError(error.problem, file=path, remedy=error.remedy) from error
    return replace(volume, array=array)


def as_labels(array: np.ndarray) -> np.ndarray:
    """Return whole numbers in the smallest integer type that holds them (unsigned when none is negative)."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kinds: tuple[Any, ...] = (np.uint8, np.uint16, np.uint32, np.uint64)
    if low < 0:
        kinds = (np.int8, np.int16, np.int32, np.int64)
    for kind in kinds:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    raise InputError(f"label values between {low:g} and {high:g} fit no integer type", remedy="Correct the label map")


def write_image(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write `(X, Y, Z)` voxels as NIfTI on the grid of `like`, atomically; as NIfTI-2 when `like` was that.

    The affine, the qform and sform codes and the units are `like`'s; descriptions and extensions, which may
    name a patient, are not copied. Other formats: `segscse.data.output`.
    """
    image = nifti_like(array, like)
    with atomic_path(path) as temporary:
        nib.save(image, temporary.absolute())  # nibabel takes a leading "~" for the home folder


def nifti_like(array: np.ndarray, like: Volume) -> nib.Nifti1Image:
    """Return voxels `(X, Y, Z)` or `(X, Y, Z, C)` as an image on the grid of `like`, as `write_image` writes it."""
    image_class = nib.Nifti2Image if isinstance(like.header, nib.Nifti2Header) else nib.Nifti1Image
    header = image_class.header_class()
    header.set_data_dtype(array.dtype)
    image = image_class(array, like.affine, header)
    if isinstance(like.header, nib.Nifti1Header):
        _copy_geometry(image, like.header)
    else:
        image.set_sform(like.affine, 1)
        image.set_qform(like.affine, 1)
        if same_grid(array.shape, image.get_qform(), array.shape, image.get_sform()) is not None:
            image.header["qform_code"] = 0  # a quaternion holds no shear, not even the little of rounded axes
        image.header.set_xyzt_units("mm")
    return image


def _copy_geometry(image: nib.Nifti1Image, source: nib.Nifti1Header) -> None:
    """Copy the transform fields byte for byte, so that both forms and their codes return as they came."""
    fields = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"]
    fields += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"]
    for name in fields:
        image.header[name] = source[name]
    image.header["pixdim"][:4] = source["pixdim"][:4]


def _read_nibabel(path: Path, suffix: str) -> Volume:
    mgh = suffix in _IMAGE_CLASS
    zipped = suffix in (".nii.gz", ".mgz")

    def announced(start: bytes) -> int | None:
        return _mgh_bytes(start, path) if mgh else announced_bytes(start) if _nifti_class(start, path) else None

    content = read_content(path, compressed=zipped, announced=announced)
    notes: tuple[str, ...] = ()
    try:
        image_class = _IMAGE_CLASS[suffix] if mgh else _nifti_class(content, path)
        if not mgh:
            content, notes = checked_content(content, image_class, path)
        image = image_class.from_bytes(content)
        _check_payload(image, content, path)
        array = _voxels(image, path)
        affine = np.asarray(image.affine, np.float64)
        if not mgh:
            notes += placement_notes(image, path)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read ({reason})", file=path, remedy="Export the image again") from error
    return Volume(array, affine, image.header, path, notes)


def _mgh_bytes(start: bytes, path: Path) -> int:
    """Return how long an MGH file is by its own header.

    Raises:
        InputError: the header cannot be understood.
    """
    try:
        header = MGHHeader(start, check=False)
        voxels = int(np.prod([*map(int, header.get_data_shape())], dtype=object))
        return int(header.get_data_offset()) + max(voxels, 0) * int(header.get_data_dtype().itemsize)
    except UNREADABLE as error:
        raise InputError("is no MGH image that can be read", file=path, remedy="Export it again") from error


def _nifti_class(content: bytes, path: Path) -> Any:
    found = nifti_class(content)
    if found is None:
        raise InputError("is not a NIfTI image", file=path, remedy="Check what the file holds or export it again")
    return found


def _check_payload(image: Any, content: bytes, path: Path) -> None:
    """Refuse a file whose header announces more voxels than it holds, before anything is allocated."""
    shape = tuple(int(size) for size in image.header.get_data_shape())
    if not shape or min(shape) <= 0:
        raise InputError(f"has no voxels (shape {shape})", file=path, remedy="Export the image again")
    needed = int(np.prod([*map(int, shape)], dtype=object)) * image.header.get_data_dtype().itemsize
    if needed > len(content):
        raise InputError(
            f"is cut short: its header announces {needed} bytes of voxels, the file holds {len(content)}",
            file=path,
            remedy="Copy or export it again",
        )


def _voxels(image: Any, path: Path) -> np.ndarray:
    dtype = image.header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(
            f"voxels must be real numbers, got data type {dtype}",
            file=path,
            remedy="Convert it to grey values",
        )
    array = np.asanyarray(image.dataobj)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _read_sitk(path: Path) -> Volume:
    import SimpleITK as sitk  # noqa: N813, the field's idiom

    refuse_stand_in(path)
    header = read_text_header(path)
    try:
        image = sitk.ReadImage(str(path), imageIO=itk_format(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"cannot be read ({reason})", file=path, remedy="Export the image again") from error
    if image.GetDimension() != 3:
        raise InputError(f"must be 3D, got {image.GetDimension()}D", file=path, remedy="Split or squeeze it")
    array = sitk.GetArrayFromImage(image)
    array = array.transpose(2, 1, 0, *range(3, array.ndim))
    return Volume(array, itk_affine(image), header, path, header.notes)


def itk_format(path: Path) -> str:
    """Return ITK's name of a file's format, which it does not know by an upper-case `.MHA`."""
    return "MetaImageIO" if image_suffix(path) in META_SUFFIXES else "NrrdImageIO"


def itk_affine(image: Any) -> np.ndarray:
    """Return the RAS affine `(4, 4)` of a 3D `SimpleITK.Image`, or of a reader that has read a header."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
