import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from segscse.data.directions import coarse_image, find_directed


def _scans(n=6, *, likeness=0.7, symmetric=(), seed=0):
    """Return coarse images that share an anatomy, the same both ways around along some axes."""
    rng = np.random.default_rng(seed)
    anatomy = ndimage.gaussian_filter(rng.normal(size=(1, 8, 8, 8)), (0, 1, 1, 1))
    for axis in symmetric:
        anatomy = anatomy + np.flip(anatomy, axis + 1)
    anatomy /= anatomy.std()
    scans = likeness * anatomy + (1 - likeness) * rng.normal(size=(n, 1, 8, 8, 8))
    return list(scans / scans.std((1, 2, 3, 4), keepdims=True))


@pytest.mark.parametrize("shape", [(16, 24, 8), (9, 13, 30), (5, 3, 11), (130, 120, 110)], ids=str)
def test_blocks_are_means_of_equal_stretches(shape):
    voxels = np.random.default_rng(1).normal(5, 2, (2, *shape)).astype(np.float32)
    voxels += np.linspace(0, 30, shape[0], dtype=np.float32)[:, None, None]
    fine = np.repeat(np.repeat(np.repeat(voxels, 8, 1), 8, 2), 8, 3) if voxels[0].size < 5000 else voxels
    expected = F.adaptive_avg_pool3d(torch.from_numpy(fine).double(), 8).numpy()
    expected -= expected.mean((1, 2, 3), keepdims=True)
    expected /= expected.std((1, 2, 3), keepdims=True)
    tolerance = 1e-4 if voxels[0].size < 1e6 else 0.1  # large images are thinned out, and torch's stretches overlap
    np.testing.assert_allclose(coarse_image(voxels), expected, atol=tolerance)


def test_the_air_around_does_not_count_and_constant_images_are_nothing():
    voxels = np.random.default_rng(2).uniform(1, 2, (1, 12, 10, 9))
    padded = np.pad(voxels, ((0, 0), (3, 9), (0, 4), (7, 1)))
    np.testing.assert_array_equal(coarse_image(padded), coarse_image(voxels))
    assert not coarse_image(np.zeros((1, 5, 5, 5), np.int16)).any()
    assert not coarse_image(np.full((1, 5, 5, 5), 3, np.int16)).any()


@pytest.mark.parametrize("symmetric", [(), (0,), (1, 2), (0, 1, 2)], ids=str)
def test_axes_with_one_way_around_are_found_and_those_of_symmetric_anatomy_are_not(symmetric):
    found = find_directed(_scans(symmetric=symmetric))
    assert sorted(found) == [axis for axis in range(3) if axis not in symmetric]


def test_how_much_further_is_what_a_loop_says():
    scans = _scans(n=4)
    ratios = []
    for number, scan in enumerate(scans):
        others = np.mean([other for place, other in enumerate(scans) if place != number], axis=0)
        ratios.append(((scan[:, ::-1] - others) ** 2).mean() / ((scan - others) ** 2).mean())
    assert find_directed(scans)[0] == pytest.approx(np.median(ratios), abs=0.006)


def test_scans_in_both_directions_and_scans_without_a_common_anatomy_have_none():
    scans = _scans(n=10)
    both = [np.flip(scan, 1) if number % 2 else scan for number, scan in enumerate(scans)]
    assert 0 not in find_directed(both)
    assert find_directed(_scans(likeness=0.0)) == {}


def test_nine_scans_of_ten_must_agree():
    scans = _scans(n=10, likeness=0.8)
    assert 0 in find_directed([np.flip(scans[0], 1), *scans[1:]])
    assert 0 not in find_directed([np.flip(scans[0], 1), np.flip(scans[1], 1), *scans[2:]])


def test_two_scans_tell_nothing_and_copies_a_bounded_number():
    scans = _scans(n=3)
    assert find_directed(scans[:2]) == {}
    assert find_directed([scans[0]] * 3) == {0: 100.0, 1: 100.0, 2: 100.0}
    assert find_directed([np.zeros((1, 8, 8, 8))] * 3) == {}
