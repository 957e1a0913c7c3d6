"""What to predict: image files, folders and CSV files become cases with their channel files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from segscse.data.dicom import is_series, seems_dicom
from segscse.data.index import check_name, csv_rows, require_unique
from segscse.data.io import image_stem, image_suffix, is_image, list_images
from segscse.errors import InputError

# What `predict` writes beside its label maps.
RECORD = "predictions.json"
GIVE_IMAGES = "Give files or folders of images"
# Folders that an error lists by name.
MOST_NAMED = 4


# Case names to channel files, and why some of these cases cannot be used.
Found = tuple[dict[str, tuple[Path, ...]], dict[str, InputError]]


def find_inputs(paths: list[Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """Return what `list_inputs` does, all of which must have its channels.

    Raises:
        InputError: nothing found, a case that occurs twice, or one without all its channels.
    """
    cases, faults = list_inputs(paths, channels)
    for fault in faults.values():
        raise fault
    return cases


def list_inputs(paths: list[Path], channels: int) -> Found:
    """Return the cases to predict, name to channel files, from image files, folders and CSV files, and the bad ones.

    Where the files of a folder, or all files given singly, end in four digits, `_0000` among them, these number the
    channels of a case. A CSV has the columns `case,image[,image2...]`; `label` and `subject` are left aside.

    Raises:
        InputError: nothing found, a case that occurs twice, or no case with all its channels.
    """
    cases: dict[str, tuple[Path, ...]] = {}
    faults: dict[str, InputError] = {}
    for found, bad in _sources(paths, channels):
        faults |= bad
        for name, files in found.items():
            check_name(name, files[0])
            if name in cases:
                raise InputError(f"two inputs are named {name!r}", file=files[0], remedy="Predict them separately")
            cases[name] = files
    if not cases:
        raise InputError("no images found", file=paths[0] if paths else None, remedy=GIVE_IMAGES)
    if len(faults) == len(cases):  # rather another model's scans than some files lost
        raise next(iter(faults.values()))
    return cases, faults


def _sources(paths: list[Path], channels: int) -> list[Found]:
    """Return what every folder and CSV holds, and what the files given singly are."""
    single: dict[str, Path] = {}
    sources: list[Found] = []
    for path in paths:
        name = image_stem(os.path.abspath(path) if path.is_dir() else path)  # "." has a name, too
        if path.is_dir() and not _is_only_series(path):
            sources.append(_grouped(_images_in(path), channels))
        elif path.suffix.lower() == ".csv":
            sources.append((_csv_inputs(path), {}))
        elif single.setdefault(name, path) != path:
            raise InputError(f"two inputs are named {name!r}", file=path, remedy="Predict them separately")
    # What a folder lists fails by itself; what is named on the command line may be a slip of the pen.
    missing = [path for path in single.values() if not is_image(path)]
    if missing:
        raise InputError("is no image file", file=missing[0], remedy="Check the path")
    return [*sources, _grouped(single, channels)]


def _is_only_series(folder: Path) -> bool:
    """Return whether a folder is a DICOM series; one with other images beside it is refused."""
    if not is_series(folder):
        return False
    if others := [path for path in sorted(folder.iterdir()) if image_suffix(path) and not seems_dicom(path)]:
        raise InputError(
            f"holds DICOM files and other images ({others[0].name}), so what to predict is not clear",
            file=folder,
            remedy="Give the images one by one, or move the series into a folder of its own",
        )
    return True


def _images_in(folder: Path) -> dict[str, Path]:
    """Return the images of a folder; where only folders in it have some, as in a data set's, the error names them."""
    # A folder of predictions is none of a series, though one with DICOM SEG files looks like one.
    if images := {stem: path for stem, path in list_images(folder).items() if not _holds_predictions(path)}:
        return images
    within = [path.name for path in sorted(folder.iterdir()) if _holds_images(path)]
    more = ", ..." if len(within) > MOST_NAMED else ""
    which = f"; there are some in {', '.join(within[:MOST_NAMED])}{more}" if within else ""
    raise InputError(f"no images found{which}", file=folder, remedy=GIVE_IMAGES)


def _holds_predictions(folder: Path) -> bool:
    try:
        return (folder / RECORD).is_file()
    except OSError:  # reading it as a series says why
        return False


def _holds_images(folder: Path) -> bool:
    try:
        return any(map(is_image, folder.glob("*")))
    except (InputError, OSError):
        return False


def _csv_inputs(path: Path) -> dict[str, tuple[Path, ...]]:
    rows, image_columns = csv_rows(path, labelled=False)
    require_unique([row["case"] for row in rows], path)
    return {row["case"]: tuple(path.parent / row[name] for name in image_columns) for row in rows}


def _grouped(images: dict[str, Path], channels: int) -> Found:
    numbered = {stem: re.fullmatch(r"(.+)_(\d{4})", stem) for stem in images}
    groups: dict[str, dict[int, Path]] = {}
    others = {stem: (images[stem],) for stem, match in numbered.items() if match is None}
    if others and channels == 1:  # numbers are part of names
        return {stem: (path,) for stem, path in images.items()}, {}
    for stem, match in numbered.items():
        if match is not None:
            groups.setdefault(match[1], {})[int(match[2])] = images[stem]
    if not any(0 in files for files in groups.values()):  # a case number, not a channel's
        return {stem: (path,) for stem, path in images.items()}, {}
    found = {name: tuple(files[channel] for channel in sorted(files)) for name, files in groups.items()}
    faults = {
        name: InputError(
            f"case {name!r} has the channel files {sorted(files)}, the model takes {list(range(channels))}",
            file=found[name][0],
            remedy="Add the missing channel or remove the others; where the numbers are those of cases, name them "
            "in a CSV (case,image)",
        )
        for name, files in groups.items()
        if sorted(files) not in ([0], list(range(channels)))
    }
    return {**found, **{name: files for name, files in others.items() if name not in found}}, faults
