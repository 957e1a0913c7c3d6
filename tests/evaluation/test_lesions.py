"""Lesions: hand-worked cases, and scipy's labels of random masks."""

import math

import numpy as np
import pytest
from scipy import ndimage

from segscse.evaluation.lesions import LesionCounts, count_lesions


def test_four_lesions_of_which_two_are_found():
    ref = np.zeros((12, 12), bool)
    for place in ((1, 1), (1, 5), (5, 1), (8, 8)):
        ref[place[0] : place[0] + 2, place[1] : place[1] + 2] = True
    pred = np.zeros_like(ref)
    pred[2:4, 2:4] = True  # touches the first by one voxel
    pred[8:10, 8:10] = True
    pred[5, 8] = True
    lesions = count_lesions(pred, ref)
    assert lesions == LesionCounts(n_ref=4, n_pred=3, n_ref_found=2, n_pred_true=2)
    assert lesions.sensitivity == 0.5
    assert lesions.precision == pytest.approx(2 / 3)
    assert lesions.f1 == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))


def test_one_prediction_over_two_lesions_finds_both():
    ref = np.array([[1, 0, 1, 0, 0]], bool)
    lesions = count_lesions(np.array([[1, 1, 1, 0, 0]], bool), ref)
    assert lesions == LesionCounts(2, 1, 2, 1)
    assert lesions.f1 == 1


@pytest.mark.parametrize(("axes", "offset"), [(2, (1, 1)), (3, (1, 1, 0)), (3, (1, -1, 1))])
def test_voxels_that_share_an_edge_or_a_corner_are_one_lesion(axes, offset):
    mask = np.zeros((4,) * axes, bool)
    mask[(1,) * axes] = mask[tuple(1 + step for step in offset)] = True
    assert count_lesions(mask, mask).n_ref == 1


def test_empty_masks():
    none, missed, false = LesionCounts(0, 0, 0, 0), LesionCounts(2, 0, 0, 0), LesionCounts(0, 3, 0, 0)
    assert all(math.isnan(value) for value in (none.f1, none.sensitivity, none.precision))
    assert missed.f1 == missed.sensitivity == 0
    assert math.isnan(missed.precision)
    assert false.f1 == false.precision == 0
    assert LesionCounts(2, 2, 0, 0).f1 == 0


def test_tens_of_thousands_of_lesions():
    mask = np.zeros((520, 520), bool)
    mask[::2, ::2] = True
    assert count_lesions(mask, mask) == LesionCounts(67_600, 67_600, 67_600, 67_600)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("shape", [(1,), (40,), (1, 9), (23, 17), (11, 1, 8), (13, 9, 16)])
def test_random_masks_have_the_components_of_scipy(shape, density):
    random = np.random.default_rng(3)
    for _ in range(12):
        pred, ref = (random.random(shape) < density for _ in range(2))
        (n_pred, n_pred_true), (n_ref, n_ref_found) = (labelled(*pair) for pair in ((pred, ref), (ref, pred)))
        assert count_lesions(pred, ref) == LesionCounts(n_ref, n_pred, n_ref_found, n_pred_true)


def labelled(mask, other):
    components, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return count, len(np.unique(components[mask & other]))
