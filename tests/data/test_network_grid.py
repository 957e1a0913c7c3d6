from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from segscse.data.geometry import canonical_grid, spacing_of
from segscse.data.network_grid import _resampled, lerp_places, network_shape, prepare_files
from segscse.data.plan import Normalisation
from segscse.data.transforms import preprocess

ROTATION = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
CT = (Normalisation("ct", 40.0, 90.0, -150.0, 250.0),)


def _affine(spacing, codes, shape):
    """Return an oblique affine whose axes run as `codes` says."""
    change = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes))
    affine = np.eye(4)
    affine[:3, :3] = ROTATION @ np.diag(spacing)
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    return affine @ nib.orientations.inv_ornt_aff(change, shape)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.6, 2.5), (1.9, 0.8, 0.8), (1.0004, 1.0, 3.0)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "PIR"])
@pytest.mark.parametrize("scheme", ["ct", "zscore", "zscore_nonzero"])
@pytest.mark.parametrize("slice_axis", [None, 2])
def test_it_is_what_the_training_transforms_of_monai_make(
    tmp_path, make_volume, build_plan, spacing, codes, scheme, slice_axis
):
    rng = np.random.default_rng(1)
    image = np.full((17, 14, 15), 0 if scheme == "zscore_nonzero" else -1000, np.int16)
    image[3:-2, 4:, 2:-4] = rng.integers(-200, 300, (12, 10, 9))
    path = make_volume(tmp_path / "a.nii", image, _affine(spacing, tuple(codes), image.shape))
    fields = {"normalisation": CT if scheme == "ct" else (Normalisation(scheme, 0.0, 1.0, 0.0, 1.0),)}
    plan = build_plan(spacing_mm=(1.0, 1.0, 1.5), slice_axis=slice_axis, **fields)
    expected, found = preprocess([path], None, plan), prepare_files([path], {"a": plan})["a"]
    assert found.image.shape == expected.image.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    # MONAI computes the places of its samples in 32 bits
    np.testing.assert_allclose(found.image, expected.image, atol=1e-3)


@pytest.mark.parametrize("version", [1, 2])
def test_models_of_the_first_plans_see_what_they_were_trained_with(tmp_path, make_volume, build_plan, version):
    image = np.zeros((14, 13, 12), np.float32)
    image[4:9, 3:9, 5:9] = np.random.default_rng(0).normal(500, 20, (5, 6, 4))
    image[4, 3, 5] = -1
    path = make_volume(tmp_path / "a.nii", image)
    plan = build_plan(spacing_mm=(1.0, 1.0, 1.0), version=version)
    expected, found = preprocess([path], None, plan), prepare_files([path], {"a": plan})["a"]
    box = image if version == 1 else image[3:10, 2:10, 4:10]
    np.testing.assert_allclose(found.image[0], (box - box.mean()) / box.std(), atol=1e-4)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-4)


def test_several_channels_share_one_crop(tmp_path, make_volume, build_plan):
    first, second = np.zeros((9, 9, 9), np.float32), np.zeros((9, 9, 9), np.float64)
    first[4, 4, 4], second[6, 5, 4] = 1, 2
    paths = [make_volume(tmp_path / f"{n}.nii", array) for n, array in enumerate((first, second))]
    plan = build_plan(spacing_mm=(1.0, 1.0, 1.0), normalisation=(Normalisation("ct", 0.0, 1.0, -9.0, 9.0),) * 2)
    found = prepare_files(paths, {"a": plan})["a"]
    np.testing.assert_array_equal(found.image[0], first[3:8, 3:7, 3:6])
    np.testing.assert_array_equal(found.image[1], second[3:8, 3:7, 3:6])
    np.testing.assert_allclose(found.affine[:3, 3], (3, 3, 3))


@pytest.mark.parametrize("order", permutations(range(3)))
def test_interpolation_is_scipys_whatever_the_memory_order(order):
    rng = np.random.default_rng(0)
    shape, sizes = (6, 7, 5), (9, 4, 8)
    values = rng.normal(size=shape).astype(np.float32)
    stored = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    places = [np.linspace(-1.0, extent + 0.5, size) for extent, size in zip(shape, sizes, strict=True)]
    axes = [lerp_places(place, extent) for place, extent in zip(places, shape, strict=True)]
    expected = map_coordinates(values, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    np.testing.assert_allclose(_resampled(stored, axes), expected, atol=1e-5)


def test_samples_at_voxel_centres_take_the_voxel():
    found = lerp_places(np.array([-3.0, -0.5, -0.4, 1.000004, 1.999996, 2.25, 4.5, 4.6, -0.5 - 1e-12, 4.5 + 1e-12]), 5)
    assert found.low.tolist() == [0, 0, 0, 1, 2, 2, 4, 4, 0, 4]
    assert found.high.tolist() == [0, 0, 0, 1, 2, 3, 4, 4, 0, 4]
    assert found.share.tolist() == [0, 0, 0, 0, 0, 0.25, 0, 0, 0, 0]
    assert found.inside.tolist() == [False, True, True, True, True, True, True, False, True, True]


@pytest.mark.parametrize(("shape", "spacing"), product([(1, 9, 33), (20, 21, 22)], [(0.7, 3.0, 1.0), (2.0, 0.4, 1.5)]))
def test_the_shape_on_the_networks_grid_is_known_beforehand(tmp_path, make_volume, build_plan, shape, spacing):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = make_volume(tmp_path / "a.nii", image, _affine(spacing, ("L", "I", "A"), shape))
    known, affine = canonical_grid(shape, nib.load(path).affine)
    plan = build_plan()
    found = tuple(prepare_files([path], {"a": plan})["a"].image.shape[1:])
    expected = network_shape(known, spacing_of(affine), plan)
    assert all(a <= b for a, b in zip(found, expected, strict=True))  # the minimum may be cropped at a border
    assert max(b - a for a, b in zip(found, expected, strict=True)) <= 1
