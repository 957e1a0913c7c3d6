"""Overlap: exact counts, hand-worked scores, every label layout."""

import math

import numpy as np
import pytest

from segscse.evaluation.overlap import (
    Counts,
    compact_labels,
    confusion_counts,
    counts_from_histogram,
    joint_histogram,
    labels_in,
)


def _square(size, *ranges):
    mask = np.zeros((size, size), np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


def test_metrics_reloaded_s2_10_counts():
    ref = _square(14, (5, 9), (5, 9))
    inner = confusion_counts(_square(14, (6, 8), (6, 8)), ref, [1])[1]
    outer = confusion_counts(_square(14, (4, 10), (4, 10)), ref, [1])[1]
    assert (inner.tp, inner.fp, inner.fn) == (4, 0, 12)
    assert (outer.tp, outer.fp, outer.fn) == (16, 20, 0)
    assert inner.dice == pytest.approx(0.4)
    assert outer.dice == pytest.approx(0.6154, abs=1e-4)


def test_metrics_reloaded_figure_10_overlap():
    ref = _square(11, (3, 8), (3, 8))
    pred = ref.copy()
    pred[5, 1:10] = pred[1:10, 5] = 1
    counts = confusion_counts(pred, ref, [1])[1]
    assert counts.dice == pytest.approx(0.862, abs=1e-3)
    assert counts.iou == pytest.approx(0.76, abs=1e-2)


def test_monai_dice_example():
    assert confusion_counts(np.array([[1, 0], [0, 1]]), np.array([[1, 0], [1, 1]]), [1])[1].dice == 0.8


def test_both_empty_is_undefined_and_one_empty_is_zero():
    both, only_pred, only_ref = Counts(0, 0, 0), Counts(0, 5, 0), Counts(0, 0, 5)
    assert math.isnan(both.dice)
    assert math.isnan(both.iou)
    assert only_pred.dice == only_ref.dice == only_pred.iou == only_ref.iou == 0
    assert math.isnan(only_pred.sensitivity)
    assert only_pred.precision == 0
    assert only_ref.sensitivity == 0
    assert math.isnan(only_ref.precision)


def test_counts_above_2_to_24_are_exact():
    n = 2**24 + 1
    mask = np.ones((1, n), np.uint8)
    other = mask.copy()
    other[0, 0] = 0
    counts = confusion_counts(other, mask, [1])[1]
    assert (counts.n_ref, counts.tp, counts.fn) == (16_777_217, 16_777_216, 1)


def test_synthetic_histogram_beyond_2_to_53_stays_exact():
    joint = np.array([[0, 1], [2, 2**53 + 1]], np.int64)
    counts = counts_from_histogram(joint, [1])[1]
    assert counts.tp == 2**53 + 1
    assert counts.n_ref == 2**53 + 3


@pytest.mark.parametrize("labels", [[1, 2, 3], [3, 1], [2], [1, 300_000, 2_000_000_000], [-1, 2]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_counts_equal_the_definition_for_any_labels_and_layout(labels, order):
    rng = np.random.default_rng(1)
    pool = np.array([0, 1, 2, 3, -1, 300_000, 2_000_000_000])
    pred, ref = (np.asarray(rng.choice(pool, (5, 6, 7)), order=order) for _ in range(2))
    for label, counts in confusion_counts(pred, ref[::1], labels).items():
        a, b = pred == label, ref == label
        assert counts == Counts(int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()))


def test_layouts_may_differ_between_the_two_maps():
    rng = np.random.default_rng(2)
    pred, ref = rng.integers(0, 3, (2, 4, 5, 6))
    expected = confusion_counts(pred, ref, [1, 2])
    assert confusion_counts(np.asfortranarray(pred), ref, [1, 2]) == expected
    assert confusion_counts(pred[:, ::-1], ref[:, ::-1], [1, 2]) == expected


def test_uint8_values_above_the_largest_label_are_background():
    assert compact_labels(np.array([[0, 1, 254, 255]], np.uint8), [1, 254]).tolist() == [[0, 1, 2, 0]]


def test_swapping_the_maps_transposes_the_histogram():
    pred, ref = np.random.default_rng(3).integers(0, 4, (2, 6, 6, 6)).astype(np.uint8)
    assert (joint_histogram(pred, ref, 3) == joint_histogram(ref, pred, 3).T).all()


def test_labels_in_finds_values_and_takes_a_boolean_mask_as_label_1():
    assert labels_in(np.array([[0, 7], [7, 2]])) == {0, 2, 7}
    assert labels_in(np.zeros((2, 2), bool)) == {0, 1}
