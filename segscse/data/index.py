"""DatasetIndex: which files make which case, read from one of four layouts; nothing is renamed or copied."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from types import NoneType
from typing import Any

from segscse.data.dicom import is_series, seems_dicom
from segscse.data.io import image_stem, image_suffix, is_image, list_images
from segscse.errors import InputError
from segscse.files import read_json

# Folder names that hold images and label maps side by side, tried in this order.
FOLDER_PAIRS = (
    ("imagesTr", "labelsTr"),
    ("images", "labels"),
    ("image", "label"),
    ("images", "masks"),
    ("images", "segmentations"),
    ("template", "label"),
)
CSV_COLUMNS = ("case", "image", "label", "subject")
GIVE_IMAGES = "Give files or folders of images"
# Folders that an error lists by name.
MOST_NAMED = 4
BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)_")
LABEL_SUFFIX = re.compile(r"[-_.](seg|label|labels|mask|gt|segmentation|dseg)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Case:
    """One scan: its channel files (one file may hold several channels), its label map and whose it is."""

    id: str
    images: tuple[Path, ...]
    label: Path | None
    subject: str


@dataclass(frozen=True, slots=True)
class DatasetIndex:
    """A data set as found on disk.

    Attributes:
        root: the folder, or the CSV's folder.
        layout: `msd`, `nnunet`, `csv` or `folders`.
        cases: labelled cases, sorted by id.
        labels: declared ids and names; empty when the layout declares none and they are read from the data.
        channels: declared channel names; empty when the layout declares none.
        problems: what is missing or contradictory, one `(case, file, problem)` each.
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]
    labels: Mapping[int, str]
    channels: tuple[str, ...]
    problems: tuple[tuple[str, str, str], ...] = ()


