"""Geometry of the charts: hand-worked positions, round ticks, and what is left out."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.charts import MAX_POINTS, bland_altman, distribution, nice_ticks
from segscse.evaluation.metrics import METRICS
from segscse.evaluation.statistics import describe


def _table(column, values, **others):
    n = len(values)
    return pd.DataFrame({"case": [f"c{i}" for i in range(n)], "label": 1, "name": "liver", column: values, **others})


def _distribution(table, column):
    cases = {case: place for place, case in enumerate(table["case"])}
    return distribution(table, METRICS[column], describe(table, [column]), cases)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.7, 1, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1]),
        (-3, 47, [-10, 0, 10, 20, 30, 40, 50]),
        (2, 2, [1.4, 1.6, 1.8, 2, 2.2, 2.4, 2.6]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    if low != high:
        assert ticks == pytest.approx(expected)


@pytest.mark.parametrize("size", [1e-12, 0.014, 3.0, 4e7])
def test_values_that_differ_by_rounding_alone_have_ticks(size):
    ticks = nice_ticks(size, size * (1 + 2e-16))
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= size <= ticks[-1]


def test_tiny_ranges_keep_their_ticks_apart():
    assert nice_ticks(0, 5e-13) == pytest.approx([0, 1e-13, 2e-13, 3e-13, 4e-13, 5e-13], rel=1e-9, abs=1e-20)


def test_volumes_whose_means_differ_by_rounding_are_drawn():
    table = _table("dice", [0.8, 1.0], volume_ref_ml=[0.1, 0.15], volume_pred_ml=[0.2, 0.15])
    means = (table["volume_ref_ml"] + table["volume_pred_ml"]) / 2
    assert 0 < abs(means[0] - means[1]) < 1e-15
    assert len(bland_altman(table, {"c0": 0, "c1": 1}, None).points) == 2


def test_dice_stands_where_it_should():
    chart = _distribution(_table("dice", [0.2, 0.6, 1.0, math.nan]), "dice")
    (strip,) = chart.strips
    assert [(point.x, point.case) for point in strip.points] == [(20, 0), (60, 1), (100, 2)]
    assert (strip.mean, strip.median) == pytest.approx((60, 60))
    assert strip.low < 60 < strip.high
    assert strip.path == ""  # too few values for a density
    assert "c1: Dice 0.600" in strip.points[1].text
    assert not chart.thinned


def test_infinite_distances_stand_at_the_right_edge():
    table = _table("hd95_mm", [1.0, 2.0, math.inf], diagonal_mm=50.0)
    chart = _distribution(table, "hd95_mm")
    assert chart.ticks[-1].text == "∞"
    assert [point.x for point in chart.strips[0].points] == [47, 94, 98]
    assert chart.strips[0].mean is None  # 17.7 mm lies beyond the axis
    assert chart.strips[0].summary.startswith("17.67 mm")


def test_the_violin_stays_within_the_bounds_and_is_widest_where_values_are():
    values = np.r_[np.full(30, 0.95) + np.linspace(-0.02, 0.02, 30), 0.6]
    (strip,) = _distribution(_table("dice", values), "dice").strips
    corners = np.array(re.findall(r"([\d.]+),([\d.]+)", strip.path), float)
    assert corners[:, 0].min() >= 0
    assert corners[:, 0].max() <= 100
    widest = corners[corners[:, 1].argmin(), 0]
    axis = _distribution(_table("dice", values), "dice").ticks
    assert widest == pytest.approx(100 * (0.95 - float(axis[0].text)) / (1 - float(axis[0].text)), abs=5)


def test_a_label_without_values_says_so():
    table = pd.concat([_table("dice", [0.5, 0.6]), _table("dice", [math.nan] * 2).assign(label=2, name="tumour")])
    empty = _distribution(table.reset_index(drop=True), "dice").strips[1]
    assert (empty.summary, empty.points, empty.mean) == ("no case holds this label", (), None)


def test_many_points_are_thinned_and_keep_their_extremes():
    chart = _distribution(_table("dice", np.linspace(0.1, 0.9, 3 * MAX_POINTS)), "dice")
    assert chart.thinned
    points = chart.strips[0].points
    assert len(points) <= MAX_POINTS
    assert (points[0].case, points[-1].case) == (0, 3 * MAX_POINTS - 1)


def test_bland_altman_by_hand():
    table = _table("volume_ref_ml", [10.0, 20.0, 30.0, 0.0]).assign(volume_pred_ml=[12.0, 20.0, 31.0, 0.0])
    chart = bland_altman(table, {f"c{i}": i for i in range(4)}, None)
    assert [point.case for point in chart.points] == [0, 1, 2]  # both empty: left out
    difference = np.array([2.0, 0.0, 1.0])
    low, high = (1 + sign * 1.96 * difference.std(ddof=1) for sign in (-1, 1))
    assert f"Bias +1 ml (95 % interval {mean_interval(difference).low:+.3g}" in chart.summary
    assert f"limits of agreement {low:+.3g} to {high:+.3g} ml" in chart.summary
    first, last = float(chart.y_ticks[0].text), float(chart.y_ticks[-1].text)
    assert chart.bias == pytest.approx(100 - 100 * (1 - first) / (last - first))
    assert chart.points[0].x == pytest.approx(
        100 * (11 - float(chart.x_ticks[0].text)) / (float(chart.x_ticks[-1].text) - float(chart.x_ticks[0].text))
    )
    assert chart.limits[0] < chart.bias < chart.limits[1]
    assert "c0: mean 11 ml, difference +2 ml" in chart.points[0].text


def test_bland_altman_of_many_cases_keeps_what_lies_outside_the_limits():
    reference = np.linspace(10.0, 20.0, 2 * MAX_POINTS)
    gap = np.random.default_rng(0).normal(size=len(reference))
    gap[[7, 4000]] = 490.0, -300.0
    table = _table("volume_ref_ml", reference).assign(volume_pred_ml=reference + gap)
    chart = bland_altman(table, {f"c{i}": i for i in range(len(reference))}, None)
    assert {7, 4000} <= {point.case for point in chart.points}
    assert len(chart.points) == MAX_POINTS // 4 + 2
    assert f"{len(chart.points)} of them have a point" in chart.summary
    assert "have a point" not in bland_altman(table[:100], {f"c{i}": i for i in range(100)}, None).summary


def test_bland_altman_over_subjects_and_of_too_few():
    reference = np.arange(1.0, 9)
    excess = np.array([0, 0, 2, 2, 0, 0, 2, 2])
    table = _table("volume_ref_ml", reference).assign(volume_pred_ml=reference + excess)
    places = {f"c{i}": i for i in range(8)}
    alone, grouped = bland_altman(table, places, None), bland_altman(table, places, list("aabbccdd"))
    assert alone.summary != grouped.summary
    assert bland_altman(table[:1], places, None) is None
    assert "nan" not in bland_altman(table, places, ["a"] * 8).summary
