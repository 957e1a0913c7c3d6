"""Published values of other tools' test suites and papers, each under the convention it was printed for."""

import math

import numpy as np
import pytest

from segscse.evaluation.area import area_distances
from segscse.evaluation.scores import evaluate
from segscse.evaluation.surface import surface_distances


def mask(shape, *ranges):
    array = np.zeros(shape, bool)
    array[tuple(slice(*each) for each in ranges)] = True
    return array


def point(shape, *place):
    return mask(shape, *((index, index + 1) for index in place))


def row(pred, ref, spacing=None, tolerance=1.0):
    return evaluate(pred, ref, labels=[1], spacing_mm=spacing, nsd_tolerance_mm=tolerance).iloc[0]


@pytest.mark.parametrize(
    ("shape", "ref", "pred", "spacing"),
    [((128, 128), (50, 70), (50, 72), (2, 1)), ((128, 128, 128), (50, 60, 70), (50, 60, 72), (3, 2, 1))],
)
def test_two_single_voxels_of_the_surface_distance_suite(shape, ref, pred, spacing):
    pred, ref = point(shape, *pred), point(shape, *ref)
    area = area_distances(pred, ref, spacing)
    assert area.means_mm() == pytest.approx((1.5, 1.5))
    assert area.percentile_mm(100) == area.percentile_mm(95) == 2
    assert area.overlaps(1.0) == pytest.approx((0.5, 0.5))
    scored = row(pred, ref, spacing)
    assert scored["nsd_area"] == pytest.approx(0.5)
    assert (scored["dice"], scored["assd_mm"], scored["nsd"]) == (0, 2, 0)


def test_empty_masks_of_the_surface_distance_suite():
    empty, one = np.zeros((20, 20, 20), bool), point((20, 20, 20), 5, 6, 7)
    spacing = (3, 2, 1)
    missed = area_distances(empty, one, spacing)
    assert missed.means_mm() == (pytest.approx(math.nan, nan_ok=True), math.inf)
    assert missed.percentile_mm(100) == math.inf
    assert missed.overlaps(1.0) == (pytest.approx(math.nan, nan_ok=True), 0)
    assert missed.nsd(1.0) == 0
    false = area_distances(one, empty, spacing)
    assert false.means_mm() == (math.inf, pytest.approx(math.nan, nan_ok=True))
    assert false.overlaps(1.0) == (0, pytest.approx(math.nan, nan_ok=True))
    both = area_distances(empty, empty, spacing)
    assert all(map(math.isnan, both.means_mm()))
    assert both.percentile_mm(100) == math.inf
    assert math.isnan(both.nsd(1.0))
    assert math.isnan(row(empty, empty, spacing)["dice"])
    assert row(empty, one, spacing)["dice"] == row(one, empty, spacing)["dice"] == 0


def test_square_longer_by_one_row():
    pred, ref = mask((6, 6), (1, 4), (1, 3)), mask((6, 6), (1, 3), (1, 3))
    scored = row(pred, ref, (2, 1))
    assert scored["dice"] == pytest.approx(0.8)
    assert scored["assd_mm"] == pytest.approx(0.4)
    assert scored["masd_mm"] == pytest.approx(0.3333, abs=5e-5)
    assert scored["nsd"] == pytest.approx(0.8)
    area = area_distances(pred, ref, (2, 1))
    assert area.means_mm()[::-1] == pytest.approx((0.0955, 0.4472), abs=5e-5)
    assert area.percentile_mm(95) == 2
    assert scored["nsd_area"] == pytest.approx(0.8703, abs=5e-5)


