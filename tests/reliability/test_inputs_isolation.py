"""One bad case stops no other: batches of ten with one, two and ten bad ones, and the second run with --resume."""

from __future__ import annotations

import json
from pathlib import Path

import broken_files as broken
import numpy as np
import pytest
from broken_files import with_affine, with_array, with_bytes
from volumes import TINY_AFFINE, tiny_case

from segscse.cli import run

CASES = [f"case_{number}" for number in range(10)]
# P06, a label map on another grid, is a fault of pairs: as a channel of a scan it is one of predict, too.
FAULTS = {
    "F05, cut short": with_bytes(lambda content, rng: content[:-8]),
    "F06, wrong checksum": with_bytes(broken.flip_byte(-6)),
    "S01, five volumes": with_array(lambda array: np.stack([array] * 5, axis=-1)),
    "V02, all NaN": with_array(lambda array: np.full(array.shape, np.nan, np.float32)),
    "P06, flipped": with_affine(lambda affine: affine @ np.diag([1.0, -1, 1, 1])),
}


def _write(folder: Path, bad: list[str], builder: broken.Builder, *, channels: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number, case in enumerate(CASES):
        image, _ = tiny_case(number)
        for channel in range(channels):
            stem = folder / (f"{case}_{channel:04d}" if channels > 1 else case)
            faulty = case in bad and channel == channels - 1
            (builder if faulty else broken.healthy)(stem, image, TINY_AFFINE, rng)


def _predict(model: Path, folder: Path, *flags: str) -> int:
    return run(["predict", str(model), str(folder / "in"), "--out", str(folder / "out"), "--device", "cpu", *flags])


def _label_maps(folder: Path) -> dict[str, int]:
    return {path.name[: -len(".nii.gz")]: path.stat().st_mtime_ns for path in (folder / "out").glob("*.nii.gz")}


def _failures(folder: Path) -> dict[str, str]:
    return json.loads((folder / "out" / "predictions.json").read_text())["failures"]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_case_of_ten_leaves_nine_and_resume_makes_the_tenth(fault, models, tmp_path, capsys):
    two = fault.startswith("P06")
    model = models["two" if two else "plain"]
    _write(tmp_path / "in", ["case_3"], FAULTS[fault], channels=2 if two else 1)
    assert _predict(model, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "case_3" in line
    first = _label_maps(tmp_path)
    assert sorted(first) == [case for case in CASES if case != "case_3"]
    assert list(_failures(tmp_path)) == ["case_3"]
    assert _failures(tmp_path)["case_3"] in line
    _write(tmp_path / "in", [], broken.healthy, channels=2 if two else 1)
    assert _predict(model, tmp_path, "--resume") == 0
    second = _label_maps(tmp_path)
    assert sorted(second) == CASES
    assert {case: second[case] for case in first} == first
    assert _failures(tmp_path) == {}


@pytest.mark.parametrize("n_bad", [2, 10])
def test_of_ten_cases_with_several_bad_ones_the_others_are_made(n_bad, models, tmp_path, capsys):
    bad = CASES[-n_bad:]
    _write(tmp_path / "in", bad, FAULTS["F06, wrong checksum"])
    assert _predict(models["plain"], tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == n_bad
    assert all(case in line for case, line in zip(bad, lines, strict=True))
    assert sorted(_label_maps(tmp_path)) == CASES[: 10 - n_bad]
    assert sorted(_failures(tmp_path)) == bad


def test_a_case_that_still_fails_on_resume_fails_alone_again(models, tmp_path, capsys):
    _write(tmp_path / "in", ["case_3"], FAULTS["F05, cut short"])
    assert _predict(models["plain"], tmp_path) == 2
    first = _label_maps(tmp_path)
    assert _predict(models["plain"], tmp_path, "--resume") == 2
    assert _label_maps(tmp_path) == first
    assert "9 more verified" in capsys.readouterr().out
    assert list(_failures(tmp_path)) == ["case_3"]
