"""Intervals of means: scipy's BCa as oracle, coverage by simulation, subjects, degenerate values."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from segscse.evaluation.bootstrap import mean_interval, mean_intervals, mean_of_means_interval

SIMULATIONS = 1500  # a coverage of 95 % is then known to 0.6 %


def _reach(n):
    return stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1))


def _scipy(data, statistic, n, **options):
    """Return scipy's BCa interval at the level whose normal quantile is our widened one."""
    level = 2 * stats.norm.cdf(_reach(n)) - 1
    result = stats.bootstrap(
        data, statistic, n_resamples=9999, method="BCa", confidence_level=level,
        random_state=np.random.default_rng(0), **options,
    )  # fmt: skip
    return result.confidence_interval


def _coverage(values, truth, groups=None):
    found = mean_intervals(values, groups)
    return np.mean([interval.low <= truth <= interval.high for interval in found])


@pytest.mark.parametrize("n", [12, 40, 200])
def test_agrees_with_scipy(n):
    values = np.random.default_rng(n).beta(8, 2, n)
    ours, theirs = mean_interval(values), _scipy((values,), np.mean, n)
    width = theirs.high - theirs.low
    assert ours.method == "BCa"
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def test_with_subjects_agrees_with_scipy_on_sums_and_counts():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(25), rng.integers(1, 5, 25))
    values = rng.normal(0.8, 0.05, 25)[groups] + rng.normal(0, 0.02, len(groups))
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    theirs = _scipy((sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), 25, paired=True, vectorized=True)
    ours = mean_interval(values, groups.tolist())
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


@pytest.mark.parametrize("n", [15, 30, 80])
@pytest.mark.parametrize("shape", [(8, 2), (18, 2)], ids=["mean 0.8", "mean 0.9"])
def test_covers_the_true_mean_of_dice_like_values_95_times_in_100(n, shape):
    values = np.random.default_rng([n, *shape]).beta(*shape, (n, SIMULATIONS))
    assert 0.93 <= _coverage(values, shape[0] / sum(shape)) <= 0.97


def test_covers_the_true_mean_of_differences():
    rng = np.random.default_rng(5)
    values = rng.beta(18, 2, (25, SIMULATIONS)) - rng.beta(8, 2, (25, SIMULATIONS))
    assert 0.93 <= _coverage(values, 0.1) <= 0.97


def test_subjects_keep_the_coverage_that_cases_lose():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(24), 4)
    values = rng.normal(0.8, 0.05, (24, SIMULATIONS))[groups] + rng.normal(0, 0.02, (96, SIMULATIONS))
    assert 0.93 <= _coverage(values, 0.8, groups.tolist()) <= 0.97
    assert _coverage(values, 0.8) < 0.75


def test_the_mean_over_labels_is_covered():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        case = rng.normal(0, 0.04, (30, 1))
        values = np.array([0.9, 0.8, 0.7]) + case + rng.normal(0, 0.03, (30, 3))
        values[rng.random((30, 3)) < 0.2] = math.nan
        interval = mean_of_means_interval(values)
        hits += interval.low <= 0.8 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_the_mean_over_one_label_is_the_mean():
    values = np.random.default_rng(8).random(20)
    single, several = mean_interval(values), mean_of_means_interval(values[:, None])
    assert (several.low, several.high) == pytest.approx((single.low, single.high))


def test_is_reproducible_and_about_right():
    values = np.random.default_rng(1).normal(0.7, 0.1, 200)
    interval = mean_interval(values)
    assert interval == mean_interval(values)
    half = 1.97 * values.std() / math.sqrt(200)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.003)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.003)


def test_columns_do_not_depend_on_their_neighbours():
    values = np.random.default_rng(2).random((20, 6))
    values[:5, 2], values[3:9, 4] = math.nan, math.nan
    together = mean_intervals(values)
    for column, interval in enumerate(together):
        alone = mean_interval(values[:, column])
        assert (interval.low, interval.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


@pytest.mark.parametrize("groups", [None, ["a", "a", "b", "b"]])
def test_nan_is_left_out(groups):
    values = [0.5, math.nan, 0.7, 0.9]
    if groups is None:
        assert mean_interval(np.array(values)) == mean_interval(np.array([0.5, 0.7, 0.9]))
    else:
        assert mean_interval(np.array(values), groups).method == "BCa"


@pytest.mark.parametrize("values", [[], [0.5], [math.nan, 0.5]])
def test_below_two_values_there_is_none(values):
    for interval in (mean_interval(np.array(values)), mean_of_means_interval(np.array(values)[:, None])):
        assert interval.method == "none"
        assert math.isnan(interval.low)


def test_one_subject_has_none_and_equal_values_have_no_width():
    assert mean_interval(np.array([0.1, 0.2, 0.3]), ["s", "s", "s"]).method == "none"
    constant = mean_interval(np.full(9, 0.3))
    assert (constant.low, constant.high, constant.method) == (pytest.approx(0.3), pytest.approx(0.3), "constant")


def test_means_that_no_case_moves_when_left_out_have_an_interval():
    interval = mean_of_means_interval(np.array([[0.0, 1.0], [0.5, np.nan]]))
    assert np.isfinite([interval.low, interval.high]).all()


def test_one_outlier_among_equals_warns_of_nothing_and_stays_within_the_values():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = mean_interval(np.array([1.0] * 11 + [0.0]))
    assert 0 <= interval.low < 11 / 12 <= interval.high <= 1
