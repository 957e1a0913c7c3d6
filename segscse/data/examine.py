"""One reading of every case gives both the findings that `check` lists and the facts that planning needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segscse.data.content import content_box
from segscse.data.directions import coarse_image
from segscse.data.geometry import canonical_grid, from_canonical, same_grid, spacing_of, to_canonical
from segscse.data.index import Case, DatasetIndex
from segscse.data.io import Volume, read_image, read_labels
from segscse.data.notes import case_note, fold_notes, same_but_case
from segscse.data.pieces import count_pieces
from segscse.data.places import nth_voxels
from segscse.data.sides import Centre, label_centres_mm
from segscse.errors import InputError
from segscse.files import digest
from segscse.types import Progress

FOREGROUND_SAMPLES = 2000
# Times a map that its labels' boxes may cover where pieces are counted: a hundred organs cover a few, noise very many.
MOST_BOXES = 20
MEANT = "Correct the file if this is not meant"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know about a data set; errors stop planning, warnings and notes do not."""

    level: Literal["error", "warning", "note"]
    case: str
    file: str
    problem: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """What one case contributes to the fingerprint.

    Attributes:
        shape: canonical `(X, Y, Z)`; `content_shape`, without empty surroundings, and `spacing_mm` in the same order.
        n_channels: number of image channels.
        label_counts: voxels per label id.
        label_pieces: connected parts of each foreground label; empty where counting would take long.
        label_centres_mm: where each foreground label lies, on the canonical axes.
        coarse: the image in a few blocks, on the canonical axes; see `coarse_image`.
        samples: up to 2000 intensities per channel, from the foreground where there is any, `(C, N)`.
        extremes: minimum and maximum over each channel.
        whole_numbers: of each channel, whether every sampled intensity is a whole number, as CT numbers are.
        content: SHA-256 of the images' voxels; equal content under two names is a leak between folds.
        placed: digest of where image and labels lie: both affines, and the label map's voxels.
        turned: the same for copies that are mirrored, turned or of another type, see `turned_digest`; empty for a scan
            that is the same everywhere.
    """

    case: str
    shape: tuple[int, ...]
    content_shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    n_channels: int
    label_counts: dict[int, int]
    label_pieces: dict[int, int]
    label_centres_mm: dict[int, Centre]
    coarse: np.ndarray
    samples: np.ndarray
    extremes: tuple[tuple[float, float], ...]
    whole_numbers: tuple[bool, ...]
    content: str
    placed: str
    turned: str


def examine_dataset(
    index: DatasetIndex, *, workers: int = 2, progress: Progress | None = None
) -> tuple[tuple[CaseFacts, ...], tuple[Finding, ...]]:
    """Read every case once; return the facts of the good ones and every finding of all of them."""
    findings = [Finding("error", *problem, "Add or remove the file") for problem in index.problems]
    facts: list[CaseFacts] = []
    broken = {case for case, _, problem in index.problems if "missing" in problem}
    cases = [case for case in index.cases if case.id not in broken]
    with ThreadPoolExecutor(workers) as pool:
        for done, (fact, found) in enumerate(pool.map(lambda case: examine_case(case, index), cases), start=1):
            findings += found
            facts += [fact] if fact is not None else []
            if progress is not None:
                progress(done, len(cases))
    findings = _folded(findings) + _across_cases(facts, index)
    return tuple(facts), tuple(findings)


def examine_case(case: Case, index: DatasetIndex) -> tuple[CaseFacts | None, list[Finding]]:
    """Read one case; return its facts (None when it cannot be used) and what is wrong with it."""
    findings: list[Finding] = []
    try:
        channels, reference = read_channels(case.images)
        label = read_labels(case.label) if case.label is not None else None
    except InputError as error:
        return None, [Finding("error", case.id, error.file or "", error.problem, error.remedy)]
    for volume in (reference, *([] if label is None else [label])):
        findings += [Finding("warning", case.id, str(volume.path), note, MEANT) for note in volume.notes]
    if index.channels and len(channels) != len(index.channels):
        problem = f"has {len(channels)} channels, the data set declares {len(index.channels)}"
        findings.append(Finding("error", case.id, str(case.images[0]), problem, "Correct dataset.json or the image"))
    if unusable := intensity_problem(channels):
        findings.append(Finding("error", case.id, str(case.images[0]), unusable, "Replace or mask those voxels"))
    if label is not None:
        findings += _label_findings(case, reference, label, index)
    if any(finding.level == "error" for finding in findings):
        return None, findings
    return _facts(case, channels, reference, label), findings