def open_dataset(path: str | Path, labels: str | Path | None = None) -> DatasetIndex:
    """Find the cases of a data set.

    Args:
        path: a folder in the MSD or nnU-Net raw layout, a CSV (`case,image[,image2...],label[,subject]`), a
            folder with one folder of images and one of labels, or a folder of images with `labels`.
        labels: the folder of label maps, when `path` is a folder of images; files pair by name.

    Raises:
        InputError: no such data set, an unknown layout, or a description that contradicts itself.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such data set", file=path, remedy="Check the path")
    if labels is not None:
        index = _from_folders(path, path, Path(labels))
    elif path.is_file():
        index = _from_csv(path)
    elif (path / "dataset.json").is_file():
        index = _from_json(path)
    else:
        index = _from_folders(path, *_find_pair(path))
    if not index.cases:
        raise InputError("holds no labelled cases", file=path, remedy="See `segscse check --help` for the layouts")
    _require_unique([case.id for case in index.cases], path)
    for case in index.cases:
        check_name(case.id, path)
    return index


def subject_of(case: str) -> str:
    """Return whose scan a case is when nothing says so: `sub-01` of a BIDS name `sub-01_ses-2_T1w`, else the case."""
    match = BIDS_SUBJECT.match(case)
    return match[1] if match else case


def check_name(name: str, file: Path) -> None:
    """Refuse a case id that would not name one file in the folder of outputs.

    Raises:
        InputError: it leads elsewhere, is hidden, or is no text: a name's bytes that are not UTF-8, which no JSON,
            CSV or report could hold.
    """
    text = name.encode("utf-8", "ignore").decode() == name
    if not name or PurePath(name).name != name or name.startswith(".") or "\0" in name or not text:
        raise InputError(
            f"case ids become file names, got {name!r}",
            file=file,
            remedy="Use ids of UTF-8 text without slashes and leading dots",
        )


def _require_unique(names: Sequence[str], file: Path) -> None:
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise InputError(
            f"case ids occur more than once: {', '.join(duplicates[:5])}",
            file=file,
            remedy="Give each its own id",
        )


def _from_json(root: Path) -> DatasetIndex:
    description = read_json(root / "dataset.json")
    file = root / "dataset.json"
    if not isinstance(description, dict) or "labels" not in description:
        raise InputError("has no 'labels'", file=file, remedy="Describe the labels as MSD or nnU-Net do")
    labels = _declared_labels(description["labels"], file)
    if "training" in description:
        channels = _channel_names(description, "modality", file)
        cases, problems = _msd_cases(root, description["training"], file)
        return DatasetIndex(root, "msd", cases, labels, channels, problems)
    channels = _channel_names(description, "channel_names", file)
    cases, problems = _nnunet_cases(root, len(channels))
    return DatasetIndex(root, "nnunet", cases, labels, channels, problems)


def _channel_names(description: dict[str, Any], key: str, file: Path) -> tuple[str, ...]:
    names = description.get(key, {})
    if not isinstance(names, dict) or not all(str(number).isdecimal() for number in names):
        raise InputError(f"{key!r} must map numbers to names, got {names!r}", file=file, remedy="Correct it")
    return tuple(str(names[number]) for number in sorted(names, key=int))


def _declared_labels(labels: Any, file: Path) -> dict[int, str]:
    """Read labels written id-to-name (MSD) or name-to-id (nnU-Net v2)."""
    problem = InputError(f"cannot read the labels {labels!r}", file=file, remedy="Map each id to a name")
    if isinstance(labels, list):
        labels = {str(index): name for index, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise problem
    if any(isinstance(value, list) for value in labels.values()):
        raise InputError(
            "region labels (several ids under one name) are not supported",
            file=file,
            remedy="Give single ids",
        )
    if "ignore" in {str(name).lower() for pair in labels.items() for name in pair}:
        raise InputError("an ignore label is not supported", file=file, remedy="Remove it from labels and label maps")
    by_id = all(str(key).lstrip("-").isdigit() for key in labels)
    try:
        ids = [int(str(value)) for value in (labels if by_id else labels.values())]
    except (TypeError, ValueError) as error:
        raise problem from error
    if len(set(ids)) < len(ids):
        raise InputError("two labels have one id", file=file, remedy="Give each label its own id")
    if min(ids, default=0) < 0:
        raise InputError(
            f"declares the negative label id {min(ids)}",
            file=file,
            remedy="Use ids from 0 (background) upwards, in the label maps too",
        )
    return {number: str(name) for number, name in zip(ids, labels.values() if by_id else labels, strict=True)}


def _inside(root: Path, item: Any, file: Path) -> Path:
    """Resolve a path of a description file; one that leads out of the data set is refused."""
    if not isinstance(item, str) or "\0" in item:
        raise InputError(f"a file must be named by text, got {item!r}", file=file, remedy="Correct the entry")
    path = root / item
    # A share of another machine, or another drive, is refused by its name: on Windows to look at it means to log in.
    if PureWindowsPath(item).drive or not path.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"names a file outside the data set: {item!r}", file=file, remedy="Use paths below dataset.json"
        )
    return path


def _msd_cases(root: Path, entries: Any, file: Path) -> tuple[tuple[Case, ...], tuple[tuple[str, str, str], ...]]:
    cases, problems = [], []
    if not isinstance(entries, list):
        raise InputError("'training' must be a list", file=file, remedy="List {image, label} pairs")
    for entry in entries:
        if not isinstance(entry, dict) or not {"image", "label"} <= set(entry):
            raise InputError(f"a training entry needs 'image' and 'label', got {entry!r}", file=file)
        image, label = _inside(root, entry["image"], file), _inside(root, entry["label"], file)
        subject = entry.get("subject")
        if not isinstance(subject, (str, int, NoneType)):
            raise InputError(f"a subject must be text or a number, got {subject!r}", file=file, remedy="Correct it")
        name = image_stem(image)
        case = Case(name, (image,), label, subject_of(name) if subject in (None, "") else str(subject))
        cases.append(case)
        problems += [(case.id, str(p), "is listed but missing") for p in (image, label) if not p.exists()]
    listed = {path.resolve() for case in cases for path in case.images}
    for path in list_images(root / "imagesTr").values() if (root / "imagesTr").is_dir() else ():
        if path.resolve() not in listed:
            problems.append((image_stem(path), str(path), "lies in imagesTr but dataset.json does not list it"))
    return tuple(sorted(cases, key=lambda case: case.id)), tuple(problems)


def _nnunet_cases(root: Path, channels: int) -> tuple[tuple[Case, ...], tuple[tuple[str, str, str], ...]]:
    images, labels = list_images(root / "imagesTr"), list_images(root / "labelsTr")
    cases, problems = [], []
    for name, label in labels.items():
        expected = [f"{name}_{channel:04d}" for channel in range(max(channels, 1))]
        missing = [stem for stem in expected if stem not in images]
        problems += [(name, str(root / "imagesTr" / stem), "channel file is missing") for stem in missing]
        files = tuple(images[stem] for stem in expected if stem in images)
        cases.append(Case(name, files, label, subject_of(name)))
    used = {path for case in cases for path in case.images}
    for stem, path in images.items():
        if stem[:-5] not in labels:
            problems.append((stem[:-5], str(path), "has no label map in labelsTr"))
        elif path not in used:
            problems.append((stem[:-5], str(path), f"is none of the {max(channels, 1)} channels that are declared"))
    return tuple(cases), tuple(problems)


def _csv_rows(path: Path, *, labelled: bool) -> tuple[list[dict[str, str]], list[str]]:
    """Return the lines of a CSV of cases and the names of its image columns, in the header's order."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV ({error})", file=path, remedy="Save it as UTF-8 CSV") from error
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise InputError(
            f"has the column {repeated[0]!r} more than once", file=path, remedy="Name them image, image2, ..."
        )
    image_columns = [name for name in columns if name and re.fullmatch(r"image\d*", name)]
    unknown = [str(name) for name in columns if name not in image_columns and name not in CSV_COLUMNS]
    needed = ("case", "image", "label") if labelled else ("case", "image")
    missing = [name for name in needed if name not in columns]
    if unknown or missing:
        raise InputError(
            f"columns must be case,image[,image2...],label[,subject]; missing: {missing}, unknown: {unknown}",
            file=path,
            remedy="Correct the header line",
        )
    filled = ("case", *image_columns, *(("label",) if labelled else ()))
    for line, row in enumerate(rows, start=2):
        if None in row:
            raise InputError(f"line {line} has more fields than the header", file=path, remedy="Quote commas in names")
        if any(not row[name] for name in filled):
            raise InputError(f"line {line} has an empty field", file=path, remedy="Fill or remove the line")
    return rows, image_columns


