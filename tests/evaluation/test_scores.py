"""evaluate, summarise and evaluate_folders: rows, conventions, refusals and files."""

import itertools
import json
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
from segscse.evaluation.columns import COLUMNS, CONVENTION, diagonal_mm_of, diagonals_beside
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.scores import evaluate, summarise

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


def test_dropping_predictions_never_improves_the_means(folders):
    before = summarise(evaluate(*folders))["overall"]
    for case in "abc":
        (folders[0] / f"{case}.nii.gz").unlink()
        after = summarise(evaluate(*folders, missing="empty"))["overall"]
        assert after["mean_dice"] < before["mean_dice"]
        assert after["mean_hd95_penalised_mm"] > before["mean_hd95_penalised_mm"]
        assert after["mean_hd95_mm"] is None
        before = after


@pytest.mark.parametrize("worst_first", [True, False])
def test_missing_k_of_100_structures_never_looks_better(worst_first):
    """The trap of a mean that leaves out what is missed: dropping the worst cases would improve it."""
    cases = [f"case_{number:03d}" for number in range(100)]
    ref = {case: np.pad(np.ones((8, 8), int), 8) for case in cases}
    pred = {case: np.roll(ref[case], number % 7, axis=0) for number, case in enumerate(cases)}
    order = sorted(cases, key=lambda case: int(case[5:]) % 7, reverse=worst_first)
    summaries = []
    for k in range(11):
        kept = {case: pred[case] for case in cases if case not in order[:k]}
        summaries.append(summarise(evaluate(kept, ref, missing="empty")))
        assert summaries[-1]["overall"]["n_missed"] == summaries[-1]["labels"][0]["n_missed"] == k
    for before, after in itertools.pairwise(summaries):
        assert after["overall"]["mean_dice"] < before["overall"]["mean_dice"]
        old, new = _distances(before), _distances(after)
        assert old.keys() == new.keys()
        assert len(old) == 4 * 3 + 4 * 2
        for name, value in new.items():
            assert value >= old[name], name
        for name in ("hd_mm", "hd95_mm", "assd_mm", "masd_mm"):
            assert new[name, "mean_penalised"] > old[name, "mean_penalised"]


def _distances(summary):
    """Return every distance that a summary publishes; null, which says undefined, counts as the worst."""
    found = {key: value for key, value in summary["overall"].items() if key.endswith("_mm")}
    for name, values in summary["labels"][0].items():
        if name.endswith("_mm"):
            found |= {(name, what): values[what] for what in ("mean", "median", "mean_penalised")}
    return {key: math.inf if value is None else value for key, value in found.items()}


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


def test_summary_is_json_and_hand_worked(folders):
    (folders[0] / "c.nii.gz").unlink()
    table = evaluate(*folders, missing="empty", names={1: "left"})
    summary = summarise(table)
    json.dumps(summary, allow_nan=False)
    left = summary["labels"][0]
    assert (left["label"], left["name"], left["n_cases"]) == (1, "left", 3)
    assert left["dice"]["mean"] == pytest.approx((1 + 0.75 + 0) / 3)
    assert left["dice"]["median"] == 0.75
    assert (left["hd95_mm"]["n"], left["hd95_mm"]["n_infinite"]) == (3, 1)
    assert (left["hd95_mm"]["mean"], left["hd95_mm"]["median"]) == (None, 1)
    diagonal = math.sqrt(12**2 + 24**2 + 20**2)
    assert left["hd95_mm"]["mean_penalised"] == pytest.approx((0 + 1 + diagonal) / 3)
    assert (left["n_missed"], left["n_false_positive_cases"], left["n_both_empty"]) == (1, 0, 0)
    assert summary["overall"]["mean_dice"] == pytest.approx((1.75 / 3 + (1 + 2 / 3) / 3) / 2)
    assert summary["overall"]["n_missed"] == 2
    assert left["iou"]["mean"] == pytest.approx((1 + 0.6 + 0) / 3)
    assert (left["precision"]["n"], left["precision"]["mean"]) == (2, pytest.approx(0.875))
    assert (summary["nsd_tolerance_mm"], summary["convention"]) == (1.0, CONVENTION)
    assert summary["definitions"].keys() == set(table.columns)
    assert diagonal_mm_of(table).tolist() == pytest.approx([diagonal] * 6)
    assert summary["grids"]["a"] == {"spacing_mm": [1, 2, 2.5], "diagonal_mm": pytest.approx(diagonal)}


def test_mean_over_labels_and_mean_over_cases_differ_when_labels_are_absent():
    rows = [
        {"case": "a", "label": 1, "dice": 1.0}, {"case": "a", "label": 2, "dice": 0.0},
        {"case": "b", "label": 1, "dice": 0.6}, {"case": "b", "label": 2, "dice": math.nan},
    ]  # fmt: skip
    fill = {"name": "x", "hd95_mm": math.nan, "n_ref": 1, "n_pred": 1}
    overall = summarise(pd.DataFrame([row | fill for row in rows]))["overall"]
    assert overall["mean_dice"] == pytest.approx((0.8 + 0.0) / 2)
    assert overall["mean_dice_by_case"] == pytest.approx((0.5 + 0.6) / 2)


def test_a_label_that_never_occurs_is_null_in_the_summary():
    summary = summarise(evaluate(blocks(), blocks(), labels=[1, 5]))
    assert summary["labels"][1]["dice"]["mean"] is None
    assert summary["labels"][1]["n_both_empty"] == 1
    assert summary["overall"]["mean_dice"] == 1


def test_a_penalised_mean_is_null_where_the_diagonal_is_not_known():
    table = evaluate(np.zeros((4, 4), int), np.ones((4, 4), int))
    assert summarise(table)["labels"][0]["hd95_mm"]["mean_penalised"] == pytest.approx(math.sqrt(32))
    table.attrs = {}
    assert summarise(table.assign(diagonal_mm=7.0))["labels"][0]["hd95_mm"]["mean_penalised"] == 7
    assert summarise(table)["labels"][0]["hd95_mm"]["mean_penalised"] is None
    assert summarise(table)["overall"]["mean_hd95_penalised_mm"] is None


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


def test_evaluate_folders_writes_four_files(folders, tmp_path):
    table = evaluate_folders(*folders, tmp_path / "out", names={1: "left"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cases.csv",
        "conventions.txt",
        "report.html",
        "summary.json",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "cases.csv", dtype={"name": str}), table)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == summarise(table)
    assert diagonals_beside(tmp_path / "out" / "cases.csv") == pytest.approx(table.attrs["diagonal_mm"])
    assert diagonals_beside(folders[0] / "cases.csv") == {}
    (tmp_path / "out" / "summary.json").write_text('{"grids": {"a": {}}}')
    with pytest.raises(InputError, match="is not a summary of evaluate"):
        diagonals_beside(tmp_path / "out" / "cases.csv")
    (tmp_path / "out" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        diagonals_beside(tmp_path / "out" / "cases.csv")
    words = (tmp_path / "out" / "conventions.txt").read_text()
    assert CONVENTION in words
    assert "NSD tolerance: 1 mm." in words
    assert "hd95_mm: larger of the two directed 95th percentiles" in words


def test_nothing_is_written_when_a_case_is_bad(folders, tmp_path):
    (folders[0] / "b.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        evaluate_folders(*folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
