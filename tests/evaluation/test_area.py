"""Surfaces by area: closed forms and DeepMind's surface-distance."""

import math

import numpy as np
import pytest

from segscse.evaluation.area import area_distances, areas_of_patterns

SPACINGS_3D = [(1, 1, 1), (2, 1, 1), (0.5, 0.7, 3), (3, 2, 1)]


def _area(mask, spacing):
    return area_distances(mask, mask, spacing).areas_ref.sum()


def test_area_of_single_voxels_is_that_of_their_marching_cubes():
    one = np.ones((1, 1, 1), bool)
    assert _area(one, (1, 1, 1)) == pytest.approx(math.sqrt(3))  # an octahedron
    assert _area(one[0], (1, 1)) == pytest.approx(2 * math.sqrt(2))  # a rhombus
    assert _area(one[0], (3, 4)) == pytest.approx(10)
    assert _area(one[0, 0], (2,)) == 2  # two ends
    a, b, c = 1, 2, 3
    triangle = math.hypot(b * c, a * c, a * b) / 8
    assert _area(one, (a, b, c)) == pytest.approx(8 * triangle)


def test_area_of_a_large_cuboid_is_its_faces_but_for_rounded_edges():
    spacing = np.array([0.5, 1, 2])
    sides = np.array([40, 30, 20])
    a, b, c = (sides - 1) * spacing
    faces = 2 * (a * b + b * c + a * c)
    edges = sum(4 * length * math.hypot(*np.delete(spacing, i)) / 2 for i, length in enumerate((a, b, c)))
    assert _area(np.ones(sides, bool), spacing) == pytest.approx(faces + edges, rel=1e-3)


def test_inside_and_outside_of_a_pattern_have_one_surface():
    for spacing in ((1.0, 2.0, 3.0), (1.0, 2.0), (1.0,)):
        table = areas_of_patterns(spacing)
        np.testing.assert_array_equal(table, table[::-1])
        assert table[0] == 0
        assert (table[1:-1] > 0).all()


@pytest.fixture(scope="module")
def deepmind():
    return pytest.importorskip("surface_distance", reason="the oracle surface-distance is not installed")


@pytest.mark.parametrize("spacing", [*SPACINGS_3D, (1, 1), (0.3, 2)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.8])
def test_equals_surface_distance_on_random_masks(deepmind, spacing, density):
    rng = np.random.default_rng(int(10 * sum(spacing)))
    for _ in range(8):
        ref, pred = rng.random((2, *rng.integers(3, 12, len(spacing)))) < density
        ref.flat[0] = pred.flat[-1] = True
        theirs = deepmind.compute_surface_distances(ref, pred, spacing)
        ours = area_distances(pred, ref, spacing)
        assert ours.means_mm()[::-1] == pytest.approx(deepmind.compute_average_surface_distance(theirs))
        for percent in (50, 95, 100):
            assert ours.percentile_mm(percent) == pytest.approx(deepmind.compute_robust_hausdorff(theirs, percent))
        for tolerance in (0, 0.77, 2.05):
            expected = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert ours.nsd(tolerance) == pytest.approx(expected)
            assert area_distances(pred, ref, spacing, tolerance).nsd(tolerance) == pytest.approx(expected)
            overlaps = deepmind.compute_surface_overlap_at_tolerance(theirs, tolerance)
            assert ours.overlaps(tolerance)[::-1] == pytest.approx(overlaps)


def test_every_pattern_has_the_area_of_surface_distance(deepmind):
    from surface_distance import lookup_tables

    for spacing in ((1, 1, 1), (0.5, 0.7, 3)):
        expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
        np.testing.assert_allclose(areas_of_patterns(spacing), expected)
    np.testing.assert_allclose(
        areas_of_patterns((0.5, 3)), lookup_tables.create_table_neighbour_code_to_contour_length((0.5, 3))
    )
