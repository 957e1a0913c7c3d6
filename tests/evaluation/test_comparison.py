"""Paired comparison: hand-worked values, degenerate cases, refusals."""

import json
import math

import numpy as np
import pandas as pd
import pytest

import segscse as ss
from segscse.errors import InputError
from segscse.evaluation.columns import CONVENTION, CONVENTION_VERSION
from segscse.evaluation.comparison import compare
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.paired import paired_difference
from segscse.evaluation.tables import load_subjects, load_table

_TOLERANCES = (("narrow", 1.0), ("wide", 3.0))


def _table(values, label=1, name="liver"):
    return pd.DataFrame({"case": [f"c{i}" for i in range(len(values))], "label": label, "name": name, "dice": values})


def test_public_name():
    assert ss.compare is compare


def test_hand_worked_comparison():
    a, b = _table([0.5, 0.6, 0.7, 0.8, 0.9]), _table([0.6, 0.8, 0.7, 0.7, 1.0])
    result = compare(a, b)
    row = result.overall
    assert (row.n, row.wins, row.ties, row.losses) == (5, 3, 1, 1)
    assert row.mean_a == pytest.approx(0.7)
    assert result.difference == pytest.approx(0.06)
    assert row.effect_size == pytest.approx((2 + 4 + 2 - 2) / 10)  # ranks of 0.1, 0.2, -0.1, 0.1
    assert row.low < 0.06 < row.high
    assert row.method == "BCa"
    assert "only 5 cases" in result.verdict


def test_identical_evaluations_show_no_difference():
    table = _table(np.linspace(0.5, 0.9, 12))
    result = compare(table, table)
    assert (result.difference, result.interval, result.p_value) == (0, (0, 0), 1)
    assert result.verdict == "no difference shown"
    assert result.overall.method == "constant"
    assert result.overall.ties == 12


def test_constant_difference_falls_back_and_says_so():
    a = np.linspace(0.5, 0.8, 12)
    result = compare(_table(a), _table(a + 0.1))
    assert result.overall.method == "constant"
    assert result.interval == pytest.approx((0.1, 0.1))
    assert result.verdict == "b is better by 0.1000 Dice"
    assert compare(_table(a + 0.1), _table(a)).verdict == "a is better by 0.1000 Dice"


def test_noise_shows_no_difference():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.6, 0.9, 30)
    result = compare(_table(a), _table(a + rng.permutation(np.tile([-0.05, 0.05], 15))))
    assert result.verdict == "no difference shown"
    assert result.p_value > 0.05


def test_one_case_cannot_be_judged():
    result = compare(_table([0.5]), _table([0.9]))
    assert result.verdict == "cannot be judged from 1 case"
    assert math.isnan(result.overall.low)
    assert result.overall.method == "none"


def test_pairs_undefined_on_one_side_are_counted_and_told():
    a, b = _table([0.8, 0.7, math.nan, math.nan]), _table([0.8, 0.9, 0.0, math.nan])
    result = compare(a, b)
    assert result.overall.n == 2
    assert result.overall.n_only_a_undefined == 1
    assert "once a rightly finds nothing where b marks something" in result.verdict


def test_what_the_foreground_counts_and_a_label_does_not_is_told_apart():
    """Both labels are in every even case; b marks the second in the others, too, where a rightly does not."""
    first = _table([0.9] * 12)
    second = _table([0.8, math.nan] * 6, label=2, name="spleen")
    result = compare(pd.concat([first, second]), pd.concat([first, second.fillna(0.0)]))
    assert [row.difference for row in result.by_label] == [0.0, 0.0]
    assert result.difference == pytest.approx(-0.225)
    assert "counted here, not by label: 6 times a rightly finds nothing where b marks something" in result.verdict
    assert "not counted" not in result.verdict


def test_a_case_that_is_not_counted_is_not_said_to_be_counted_elsewhere():
    """Eleven cases with both labels, and a healthy one in which b marks both."""
    a = pd.concat([_table([0.9] * 11 + [math.nan], label=label, name=str(label)) for label in (1, 2)])
    result = compare(a, a.fillna({"dice": 0.0}))
    assert "not counted: once a rightly finds nothing" in result.verdict
    assert "counted here" not in result.verdict