def read_channels(paths: Sequence[Path]) -> tuple[np.ndarray, Volume]:
    """Read a case's images as `(C, X, Y, Z)` on the first file's grid; its volume carries the notes on all files.

    Raises:
        InputError: a file cannot be used, or the files do not share one grid.
    """
    volumes = [read_image(path) for path in paths]
    first = volumes[0]
    for other in volumes[1:]:
        difference = same_grid(first.array.shape, first.affine, other.array.shape, other.affine)
        if difference:
            raise InputError(
                f"lies on another grid than {first.path} ({difference})",
                file=other.path,
                remedy="Resample the channels to one grid",
            )
    arrays = [volume.array if volume.array.ndim == 4 else volume.array[..., None] for volume in volumes]
    channels = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    notes = [*first.notes, *(f"{other.path}: {note}" for other in volumes[1:] for note in other.notes)]
    if channels.dtype.kind in "iu" and channels.dtype.itemsize == 8 and np.abs(_extremes(channels)).max() > 2**53:
        notes.append("holds whole numbers above 2^53, which floating point rounds")
    return np.moveaxis(channels, -1, 0), replace(first, notes=tuple(notes))


def _extremes(values: np.ndarray) -> np.ndarray:
    return np.array([float(values.min()), float(values.max())])


def intensity_problem(channels: np.ndarray) -> str | None:
    """Return why intensities cannot be worked with in 32 bits (not finite, too large), or None."""
    with np.errstate(over="ignore"):
        extremes = np.array([channels.min(), channels.max()]).astype(np.float32)  # NaN comes through both
    return None if np.isfinite(extremes).all() else "intensities hold NaN or infinity, or exceed 32-bit floats"


def _label_findings(case: Case, image: Volume, label: Volume, index: DatasetIndex) -> list[Finding]:
    findings = []
    file = str(case.label)
    # A label map stored in another orientation is the same grid: both are brought to one before use.
    difference = same_grid(
        *canonical_grid(image.array.shape, image.affine), *canonical_grid(label.array.shape, label.affine)
    )
    if difference:
        problem = f"label and image lie on different grids ({difference})"
        findings.append(Finding("error", case.id, file, problem, "Resample the label map onto the image"))
    values = np.unique(label.array)
    if index.labels:
        undeclared = [int(value) for value in values if int(value) not in index.labels]
        if undeclared:
            problem = f"holds undeclared label ids {undeclared[:10]}; declared: {sorted(index.labels)}"
            findings.append(Finding("error", case.id, file, problem, "Declare them or correct the label map"))
    elif (values < 0).any():
        problem = f"holds negative label ids {[int(v) for v in values[values < 0]][:10]}"
        findings.append(Finding("error", case.id, file, problem, "Use ids from 0 (background) upwards"))
    if not (values > 0).any():
        findings.append(Finding("note", case.id, file, "has no foreground", "Check that this is meant"))
    return findings


def _facts(case: Case, channels: np.ndarray, reference: Volume, label: Volume | None) -> CaseFacts:
    array, affine = to_canonical(np.moveaxis(channels, 0, -1), reference.affine)
    flat = channels.reshape(len(channels), -1)
    counts = {0: int(flat.shape[1])}
    pieces: dict[int, int] = {}
    centres: dict[int, Centre] = {}
    foreground = np.zeros(1, bool)
    if label is not None:
        values, numbers = np.unique(label.array, return_counts=True)
        counts = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
        pieces = count_pieces(label.array, [value for value in counts if value > 0], most=MOST_BOXES)
        # The label map may be stored in another orientation than the image whose voxels it picks.
        canonical, label_affine = to_canonical(label.array, label.affine)
        centres = label_centres_mm(canonical, spacing_of(label_affine))
        foreground = from_canonical(canonical, reference.affine) > 0
    volumes = [reference] if label is None else [reference, label]
    extremes = tuple((float(channel.min()), float(channel.max())) for channel in flat)
    found = int(np.count_nonzero(foreground))
    total = found or flat.shape[1]
    picks = np.linspace(0, total - 1, min(FOREGROUND_SAMPLES, total)).astype(np.int64)
    samples = flat[:, nth_voxels(foreground, picks) if found else picks].astype(np.float64)
    return CaseFacts(
        case=case.id,
        shape=tuple(array.shape[:3]),
        content_shape=tuple(side.stop - side.start for side in content_box(np.moveaxis(array, -1, 0))),
        spacing_mm=spacing_of(affine),
        n_channels=len(channels),
        label_counts=counts,
        label_pieces=pieces,
        label_centres_mm=centres,
        coarse=coarse_image(np.moveaxis(array, -1, 0)),
        samples=samples,
        extremes=extremes,
        whole_numbers=tuple(bool(np.equal(channel, np.rint(channel)).all()) for channel in samples),
        content=_sha256(channels),
        placed=digest([[item.affine.tolist() for item in volumes], [_sha256(item.array) for item in volumes[1:]]]),
        # Two scans without any contrast, such as blank slices, are no copies of one another.
        turned=turned_digest(channels) if any(low < high for low, high in extremes) else "",
    )


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def turned_digest(channels: np.ndarray) -> str:
    """Return a digest of `(C, X, Y, Z)` voxels that no mirroring, turn by right angles or other data type changes.

    So a copy that is mirrored, turned, stored along other axes or as another type is found. It is made of the float32
    bit patterns, modulo 2^64: their sums over every plane across each axis, read from the end at which they are
    smaller, and the sums of their squares and cubes. Scans with the same values in other places, such as masks of one
    size, differ in the planes.
    """
    planes: list[list[np.ndarray]] = [[], [], []]  # by axis, a row of sums for each channel
    powers: list[int] = []
    for channel in channels:
        slowest = int(np.argmax(np.abs(channel.strides)))  # along it, planes are contiguous and copies of them small
        axes = [slowest, *(axis for axis in range(3) if axis != slowest)]
        sums = [np.zeros(channel.shape[axis], np.uint64) for axis in axes]
        squares = cubes = 0
        for number, plane in enumerate(np.moveaxis(channel, slowest, 0)):
            bits = (plane.astype(np.float32) + 0.0).view(np.uint32).astype(np.uint64)
            across = bits.sum(axis=1, dtype=np.uint64)
            sums[0][number] = across.sum(dtype=np.uint64)
            sums[1] += across
            sums[2] += bits.sum(axis=0, dtype=np.uint64)
            square = bits * bits
            squares += int(square.sum(dtype=np.uint64))
            cubes += int((square * bits).sum(dtype=np.uint64))
        for axis, found in zip(axes, sums, strict=True):
            planes[axis].append(found)
        powers += [squares % 2**64, cubes % 2**64]
    rows = [np.stack(of_axis) for of_axis in planes]
    return digest([sorted(min(row.tolist(), row[:, ::-1].tolist()) for row in rows), powers])


