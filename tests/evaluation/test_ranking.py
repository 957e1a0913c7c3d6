"""Tests of pairs and ranks: hand-worked values, scipy and a plain loop as oracles."""

import math

import numpy as np
import pytest
from scipy import stats

from segscse.evaluation.bootstrap import resample_weights
from segscse.evaluation.paired import holm, rank_biserial, wilcoxon_p
from segscse.evaluation.ranking import rank_stability


def test_wilcoxon_exact_value():
    assert wilcoxon_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert wilcoxon_p(np.array([0.0] * 20 + [0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)  # zeros tell nothing
    assert wilcoxon_p(np.zeros(4)) == 1
    assert math.isnan(wilcoxon_p(np.array([])))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    corrected = holm([math.nan, 0.02])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.02


def test_rank_biserial_by_hand():
    assert rank_biserial(np.array([1.0, 2.0, 3.0])) == 1
    assert rank_biserial(np.array([-1.0, 2.0, 0.0])) == pytest.approx(1 / 3)
    assert rank_biserial(np.zeros(3)) == 0
    assert math.isnan(rank_biserial(np.array([])))


def test_rank_biserial_agrees_with_scipys_rank_sum():
    delta = np.random.default_rng(0).normal(0.3, 1, 25)
    below = stats.wilcoxon(delta).statistic  # the smaller rank sum
    assert rank_biserial(delta) == pytest.approx(1 - 2 * below / (25 * 26 / 2))


def test_ranks_agree_with_a_plain_loop_and_scipys_kendall():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.7, 0.9, (15, 1)) + rng.normal([0, 0.01, 0.02], 0.02, (15, 3))
    found = rank_stability(values, ["x", "y", "z"], better="higher")
    means = values.mean(axis=0)
    ranks, taus = [], []
    for weights in np.concatenate(list(resample_weights(15)))[:]:
        resampled = weights @ values / 15
        ranks.append(stats.rankdata(-resampled, method="min"))
        taus.append(np.sign(np.subtract.outer(means, means)) * np.sign(np.subtract.outer(resampled, resampled)))
    ranks = np.array(ranks)
    assert found.ranks == tuple(stats.rankdata(-means, method="min"))
    for side in range(3):
        assert found.shares[side] == pytest.approx([(ranks[:, side] == rank).mean() for rank in (1, 2, 3)])
    assert found.kendall_tau == pytest.approx(np.mean(taus) * 9 / 6)
    first = np.concatenate(list(resample_weights(15)))[0] @ values / 15
    assert np.sum(taus[0]) / 6 == pytest.approx(stats.kendalltau(means, first).statistic)


def test_lower_is_better_reverses_the_order():
    values = np.array([[1.0, 2.0], [1.0, 3.0], [2.0, 2.5]])
    found = rank_stability(values, ["x", "y"], better="lower")
    assert found.ranks == (1, 2)
    assert found.means == pytest.approx((4 / 3, 2.5))
    assert found.shares == ((1.0, 0.0), (0.0, 1.0))
    assert found.kendall_tau == 1


def test_equal_sides_share_a_rank_and_undefined_cases_are_left_out():
    values = np.array([[1.0, 1.0], [0.5, 0.5], [math.nan, 0.0]])
    found = rank_stability(values, ["x", "y"], better="higher", groups=["s", "t", "u"])
    assert (found.n, found.ranks) == (2, (1, 1))
    assert rank_stability(values[2:], ["x", "y"], better="higher").text == "no ranking from 0 cases"