def test_small_scores_are_shown_with_the_places_that_tell_them_apart():
    a = _table(np.full(12, 0.9)).assign(brier=0.00044, ece=0.0021)
    assert "0.000440" in str(compare(a, a.assign(brier=0.00114), metric="brier"))
    assert "0.00210" in str(compare(a, a.assign(ece=0.0014), metric="ece"))


def test_what_is_made_up_in_healthy_cases_is_told_for_distances_too():
    healthy = [math.nan] * 15
    a = _table(np.full(30, 0.9)).assign(hd95_mm=healthy + [3.0] * 15, diagonal_mm=50.0)
    b = a.assign(hd95_mm=[math.inf] * 15 + [2.0] * 15)
    result = compare(a, b, metric="hd95_mm")
    assert result.verdict.startswith("b is better by 1.")
    assert "not counted: 15 times a rightly finds nothing where b marks something" in result.verdict
    assert "over the 15 cases where all are defined, of 30" in result.ranking.text
    precision = compare(a.assign(precision=healthy + [0.5] * 15), a.assign(precision=0.5), metric="precision")
    assert "not counted: 15 of the scores, where a is undefined" in precision.verdict


def test_other_tolerances_conventions_and_references_are_refused(folders, tmp_path):
    narrow, wide = (evaluate_folders(*folders, tmp_path / name, nsd_tolerance_mm=mm)[0] for name, mm in _TOLERANCES)
    with pytest.raises(InputError, match=r"different values of nsd_tolerance_mm: 1\.0 and 3\.0"):
        compare(tmp_path / "narrow", tmp_path / "wide", metric="nsd")
    assert compare(tmp_path / "narrow", tmp_path / "wide").nsd_tolerance_mm is None
    older = wide.copy()
    older.attrs["convention_version"] = 1
    with pytest.raises(InputError, match="different values of convention_version: 3 and 1"):
        compare(narrow, older)
    older.attrs["convention_version"] = 2  # the same but for cases without a prediction
    assert compare(older, narrow).convention_version == CONVENTION_VERSION
    with pytest.raises(InputError, match="different values of convention_version: 2 and 3"):
        compare(older.assign(n_pred=older["n_pred"] * (older["case"] != "a")), narrow)
    with pytest.raises(InputError, match="different references: of case a, label 1 has 64 voxels in one and 65"):
        compare(narrow, narrow.assign(n_ref=narrow["n_ref"] + (narrow["case"] == "a")))


def test_every_output_carries_the_convention(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out")
    result = compare(tmp_path / "out", tmp_path / "out", metric="nsd")
    record = result.to_json()
    assert (record["convention"], record["convention_version"]) == (CONVENTION, CONVENTION_VERSION)
    assert record["nsd_tolerance_mm"] == 1
    assert CONVENTION in result.to_markdown()
    assert "NSD tolerance in mm: 1.0." in result.to_markdown()
    assert compare(_table([0.5, 0.6]), _table([0.5, 0.6])).to_json()["convention"] is None


def test_foreground_is_the_mean_over_a_cases_labels():
    a = pd.concat([_table([0.8, 0.6]), _table([0.4, math.nan], label=2, name="tumour")])
    b = pd.concat([_table([0.8, 0.6]), _table([0.6, math.nan], label=2, name="tumour")])
    result = compare(a, b)
    assert result.overall.mean_a == pytest.approx((0.6 + 0.6) / 2)
    assert result.difference == pytest.approx(0.05)
    assert [row.what for row in result.labels] == ["liver", "tumour"]
    assert result.labels[1].n == 1


def test_order_of_rows_does_not_matter():
    a, b = _table(np.linspace(0.4, 0.8, 12)), _table(np.linspace(0.5, 0.8, 12))
    assert compare(a.sample(frac=1, random_state=1), b.sample(frac=1, random_state=0)) == compare(a, b)


def test_frame_and_text():
    result = compare(_table(np.linspace(0.4, 0.8, 12)), _table(np.linspace(0.5, 0.8, 12)))
    frame = result.to_frame()
    assert frame["what"].tolist() == ["foreground", "liver"]
    assert {"difference", "low", "high", "p_value", "effect_size", "wins", "verdict"} <= set(frame.columns)
    text = str(result)
    assert "liver" in text
    assert text.splitlines()[-2] == f"Foreground: {result.verdict}."


def test_different_cases_are_refused_by_name():
    with pytest.raises(InputError, match=r"a lacks c2 \(label 1\)"):
        compare(_table([0.1, 0.2]), _table([0.1, 0.2, 0.3]))
    with pytest.raises(InputError, match=r"b lacks c0 \(label 2\)"):
        compare(pd.concat([_table([0.1]), _table([0.2], label=2)]), _table([0.1]))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"case": ["a"]}), "no column label, name, dice"),
        (_table([]), "is empty"),
        (pd.concat([_table([0.1]), _table([0.1])]), "repeats case 'c0'"),
    ],
)
def test_other_tables_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        compare(table, table)


