"""evaluate: rows, conventions and refusals."""

import math
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import segscse as ss
from segscse.data.io import Volume
from segscse.errors import InputError
from segscse.evaluation import scores
from segscse.evaluation.columns import COLUMNS, CONVENTION
from segscse.evaluation.scores import evaluate

from .conftest import AFFINE, blocks


def test_public_name():
    assert ss.evaluate is evaluate


def test_array_row_is_hand_worked():
    table = evaluate(blocks(1), blocks(), spacing_mm=(1, 2, 2.5), names={"1": "left"})
    assert (
        list(table.columns)
        == list(COLUMNS)
        == [
            "case",
            "label",
            "name",
            "dice",
            "iou",
            "sensitivity",
            "precision",
            "specificity",
            "hd_mm",
            "hd95_mm",
            "assd_mm",
            "masd_mm",
            "nsd",
            "nsd_area",
            "volume_ref_ml",
            "volume_pred_ml",
            "volume_diff_ml",
            "volume_similarity",
            "n_ref",
            "n_pred",
            "n_components_ref",
            "n_components_pred",
            "lesion_sensitivity",
            "lesion_precision",
            "lesion_f1",
        ]
    )
    row = table.iloc[0]
    assert (row["case"], row["label"], row["name"]) == ("case", 1, "left")
    assert row["dice"] == pytest.approx(0.75)
    assert row["iou"] == pytest.approx(0.6)
    assert row["sensitivity"] == row["precision"] == pytest.approx(0.75)
    assert row["specificity"] == (12 * 12 * 8 - 64 - 16) / (12 * 12 * 8 - 64)
    assert row["hd_mm"] == row["hd95_mm"] == row["nsd"] == 1
    assert row["assd_mm"] == row["masd_mm"] == pytest.approx(20 / 56)  # 16 of the far face, 4 within the near one
    assert row["volume_similarity"] == row["lesion_f1"] == 1
    assert (row["n_components_ref"], row["n_components_pred"]) == (1, 1)
    assert row["volume_ref_ml"] == pytest.approx(64 * 5 / 1000)
    assert row["volume_diff_ml"] == 0
    assert (row["n_ref"], row["n_pred"]) == (64, 64)
    assert table.attrs["diagonal_mm"]["case"] == pytest.approx(math.sqrt(12**2 + 24**2 + 20**2))
    assert table.attrs["convention"] == CONVENTION
    assert (table.attrs["nsd_tolerance_mm"], table.attrs["spacing_mm"]) == (1.0, {"case": (1, 2, 2.5)})
    assert table["name"].tolist() == ["left", "2"]


def test_a_single_slice_scores_as_the_2d_image():
    rng = np.random.default_rng(0)
    pred, ref = rng.random((2, 12, 9)) < 0.6
    flat = evaluate(pred, ref, spacing_mm=(1, 2))
    for axis in range(3):
        spacing = np.insert(np.array([1.0, 2.0]), axis, 5.0)
        deep = evaluate(np.expand_dims(pred, axis), np.expand_dims(ref, axis), spacing_mm=spacing)
        for column in ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd", "nsd_area", "n_components_ref"):
            assert deep[column][0] == pytest.approx(flat[column][0])
        assert math.isnan(flat["volume_ref_ml"][0])
        assert deep["volume_ref_ml"][0] == pytest.approx(ref.sum() * 0.01)


def test_empty_masks_follow_the_convention():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    both, missed, false = (evaluate(p, r).iloc[0] for p, r in ((empty, empty), (empty, full), (full, empty)))
    assert math.isnan(both["dice"])
    assert math.isnan(both["hd95_mm"])
    assert missed["dice"] == false["dice"] == 0
    assert missed["hd95_mm"] == false["hd95_mm"] == math.inf
    assert missed["volume_diff_ml"] == pytest.approx(-0.064)
    assert [both[name] for name in ("n_ref", "n_pred", "n_components_ref", "specificity")] == [0, 0, 0, 1]
    for name in ("nsd", "nsd_area", "lesion_f1", "volume_similarity"):
        assert math.isnan(both[name])
        assert missed[name] == false[name] == 0
    for name in ("hd_mm", "assd_mm", "masd_mm"):
        assert math.isnan(both[name])
        assert missed[name] == false[name] == math.inf
    assert math.isnan(evaluate(empty, empty, labels=[3])["dice"][0])


def test_every_label_of_either_map_gets_a_row_and_labels_can_be_chosen():
    pred, ref = blocks(), blocks()
    pred[0, 0, 0] = 9
    assert evaluate(pred, ref)["label"].tolist() == [1, 2, 9]
    assert evaluate(pred, ref, labels=[2, 0, 5])["label"].tolist() == [2, 5]


def test_objects_with_an_affine_and_paths_mix(folders):
    pred, ref = folders
    volume = Volume(blocks(1), AFFINE)
    from_object, from_path = evaluate(volume, ref / "b.nii.gz"), evaluate(pred / "b.nii.gz", ref / "b.nii.gz")
    pd.testing.assert_frame_equal(from_object, from_path)
    assert from_path["case"].unique().tolist() == ["b"]
    assert from_path["volume_ref_ml"][0] == pytest.approx(0.32)


