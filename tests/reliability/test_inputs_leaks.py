"""Leaks between training and validation: whatever shares a subject or content stays on one side of every split."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from broken_files import healthy, nifti, packed, reoriented, write
from volumes import LABELS, TINY_AFFINE, tiny_case

from segscse.config import load_config
from segscse.data.examine import examine_dataset, turned_digest, twins_of
from segscse.data.index import open_dataset
from segscse.data.prepare import plan_dataset
from segscse.data.split import make_split

N = 12
Store = Callable[[Path, np.ndarray, np.ndarray, np.random.Generator], Path]


def _dataset(root: Path, extra: dict[str, tuple[int, Store]], *, names: list[str] | None = None) -> Path:
    """Write twelve cases and further ones, which hold a case's voxels as their builder stores them."""
    rng = np.random.default_rng(0)
    names = names or [f"scan_{number}" for number in range(N)]
    written = {name: (number, healthy) for number, name in enumerate(names)} | extra
    for role in ("imagesTr", "labelsTr"):
        (root / role).mkdir(parents=True)
    for name, (number, store) in written.items():
        image, label = tiny_case(number)
        store(root / "imagesTr" / name, image, TINY_AFFINE, rng)
        store(root / "labelsTr" / name, label, TINY_AFFINE, rng)
    pairs = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in written]
    description = {"modality": {"0": "MRI"}, "labels": {str(k): v for k, v in LABELS.items()}, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def _parted(dataset: Path, *groups: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the pairs of each group that some fold of some split parts."""
    cases = plan_dataset(dataset, load_config()).index.cases
    found = []
    for seed in range(5):
        for fold in range(5):
            split = make_split(cases, fold, seed=seed)
            assert sorted(split.training + split.validation) == sorted(case.id for case in cases)
            for group in groups:
                for one, other in itertools.combinations(group, 2):
                    if (one in split.training) != (other in split.training):
                        found.append((one, other))
    return found


def _mirrored(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Store an augmented copy: mirrored, without a word in the header."""
    return write(stem, ".nii.gz", packed(nifti(array[::-1].copy(), affine)))


def _turned(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Store an augmented copy: turned by a right angle."""
    return write(stem, ".nii.gz", packed(nifti(np.rot90(array).copy(), affine)))


def _doubled(stem: Path, array: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Path:
    """Store the same values in 64 bits."""
    return write(stem, ".nii.gz", packed(nifti(array.astype(np.float64), affine)))


def test_two_sessions_of_a_subject_named_in_a_csv_are_not_parted(tmp_path):
    root = _dataset(tmp_path / "data", {})
    with (root / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "image", "label", "subject"])
        for number in range(N):
            name = f"scan_{number}"
            writer.writerow([name, f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz", f"person {number // 2}"])
    groups = [(f"scan_{number}", f"scan_{number + 1}") for number in range(0, N, 2)]
    assert _parted(root / "cases.csv", *groups) == []
    assert _parted(root, *groups) != []  # without the subjects they are, so the check above can fail


def test_two_sessions_under_bids_names_are_not_parted(tmp_path):
    names = [f"sub-{number // 2:02d}_ses-{number % 2}_T1w" for number in range(N)]
    root = _dataset(tmp_path / "data", {}, names=names)
    assert _parted(root, *[tuple(names[number : number + 2]) for number in range(0, N, 2)]) == []


@pytest.mark.parametrize("store", [healthy, reoriented, _doubled, _mirrored, _turned])
def test_a_copy_of_a_scan_is_not_parted_from_it(store, tmp_path):
    """Equal content under two names; stored along other axes or as another type; mirrored or turned copies."""
    root = _dataset(tmp_path / "data", {"again": (2, store)})
    assert _parted(root, ("again", "scan_2")) == []
    _, findings = examine_dataset(open_dataset(root))
    (warning,) = [finding for finding in findings if finding.level == "warning"]
    assert warning.problem.startswith("holds the same voxels as case ")


def test_copies_and_subjects_chain(tmp_path):
    """`again` copies scan_2, and sub-1's other session copies scan_5: nothing of either chain is parted."""
    extra = {"sub-1_a": (2, healthy), "sub-1_b": (5, _mirrored)}
    root = _dataset(tmp_path / "data", extra)
    assert _parted(root, ("scan_2", "sub-1_a", "sub-1_b", "scan_5")) == []


def test_different_scans_are_no_twins(tmp_path):
    facts, _ = examine_dataset(open_dataset(_dataset(tmp_path / "data", {})))
    assert twins_of(facts) == []


def test_scans_of_the_same_values_in_other_places_are_no_copies():
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 1, 8, 8, 8), np.uint8)
    for mask in masks:
        mask.reshape(-1)[rng.choice(512, 16, replace=False)] = 1
    assert turned_digest(masks[0]) != turned_digest(masks[1])
    ranks = [rng.permutation(512).reshape(1, 8, 8, 8) for _ in range(2)]
    assert turned_digest(ranks[0]) != turned_digest(ranks[1])


def test_scans_without_contrast_are_no_copies(tmp_path):
    def blank(stem, array, affine, rng):
        return write(stem, ".nii.gz", packed(nifti(np.zeros_like(array), affine)))

    facts, findings = examine_dataset(open_dataset(_dataset(tmp_path / "data", {"x": (1, blank), "y": (2, blank)})))
    assert {fact.case: fact.turned for fact in facts}["x"] == ""
    assert twins_of(facts) == []
    assert not [finding for finding in findings if "same voxels" in finding.problem]


def test_the_digest_is_that_of_voxels_however_turned():
    values = np.random.default_rng(0).normal(size=(2, 130, 90, 100)).astype(np.float32)
    changed = values.copy()
    changed[0, 5, 6, 7] = np.nextafter(changed[0, 5, 6, 7], 9)
    assert turned_digest(values) == turned_digest(values[:, ::-1].transpose(0, 2, 3, 1))
    assert turned_digest(values) == turned_digest(np.asfortranarray(values[:, :, ::-1, ::-1]).astype(np.float64))
    assert turned_digest(values) != turned_digest(changed)
    assert turned_digest(values) != turned_digest(values[::-1])  # channels are not exchanged
    assert turned_digest(np.zeros((1, 2, 2, 2))) == turned_digest(-np.zeros((1, 2, 2, 2)))
