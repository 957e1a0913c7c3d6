"""DatasetIndex: which files make which case, read from one of four layouts; nothing is renamed or copied."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath, PureWindowsPath
from types import NoneType
from typing import Any

from segscse.data.io import image_stem, image_suffix, list_images
from segscse.errors import InputError
from segscse.files import read_json, real_path

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
# Files that are looked at to say why a data set is empty.
MOST_SEEN = 1000
# Of the 255 that file systems take, less those of `.nii.gz`.
MOST_NAME_BYTES = 248
# All but tabs and line ends, which CSV holds between quotes.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
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
        problem = f"holds no labelled cases{_other_files(index.root)}"
        raise InputError(problem, file=path, remedy="See `segscse check --help` for the layouts and formats")
    require_unique([case.id for case in index.cases], path)
    for case in index.cases:
        check_name(case.id, path)
    return index


def _other_files(root: Path) -> str:
    """Say how most files end where none of them is an image."""
    files = [path for path in islice(root.rglob("*"), MOST_SEEN) if path.is_file() and path.name != "dataset.json"]
    if not files or any(image_suffix(path) for path in files):
        return ""
    ((suffix, _),) = Counter(path.suffix for path in files).most_common(1)
    return f"; most of its files end in {suffix}, which is not read" if suffix else ""


def subject_of(case: str) -> str:
    """Return whose scan a case is when nothing says so: `sub-01` of a BIDS name `sub-01_ses-2_T1w`, else the case."""
    match = BIDS_SUBJECT.match(case)
    return match[1] if match else case


def check_name(name: str, file: Path) -> None:
    """Refuse a case id that would not name one file in the folder of outputs.

    Raises:
        InputError: it leads elsewhere, is hidden, too long, or is no text: a name's bytes that are not UTF-8, which no
            JSON, CSV or report could hold, or control characters.
    """
    content = name.encode("utf-8", "ignore")
    text = content.decode() == name and not CONTROL.search(name)
    if not name or PurePath(name).name != name or name.startswith(".") or not text or len(content) > MOST_NAME_BYTES:
        shown = repr(name) if len(name) <= MOST_NAME_BYTES else f"one of {len(content)} bytes, {name[:40]!r}..."
        raise InputError(
            f"case ids become file names, got {shown}",
            file=file,
            remedy=f"Use ids of at most {MOST_NAME_BYTES} bytes of UTF-8 text without slashes, control characters and "
            "leading dots",
        )


def require_unique(names: Sequence[str], file: Path) -> None:
    """Refuse case ids that occur more than once.

    Raises:
        InputError: some do; the first five are named.
    """
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
    if "dataset" in description:
        cases, problems = _nnunet_listed(root, description["dataset"], file)
    else:
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
    if PureWindowsPath(item).drive or not real_path(path).is_relative_to(real_path(root)):
        raise InputError(
            f"names a file outside the data set: {item!r}",
            file=file,
            remedy="Use paths below dataset.json, or a CSV",
        )
    return path


def _is_there(path: Path) -> bool:
    """Return whether there is such a file; one out of reach is none."""
    try:
        return path.exists()
    except OSError:
        return False


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
        problems += [(case.id, str(p), "is listed but missing") for p in (image, label) if not _is_there(p)]
    return tuple(sorted(cases, key=lambda case: case.id)), (*problems, *_unlisted(root, cases))


def _unlisted(root: Path, cases: Sequence[Case]) -> list[tuple[str, str, str]]:
    """Return a problem for each image in imagesTr that no case has."""
    listed = {real_path(path) for case in cases for path in case.images}
    paths = list_images(root / "imagesTr").values() if (root / "imagesTr").is_dir() else ()
    problem = "lies in imagesTr but dataset.json does not list it"
    return [(image_stem(path), str(path), problem) for path in paths if real_path(path) not in listed]


def _nnunet_listed(root: Path, entries: Any, file: Path) -> tuple[tuple[Case, ...], tuple[tuple[str, str, str], ...]]:
    """Read the cases that an nnU-Net v2 description lists with their paths instead of leaving them to the names."""
    if not isinstance(entries, dict):
        raise InputError("'dataset' must map case ids to files", file=file, remedy="Give {case: {images, label}}")
    cases, problems = [], []
    for name, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        if not images or not isinstance(images, list) or "label" not in entry:
            raise InputError(f"case {name!r} needs a list 'images' and a 'label', got {entry!r}", file=file)
        files = [_inside(root, item, file) for item in (*images, entry["label"])]
        problems += [(name, str(path), "is listed but missing") for path in files if not _is_there(path)]
        cases.append(Case(name, tuple(files[:-1]), files[-1], subject_of(name)))
    return tuple(sorted(cases, key=lambda case: case.id)), (*problems, *_unlisted(root, cases))


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


def csv_rows(path: Path, *, labelled: bool) -> tuple[list[dict[str, str]], list[str]]:
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
    rows, image_columns = csv_rows(path, labelled=True)
    cases, problems = [], []
    for line, row in enumerate(rows, start=2):
        files = [path.parent / row[name] for name in (*image_columns, "label")]
        names = (row["case"], image_stem(files[0]))  # ids of one's own may stand over files with BIDS names
        subject = row.get("subject") or next((subject_of(n) for n in names if subject_of(n) != n), row["case"])
        case = Case(row["case"], tuple(files[:-1]), files[-1], subject)
        cases.append(case)
        problems += [(case.id, str(p), f"is listed in line {line} but missing") for p in files if not _is_there(p)]
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
