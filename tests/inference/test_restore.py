import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from tiny import tiny_plan

from segscse.data.transforms import preprocess_array
from segscse.inference import restore as module
from segscse.inference.restore import restore, restore_probabilities

IDS = (0, 2, 5)


def _image(shape, *, empty=0):
    """Return noise, with `empty` voxels of constant background on every side."""
    rng = np.random.default_rng(0)
    image = rng.uniform(10, 20, shape).astype(np.float32)
    if empty:
        inner = tuple(slice(empty, -empty) for _ in range(3))
        padded = np.zeros(shape, np.float32)
        padded[inner] = image[inner]
        return padded
    return image


def _native_coordinates(prepared):
    """Return the place of every voxel of the file on the network's grid, `(3, X, Y, Z)`, by the affines alone."""
    source = prepared.source
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in source.array.shape[:3]), indexing="ij"))
    transform = np.linalg.inv(prepared.affine) @ source.affine
    flat = transform[:3, :3] @ voxels.reshape(3, -1) + transform[:3, 3:]
    return flat.reshape(voxels.shape)


def _expected_logits(logits, prepared):
    places = _native_coordinates(prepared)
    values = np.stack([map_coordinates(channel, places, order=1, mode="nearest") for channel in logits.numpy()])
    inside = np.all([(p >= -0.5) & (p <= n - 0.5) for p, n in zip(places, logits.shape[1:], strict=True)], axis=0)
    return values, inside


def _oblique(spacing):
    rotation = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    return affine


def test_on_the_same_grid_the_largest_logit_wins_voxel_by_voxel():
    prepared = preprocess_array(_image((6, 7, 8)), np.eye(4), tiny_plan())
    logits = torch.randn(3, 6, 7, 8)
    np.testing.assert_array_equal(restore(logits, prepared, IDS), np.array(IDS)[logits.argmax(dim=0).numpy()])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.6, 2.5), (1.9, 0.8, 0.8)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA"])
@pytest.mark.parametrize("empty", [0, 3])
def test_another_grid_is_interpolated_as_scipy_does(spacing, codes, empty):
    shape = (15, 13, 14)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    image = nib.orientations.apply_orientation(_image(shape, empty=empty), change)
    affine = _oblique(spacing) @ nib.orientations.inv_ornt_aff(change, shape)
    prepared = preprocess_array(image, affine, tiny_plan())
    torch.manual_seed(0)
    logits = torch.randn(3, *prepared.image.shape[1:])
    values, inside = _expected_logits(logits, prepared)
    expected = np.where(inside, np.array(IDS)[values.argmax(axis=0)], 0)
    top = np.sort(values, axis=0)
    clear = (top[-1] - top[-2] > 1e-3) | ~inside  # a tie may fall either way
    places = _native_coordinates(prepared)
    edge = np.any(
        [np.abs(p - b) < 1e-4 for p, n in zip(places, logits.shape[1:], strict=True) for b in (-0.5, n - 0.5)], 0
    )
    found = restore(logits, prepared, IDS)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear & ~edge], expected[clear & ~edge])
    numbers, probabilities = restore_probabilities(logits, prepared)
    np.testing.assert_array_equal(np.array(IDS)[numbers], found)
    softmax = np.exp(values - values.max(axis=0)) / np.exp(values - values.max(axis=0)).sum(axis=0)
    softmax = np.where(inside, softmax, np.eye(3)[0][:, None, None, None])
    np.testing.assert_allclose(np.moveaxis(probabilities, -1, 0)[:, ~edge], softmax[:, ~edge], atol=1e-4)


def test_what_was_cropped_as_empty_is_background_whatever_the_logits():
    image = np.zeros((20, 20, 20), np.float32)
    image[8:12, 8:12, 8:12] = 5.0
    prepared = preprocess_array(image, np.eye(4), tiny_plan())
    logits = torch.zeros(3, *prepared.image.shape[1:])
    logits[2] = 9.0
    found = restore(logits, prepared, IDS)
    assert (found[:6] == 0).all()
    assert (found[14:] == 0).all()
    assert (found[8:12, 8:12, 8:12] == 5).all()
    assert (found == 5).sum() == np.prod(prepared.image.shape[1:])


def test_slabs_make_no_difference(monkeypatch):
    prepared = preprocess_array(_image((9, 8, 7)), np.diag([1.4, 0.8, 1.0, 1.0]), tiny_plan())
    logits = torch.randn(3, *prepared.image.shape[1:])
    whole = restore_probabilities(logits, prepared)
    monkeypatch.setattr(module, "SLAB_ELEMENTS", 1)
    in_slabs = restore_probabilities(logits, prepared)
    np.testing.assert_array_equal(in_slabs[0], whole[0])
    np.testing.assert_allclose(in_slabs[1], whole[1], atol=1e-6)


def test_an_axis_of_one_voxel_is_repeated():
    prepared = preprocess_array(_image((6, 6, 1)), np.diag([1.0, 1.0, 5.0, 1.0]), tiny_plan())
    found = restore(torch.randn(3, *prepared.image.shape[1:]), prepared, IDS)
    assert found.shape == (6, 6, 1)


def test_rounded_direction_cosines_bring_labels_back_to_their_own_voxels():
    image = _image((12, 14, 10))
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    affine[0, 1], affine[1, 2] = 0.0005, 0.004  # what three decimals leave of a right angle
    prepared = preprocess_array(image, affine, tiny_plan(spacing_mm=(0.7, 0.7, 5.0)))
    numbers = torch.from_numpy((prepared.image[0].numpy() > 0).astype(np.int64))
    logits = torch.nn.functional.one_hot(numbers, 3).movedim(-1, 0).float()
    np.testing.assert_array_equal(restore(logits, prepared, IDS), np.where(image > image.mean(), 2, 0))