def test_folders_and_files_compare_like_their_tables(folders, tmp_path):
    pred, ref = folders
    good, _ = evaluate_folders(ref, ref, tmp_path / "good")
    poor, _ = evaluate_folders(pred, ref, tmp_path / "poor")
    expected = compare(poor, good)
    assert compare(tmp_path / "poor", tmp_path / "good" / "cases.csv") == expected
    assert expected.difference > 0


def test_a_case_called_na_keeps_its_name(tmp_path):
    (tmp_path / "cases.csv").write_text("case,label,name,dice\nNA,1,null,\n007,1,null,0.5\n")
    table = load_table(tmp_path)
    assert table["case"].tolist() == ["NA", "007"]
    assert table["name"].tolist() == ["null", "null"]
    assert math.isnan(table["dice"][0])


@pytest.mark.parametrize("content", [None, "", "case,label,name,dice\na,x,y,z\n"])
def test_unreadable_tables_are_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "cases.csv").write_text(content)
    with pytest.raises(InputError) as caught:
        compare(tmp_path / "cases.csv", tmp_path / "cases.csv")
    assert "\n" not in str(caught.value)


def test_nan_never_reaches_the_difference():
    series = pd.Series([math.nan, 0.5], index=["a", "b"])
    assert paired_difference(series, series, what="x").difference == 0


def _three(n=30):
    rng = np.random.default_rng(4)
    base = rng.uniform(0.6, 0.8, n)
    return [_table(base), _table(base + rng.normal(0.05, 0.02, n)), _table(base + rng.normal(0, 0.02, n))]


def test_three_sides_are_corrected_together_and_ranked():
    a, b, c = _three()
    result = compare(a, b, c)
    assert [(row.a, row.b) for row in result.foreground] == [("a", "b"), ("a", "c")]
    raw = [row.p_value for row in result.foreground]
    assert [row.p_holm for row in result.foreground] == pytest.approx([2 * min(raw), max(raw)])
    assert result.verdicts[0].startswith("b is better by 0.0")
    assert result.verdicts[1] == "no difference shown"
    assert result.ranking.ranks[1] == 1
    assert result.ranking.shares[1][0] == 1
    text = str(result)
    assert "c against a: no difference shown." in text
    assert "1. b (rank kept in 100% of resamples" in text
    every = compare(a, b, c, pairs="all", names=["U-Net", "scSE", "ECA"])
    assert [(row.a, row.b) for row in every.foreground] == [("U-Net", "scSE"), ("U-Net", "ECA"), ("scSE", "ECA")]
    assert every.foreground[0].p_holm == pytest.approx(3 * raw[0])
    assert every.verdicts[2].startswith("scSE is better")


def test_distances_are_better_when_lower_and_a_miss_costs_the_diagonal():
    rng = np.random.default_rng(1)
    good = _table(np.full(20, 0.9)).assign(hd95_mm=rng.uniform(1, 2, 20), diagonal_mm=50.0)
    bad = good.assign(hd95_mm=good["hd95_mm"] + rng.uniform(1, 2, 20))
    result = compare(good, bad, metric="hd95_mm")
    assert result.verdict.startswith("a is better by 1.")
    assert result.verdict.endswith("mm HD95")
    assert (result.overall.wins, result.overall.losses, result.overall.effect_size) == (0, 20, -1)
    assert result.ranking.ranks == (1, 2)
    missed = good.assign(hd95_mm=[math.inf, *good["hd95_mm"][1:]])
    assert compare(good, missed, metric="hd95_mm").difference == pytest.approx((50 - good["hd95_mm"][0]) / 20)
    with pytest.raises(InputError, match="is not known"):
        compare(good, missed.drop(columns="diagonal_mm"), metric="hd95_mm")