def _across_cases(facts: Sequence[CaseFacts], index: DatasetIndex) -> list[Finding]:
    findings = _twin_findings(facts, index)
    for name, other in same_but_case([case.id for case in index.cases]):
        findings.append(Finding("warning", name, "", case_note(other), "Rename one of them"))
    counts = {fact.n_channels for fact in facts}
    if len(counts) > 1:
        problem = f"cases have different numbers of channels: {sorted(counts)}"
        findings.append(Finding("error", "", str(index.root), problem, "Give every case the same channels"))
    present = {label for fact in facts for label in fact.label_counts}
    if facts and present <= {0}:
        return [*findings, Finding("error", "", str(index.root), "no case has any foreground", "Check the label maps")]
    for label, name in index.labels.items():
        if label not in present and facts:
            problem = f"label {label} ({name}) is declared but occurs in no case"
            findings.append(Finding("warning", "", str(index.root), problem, "Remove it or check the label maps"))
    return findings


def twins_of(facts: Sequence[CaseFacts]) -> list[tuple[str, str]]:
    """Return each case that holds an earlier one's voxels, however turned, of whatever type, with that earlier one."""
    seen: dict[str, str] = {}
    pairs = [(fact.case, seen.setdefault(fact.turned, fact.case)) for fact in facts if fact.turned]
    return [(case, twin) for case, twin in pairs if case != twin]


def _twin_findings(facts: Sequence[CaseFacts], index: DatasetIndex) -> list[Finding]:
    subjects = {case.id: case.subject for case in index.cases}
    content = {fact.case: fact.content for fact in facts}
    remedy = "Remove one, or give both one subject in a CSV; until then they stay in one fold"
    findings = []
    for case, twin in twins_of(facts):
        if subjects[case] != subjects[twin]:
            same = content[case] == content[twin]
            problem = f"holds the same voxels as case {twin}" + (
                "" if same else ", mirrored, turned or stored otherwise"
            )
            findings.append(Finding("warning", case, "", problem, remedy))
    return findings


def _folded(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings with a note that many files share given once."""
    noted = [finding for finding in findings if finding.remedy == MEANT]
    cases = {(finding.file, finding.problem): finding.case for finding in noted}
    folded = [
        Finding("warning", cases.get((file, text), ""), file, text, MEANT)
        for file, text in fold_notes((finding.file, finding.problem) for finding in noted)
    ]
    return [finding for finding in findings if finding.remedy != MEANT] + folded


def report_of(findings: Sequence[Finding], index: DatasetIndex) -> dict[str, Any]:
    """Return the findings as a JSON-ready value."""
    levels = [finding.level for finding in findings]
    return {
        "dataset": str(index.root),
        "layout": index.layout,
        "n_cases": len(index.cases),
        "n_errors": levels.count("error"),
        "n_warnings": levels.count("warning"),
        "n_notes": levels.count("note"),
        "findings": [asdict(finding) for finding in findings],
    }
