"""Surface distances: published cases, a brute-force oracle, MONAI, and what must not change them."""

import math

import numpy as np
import pytest

from segscse.evaluation import surface
from segscse.evaluation.surface import border, hd95_mm, surface_distances

SPACINGS_3D = [(1, 1, 1), (2, 1, 1), (0.5, 0.7, 3), (3, 2, 1)]


def _mask(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def _brute_force(a, b, spacing, percent=95):
    """Return the larger directed percentile from all pairs of border voxels, found by their neighbours."""

    def points(mask):
        padded = np.pad(mask, 1)
        found = []
        for index in np.argwhere(mask):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    other = index + 1
                    other[axis] += step
                    if not padded[tuple(other)]:
                        found.append(tuple(index))
        return np.array(sorted(set(found))) * np.asarray(spacing, float)

    pa, pb = points(a), points(b)
    table = np.sqrt(((pa[:, None] - pb[None]) ** 2).sum(-1))
    return max(np.percentile(table.min(1), percent), np.percentile(table.min(0), percent))


def test_two_points_two_mm_apart_in_2d_and_3d():
    assert hd95_mm(_mask((128, 128), (50, 51), (72, 73)), _mask((128, 128), (50, 51), (70, 71)), (2, 1)) == 2
    shape = (70, 70, 80)
    a, b = (_mask(shape, (50, 51), (60, 61), (z, z + 1)) for z in (70, 72))
    assert hd95_mm(a, b, (3, 2, 1)) == 2


def test_c5_square_longer_by_one_row():
    ref, pred = _mask((6, 6), (1, 3), (1, 3)), _mask((6, 6), (1, 4), (1, 3))
    distances = surface_distances(pred, ref, (2, 1))
    both = np.concatenate([distances.pred_to_ref_mm, distances.ref_to_pred_mm])
    assert both.mean() == pytest.approx(0.4)  # ASSD
    means = [distances.pred_to_ref_mm.mean(), distances.ref_to_pred_mm.mean()]
    assert np.mean(means) == pytest.approx(1 / 3)  # MASD
    assert distances.hd_mm == 2


def test_c6_square_with_a_cross():
    ref = _mask((11, 11), (3, 8), (3, 8))
    pred = ref.copy()
    pred[5, 1:10] = pred[1:10, 5] = True
    distances = surface_distances(pred, ref, (1, 1))
    both = np.concatenate([distances.pred_to_ref_mm, distances.ref_to_pred_mm])
    assert both.mean() == pytest.approx(0.4444, abs=1e-4)
    assert (both <= 1).mean() == pytest.approx(0.8889, abs=1e-4)  # NSD at 1 mm
    assert distances.hd_mm == 2


@pytest.mark.parametrize(("inside", "masd", "assd"), [((6, 8), 1.07, 1.10), ((4, 10), 1.04, 1.05)])
def test_c7_smaller_and_larger_square(inside, masd, assd):
    distances = surface_distances(_mask((14, 14), inside, inside), _mask((14, 14), (5, 9), (5, 9)), (1, 1))
    assert distances.hd_mm == pytest.approx(math.sqrt(2))
    both = np.concatenate([distances.pred_to_ref_mm, distances.ref_to_pred_mm])
    assert both.mean() == pytest.approx(assd, abs=6e-3)
    means = [distances.pred_to_ref_mm.mean(), distances.ref_to_pred_mm.mean()]
    assert np.mean(means) == pytest.approx(masd, abs=6e-3)


def test_c8a_far_speck_tells_the_conventions_apart():
    pred = _mask((14, 14), (9, 12), (9, 12))
    ref = pred.copy()
    ref[1, 1] = True
    distances = surface_distances(pred, ref, (1, 1))
    assert distances.hd_mm == pytest.approx(11.3137, abs=1e-4)
    assert distances.hd95_mm == pytest.approx(6.79, abs=5e-3)


def test_c16_missing_corner_of_a_full_image():
    full = np.ones((6, 6), bool)
    cut = full.copy()
    cut[0, 0] = False
    distances = surface_distances(cut, full, (1, 1))
    assert distances.hd_mm == 1
    assert distances.hd95_mm == pytest.approx(0.05)


def test_c10a_shifted_and_nested_balls():
    grid = np.indices((99, 99, 99)).transpose(1, 2, 3, 0)

    def ball(radius, centre):
        return ((grid - centre) ** 2).sum(-1) <= radius**2

    assert surface_distances(ball(20, (20, 20, 20)), ball(20, (19, 19, 19)), (1, 1, 1)).hd_mm == pytest.approx(
        math.sqrt(3)
    )
    nested = surface_distances(ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), (1, 1, 1))
    assert nested.hd_mm == pytest.approx(20.22375, abs=1e-5)
    assert nested.hd95_mm == pytest.approx(20.09975, abs=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (5, 6, 7)])