def test_volumes_have_no_better_side():
    a = _table(np.full(12, 0.9)).assign(volume_pred_ml=np.arange(12.0))
    result = compare(a, a.assign(volume_pred_ml=np.arange(12.0) + 1), metric="volume_pred_ml")
    assert result.verdict == "b is higher by 1.000 volume_pred_ml"
    assert result.ranking is None


def test_mean_and_ranks_that_disagree_show_no_difference():
    delta = np.array([0.001] * 40 + [-0.5] * 8)
    row = compare(_table(np.full(48, 0.6)), _table(0.6 + delta)).overall
    assert row.high < 0 < row.effect_size
    assert row.p_holm < 0.05
    assert row.verdict == "no difference shown (the mean and the ranks point different ways)"
    few = compare(_table(np.full(5, 0.6)), _table(0.6 + np.linspace(0.1, 0.2, 5)))
    assert few.verdict.startswith(
        "no difference shown (the interval leaves out 0, but the test does not reject: p = 0.06"
    )


def test_subjects_are_the_units_of_test_and_interval():
    a = _table([0.5] * 8)
    b = _table([0.6, 0.8, 0.5, 0.5, 0.4, 0.4, 0.7, 0.7])
    subjects = {f"c{i}": f"s{i // 2}" for i in range(8)}
    row = compare(a, b, subjects=subjects).overall
    assert (row.n, row.n_units, row.wins, row.ties, row.losses) == (8, 4, 2, 1, 1)
    assert row.effect_size == pytest.approx((2.5 - 1 + 2.5) / 6)
    assert compare(a.assign(subject=list(subjects.values())), b).overall == row
    assert "8 (4 subjects)" in str(compare(a, b, subjects=subjects))


def test_one_subject_is_one_unit():
    a, b = _table(np.linspace(0.4, 0.6, 10)), _table(np.linspace(0.5, 0.7, 10))
    result = compare(a, b, subjects=dict.fromkeys(a["case"], "s"))
    assert result.verdict == "cannot be judged from 10 cases of 1 subject"
    assert result.ranking.text == "no ranking from 10 cases of 1 subject"
    assert "nan" not in str(result).splitlines()[1].split("win")[0]
    few = compare(a, b, subjects={case: f"s{place // 2}" for place, case in enumerate(a["case"])})
    assert "only 10 cases of 5 subjects: the interval is likely too narrow" in few.verdict


def test_refusals_of_options():
    a, b, c = _three()
    with pytest.raises(InputError, match="unknown metric 'dcie'"):
        compare(a, b, metric="dcie")
    with pytest.raises(InputError, match="must be 3 different names"):
        compare(a, b, c, names=["x", "x", "y"])
    with pytest.raises(InputError, match="unknown value of pairs"):
        compare(a, b, pairs="some")


def test_json_markdown_and_notebook_output():
    hostile = "<script>|*x*"
    a, b = _table([0.5, 0.9], name=hostile), _table([0.6, math.nan], name=hostile)
    result = compare(a, b)
    json.dumps(result.to_json(), allow_nan=False)
    assert result.to_json()["differences"][0]["low"] is None
    assert "| \\<script\\>\\|\\*x\\* |" in result.to_markdown()
    shown = result._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "no ranking from 1 case" in str(result)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,subject,image\n1,NA,x\n2,s,y\n", None),
        ("case,x\n1,2\n", "has no column subject"),
        ("case,subject\n1,a\n1,b\n", "gives case '1' two subjects"),
        ("", "is not a CSV of subjects"),
    ],
)
def test_subjects_from_a_file(tmp_path, content, message):
    file = tmp_path / "subjects.csv"
    file.write_text(content)
    if message is None:
        assert load_subjects(file) == {"1": "NA", "2": "s"}
    else:
        with pytest.raises(InputError, match=message):
            load_subjects(file)