def test_objects_may_be_2d_or_have_a_last_axis_of_one():
    flat = evaluate(Volume(blocks(1)[..., 3], AFFINE), Volume(blocks()[..., 3], AFFINE))
    deep = evaluate(Volume(blocks(1)[..., 3:4, None], AFFINE), Volume(blocks()[..., 3:4], AFFINE))
    pd.testing.assert_frame_equal(flat, deep)
    assert flat["volume_ref_ml"][0] == pytest.approx(16 * 5 / 1000)


def test_matches_monai_dice():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_dice

    pred, ref = np.random.default_rng(4).integers(0, 4, (2, 8, 9, 10))
    one_hot = [np.stack([array == label for label in range(4)])[None] for array in (pred, ref)]
    expected = compute_dice(*(torch.tensor(array).float() for array in one_hot), include_background=False)
    assert evaluate(pred, ref)["dice"].tolist() == pytest.approx(expected[0].tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("pred", "options", "message"),
    [
        (np.zeros((4, 4, 5), int), {}, r"different grids: shape \(4, 4, 5\) against \(4, 4, 4\)"),
        (np.full((4, 4, 4), 0.5), {}, "whole numbers"),
        (np.full((4, 4, 4), np.nan), {}, "whole numbers"),
        (np.zeros((1, 2, 4, 4, 4), int), {}, "2D or 3D label map"),
        (np.full((4, 4, 4), "a"), {}, "array of integers"),
        (np.ones((4, 4, 4), int), {"labels": [0]}, "no label to score"),
        (np.ones((4, 4, 4), int), {"labels": [1.5]}, "whole numbers above 0"),
        (np.ones((4, 4, 4), int), {"labels": [math.nan]}, "whole numbers above 0, got nan"),
        (np.ones((4, 4, 4), int), {"labels": [math.inf]}, "whole numbers above 0, got inf"),
        (np.ones((4, 4, 4), int), {"workers": -1}, "workers must be 1 or more, got -1"),
        (np.full((4, 4, 4), 1e20), {}, "fit no integer type"),
        (np.ones((4, 4, 4), int), {"spacing_mm": (1, 1)}, "3 positive numbers"),
        (np.ones((4, 4, 4), int), {"spacing_mm": (1, 0, 1)}, "3 positive numbers"),
        (np.ones((4, 4, 4), int), {"names": {"liver": 1}}, "integer labels"),
        (np.ones((4, 4, 4), int), {"missing": "skip"}, "allowed: empty, error"),
        (np.ones((4, 4, 4), int), {"nsd_tolerance_mm": -1}, "a number from 0 up"),
        (np.ones((4, 4, 4), int), {"nsd_tolerance_mm": math.inf}, "a number from 0 up"),
        (np.ones((4, 4, 4), int), {"nsd_tolerance_mm": {"liver": 1}}, "a number from 0 up"),
        (np.ones((4, 4, 4), int), {"nsd_tolerance_mm": {1: 1}, "labels": [1, 2]}, "label 2 has no NSD tolerance"),
        (np.ones((4, 4, 4), int), {"nsd_tolerance_mm": {2: 1}}, "label 1 has no NSD tolerance"),
        (-np.ones((4, 4, 4), int), {}, "above 0, got -1"),
        (np.zeros((4, 4, 4), int), {}, "no label to score"),
    ],
)
def test_bad_input_is_one_line_that_says_what(pred, options, message):
    with pytest.raises(InputError, match=message) as caught:
        evaluate(pred, np.zeros((4, 4, 4), int), **options)
    assert "\n" not in str(caught.value)


def test_whole_numbers_in_floats_are_labels():
    assert evaluate(blocks().astype(float), blocks())["dice"].tolist() == [1, 1]


def test_labels_that_only_one_maps_type_can_hold():
    reference = blocks().astype(np.uint32)
    reference[reference == 2] = 70_000
    table = evaluate({"a": blocks()}, {"a": reference})
    assert dict(zip(table["label"], table["dice"], strict=True)) == {1: 1, 2: 0, 70_000: 0}
    assert evaluate({}, {"a": reference}, missing="empty")["dice"].tolist() == [0, 0]


def test_cases_may_be_numbers_and_errors_name_them():
    assert evaluate({1: blocks()}, {1: blocks()})["case"].unique().tolist() == ["1"]
    half = {1: blocks(), 2: blocks() / 2, 3: blocks() / 2}
    with pytest.raises(InputError, match=r"2 of 3 cases.*case 2: the prediction.*case 3: the prediction"):
        evaluate(half, dict.fromkeys(half, blocks()))


def test_what_holds_for_every_case_is_said_once(folders):
    with pytest.raises(InputError) as caught:
        evaluate(*folders, nsd_tolerance_mm={1: 1})
    assert str(caught.value).count("label 2 has no NSD tolerance") == 1


