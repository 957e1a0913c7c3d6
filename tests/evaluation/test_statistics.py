"""Descriptions of the per-case table: hand-worked values, subjects, infinite distances."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from segscse.errors import InputError
from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.metrics import METRICS, comparable, metric_of
from segscse.evaluation.statistics import describe
from segscse.evaluation.tables import load_table


def _table():
    return pd.DataFrame({
        "case": ["a", "b", "c", "d"] * 2,
        "label": [1] * 4 + [2] * 4,
        "name": ["liver"] * 4 + ["tumour"] * 4,
        "dice": [0.8, 0.6, 0.7, 0.9, 0.5, math.nan, 0.0, 0.3],
        "hd95_mm": [1.0, 2.0, 3.0, 4.0, 5.0, math.nan, math.inf, 6.0],
        "volume_diff_ml": [1.0, -1.0, 2.0, -2.0, 0.0, 0.0, -4.0, 4.0],
        "diagonal_mm": 100.0,
        "n_ref": 10,
    })  # fmt: skip


def _row(described, metric, label):
    return described[(described["metric"] == metric) & (described["label"] == label)].iloc[0]


def test_hand_worked_values():
    found = describe(_table())
    assert found["metric"].drop_duplicates().tolist() == ["dice", "hd95_mm", "volume_diff_ml"]
    assert found["name"].tolist()[:3] == ["all labels", "liver", "tumour"]
    row = _row(found, "dice", 1)
    assert (row["n"], row["n_undefined"], row["n_infinite"]) == (4, 0, 0)
    assert (row["mean"], row["median"], row["q25"], row["q75"]) == pytest.approx((0.75, 0.75, 0.675, 0.825))
    assert (row["min"], row["max"], row["q05"], row["q95"]) == pytest.approx((0.6, 0.9, 0.615, 0.885))
    assert row["std"] == pytest.approx(np.std([0.8, 0.6, 0.7, 0.9], ddof=1))
    interval = mean_interval(np.array([0.8, 0.6, 0.7, 0.9]))
    assert (row["low"], row["high"], row["method"]) == (interval.low, interval.high, "BCa")
    assert (_row(found, "dice", 2)["n"], _row(found, "dice", 2)["n_undefined"]) == (3, 1)


def test_over_labels_the_mean_is_of_labels_and_the_quantiles_are_of_cases():
    row = _row(describe(_table()), "dice", 0)
    assert row["mean"] == pytest.approx((0.75 + 0.8 / 3) / 2)
    assert row["median"] == pytest.approx((0.6 + 0.6) / 2)  # cases: 0.65, 0.6, 0.35, 0.6
    assert row["low"] < row["mean"] < row["high"]


def test_infinite_distances_count_as_the_diagonal():
    row = _row(describe(_table()), "hd95_mm", 2)
    assert row["n_infinite"] == 1
    assert row["mean"] == pytest.approx((5 + 100 + 6) / 3)
    assert row["max"] == 100
    with pytest.raises(InputError, match="diagonals to count them as are not known"):
        describe(_table().drop(columns="diagonal_mm"))


def test_diagonals_may_come_by_case_or_from_the_summary_beside_the_table(tmp_path):
    table = _table().drop(columns="diagonal_mm")
    table.attrs["diagonal_mm"] = dict.fromkeys("abcd", 100.0)
    expected = _row(describe(table), "hd95_mm", 2)["mean"]
    assert expected == pytest.approx((5 + 100 + 6) / 3)
    table.to_csv(tmp_path / "cases.csv", index=False)
    grids = {case: {"diagonal_mm": 100.0} for case in "abcd"}
    (tmp_path / "summary.json").write_text(json.dumps({"grids": grids}))
    assert _row(describe(load_table(tmp_path)), "hd95_mm", 2)["mean"] == expected


def test_differences_count_by_their_size():
    assert _row(describe(_table()), "volume_diff_ml", 1)["mean"] == 1.5
    assert comparable(_table(), METRICS["volume_diff_ml"]).min() == 0


def test_subjects_widen_the_interval_of_cases_that_resemble_each_other():
    rng = np.random.default_rng(0)
    subjects = np.repeat([f"s{i}" for i in range(10)], 4)
    dice = np.repeat(rng.uniform(0.5, 0.9, 10), 4) + rng.normal(0, 0.01, 40)
    table = pd.DataFrame({"case": [f"c{i}" for i in range(40)], "label": 1, "name": "x", "dice": dice})
    plain = describe(table).iloc[0]
    known = describe(table, subjects=dict(zip(table["case"], subjects, strict=True))).iloc[0]
    assert known["mean"] == plain["mean"]
    assert known["high"] - known["low"] > 1.6 * (plain["high"] - plain["low"])
    assert describe(table.assign(subject=subjects)).iloc[0]["low"] == known["low"]


def test_chosen_metrics_and_refusals():
    assert set(describe(_table(), ["dice", "n_ref"])["metric"]) == {"dice", "n_ref"}
    with pytest.raises(InputError, match=r"unknown metric 'dise'.*Did you mean 'dice'"):
        describe(_table(), ["dise"])
    with pytest.raises(InputError, match="no subject, such as 'd'"):
        describe(_table(), subjects={"a": "1", "b": "1", "c": "2"})


def test_a_label_that_no_case_holds_is_undefined_throughout():
    row = describe(_table().assign(dice=math.nan), ["dice"]).iloc[1]
    assert (row["n"], row["method"]) == (0, "none")
    assert math.isnan(row["mean"])
    assert math.isnan(row["median"])


def test_metrics_say_which_way_is_better():
    assert metric_of(_table(), "dice").better == "higher"
    assert metric_of(_table(), "hd95_mm").better == "lower"
    assert metric_of(_table(), "n_ref").better == "neither"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23 mm"), (math.nan, "–"), (math.inf, "∞")],  # noqa: RUF001
)
def test_values_as_text(value, text):
    assert METRICS["hd95_mm"].text(value) == text
    assert METRICS["dice"].text(0.1234, sign=True) == "+0.123"