def _from_csv(path: Path) -> DatasetIndex:
    rows, image_columns = _csv_rows(path, labelled=True)
    cases, problems = [], []
    for line, row in enumerate(rows, start=2):
        files = [path.parent / row[name] for name in (*image_columns, "label")]
        case = Case(row["case"], tuple(files[:-1]), files[-1], row.get("subject") or subject_of(row["case"]))
        cases.append(case)
        problems += [(case.id, str(p), f"is listed in line {line} but missing") for p in files if not p.exists()]
    return DatasetIndex(path.parent, "csv", tuple(sorted(cases, key=lambda c: c.id)), {}, (), tuple(problems))


def _find_pair(root: Path) -> tuple[Path, Path]:
    for images, labels in FOLDER_PAIRS:
        if (root / images).is_dir() and (root / labels).is_dir():
            return root / images, root / labels
    raise InputError(
        "is no data set: no dataset.json and no pair of folders such as images/ and labels/",
        file=root,
        remedy="Give the folder of images and --labels FOLDER, or a CSV",
    )


def _from_folders(root: Path, images_folder: Path, labels_folder: Path) -> DatasetIndex:
    images = list_images(images_folder)
    labels = list_images(labels_folder)
    plain = {LABEL_SUFFIX.sub("", stem): path for stem, path in labels.items()}
    by_name = {**plain, **labels}
    cases, problems = [], []
    for stem, path in images.items():
        label = by_name.get(stem)
        if label is None:
            problems.append((stem, str(path), f"has no label map of that name in {labels_folder}"))
        else:
            cases.append(Case(stem, (path,), label, subject_of(stem)))
    used = {case.label for case in cases}
    for stem, path in labels.items():
        if path not in used:
            problems.append((stem, str(path), f"has no image of that name in {images_folder}"))
    return DatasetIndex(root, "folders", tuple(cases), {}, (), tuple(problems))