def test_square_with_a_cross_metrics_reloaded_figure_10():
    ref = mask((11, 11), (3, 8), (3, 8))
    pred = ref | mask((11, 11), (5, 6), (1, 10)) | mask((11, 11), (1, 10), (5, 6))
    scored = row(pred, ref)
    assert scored["dice"] == pytest.approx(0.862, abs=5e-4)
    assert scored["iou"] == pytest.approx(0.76, abs=5e-3)
    assert scored["assd_mm"] == pytest.approx(0.4444, abs=5e-5)
    assert scored["masd_mm"] == pytest.approx(0.425, abs=5e-4)
    assert scored["nsd"] == pytest.approx(0.8889, abs=5e-5)
    assert row(pred, ref, tolerance=2)["nsd"] == 1
    assert area_distances(pred, ref, (1, 1)).means_mm()[::-1] == pytest.approx((0, 0.6408), abs=5e-5)
    assert scored["nsd_area"] == pytest.approx(0.8845, abs=5e-5)
    shares = [(part <= 1).mean() for part in _parts(pred, ref)]
    assert np.mean(shares) == pytest.approx(0.9)  # panoptica's own rule


def _parts(pred, ref):
    distances = surface_distances(pred, ref, (1,) * pred.ndim)
    return distances.pred_to_ref_mm, distances.ref_to_pred_mm


@pytest.mark.parametrize(
    ("inside", "counts", "dice", "masd", "assd", "nsd", "nsd_area"),
    [
        ((6, 8), (4, 0, 12, 180), 0.4, 1.07, 1.10, 0.75, 0.8694),
        ((4, 10), (16, 20, 0, 160), 0.6154, 1.04, 1.05, 0.875, 0.9249),
    ],
)
def test_smaller_and_larger_square_metrics_reloaded_s2_10(inside, counts, dice, masd, assd, nsd, nsd_area):
    pred, ref = mask((14, 14), inside, inside), mask((14, 14), (5, 9), (5, 9))
    tp, fp, fn, tn = counts
    scored = row(pred, ref)
    assert (scored["n_pred"], scored["n_ref"]) == (tp + fp, tp + fn)
    assert scored["specificity"] == pytest.approx(tn / (tn + fp))
    assert scored["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert scored["precision"] == pytest.approx(tp / (tp + fp))
    assert scored["dice"] == pytest.approx(dice, abs=5e-5)
    assert scored["hd_mm"] == pytest.approx(1.414, abs=5e-4)
    assert scored["masd_mm"] == pytest.approx(masd, abs=5e-3)
    assert scored["assd_mm"] == pytest.approx(assd, abs=5e-3)
    assert scored["nsd"] == pytest.approx(nsd)
    assert scored["nsd_area"] == pytest.approx(nsd_area, abs=5e-5)


def test_one_far_voxel_metrics_reloaded_5c_tells_conventions_of_hd95_apart():
    pred = mask((14, 14), (9, 12), (9, 12))
    scored = row(pred, pred | point((14, 14), 1, 1))
    assert scored["dice"] == pytest.approx(0.9474, abs=5e-5)
    assert scored["hd_mm"] == pytest.approx(11.31, abs=5e-3)
    assert scored["hd95_mm"] == pytest.approx(6.79, abs=5e-3)


def test_equal_volumes_apart_have_no_volume_error_metrics_reloaded():
    pred, ref = mask((5, 5, 2), (3, 5), (3, 5), (0, 2)), mask((5, 5, 2), (2, 4), (2, 4), (0, 2))
    assert row(pred, ref)["volume_diff_ml"] == 0
    assert row(pred, ref)["volume_similarity"] == 1


def ball(radius, centre):
    grid = np.ogrid[:99, :99, :99]
    return sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True)) <= radius**2


def test_balls_of_the_monai_suite():
    nested = surface_distances(ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), (1, 1, 1))
    assert nested.pred_to_ref_mm.max() == pytest.approx(20.09975, abs=5e-6)
    assert nested.hd_mm == pytest.approx(20.22375, abs=5e-6)
    assert np.percentile(nested.pred_to_ref_mm, 95) == pytest.approx(19.92486, abs=5e-6)
    assert nested.hd95_mm == pytest.approx(20.09975, abs=5e-6)
    assert nested.assd_mm == pytest.approx(15.117741, abs=5e-6)
    shifted = surface_distances(ball(33, (19, 33, 22)), ball(33, (20, 33, 22)), (1, 1, 1))
    assert shifted.hd_mm == 1
    assert shifted.assd_mm == pytest.approx(0.350217, abs=5e-7)
    diagonal = surface_distances(ball(20, (20, 20, 20)), ball(20, (19, 19, 19)), (1, 1, 1))
    assert diagonal.hd_mm == pytest.approx(1.73205, abs=5e-6)


