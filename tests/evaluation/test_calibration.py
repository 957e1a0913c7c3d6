"""Calibration: hand-worked, scikit-learn, and probabilities through evaluate."""

import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from segscse.errors import InputError
from segscse.evaluation.calibration import calibration
from segscse.evaluation.columns import COLUMNS
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.scores import evaluate

from .conftest import AFFINE, blocks


def test_hand_worked():
    probability = np.array([[0.0, 0.01], [0.8, 0.82], [1.0, 0.81]])
    truth = np.array([[0, 0], [1, 0], [1, 1]], bool)
    measured = calibration(probability, truth)
    # bins of 1/15: {0, 0.01} with no hit, {0.8, 0.82, 0.81} with 2 of 3, {1} with 1 of 1
    assert measured.ece == pytest.approx((0.01 + abs(0.8 + 0.82 + 0.81 - 2)) / 6)
    assert measured.brier == pytest.approx((0.01**2 + 0.2**2 + 0.82**2 + 0.19**2) / 6)


def test_brier_is_scikit_learns_and_a_perfect_forecast_is_calibrated():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    probability = rng.random((40, 50, 60)).astype(np.float32)
    truth = rng.random(probability.shape) < probability
    measured = calibration(probability, truth)
    assert measured.brier == pytest.approx(sklearn.brier_score_loss(truth.ravel(), probability.ravel()))
    assert measured.ece < 0.01  # drawn from the probabilities themselves
    assert calibration(1 - probability, truth).ece > 0.4
    sure = calibration(truth.astype(float), truth)
    assert (sure.ece, sure.brier) == (0, 0)


def test_ece_equals_its_definition_bin_by_bin():
    rng = np.random.default_rng(1)
    probability, truth = rng.random(5000) ** 2, rng.random(5000) < 0.3
    expected = 0.0
    for low in range(15):
        inside = (probability >= low / 15) & (probability < (low + 1) / 15)
        expected += abs(probability[inside].mean() - truth[inside].mean()) * inside.mean()
    assert calibration(probability, truth).ece == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, -0.5, 1.5, math.inf])
def test_what_is_no_probability_is_refused(bad):
    with pytest.raises(InputError, match="probabilities must lie from 0 to 1"):
        calibration(np.array([0.5, bad]), np.array([True, False]))


def _channels(array, labels=(0, 1, 2)):
    """Return probabilities that say each label of `array` with 0.9 and the others with 0.05."""
    return np.stack([np.where(array == label, 0.9, 0.05) for label in labels], axis=-1).astype(np.float32)


@pytest.fixture
def three_folders(folders, tmp_path):
    (tmp_path / "probabilities").mkdir()
    for case in "abc":
        array = np.asarray(nib.load(folders[0] / f"{case}.nii.gz").dataobj)
        nib.save(nib.Nifti1Image(_channels(array), AFFINE), tmp_path / "probabilities" / f"{case}.nii.gz")
    return *folders, tmp_path / "probabilities"


def test_arrays_are_scored_channel_by_channel():
    table = evaluate(blocks(), blocks(), labels=[2, 1], probabilities=_channels(blocks()))
    assert list(table.columns) == [*COLUMNS, "ece", "brier"]
    share = (blocks() == 1).mean()
    assert table["brier"][0] == pytest.approx(share * 0.01 + (1 - share) * 0.0025, rel=1e-5)
    assert table["ece"][0] == pytest.approx(share * 0.1 + (1 - share) * 0.05, rel=1e-5)


def test_folders_pair_by_name_and_the_file_holds_the_columns(three_folders, tmp_path):
    pred, ref, probabilities = three_folders
    table, _ = evaluate_folders(pred, ref, tmp_path / "out", labels=[1, 2], probabilities_dir=probabilities)
    assert list(pd.read_csv(tmp_path / "out" / "cases.csv").columns) == [*COLUMNS, "ece", "brier"]
    assert table[table["case"] == "a"]["brier"].max() < table[table["case"] == "c"]["brier"].min()
    assert "brier: mean of" in (tmp_path / "out" / "conventions.txt").read_text()


def test_probabilities_in_another_order_of_axes_are_turned_as_predictions_are(three_folders):
    pred, ref, probabilities = three_folders
    expected = evaluate(pred, ref, labels=[1, 2], probabilities=probabilities)
    for folder in (pred, probabilities):
        image = nib.load(folder / "a.nii.gz")
        turned = image.as_reoriented(nib.orientations.axcodes2ornt("PSL"))
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), folder / "a.nii.gz")
    assert nib.load(probabilities / "a.nii.gz").shape != image.shape
    pd.testing.assert_frame_equal(evaluate(pred, ref, labels=[1, 2], probabilities=probabilities), expected)


def test_a_missing_prediction_has_no_calibration(three_folders):
    pred, ref, probabilities = three_folders
    (pred / "a.nii.gz").unlink()
    (probabilities / "a.nii.gz").unlink()
    table = evaluate(pred, ref, labels=[1, 2], probabilities=probabilities, missing="empty")
    without = table[table[["ece", "brier"]].isna().all(axis=1)]
    assert without["case"].tolist() == ["a", "a"]
    assert table[["ece", "brier"]].isna().sum().tolist() == [2, 2]


def test_what_does_not_fit_is_refused(three_folders, save):
    pred, ref, probabilities = three_folders
    with pytest.raises(InputError, match="probabilities need labels"):
        evaluate(pred, ref, probabilities=probabilities)
    with pytest.raises(InputError, match=r"must have shape \(12, 12, 8, 2\)"):
        evaluate(pred / "a.nii.gz", ref / "a.nii.gz", [1], probabilities=probabilities / "a.nii.gz")
    with pytest.raises(InputError, match="same kind"):
        evaluate(pred, ref, [1, 2], probabilities=probabilities / "a.nii.gz")
    save(probabilities / "b.nii.gz", _channels(blocks()), np.diag([1, 2, 3, 1.0]))
    with pytest.raises(InputError, match=r"b\.nii\.gz.*different grids"):
        evaluate(pred, ref, [1, 2], probabilities=probabilities)
    save(probabilities / "b.nii.gz", 2 * _channels(blocks()))
    with pytest.raises(InputError, match=r"b\.nii\.gz: probabilities must lie from 0 to 1"):
        evaluate(pred, ref, [1, 2], probabilities=probabilities)
    (probabilities / "c.nii.gz").unlink()
    with pytest.raises(InputError, match="1 of 3 probabilities are missing: c"):
        evaluate(pred, ref, [1, 2], probabilities=probabilities)
