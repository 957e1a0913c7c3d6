"""DICOM series: a folder of slices as one volume, refused where its slices do not make one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segscse.errors import InputError

MAGIC = b"DICM"  # after 128 bytes
LOOKED_AT = 5  # files of a folder that are opened to see whether it is a series
POSITION_MM = 0.01  # rounding of positions in headers
SPACING_TOLERANCE = 0.01  # of the distance between slices
COSINE_TOLERANCE = 1e-4
TAGS = {"series": "0020|000e", "position": "0020|0032", "orientation": "0020|0037", "spacing": "0028|0030"}
TAGS |= {"rows": "0028|0010", "columns": "0028|0011", "samples": "0028|0002", "frames": "0028|0008"}
TAGS |= {"thickness": "0018|0050", "modality": "0008|0060"}
# Names of slices differ by their numbers; a slice that a broken copy has left empty has such a name, too.
NUMBER = re.compile(r"\d+")
SLICE_SUFFIXES = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True, slots=True)
class Slice:
    """What one file says about its place.

    Attributes:
        path: the file.
        series: SeriesInstanceUID.
        position: of the first voxel, mm, LPS.
        axes: unit vectors along a row and along a column, `(2, 3)`, LPS.
        spacing: mm between columns and between rows.
        shape: columns and rows.
        thickness: mm, or None.
        pixel: SimpleITK's number of the type that voxels are read in.
    """

    path: Path
    series: str
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    thickness: float | None
    pixel: int


def is_series(folder: str | Path) -> bool:
    """Return whether a folder holds DICOM files, by the first few of its files.

    Raises:
        InputError: the folder cannot be read.
    """
    folder = Path(folder)
    return folder.is_dir() and any(seems_dicom(path) for path in _files(folder)[:LOOKED_AT])


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[Path, ...], tuple[str, ...]]:
    """Read a folder's one series: voxels `(X, Y, Z)`, affine (RAS mm), files in the order of Z, notes.

    Slices are ordered by their positions, not by name or number; intensities are rescaled as each file says.

    Raises:
        InputError: no or several series, slices that are missing, repeated, unevenly spaced, of different size or
            orientation, tilted against each other, in colour, of several frames, or damaged.
    """
    files = _files(folder)
    paths = [path for path in files if _is_dicom(path)]
    if not paths:
        raise InputError("holds no DICOM files", file=folder, remedy="Give an image file or a folder of a DICOM series")
    kinds = {NUMBER.sub("0", path.name.lower()) for path in paths}
    for path in set(files) - set(paths):
        if NUMBER.sub("0", path.name.lower()) in kinds or path.suffix.lower() in SLICE_SUFFIXES:
            raise InputError(
                "is named as a slice of the series, and is no whole DICOM file",
                file=path,
                remedy="Copy or export the series again, or remove the file",
            )
    slices = [_describe(path) for path in paths]
    _check_alike(slices, folder)
    normal = np.cross(*slices[0].axes)
    slices.sort(key=lambda one: float(one.position @ normal))
    step, notes = _step(slices, normal, folder)
    array = np.stack([_pixels(one) for one in slices], axis=-1)
    return array, _affine(slices[0], step), tuple(one.path for one in slices), notes


def peek_series(folder: Path) -> tuple[tuple[int, ...], np.ndarray, int] | None:
    """Return about what shape `(X, Y, Z)`, affine (RAS mm) and bytes a voxel a series has, by its first few files.

    Every file counts as a slice, and slices lie as close as those of the first few files do.

    Returns:
        None where these files do not tell; reading the series will say why.
    """
    import SimpleITK as sitk  # noqa: N813

    try:
        paths = [path for path in _files(folder) if seems_dicom(path)]
        slices = [_describe(path) for path in paths[:LOOKED_AT]]
        itemsize = sitk.GetArrayViewFromImage(sitk.Image([1, 1], slices[0].pixel)).itemsize
    except (InputError, RuntimeError, IndexError):
        return None
    first, thickness = slices[0], slices[0].thickness
    if not thickness or len({one.series for one in slices}) > 1:
        return None
    normal = np.cross(*first.axes)
    gaps = np.diff(np.sort([float(one.position @ normal) for one in slices]))
    step = min(gaps, default=thickness)
    if step > 1.01 * thickness:  # names do not follow places, and slices may overlap by any share
        return None
    return (*first.shape, len(paths)), _affine(first, normal * step), itemsize


def _affine(first: Slice, step: np.ndarray) -> np.ndarray:
    """Return the affine (RAS mm) of slices that lie `step` (LPS mm) apart."""
    affine = np.eye(4)
    affine[:3, :2] = first.axes.T * first.spacing
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=folder, remedy="Check permissions") from error


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == MAGIC
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Check permissions") from error


def seems_dicom(path: Path) -> bool:
    """Return what `_is_dicom` does; a file that cannot be read is none, so that it fails alone and later."""
    try:
        return _is_dicom(path)
    except InputError:
        return False


def _describe(path: Path) -> Slice:
    import SimpleITK as sitk  # noqa: N813, the field's idiom

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(path, error) from error
    tags = {name: reader.GetMetaData(tag).strip() for name, tag in TAGS.items() if reader.HasMetaDataKey(tag)}
    if tags.get("samples", "1") != "1":
        raise InputError("voxels must be grey values, got colours", file=path, remedy="Convert it to grey values")
    if tags.get("frames", "1") not in ("1", ""):
        raise InputError("DICOM files of several frames are not supported", file=path, remedy="Convert it to NIfTI")
    try:
        rows_apart, columns_apart = _numbers(tags["spacing"], 2)
        return Slice(
            path=path,
            series=tags["series"],
            position=np.array(_numbers(tags["position"], 3)),
            axes=np.array(_numbers(tags["orientation"], 6)).reshape(2, 3),
            spacing=(columns_apart, rows_apart),
            shape=(int(tags["columns"]), int(tags["rows"])),
            thickness=float(tags["thickness"]) if tags.get("thickness") else None,
            pixel=int(reader.GetPixelIDValue()),
        )
    except (KeyError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else str(error)
        kind = tags.get("modality", "DICOM")
        raise InputError(
            f"is no slice of an image ({kind} file without a usable {missing})", file=path, remedy="Remove the file"
        ) from error


def _numbers(text: str, count: int) -> list[float]:
    values = [float(part) for part in text.split("\\")]
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError(f"list of {count} numbers (got {text!r})")
    return values


def _check_alike(slices: Sequence[Slice], folder: Path) -> None:
    first = slices[0]
    series = sorted({one.series for one in slices})
    if len(series) > 1:
        raise InputError(
            f"holds {len(series)} DICOM series: {', '.join(uid[-24:] for uid in series[:4])}",
            file=folder,
            remedy="Put each series into a folder of its own",
        )
    for one in slices[1:]:
        if np.abs(one.axes - first.axes).max() > COSINE_TOLERANCE:
            what = f"has another orientation than {first.path.name}"
        elif one.shape != first.shape or not np.allclose(one.spacing, first.spacing, rtol=1e-4):
            what = f"has another size or voxel size than {first.path.name}"
        else:
            continue
        raise InputError(what, file=one.path, remedy="Give one series of parallel slices, without localisers")


def _step(slices: Sequence[Slice], normal: np.ndarray, folder: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the vector from one slice to the next, mm, and notes.

    Raises:
        InputError: the slices do not lie evenly on one line.
    """
    if len(slices) == 1:
        thickness = slices[0].thickness
        if not thickness or thickness <= 0:
            raise InputError("holds one slice of unknown thickness", file=folder, remedy="Give the whole series")
        return normal * thickness, ("a single slice; its thickness stands for the slice distance",)
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    slack = max(POSITION_MM, SPACING_TOLERANCE * typical)
    for number, gap in enumerate(gaps):
        if gap < POSITION_MM:
            raise InputError(
                f"lies where {slices[number].path.name} does (several echoes or time points in one series?)",
                file=slices[number + 1].path,
                remedy="Put each volume into a folder of its own",
            )
        if abs(gap - typical) > slack:
            raise InputError(
                f"slices are unevenly spaced: {gap:.4g} mm between {slices[number].path.name} and "
                f"{slices[number + 1].path.name}, {typical:.4g} mm elsewhere",
                file=folder,
                remedy="Is a slice missing? Copy the whole series",
            )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    line = positions[0] + np.arange(len(slices))[:, None] * step
    if np.linalg.norm(positions - line, axis=1).max() > max(slack, 0.05):
        raise InputError("the slices do not lie on one line", file=folder, remedy="Convert it with dcm2niix and check")
    return step, ()


def _pixels(one: Slice) -> np.ndarray:
    """Return a file's rescaled voxels `(X, Y)`."""
    import SimpleITK as sitk  # noqa: N813

    try:
        image = sitk.ReadImage(str(one.path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise _damaged(one.path, error) from error
    array: Any = sitk.GetArrayFromImage(image)
    return array.reshape(array.shape[-2:]).T


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[-1][-200:]
    return InputError(f"cannot be read ({reason})", file=path, remedy="Copy or export it again")
