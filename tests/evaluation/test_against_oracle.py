"""Scores of one case against their definitions, on random pairs, and what must not change them."""

import itertools

import numpy as np
import pytest

from segscse.evaluation.columns import DISTANCES
from segscse.evaluation.scores import score_case

from . import oracle

SPACINGS = ((1, 1, 1), (2, 1, 1), (0.5, 0.7, 3), (3, 2, 0.4))
TOLERANCES = (0.0, 1.0, 2.0, 4.5)


def _pair(rng):
    """Return two masks of 2 or 3 axes: noise, blocks, one the other's neighbour, or empty."""
    shape = rng.integers(2, 8, rng.integers(2, 4))
    ref = rng.random(shape) < rng.choice([0.02, 0.1, 0.4, 0.8, 1])
    kind = rng.integers(4)
    if kind == 0:
        return rng.random(shape) < rng.choice([0, 0.05, 0.5, 0.95]), ref
    if kind == 1:
        return ref ^ (rng.random(shape) < 0.1), ref
    low, high = np.sort(rng.integers(0, 8, (2, len(shape))), axis=0)
    block = np.zeros(shape, bool)
    block[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return (block, ref) if kind == 2 else (block, np.roll(block, 1, axis=0) ^ (rng.random(shape) < 0.03))


@pytest.mark.parametrize("seed", range(10))
def test_500_random_pairs_at_4_spacings_equal_the_definitions(seed):
    rng = np.random.default_rng(seed)
    for _ in range(50):
        pred, ref = _pair(rng)
        for spacing, tolerance in zip(SPACINGS, TOLERANCES, strict=True):
            spacing = spacing[: pred.ndim]
            got = score_case(pred, ref, spacing, [1], lambda _, value=tolerance: value)[1]
            expected = oracle.score(pred, ref, spacing, tolerance)
            assert {*got} - {*expected} == {"nsd_area"}
            for column, value in expected.items():
                assert got[column] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), column


@pytest.fixture
def pair():
    rng = np.random.default_rng(21)
    ref = np.zeros((9, 10, 8), bool)
    ref[2:7, 3:8, 1:6] = True
    return (np.roll(ref, 1, axis=1) ^ (rng.random(ref.shape) < 0.04)), ref


SPACING = (0.5, 1.25, 3.0)


def _score(pred, ref, spacing=SPACING, tolerance=1.25):
    return score_case(pred, ref, spacing, [1], lambda _: tolerance)[1]


def _same(got, expected, but=()):
    for column in expected:
        if column not in but:
            assert got[column] == pytest.approx(expected[column], rel=1e-12), column


def test_swapping_the_maps_swaps_what_is_directed_and_nothing_else(pair):
    pred, ref = pair
    one, other = _score(pred, ref), _score(ref, pred)
    mirrored = (
        *(("sensitivity", "precision"), ("n_ref", "n_pred"), ("volume_ref_ml", "volume_pred_ml")),
        *(("n_components_ref", "n_components_pred"), ("lesion_sensitivity", "lesion_precision")),
    )
    for first, second in mirrored:
        assert (one[first], one[second]) == (other[second], other[first])
    assert one["volume_diff_ml"] == -other["volume_diff_ml"]
    _same(one, other, but={"volume_diff_ml", "specificity", *itertools.chain(*mirrored)})


def test_axes_in_any_order_with_their_spacing_give_the_same(pair):
    expected = _score(*pair)
    for order in itertools.permutations(range(3)):
        turned = [mask.transpose(order) for mask in pair]
        spacing = [SPACING[axis] for axis in order]
        _same(_score(*turned, spacing), expected)
        _same(_score(*map(np.ascontiguousarray, turned), spacing), expected)
    for axis in range(3):
        _same(_score(*(np.flip(mask, axis) for mask in pair)), expected)


def test_padding_and_translation_change_only_what_counts_the_background(pair):
    expected = _score(*pair)
    for widths in (((4, 4),) * 3, ((0, 3), (5, 0), (1, 2))):
        _same(_score(*(np.pad(mask, widths) for mask in pair)), expected, but={"specificity"})


def test_lengths_scale_with_the_spacing(pair):
    expected, scaled = _score(*pair), _score(*pair, [3 * step for step in SPACING], 3.75)
    for column, value in expected.items():
        factor = 3 if column in DISTANCES else 27 if column.endswith("_ml") else 1
        assert scaled[column] == pytest.approx(factor * value), column


def test_surface_dice_rises_with_the_tolerance_to_1(pair):
    rows = [_score(*pair, tolerance=tolerance) for tolerance in (0, 0.5, 1, 1.5, 3, 5, 40)]
    for column in ("nsd", "nsd_area"):
        values = [row[column] for row in rows]
        assert values == sorted(values)
        assert values[0] < values[-1] == pytest.approx(1)
    assert rows[0]["hd95_mm"] <= rows[0]["hd_mm"]


def test_identical_masks_are_perfect(pair):
    row = _score(pair[0], pair[0], tolerance=0)
    assert {row[name] for name in DISTANCES} == {0}
    for column in ("dice", "iou", "nsd", "nsd_area", "volume_similarity", "lesion_f1", "specificity"):
        assert row[column] == pytest.approx(1)


def test_labels_of_one_map_do_not_disturb_each_other():
    pred, ref = np.random.default_rng(2).integers(0, 4, (2, 7, 8, 6))
    together = score_case(pred, ref, SPACING)
    for label, row in together.items():
        assert row == score_case(pred == label, ref == label, SPACING)[1]
    assert together == score_case(pred, ref, SPACING, threads=3)


@pytest.mark.parametrize("offset", [0, 200, 70_000, -50])
def test_any_labels_in_any_type_and_layout_score_the_same(offset):
    rng = np.random.default_rng(3)
    pred, ref = rng.integers(0, 3, (2, 6, 7, 5))
    expected = list(score_case(pred, ref, SPACING, [1, 2]).values())
    moved = [np.where(array > 0, array + offset, 0) for array in (pred, ref)]
    labels = [1 + offset, 2 + offset]
    kinds = [np.int64, np.int32] + ([np.uint32] if offset >= 0 else []) + ([np.uint8] if 0 <= offset < 250 else [])
    for kind, order in itertools.product(kinds, "CF"):
        maps = [np.asarray(array, kind, order=order) for array in moved]
        assert list(score_case(maps[0], maps[1], SPACING, labels).values()) == expected
    assert list(score_case(moved[0].astype(np.int32), np.asfortranarray(moved[1]), SPACING).values()) == expected
