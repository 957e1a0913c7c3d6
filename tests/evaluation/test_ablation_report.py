"""The outcome of an ablation: runs merged by hand, statistics against scipy, what the findings say, how it shows."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from segscse.errors import InputError
from segscse.evaluation.ablation import Ablation, VariantCost, merge_runs, score_variants
from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.columns import CONVENTION_VERSION
from segscse.evaluation.statistics import describe

COST = VariantCost(1000, 50.0, 400.0, 8e6, 0.5)
DEARER = VariantCost(1100, 60.0, 350.0, 10e6, 0.5)


def _table(dice, *, hd95=None, label=1):
    """Return a table of one label; cases are named a, b, c, ..."""
    cases = [chr(ord("a") + place) for place in range(len(dice))]
    table = pd.DataFrame({"case": cases, "label": label, "name": f"label {label}", "dice": dice})
    return table if hd95 is None else table.assign(hd95_mm=hd95, diagonal_mm=50.0)


def _ablation(runs, costs=None, **fields):
    costs = costs or dict.fromkeys(runs, COST)
    variants, comparison, _ = score_variants(runs, costs)
    rounds = tuple((seed, 0) for seed, _ in next(iter(runs.values())))
    n_cases = runs[next(iter(runs))][0][1]["case"].nunique()
    values = {"folder": None, "dataset": "data", "length": "10m", "rounds": rounds, "n_rounds": len(rounds)}
    return Ablation(**values | fields, n_cases=n_cases, variants=variants, comparison=comparison)


def test_a_case_is_the_mean_over_its_runs():
    first = _table([0.8, math.nan, math.nan], hd95=[math.inf, 3.0, math.nan])
    second = _table([0.6, 0.4, math.nan], hd95=[10.0, 5.0, math.nan])
    first["volume_diff_ml"], second["volume_diff_ml"] = [-2.0, 1.0, 0.0], [4.0, 1.0, 0.0]
    merged = merge_runs([first, second], None)
    assert merged["dice"].tolist() == pytest.approx([0.7, 0.4, math.nan], nan_ok=True)
    assert merged["hd95_mm"].tolist() == pytest.approx([30.0, 4.0, math.nan], nan_ok=True)  # the diagonal for a miss
    assert merged["volume_diff_ml"].tolist() == [3, 1, 0]  # sizes: +4 does not make up for -2


def test_cases_of_different_folds_stand_side_by_side():
    other = _table([0.5, 0.6]).assign(case=["x", "y"])
    merged = merge_runs([_table([0.8, 0.9]), other], {"a": "s", "b": "s", "x": "t", "y": "u"})
    assert merged["case"].tolist() == ["a", "b", "x", "y"]
    assert merged["subject"].tolist() == ["s", "s", "t", "u"]
    assert merged["dice"].tolist() == [0.8, 0.9, 0.5, 0.6]


def test_a_miss_without_a_diagonal_is_refused():
    with pytest.raises(InputError, match="diagonal of their images is not known"):
        merge_runs([_table([0.8], hd95=[math.inf]).drop(columns="diagonal_mm")], None)


def test_runs_are_merged_with_their_convention_and_only_of_one():
    first, second = _table([0.8, 0.9]), _table([0.7, 0.9])
    first.attrs = second.attrs = {"convention_version": CONVENTION_VERSION, "nsd_tolerance_mm": 2.0}
    compared = score_variants({"none": [(0, first)], "scse": [(0, second)]}, {"none": COST, "scse": COST})[1]
    assert (compared.convention_version, compared.nsd_tolerance_mm) == (CONVENTION_VERSION, 2.0)
    second.attrs = {**first.attrs, "nsd_tolerance_mm": 1.0}
    with pytest.raises(InputError, match=r"different values of nsd_tolerance_mm: 2\.0 and 1\.0"):
        merge_runs([first, second], None)


def test_under_way_seeds_are_compared_over_the_cases_that_all_have_scored():
    hard, easy = _table([0.5, 0.6]), _table([0.8, 0.9]).assign(case=["x", "y"])
    runs = [(0, hard), (0, easy), (1, hard)]
    (variant, _), *_ = score_variants({"none": runs, "scse": runs}, {"none": COST, "scse": COST})
    assert variant.by_seed == pytest.approx((0.55, 0.55))
    assert variant.mean == pytest.approx(0.7)


@pytest.fixture
def runs():
    """Return three variants, two seeds, two labels and 14 cases, of which the second variant is better."""
    rng = np.random.default_rng(4)
    made = {}
    for name, gain in (("none", 0.0), ("scse", 0.03), ("eca", 0.0)):
        made[name] = []
        for seed in (0, 1):
            base = np.linspace(0.6, 0.9, 14)
            tables = [_table(base + gain + rng.normal(0, 0.01, 14), label=label) for label in (1, 2)]
            made[name].append((seed, pd.concat(tables)))
    return made


def test_statistics_are_of_cases_and_not_of_runs(runs):
    variants, comparison, _ = score_variants(runs, dict.fromkeys(runs, COST))
    means = {}
    for name, of in runs.items():
        means[name] = np.mean([table.groupby("case")["dice"].mean().to_numpy() for _, table in of], axis=0)
    p_values = [stats.wilcoxon(means[name] - means["none"]).pvalue for name in ("scse", "eca")]
    holm = [min(1, 2 * p_values[0]), max(min(1, 2 * p_values[0]), p_values[1])]  # the first is the smaller one
    assert p_values[0] < p_values[1]
    for row, name, p in zip(comparison.foreground, ("scse", "eca"), holm, strict=True):
        assert (row.a, row.b, row.n) == ("none", name, 14)
        assert row.difference == pytest.approx((means[name] - means["none"]).mean())
        interval = mean_interval(np.round(means[name] - means["none"], 12))
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
        assert row.p_holm == pytest.approx(p)
    for variant in variants:
        interval = mean_interval(means[variant.name])
        expected = (means[variant.name].mean(), interval.low, interval.high)
        assert (variant.mean, variant.low, variant.high) == pytest.approx(expected)
        by_seed = [table["dice"].mean() for _, table in runs[variant.name]]
        assert variant.by_seed == pytest.approx(by_seed)


def test_subjects_are_what_is_drawn_and_tested(runs):
    subjects = {case: f"s{place // 2}" for place, case in enumerate("abcdefghijklmn")}
    variants, comparison, tables = score_variants(runs, dict.fromkeys(runs, COST), subjects)
    row = comparison.foreground[0]
    assert (row.n, row.n_units) == (14, 7)
    none, scse = (tables[name].groupby("case")["dice"].mean().to_numpy() for name in ("none", "scse"))
    units = (scse - none).reshape(7, 2).mean(axis=1)
    assert row.p_value == pytest.approx(stats.wilcoxon(units).pvalue)
    groups = [subjects[case] for case in "abcdefghijklmn"]
    interval = mean_interval(scse, groups)
    assert (variants[1].low, variants[1].high) == (interval.low, interval.high)
    plain = mean_interval(scse)
    assert interval.high - interval.low > plain.high - plain.low
    described = describe(tables["scse"], ["dice"])  # the table that compare and describe read knows its subjects
    assert described["low"].iloc[0] == pytest.approx(interval.low)


def test_findings_say_verdict_chance_and_cost(runs):
    found = _ablation(runs, {"none": COST, "scse": DEARER, "eca": COST}).findings
    assert found[0].startswith("scse against none: scse is better by 0.0")
    assert found[0].endswith("parameters +10 %, step time +20 %, memory +25 %, time a case +0 %.")
    assert found[1].startswith("eca against none: no difference shown; ")
    assert found[2].startswith("Ranking: 1. scse")


def test_findings_do_not_take_the_chance_of_training_for_a_difference():
    steady = [(0, _table([0.8, 0.82, 0.84])), (1, _table([0.8, 0.82, 0.84]))]
    shaky = [(0, _table([0.7, 0.72, 0.74])), (1, _table([0.96, 0.98, 1.0]))]
    lucky = [(0, _table([0.81, 0.83, 0.85])), (1, _table([0.96, 0.98, 1.0]))]
    found = _ablation({"none": steady, "shaky": shaky, "lucky": lucky}).findings
    assert "the seeds disagree about which is better (by -0.1000 to +0.1600)" in found[0]
    assert "trainings of one variant differ by up to 0.1500, more than the variants" in found[1]
    alone = _ablation({"none": steady[:1], "shaky": shaky[:1]}).findings
    assert "one seed only" in alone[0]
    certain = [(seed, table.assign(dice=table["dice"] + 0.1)) for seed, table in steady]
    assert "seed" not in _ablation({"none": steady, "better": certain}).findings[0]


def test_what_is_not_finished_or_measured_is_said(runs):
    unknown = VariantCost(1000, math.nan, 3.0, 8e6, 0.5)
    ablation = _ablation(runs, dict.fromkeys(runs, unknown), n_rounds=6)
    assert ablation.findings[-1] == "Not finished: 2 of 6 rounds of all variants."
    assert "step time" not in ablation.findings[0]
    plain = ablation.to_json()
    json.dumps(plain, allow_nan=False)
    assert plain["variants"][0]["cost"]["step_ms"] is None
    assert [row["seed"] for row in plain["rounds"]] == [0, 1]


def test_it_shows_as_text_markdown_and_html(runs):
    ablation = _ablation(
        {"none": runs["none"], "<b>|x": runs["scse"]}, {"none": COST, "<b>|x": DEARER}, dataset="<i>data"
    )
    text, markdown, page = str(ablation), ablation.to_markdown(), ablation._repr_html_()
    assert text.splitlines()[0] == "<i>data: 10m a run, fold 0, 2 seeds, 14 cases"
    assert "60.0 (+20 %)" in text
    assert "10.0 (+25 %)" in text
    assert "<b>|x" not in markdown
    assert "<b>|x" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;|x" in page
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert [len(rows) for rows in tables] == [4, 4, 4]
    for rows in tables:
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    baseline = tables[0][2]
    assert "baseline" in baseline
    assert f"{ablation.variants[0].mean:.4f}" in baseline
    assert "A difference counts as shown" in markdown