def test_a_tolerance_per_label():
    one, other = (evaluate(blocks(2), blocks(), nsd_tolerance_mm=value) for value in (1, 2))
    table = evaluate(blocks(2), blocks(), nsd_tolerance_mm={"1": 1, 2: 2})
    for column in ("nsd", "nsd_area"):
        assert table[column].tolist() == [one[column][0], other[column][1]]
        assert one[column][0] < other[column][0]
    assert table.attrs["nsd_tolerance_mm"] == {"1": 1.0, "2": 2.0}


def test_spacing_for_files_is_refused(folders):
    with pytest.raises(InputError, match="spacing_mm is for arrays"):
        evaluate(folders[0] / "a.nii.gz", folders[1] / "a.nii.gz", spacing_mm=(1, 1, 1))


def test_folder_against_file_is_refused(folders):
    with pytest.raises(InputError, match="a folder can only be compared with a folder"):
        evaluate(folders[0], folders[1] / "a.nii.gz")


def test_folders_pair_by_name_and_every_case_has_every_label(folders, save):
    save(folders[0] / "d.nii.gz", np.zeros((12, 12, 8), np.uint8))
    save(folders[1] / "d.nii.gz", np.where(blocks() == 2, 7, 0).astype(np.uint8))
    table = evaluate(*folders)
    assert len(table) == 4 * 3
    assert table[table["case"] == "b"]["dice"].tolist()[:2] == pytest.approx([0.75, 2 / 3])
    absent = table[(table["case"] == "a") & (table["label"] == 7)].iloc[0]
    assert math.isnan(absent["dice"])
    assert (absent["n_ref"], absent["volume_ref_ml"]) == (0, 0)
    missed = table[(table["case"] == "d") & (table["label"] == 7)].iloc[0]
    assert (missed["dice"], missed["hd95_mm"]) == (0, math.inf)


def test_missing_predictions_are_refused_by_name_or_scored_as_empty(folders):
    (folders[0] / "a.nii.gz").unlink()
    (folders[0] / "c.nii.gz").unlink()
    with pytest.raises(InputError, match=r"2 of 3 predictions are missing: a, c"):
        evaluate(*folders)
    table = evaluate(*folders, missing="empty")
    assert table[table["case"] == "a"]["dice"].tolist() == [0, 0]
    assert table["case"].nunique() == 3
    assert table.attrs["missing_predictions"] == ["a", "c"]
    assert [note for note in table.attrs["notes"] if "no prediction" in note[1]] == [
        (case, "has no prediction and counts as wrong in every label") for case in "ac"
    ]


def test_extra_predictions_are_refused_even_when_missing_ones_are_not(folders, save):
    save(folders[0] / "x.nii.gz", blocks())
    for missing in ("error", "empty"):
        with pytest.raises(InputError, match="1 predictions have no reference: x"):
            evaluate(*folders, missing=missing)


def test_all_cases_on_other_grids_are_named_at_once(folders, save):
    save(folders[0] / "a.nii.gz", blocks(), np.diag([1, 2, 3, 1.0]))
    save(folders[0] / "c.nii.gz", blocks(), np.diag([-1, 2, 2.5, 1.0]))
    with pytest.raises(InputError, match=r"2 of 3 cases cannot be scored") as caught:
        evaluate(*folders)
    for words in ("pred/a.nii.gz", "ref/a.nii.gz", "spacing", "pred/c.nii.gz", "orientation"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_references_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        evaluate(folders[0], tmp_path / "empty")


def test_progress_and_workers(folders):
    seen = []
    table = evaluate(*folders, workers=2, progress=lambda *given: seen.append(given))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    pd.testing.assert_frame_equal(table, evaluate(*folders, workers=1))


def test_a_stop_does_not_score_what_is_in_the_queue(monkeypatch):
    scored = []
    score_case = scores.score_case

    def counted(*given):
        scored.append(1)
        time.sleep(0.02)
        return score_case(*given)

    def stop(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "score_case", counted)
    cases = {str(number): blocks() for number in range(50)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(cases, cases, workers=2, progress=stop)
    assert len(scored) < 25


def test_scoring_imports_no_torch():
    code = (
        "import sys, numpy as np, segscse.evaluation.scores as s, segscse.evaluation.statistics\n"
        "s.evaluate(np.eye(4, dtype=int), np.eye(4, dtype=int))\n"
        "import segscse.evaluation.report, segscse.evaluation.overlays\n"
        "sys.exit(any(name.split('.')[0] in ('torch', 'monai') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_prediction_along_other_axes_is_brought_into_the_references_order(folders, save):
    """The same voxels at the same places in the world score the same, whatever order they are stored in."""
    before = evaluate(*folders)
    path = folders[0] / "b.nii.gz"
    image = nib.load(path)
    turn = np.array([[2, -1], [0, 1], [1, -1]])
    affine = image.affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    save(path, nib.apply_orientation(np.asarray(image.dataobj), turn), affine)
    assert evaluate(*folders).equals(before)


def test_what_is_unusual_about_a_file_is_noted_and_scored(folders):
    path = folders[0] / "b.nii.gz"
    image = nib.load(path)
    image.header.set_xyzt_units("unknown")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    notes = evaluate(*folders).attrs["notes"]
    assert (str(path), "does not say its units, so they are taken as mm") in notes
