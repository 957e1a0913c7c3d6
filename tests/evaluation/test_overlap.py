"""Overlap: hand-worked scores from counts, and label maps made ready for counting."""

import math

import numpy as np
import pytest

from segscse.evaluation.overlap import Counts, count, label_pair


def test_scores_are_hand_worked():
    counts = Counts(tp=6, fp=2, fn=4, tn=88)
    assert (counts.n_ref, counts.n_pred) == (10, 8)
    assert counts.dice == 12 / 18
    assert counts.iou == 6 / 12
    assert counts.sensitivity == 0.6
    assert counts.precision == 0.75
    assert counts.specificity == 88 / 90
    assert counts.volume_similarity == 1 - 2 / 18


def test_both_empty_is_undefined_and_one_empty_is_zero():
    both, only_pred, only_ref = Counts(0, 0, 0, 9), Counts(0, 5, 0, 4), Counts(0, 0, 5, 4)
    for score in ("dice", "iou", "volume_similarity"):
        assert math.isnan(getattr(both, score))
        assert getattr(only_pred, score) == getattr(only_ref, score) == 0
    assert math.isnan(only_pred.sensitivity)
    assert only_pred.precision == 0
    assert only_ref.sensitivity == 0
    assert math.isnan(only_ref.precision)
    assert (both.specificity, only_pred.specificity) == (1, 4 / 9)
    assert math.isnan(Counts(3, 0, 0, 0).specificity)


def test_scores_of_counts_beyond_2_to_53_are_exact():
    counts = Counts(2**53 + 1, 1, 2, 0)
    assert counts.n_ref == 2**53 + 3
    assert counts.precision == (2**53 + 1) / (2**53 + 2)


def test_masks_are_counted_by_the_definition():
    pred, ref = np.random.default_rng(1).random((2, 5, 6, 7)) < 0.4
    expected = [(pred & ref).sum(), (pred & ~ref).sum(), (~pred & ref).sum(), (~pred & ~ref).sum() + 100]
    assert count(pred, ref, pred.size + 100) == Counts(*map(int, expected))


@pytest.mark.parametrize(
    ("dtype", "labels", "kind"),
    [
        (bool, [1], np.uint8),
        (np.uint8, [1, 254, 255], np.uint8),
        (np.int64, [1, 200], np.uint8),
        (np.int16, [1, 300], np.uint16),
        (np.uint32, [70_000], np.uint8),
        (np.uint64, [3, 2**63 + 5], np.uint8),
        (np.int64, [-3, 2_000_000_000], np.uint8),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_label_keeps_its_voxels_whatever_its_type_and_layout(dtype, labels, kind, order):
    rng = np.random.default_rng(1)
    pool = np.array([0, *labels], dtype)
    pred, ref = (np.asarray(rng.choice(pool, (5, 6, 7)), order=order) for _ in range(2))
    pair = label_pair(pred, ref)
    assert pair.flipped == (order == "F")
    for before, after in ((pred, pair.pred), (ref, pair.ref)):
        assert after.dtype == kind
        assert after.flags.c_contiguous
        after = after.T if pair.flipped else after
        for label in labels:
            np.testing.assert_array_equal(after == pair.value_of(label), before == label)
            assert pair.label_of(pair.value_of(label)) == label
        assert not (after == pair.value_of(17)).any()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.uint8([0, 1]), np.int16([-1, 1])),
        (np.uint8([0, 1]), np.uint32([70_000, 1])),
        (np.int8([-3, 1]), np.uint64([2**63 + 5, 1])),
        (np.bool_([False, True]), np.int64([-(2**40), 1])),
    ],
)
def test_a_label_that_the_other_maps_type_cannot_hold(first, second):
    for pred, ref in ((first, second), (second, first)):
        pair = label_pair(pred[:, None], ref[:, None])
        for before, after in ((pred, pair.pred), (ref, pair.ref)):
            assert [pair.label_of(int(value)) for value in after[:, 0]] == [int(value) for value in before]


def test_small_labels_in_memory_order_are_not_copied():
    pred, ref = np.random.default_rng(3).integers(0, 4, (2, 6, 6, 6)).astype(np.uint8)
    for turned in ((pred, ref), (pred.T, ref.T)):
        pair = label_pair(*turned)
        assert np.shares_memory(pair.pred, pred)
        assert np.shares_memory(pair.ref, ref)


def test_layouts_and_types_may_differ_between_the_two_maps():
    pred, ref = np.random.default_rng(2).integers(0, 3, (2, 4, 5, 6))
    pair = label_pair(np.asfortranarray(pred), ref.astype(np.uint8))
    np.testing.assert_array_equal(pair.pred, pred)
    np.testing.assert_array_equal(pair.ref, ref)
    wide = label_pair(pred + 65_000, ref)
    assert wide.pred.dtype == wide.ref.dtype == np.uint16