def test_empty_masks_are_nan_together_and_infinite_alone(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.5,) * len(shape)
    assert math.isnan(hd95_mm(empty, empty, spacing))
    assert hd95_mm(full, empty, spacing) == hd95_mm(empty, full, spacing) == math.inf
    assert surface_distances(full, empty, spacing).hd_mm == math.inf


@pytest.mark.parametrize("spacing", SPACINGS_3D)
def test_brute_force_agrees_in_3d(spacing):
    rng = np.random.default_rng(int(sum(spacing) * 10))
    for density in (0.05, 0.3, 0.7, 0.95) * 6:
        a, b = rng.random((2, *rng.integers(2, 8, 3))) < density
        if a.any() and b.any():
            for percent in (95, 100):
                got = surface_distances(a, b, spacing).percentile_mm(percent)
                assert got == pytest.approx(_brute_force(a, b, spacing, percent))


@pytest.mark.parametrize("spacing", [(1, 1), (0.3, 2)])
def test_brute_force_agrees_in_2d(spacing):
    rng = np.random.default_rng(5)
    for density in (0.05, 0.5, 0.9) * 10:
        a, b = rng.random((2, 9, 11)) < density
        if a.any() and b.any():
            assert hd95_mm(a, b, spacing) == pytest.approx(_brute_force(a, b, spacing))


@pytest.mark.parametrize("spacing", SPACINGS_3D)
def test_tree_and_transform_give_the_same_distances(spacing):
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 12, 11, 10)) < 0.3
    source, target = border(a), border(b)
    by_tree = surface._by_tree(source, target, spacing)
    np.testing.assert_allclose(by_tree, surface._by_transform(source, target, spacing), rtol=1e-12)


def test_large_overlapping_masks_take_the_tree_and_agree_with_the_transform(monkeypatch):
    a, b = _mask((60, 60, 60), (5, 50), (5, 50), (5, 50)), _mask((60, 60, 60), (7, 50), (5, 52), (4, 47))
    by_tree = hd95_mm(a, b, (1, 1, 2.5))
    monkeypatch.setattr(surface, "_by_tree", surface._by_transform)
    assert hd95_mm(a, b, (1, 1, 2.5)) == by_tree == 7.5


def test_monai_agrees():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_hausdorff_distance

    rng = np.random.default_rng(11)
    for spacing in SPACINGS_3D:
        a, b = rng.random((2, 9, 8, 7)) < 0.2
        expected = compute_hausdorff_distance(
            torch.tensor(a)[None, None].float(),
            torch.tensor(b)[None, None].float(),
            include_background=True,
            percentile=95,
            spacing=[float(step) for step in spacing],
        ).item()
        assert hd95_mm(a, b, spacing) == pytest.approx(expected, rel=1e-5)


def test_symmetry_permutation_scale_and_padding():
    rng = np.random.default_rng(13)
    a, b = rng.random((2, 6, 7, 8)) < 0.25
    spacing = (0.5, 1.25, 3.0)
    value = hd95_mm(a, b, spacing)
    assert hd95_mm(b, a, spacing) == value
    order = (2, 0, 1)
    assert hd95_mm(a.transpose(order), b.transpose(order), [spacing[i] for i in order]) == pytest.approx(value)
    assert hd95_mm(a, b, [3 * step for step in spacing]) == pytest.approx(3 * value)
    assert hd95_mm(np.pad(a, 4), np.pad(b, 4), spacing) == pytest.approx(value)
    assert hd95_mm(a[:, ::-1], b[:, ::-1], spacing) == pytest.approx(value)
    assert hd95_mm(a, a, spacing) == 0
    assert value <= surface_distances(a, b, spacing).hd_mm


def test_border_counts_voxels_at_the_edge_of_the_image():
    assert border(np.ones((4, 5), bool)).sum() == 14
    assert border(np.ones((1, 5, 5), bool)).all()