def test_directed_means_of_the_monai_suite():
    shifted = surface_distances(ball(33, (20, 33, 22)), ball(33, (19, 33, 22)), (1, 1, 1))
    nested = surface_distances(ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), (1, 1, 1))
    directed = [part.mean() for part in (shifted.pred_to_ref_mm, shifted.ref_to_pred_mm)]
    assert any(value == pytest.approx(0.348328, abs=5e-7) for value in directed)
    directed = [part.mean() for part in (nested.pred_to_ref_mm, nested.ref_to_pred_mm)]
    assert any(value == pytest.approx(12.040034, abs=5e-6) for value in directed)


@pytest.mark.parametrize(
    ("background_mm", "foreground_mm", "background", "foreground"),
    [(0, 0, 0.857142857, 0), (2.8, 5.5, 0.964285714, 0.3333), (3, 6, 0.988095238, 0.6667)],
)
def test_surface_dice_of_the_monai_suite(background_mm, foreground_mm, background, foreground):
    pred, ref = mask((10, 10), (1, 4), (1, 2)), mask((10, 10), (5, 8), (6, 7))
    assert row(~pred, ~ref, tolerance=background_mm)["nsd"] == pytest.approx(background, abs=5e-10)
    assert row(pred, ref, tolerance=foreground_mm)["nsd"] == pytest.approx(foreground, abs=5e-5)


def test_dice_of_the_monai_suite():
    assert row(np.array([[1, 0], [0, 1]]), np.array([[1, 0], [1, 1]]))["dice"] == pytest.approx(0.8)
    assert row(np.ones((2, 2), int), np.zeros((2, 2), int))["dice"] == 0


def test_panoptica_4_by_4():
    pred = mask((4, 4), (1, 3), (1, 3))
    ref = np.array([[0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 1, 1, 0]], bool)
    scored = row(pred, ref)
    assert scored["dice"] == pytest.approx(0.5714286, abs=5e-8)
    assert (scored["hd_mm"], scored["masd_mm"]) == (1, 0.625)
    for tolerance, share in ((0.5, 0.375), (1.0, 1.0)):  # by panoptica's own rule, as above
        assert np.mean([(part <= tolerance).mean() for part in _parts(pred, ref)]) == share
    assert (scored["n_ref"] - scored["n_pred"]) / scored["n_pred"] == pytest.approx(1.5)
    assert (scored["n_pred"] - scored["n_ref"]) / scored["n_ref"] == pytest.approx(-0.6)
    shifted = row(mask((6, 6), (1, 4), (2, 5)), mask((6, 6), (1, 4), (1, 4)))
    assert shifted["hd_mm"] == shifted["hd95_mm"] == 1


def test_image_filled_but_for_a_corner():
    full = np.ones((6, 6), bool)
    cut = full & ~point((6, 6), 0, 0)
    scored = row(cut, full)
    assert scored["hd_mm"] == 1
    assert scored["hd95_mm"] == pytest.approx(0.05)
    assert area_distances(cut, full, (1, 1)).percentile_mm(95) == 0


def test_counts_above_2_to_24_are_exact():
    full = np.ones((1, 2**24 + 1), np.uint8)
    cut = full.copy()
    cut[0, 0] = 0
    scored = row(cut, full)
    assert (scored["n_ref"], scored["n_pred"]) == (16_777_217, 16_777_216)
    assert scored["dice"] == 2 * 16_777_216 / (2 * 16_777_216 + 1)
    assert scored["iou"] == 16_777_216 / 16_777_217
