"""summarise: hand-worked values, intervals and quantiles, and that a miss never looks better."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.columns import CONVENTION, DISTANCES, diagonal_mm_of
from segscse.evaluation.scores import evaluate, summarise

from .conftest import blocks


def test_dropping_predictions_never_improves_the_means(folders):
    before = summarise(evaluate(*folders))["overall"]
    for case in "abc":
        (folders[0] / f"{case}.nii.gz").unlink()
        after = summarise(evaluate(*folders, missing="empty"))["overall"]
        assert after["mean_dice"] < before["mean_dice"]
        assert after["mean_hd95_penalised_mm"] > before["mean_hd95_penalised_mm"]
        assert after["mean_hd95_mm"] is None
        before = after


def test_leaving_out_false_positives_does_not_look_better():
    ref = {"a": np.pad(np.ones((4, 4), int), 4), "b": np.zeros((12, 12), int), "c": np.zeros((12, 12), int)}
    pred = {"a": ref["a"], "b": ref["a"], "c": ref["c"]}  # b is a false positive, c right
    whole = summarise(evaluate(pred, ref))["overall"]
    for left_out in "bc":
        kept = {case: mask for case, mask in pred.items() if case != left_out}
        fewer = summarise(evaluate(kept, ref, missing="empty"))["overall"]
        assert (whole["n_missing_predictions"], fewer["n_missing_predictions"]) == (0, 1)
        assert fewer["mean_dice"] <= whole["mean_dice"]
        assert fewer["mean_hd95_penalised_mm"] >= whole["mean_hd95_penalised_mm"]
        for share in ("iou", "precision", "specificity", "nsd", "nsd_area", "volume_similarity", "lesion_precision"):
            assert fewer[f"mean_{share}"] <= whole[f"mean_{share}"], share
        assert fewer["n_both_empty"] == (1 if left_out == "b" else 0)


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
        assert len(old) == 8 + 4 * (2 + 2 * 7)
        for name, value in new.items():
            assert value >= old[name], name
        for name in ("hd_mm", "hd95_mm", "assd_mm", "masd_mm"):
            assert new[name, "mean_penalised", "label"] > old[name, "mean_penalised", "label"]


def _distances(summary):
    """Return every distance that a summary publishes; null, which says undefined, counts as the worst."""
    found = {key: value for key, value in summary["overall"].items() if key.endswith("_mm")}
    for name in DISTANCES:
        label = summary["labels"][0][name]
        found |= {(name, what): label[what] for what in ("mean", "median")}
        for place, values in (("label", label), ("whole", summary["overall"]["scores"][name])):
            found |= {(name, what, place): values[what] for what in ("mean_penalised", "median_penalised")}
            found |= {(name, level, place): value for level, value in values["quantiles_penalised"].items()}
    return {key: math.inf if value is None else value for key, value in found.items()}


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
    assert (left["precision"]["n"], left["precision"]["mean"]) == (3, pytest.approx((1 + 0.75 + 0) / 3))
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


def _table(subjects=False):
    """Return 12 cases with two labels, the second absent from a third of them; one structure is missed."""
    rng = np.random.default_rng(9)
    rows = [
        {"case": f"c{case:02d}", "label": label, "name": f"label {label}", "dice": dice, "hd95_mm": 10 * (1 - dice)}
        for case, values in enumerate(rng.uniform(0.5, 1.0, (12, 2)))
        for label, dice in enumerate(values, start=1)
    ]
    table = pd.DataFrame(rows).assign(n_ref=5, n_pred=5, diagonal_mm=80.0)
    table.loc[(table["label"] == 2) & table["case"].isin(["c00", "c03", "c06", "c09"]), ["dice", "hd95_mm"]] = math.nan
    table.loc[0, ["dice", "hd95_mm"]] = 0.0, math.inf
    return table.assign(subject=[f"s{row // 4}" for row in range(24)]) if subjects else table


def test_every_score_has_interval_median_and_quantiles_per_label():
    table = _table()
    summary = summarise(table)
    json.dumps(summary, allow_nan=False)
    dice = table[table["label"] == 1]["dice"].to_numpy()
    found, interval = summary["labels"][0]["dice"], mean_interval(dice)
    assert found["mean_interval_95"] == pytest.approx([interval.low, interval.high])
    assert found["mean_interval_method"] == "BCa"
    assert (found["n"], found["mean"], found["median"]) == (12, pytest.approx(dice.mean()), np.median(dice))
    assert found["quantiles"] == pytest.approx({f"{q:g}": np.quantile(dice, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)})
    distances = np.append(80.0, 10 * (1 - dice[1:]))
    found, interval = summary["labels"][0]["hd95_mm"], mean_interval(distances)
    assert found["mean_penalised_interval_95"] == pytest.approx([interval.low, interval.high])
    assert found["quantiles_penalised"]["0.75"] == pytest.approx(np.quantile(distances, 0.75))
    assert (found["mean"], found["n_infinite"]) == (None, 1)


def test_over_labels_the_mean_is_of_labels_and_the_rest_is_of_cases():
    table = _table()
    overall = summarise(table)["overall"]
    found = overall["scores"]["dice"]
    assert found["mean"] == overall["mean_dice"] == pytest.approx(table.groupby("label")["dice"].mean().mean())
    low, high = found["mean_interval_95"]
    assert low < found["mean"] < high
    assert found["median"] == overall["median_dice_by_case"]
    by_case = table.groupby("case")["dice"].mean()
    assert found["quantiles"]["0.25"] == pytest.approx(by_case.quantile(0.25))
    assert found["n"] == 12
    assert overall["scores"]["hd95_mm"]["mean_penalised"] == pytest.approx(overall["mean_hd95_penalised_mm"])


def test_intervals_are_drawn_over_subjects_where_they_are_known():
    plain, known = summarise(_table()), summarise(_table(subjects=True))
    dice = _table()[_table()["label"] == 1]["dice"].to_numpy()
    interval = mean_interval(dice, [f"s{case // 2}" for case in range(12)])
    assert known["labels"][0]["dice"]["mean_interval_95"] == pytest.approx([interval.low, interval.high])
    assert known["overall"]["scores"]["dice"]["mean"] == plain["overall"]["scores"]["dice"]["mean"]
    for place in ("labels", "overall"):
        both = [one["labels"][0] if place == "labels" else one["overall"]["scores"] for one in (plain, known)]
        assert both[0]["dice"]["mean_interval_95"] != both[1]["dice"]["mean_interval_95"]


def test_one_label_is_the_whole():
    summary = summarise(_table().query("label == 1"))
    label, whole = summary["labels"][0]["dice"], summary["overall"]["scores"]["dice"]
    assert label == whole


def test_absolute_volume_differences_are_named_so():
    table = evaluate({"a": np.ones((2, 2, 2), int), "b": np.ones((2, 2, 2), int)}, {
        "a": np.pad(np.ones((2, 2, 1), int), ((0, 0), (0, 0), (0, 1))), "b": np.ones((2, 2, 2), int)
    })  # fmt: skip
    found = summarise(table)["labels"][0]["volume_diff_ml"]
    assert found["mean_absolute"] == pytest.approx(0.002)
    assert "mean" not in found
