"""segscse evaluate: its flags, what it writes and what it refuses."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from segscse.cli import run

from .conftest import AFFINE, blocks


@pytest.fixture
def evaluate(folders, tmp_path):
    """Return a function that runs the verb on the folders of three cases and returns the exit code."""

    def call(*flags):
        arguments = ["evaluate", "--pred", str(folders[0]), "--ref", str(folders[1]), "--out", str(tmp_path / "out")]
        return run([*arguments, *map(str, flags)])

    return call


def _results(tmp_path):
    table = pd.read_csv(tmp_path / "out" / "cases.csv", dtype={"name": str})
    return table, json.loads((tmp_path / "out" / "summary.json").read_text())


def test_labels_names_and_tolerances_by_label(evaluate, tmp_path, capsys):
    assert evaluate("--labels", "2", "--names", "1=left,2=right side", "--nsd-tolerance-mm", "2=2.5") == 0
    table, summary = _results(tmp_path)
    assert table["label"].unique().tolist() == [2]
    assert table["name"].unique().tolist() == ["right side"]
    assert table["nsd"].tolist() == [1, 1, 1]
    assert summary["nsd_tolerance_mm"] == {"2": 2.5}
    assert "right side: Dice" in capsys.readouterr().out
    assert "label 2: 2.5 mm" in (tmp_path / "out" / "conventions.txt").read_text()


def test_one_tolerance_for_all_and_workers(evaluate, tmp_path):
    assert evaluate("--nsd-tolerance-mm", "0.5", "--workers", "2") == 0
    table, summary = _results(tmp_path)
    assert summary["nsd_tolerance_mm"] == 0.5
    assert table[table["case"] == "b"]["nsd"].max() < 1


def test_probabilities_add_calibration(evaluate, tmp_path):
    (tmp_path / "probabilities").mkdir()
    for shift, case in enumerate("abc"):
        channels = np.stack([blocks(shift) == label for label in range(3)], axis=-1).astype(np.float32)
        nib.save(nib.Nifti1Image(channels, AFFINE), tmp_path / "probabilities" / f"{case}.nii.gz")
    assert evaluate("--probabilities", tmp_path / "probabilities", "--labels", "1,2") == 0
    table, summary = _results(tmp_path)
    assert table["ece"].tolist()[:2] == table["brier"].tolist()[:2] == [0, 0]
    assert table["brier"].tolist()[2] == pytest.approx(32 / (12 * 12 * 8))
    assert summary["labels"][0]["brier"]["n"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "1,liver"], "--labels must name labels by their whole numbers below 2**63, got 'liver'"),
        (["--names", "left"], "--names must be label=value, separated by commas, got 'left'"),
        (["--names", "left=1"], "--names must name labels by their whole numbers below 2**63, got 'left'"),
        (["--nsd-tolerance-mm", "wide"], "--nsd-tolerance-mm must be a number of mm"),
        (["--nsd-tolerance-mm", "1=wide"], "--nsd-tolerance-mm must be a number of mm"),
        (["--nsd-tolerance-mm", "a=1"], "--nsd-tolerance-mm must name labels"),
        (["--nsd-tolerance-mm", "-1"], "nsd_tolerance_mm must be a number from 0 up"),
        (["--nsd-tolerance-mm", "1=1"], "label 2 has no NSD tolerance"),
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--probabilities", "nowhere"], "nowhere: is not a folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(flags, message, evaluate, tmp_path, capsys):
    assert evaluate(*flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_case_without_a_subject_stops_it_before_any_is_scored(evaluate, folders, tmp_path, capsys):
    (tmp_path / "subjects.csv").write_text("case,subject\na,s1\nb,s1\n")
    (folders[0] / "a.nii.gz").write_bytes(b"no image, which scoring would find")
    assert evaluate("--subjects", tmp_path / "subjects.csv") == 2
    assert "subjects.csv: 1 of 3 cases have no subject, such as 'c'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_predictions_stop_it_or_count_as_empty(evaluate, folders, tmp_path, capsys):
    (folders[0] / "b.nii.gz").unlink()
    assert evaluate() == 2
    assert "1 of 3 predictions are missing: b" in capsys.readouterr().err
    assert evaluate("--missing", "empty") == 0
    assert _results(tmp_path)[1]["overall"]["n_missed"] == 2
    assert _results(tmp_path)[1]["overall"]["n_missing_predictions"] == 1
    assert "warning: b: has no prediction and counts as wrong in every label" in capsys.readouterr().err
