"""One reading of every case gives both the findings that `check` lists and the facts that planning needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segscse.data.geometry import canonical_grid, from_canonical, same_grid, spacing_of, to_canonical
from segscse.data.index import Case, DatasetIndex
from segscse.data.io import Volume, read_image, read_labels
from segscse.data.places import nth_voxels
from segscse.data.sides import Centre, label_centres_mm
from segscse.errors import InputError
from segscse.types import Progress

FOREGROUND_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know about a data set; errors stop planning, warnings do not."""

    level: Literal["error", "warning"]
    case: str
    file: str
    problem: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """What one case contributes to the fingerprint.

    Attributes:
        shape: canonical `(X, Y, Z)`; `spacing_mm` is in the same order.
        n_channels: number of image channels.
        label_counts: voxels per label id.
        label_centres_mm: where each foreground label lies, on the canonical axes.
        samples: up to 2000 intensities per channel, from the foreground where there is any, `(C, N)`.
        extremes: minimum and maximum over each channel.
        whole_numbers: whether every sampled intensity is a whole number, as CT numbers are.
        content: SHA-256 of the images' voxels; equal content under two names is a leak between folds.
    """

    case: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    n_channels: int
    label_counts: dict[int, int]
    label_centres_mm: dict[int, Centre]
    samples: np.ndarray
    extremes: tuple[tuple[float, float], ...]
    whole_numbers: bool
    content: str


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
    findings += _across_cases(facts, index)
    return tuple(facts), tuple(findings)


def examine_case(case: Case, index: DatasetIndex) -> tuple[CaseFacts | None, list[Finding]]:
    """Read one case; return its facts (None when it cannot be used) and what is wrong with it."""
    findings: list[Finding] = []
    try:
        channels, reference = read_channels(case.images)
        label = read_labels(case.label) if case.label is not None else None
    except InputError as error:
        return None, [Finding("error", case.id, error.file or "", error.problem, error.remedy)]
    for note in reference.notes:
        findings.append(Finding("warning", case.id, str(reference.path), note, "Set the orientation in the header"))
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
    """Read a case's images as `(C, X, Y, Z)` on the first file's grid.

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
    return np.moveaxis(channels, -1, 0), first


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
        findings.append(Finding("warning", case.id, file, "has no foreground", "Check that this is meant"))
    return findings


def _facts(case: Case, channels: np.ndarray, reference: Volume, label: Volume | None) -> CaseFacts:
    array, affine = to_canonical(np.moveaxis(channels, 0, -1), reference.affine)
    flat = channels.reshape(len(channels), -1)
    counts = {0: int(flat.shape[1])}
    centres: dict[int, Centre] = {}
    foreground = np.zeros(1, bool)
    if label is not None:
        values, numbers = np.unique(label.array, return_counts=True)
        counts = {int(value): int(number) for value, number in zip(values, numbers, strict=True)}
        # The label map may be stored in another orientation than the image whose voxels it picks.
        canonical, label_affine = to_canonical(label.array, label.affine)
        centres = label_centres_mm(canonical, spacing_of(label_affine))
        foreground = from_canonical(canonical, reference.affine) > 0
    found = int(np.count_nonzero(foreground))
    total = found or flat.shape[1]
    picks = np.linspace(0, total - 1, min(FOREGROUND_SAMPLES, total)).astype(np.int64)
    samples = flat[:, nth_voxels(foreground, picks) if found else picks].astype(np.float64)
    return CaseFacts(
        case=case.id,
        shape=tuple(array.shape[:3]),
        spacing_mm=spacing_of(affine),
        n_channels=len(channels),
        label_counts=counts,
        label_centres_mm=centres,
        samples=samples,
        extremes=tuple((float(channel.min()), float(channel.max())) for channel in flat),
        whole_numbers=bool(np.equal(samples, np.rint(samples)).all()),
        content=hashlib.sha256(np.ascontiguousarray(channels).data).hexdigest(),
    )


def _across_cases(facts: Sequence[CaseFacts], index: DatasetIndex) -> list[Finding]:
    findings = []
    seen: dict[str, str] = {}
    subjects = {case.id: case.subject for case in index.cases}
    for fact in facts:
        twin = seen.setdefault(fact.content, fact.case)
        if twin != fact.case and subjects[twin] != subjects[fact.case]:
            problem = f"holds the same voxels as case {twin}"
            findings.append(Finding("warning", fact.case, "", problem, "Remove one, or give both one subject in a CSV"))
    counts = {fact.n_channels for fact in facts}
    if len(counts) > 1:
        problem = f"cases have different numbers of channels: {sorted(counts)}"
        findings.append(Finding("error", "", str(index.root), problem, "Give every case the same channels"))
    present = {label for fact in facts for label in fact.label_counts}
    for label, name in index.labels.items():
        if label not in present and facts:
            problem = f"label {label} ({name}) is declared but occurs in no case"
            findings.append(Finding("warning", "", str(index.root), problem, "Remove it or check the label maps"))
    if not index.labels and facts and present <= {0}:
        findings.append(Finding("error", "", str(index.root), "no case has any foreground", "Check the label maps"))
    return findings


def report_of(findings: Sequence[Finding], index: DatasetIndex) -> dict[str, Any]:
    """Return the findings as a JSON-ready value."""
    levels = [finding.level for finding in findings]
    return {
        "dataset": str(index.root),
        "layout": index.layout,
        "n_cases": len(index.cases),
        "n_errors": levels.count("error"),
        "n_warnings": levels.count("warning"),
        "findings": [asdict(finding) for finding in findings],
    }
