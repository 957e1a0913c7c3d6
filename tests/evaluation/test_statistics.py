"""Paired comparison: hand-worked values, degenerate cases, refusals."""

import math

import numpy as np
import pandas as pd
import pytest

import segscse as ss
from segscse.errors import InputError
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.statistics import compare, load_table, mean_interval, paired_difference, wilcoxon_p


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
    assert row.effect_size == pytest.approx(0.06 / np.std([0.1, 0.2, 0, -0.1, 0.1], ddof=1))
    assert row.low < 0.06 < row.high
    assert row.method == "BCa"
    assert "only 5 cases" in result.verdict


def test_wilcoxon_exact_value():
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert wilcoxon_p(np.zeros(4)) == 1
    assert math.isnan(wilcoxon_p(np.array([])))


def test_identical_evaluations_show_no_difference():
    table = _table(np.linspace(0.5, 0.9, 12))
    result = compare(table, table)
    assert (result.difference, result.interval, result.p_value) == (0, (0, 0), 1)
    assert result.verdict == "no difference shown"
    assert result.overall.method == "percentile"
    assert result.overall.ties == 12


def test_constant_difference_falls_back_and_says_so():
    a = np.linspace(0.5, 0.8, 12)
    result = compare(_table(a), _table(a + 0.1))
    assert result.overall.method == "percentile"
    assert result.interval == pytest.approx((0.1, 0.1))
    assert result.verdict == "b is better by 0.1000 Dice"
    assert compare(_table(a + 0.1), _table(a)).verdict == "a is better by 0.1000 Dice"


def test_noise_shows_no_difference():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.6, 0.9, 30)
    result = compare(_table(a), _table(a + rng.permutation(np.tile([-0.05, 0.05], 15))))
    assert result.verdict == "no difference shown"
    assert result.p_value > 0.05


def test_the_interval_is_reproducible_and_about_right():
    values = np.random.default_rng(1).normal(0.7, 0.1, 200)
    interval = mean_interval(values)
    assert interval == mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(200)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.003)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.003)


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
    assert text.splitlines()[-1] == f"Foreground: {result.verdict}."


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
    good = evaluate_folders(ref, ref, tmp_path / "good")
    poor = evaluate_folders(pred, ref, tmp_path / "poor")
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