def find_inputs(paths: list[Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """Return the cases to predict, name to channel files, from image files, folders and CSV files.

    Where the files of a folder, or all files given singly, end in four digits, `_0000` among them, these number the
    channels of a case. A CSV has the columns `case,image[,image2...]`; others are left aside.

    Raises:
        InputError: nothing found, a case that occurs twice, or one without all its channels.
    """
    cases: dict[str, tuple[Path, ...]] = {}
    single: dict[str, Path] = {}
    sources = []
    for path in paths:
        name = image_stem(os.path.abspath(path) if path.is_dir() else path)  # "." has a name, too
        if path.is_dir() and not _is_only_series(path):
            sources.append(_grouped(_images_in(path), channels))
        elif path.suffix == ".csv":
            sources.append(_csv_inputs(path))
        elif single.setdefault(name, path) != path:
            raise InputError(f"two inputs are named {name!r}", file=path, remedy="Predict them separately")
    sources.append(_grouped(single, channels))
    for found in sources:
        for name, files in found.items():
            check_name(name, files[0])
            if name in cases:
                raise InputError(f"two inputs are named {name!r}", file=files[0], remedy="Predict them separately")
            cases[name] = files
    # What a folder lists fails by itself; what is named on the command line may be a slip of the pen.
    missing = [path for path in single.values() if not is_image(path)]
    if missing:
        raise InputError("is no image file", file=missing[0], remedy="Check the path")
    if not cases:
        raise InputError("no images found", file=paths[0] if paths else None, remedy=GIVE_IMAGES)
    return cases


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
    if images := list_images(folder):
        return images
    within = [path.name for path in sorted(folder.iterdir()) if any(map(is_image, path.glob("*")))]
    more = ", ..." if len(within) > MOST_NAMED else ""
    which = f"; there are some in {', '.join(within[:MOST_NAMED])}{more}" if within else ""
    raise InputError(f"no images found{which}", file=folder, remedy=GIVE_IMAGES)


def _csv_inputs(path: Path) -> dict[str, tuple[Path, ...]]:
    rows, image_columns = _csv_rows(path, labelled=False)
    _require_unique([row["case"] for row in rows], path)
    return {row["case"]: tuple(path.parent / row[name] for name in image_columns) for row in rows}


def _grouped(images: dict[str, Path], channels: int) -> dict[str, tuple[Path, ...]]:
    numbered = {stem: re.fullmatch(r"(.+)_(\d{4})", stem) for stem in images}
    groups: dict[str, dict[int, Path]] = {}
    for stem, match in numbered.items():
        if match is None:
            return {stem: (path,) for stem, path in images.items()}
        groups.setdefault(match[1], {})[int(match[2])] = images[stem]
    if not any(0 in files for files in groups.values()):  # a case number, not a channel's
        return {stem: (path,) for stem, path in images.items()}
    for name, files in groups.items():
        if sorted(files) not in ([0], list(range(channels))):
            raise InputError(
                f"case {name!r} has the channel files {sorted(files)}, the model takes {list(range(channels))}",
                file=next(iter(files.values())),
                remedy="Add the missing channel or remove the others; where the numbers are those of cases, name them "
                "in a CSV (case,image)",
            )
    return {name: tuple(files[channel] for channel in sorted(files)) for name, files in groups.items()}
