import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from segscse.data.geometry import (
    affine_problem,
    axis_map,
    canonical_grid,
    from_canonical,
    orthogonal,
    same_grid,
    spacing_of,
    to_canonical,
)

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*axes)
]
SHAPE = (3, 4, 5)


def _affine(orientation, spacing_mm=(1.0, 2.0, 3.0), tilt_deg=0.0):
    """Return the affine of axes that run towards the letters, tilted about the left-right axis."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    tilt = np.radians(tilt_deg)
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([directions[letter] for letter in orientation], float).T * spacing_mm
    affine[:3, 3] = (-7.0, 11.0, 13.5)
    return affine


@pytest.mark.parametrize("tilt_deg", [0.0, 20.0])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
class TestAll48Orientations:
    def test_canonical_and_back_returns_every_voxel(self, orientation, tilt_deg):
        array = np.arange(60).reshape(SHAPE)
        affine = _affine(orientation, tilt_deg=tilt_deg)
        canonical, _ = to_canonical(array, affine)
        np.testing.assert_array_equal(from_canonical(canonical, affine), array)

    def test_every_voxel_keeps_its_place_in_the_world(self, orientation, tilt_deg):
        array = np.arange(60).reshape(SHAPE)
        affine = _affine(orientation, tilt_deg=tilt_deg)
        canonical, canonical_affine = to_canonical(array, affine)
        assert nib.aff2axcodes(canonical_affine) == ("R", "A", "S")
        for index in np.ndindex(*SHAPE):
            where = np.argwhere(canonical == array[index])[0]
            np.testing.assert_allclose(canonical_affine @ [*where, 1], affine @ [*index, 1], atol=1e-9)

    def test_it_equals_nibabels_closest_canonical(self, orientation, tilt_deg):
        array, affine = np.arange(60.0).reshape(SHAPE), _affine(orientation, tilt_deg=tilt_deg)
        expected = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
        canonical, canonical_affine = to_canonical(array, affine)
        np.testing.assert_array_equal(canonical, expected.get_fdata())
        np.testing.assert_allclose(canonical_affine, expected.affine)

    def test_the_grid_alone_is_the_grid_of_the_array(self, orientation, tilt_deg):
        affine = _affine(orientation, tilt_deg=tilt_deg)
        canonical, canonical_affine = to_canonical(np.zeros(SHAPE), affine)
        shape, grid_affine = canonical_grid(SHAPE, affine)
        assert shape == canonical.shape
        np.testing.assert_array_equal(grid_affine, canonical_affine)


def test_the_channel_axis_stays_last():
    array = np.arange(120).reshape(*SHAPE, 2)
    affine = _affine("SLP")
    canonical, _ = to_canonical(array, affine)
    assert canonical.shape == (4, 5, 3, 2)
    for channel in range(2):
        np.testing.assert_array_equal(canonical[..., channel], to_canonical(array[..., channel], affine)[0])
    np.testing.assert_array_equal(from_canonical(canonical, affine), array)


class TestSameGrid:
    def test_a_grid_is_the_same_as_itself(self):
        assert same_grid(SHAPE, _affine("RAS"), SHAPE, _affine("RAS")) is None

    def test_shape_is_compared_on_the_spatial_axes(self):
        assert same_grid(SHAPE, np.eye(4), (3, 4, 6), np.eye(4)) == "shape 3x4x5 against 3x4x6"
        assert same_grid((*SHAPE, 2), np.eye(4), SHAPE, np.eye(4)) is None

    @pytest.mark.parametrize(("shift", "same"), [(0.0099, True), (0.0101, False)])
    def test_one_percent_of_the_smallest_voxel_size_may_separate_corners(self, shift, same):
        moved = _affine("RAS")
        moved[1, 3] += shift
        assert (same_grid(SHAPE, _affine("RAS"), SHAPE, moved) is None) == same

    def test_a_difference_of_spacing_is_named(self):
        assert same_grid(SHAPE, np.eye(4), SHAPE, np.diag([1, 1, 1.5, 1])) == "spacing 1x1x1 mm against 1x1x1.5 mm"

    def test_a_difference_of_orientation_is_named(self):
        assert same_grid(SHAPE, np.eye(4), SHAPE, np.diag([-1, 1, 1, 1])) == "orientation RAS against LAS"

    def test_a_difference_of_position_is_named_with_its_size(self):
        moved = np.eye(4)
        moved[:3, 3] = 3, 0, 4
        assert same_grid(SHAPE, np.eye(4), SHAPE, moved) == "position: the voxels lie up to 5 mm apart"

    def test_a_rotation_of_two_degrees_is_seen_and_float32_rounding_is_not(self):
        affine = _affine("RAS", spacing_mm=(0.7, 0.7, 3.3), tilt_deg=13.0)
        tilted = _affine("RAS", spacing_mm=(0.7, 0.7, 3.3), tilt_deg=15.0)
        assert "position" in same_grid((90, 90, 40), affine, (90, 90, 40), tilted)
        assert same_grid((512, 512, 100), affine, (512, 512, 100), affine.astype(np.float32)) is None


class TestAffineProblem:
    @pytest.mark.parametrize("orientation", ["RAS", "LPS", "IAL"])
    def test_rigid_axes_with_any_spacing_are_good(self, orientation):
        assert affine_problem(_affine(orientation, (0.3, 1.0, 12.0), 33.0)) is None

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_named(self, value):
        affine = np.eye(4)
        affine[1, 3] = value
        assert affine_problem(affine) == "the affine holds NaN or infinite values"

    def test_a_missing_axis_is_singular(self):
        assert "singular" in affine_problem(np.diag([1.0, 0.0, 1.0, 1.0]))
        parallel = np.eye(4)
        parallel[:3, 1] = parallel[:3, 0]
        assert "singular" in affine_problem(parallel)

    def test_a_shear_of_five_degrees_is_named_and_one_of_rounding_is_not(self):
        sheared = np.eye(4)
        sheared[:3, 1] = np.sin(np.radians(5)), np.cos(np.radians(5)), 0
        assert affine_problem(sheared) == "the affine is sheared (axes are 5 degrees off a right angle)"
        sheared = np.eye(4)
        sheared[0, 1] = 1e-6
        assert affine_problem(sheared) is None


def test_spacing_is_the_length_of_each_axis():
    assert spacing_of(_affine("PIR", (0.5, 0.75, 5.0), 40.0)) == (0.5, 0.75, 5.0)


class TestAxisMap:
    def test_a_crop_shifts_and_a_resampling_scales(self):
        source = _affine("RAS", (1.0, 1.0, 2.0), 25.0)
        target = source @ np.diag([0.5, 2.0, 1.0, 1.0])
        target[:3, 3] = (source @ [4, 5, 6, 1])[:3]
        scale, offset = axis_map(source, target)
        np.testing.assert_allclose(scale, [0.5, 2.0, 1.0], atol=1e-12)
        np.testing.assert_allclose(offset, [4.0, 5.0, 6.0], atol=1e-9)
        for index in ([0, 0, 0], [3, 2, 1]):
            np.testing.assert_allclose(source @ [*(scale * index + offset), 1], target @ [*index, 1], atol=1e-9)

    def test_grids_that_are_rotated_against_each_other_are_refused(self):
        with pytest.raises(ValueError, match="rotated against each other"):
            axis_map(_affine("RAS", tilt_deg=0.0), _affine("RAS", tilt_deg=2.0))


class TestOrthogonal:
    def test_axes_at_right_angles_are_left_as_they_are(self):
        affine = np.diag([0.7, 0.7, 5.0, 1.0])
        assert orthogonal(affine) is affine

    def test_rounded_direction_cosines_become_the_nearest_rotation(self):
        turn = Rotation.from_euler("xyz", [20, -15, 40], degrees=True).as_matrix()
        affine = np.eye(4)
        affine[:3, :3] = np.round(turn, 3) * [0.7, 0.7, 5.0]
        affine[:3, 3] = [1, 2, 3]
        found = orthogonal(affine)
        cosines = found[:3, :3] / np.linalg.norm(found[:3, :3], axis=0)
        np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(cosines, turn, atol=1e-3)
        np.testing.assert_array_equal(found[:3, 3], affine[:3, 3])
