"""Surface distances: empty masks, and other libraries that follow the same conventions."""

import math

import numpy as np
import pytest
from scipy import ndimage

from segscse.evaluation.overlap import count
from segscse.evaluation.surface import border, framed, surface_distances, with_margin

from . import oracle

SPACINGS_3D = [(1, 1, 1), (2, 1, 1), (0.5, 0.7, 3), (3, 2, 1)]


@pytest.mark.parametrize("shape", [(8, 8), (5, 6, 7)])
def test_empty_masks_are_nan_together_and_infinite_alone(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.5,) * len(shape)
    both = surface_distances(empty, empty, spacing)
    for name in ("hd_mm", "hd95_mm", "assd_mm", "masd_mm"):
        assert math.isnan(getattr(both, name))
        for pair in ((full, empty), (empty, full)):
            assert getattr(surface_distances(*pair, spacing), name) == math.inf
    assert math.isnan(both.nsd(3))
    assert surface_distances(full, empty, spacing).nsd(1000) == 0


def test_border_counts_voxels_at_the_edge_of_the_image():
    assert border(np.ones((4, 5), bool)).sum() == 14
    assert border(np.ones((1, 5, 5), bool)).all()


def test_border_is_the_mask_without_its_erosion():
    for density in (0.3, 0.8, 0.97):
        mask = np.random.default_rng(3).random((9, 8, 7)) < density
        np.testing.assert_array_equal(border(mask), mask & ~ndimage.binary_erosion(mask))
        assert len(oracle.border_points(mask)) == border(mask).sum()


def test_frames_hold_both_masks_and_nothing_else():
    pred, ref = np.zeros((2, 9, 9), bool)
    pred[2:4, 3], ref[5, 6:8] = True, True
    frames = framed(pred, ref, (2, 1))
    np.testing.assert_array_equal(frames[0], np.pad(pred[2:6, 3:8], ((2, 2), (1, 1))))
    np.testing.assert_array_equal(frames[1], with_margin(ref[2:6, 3:8], (2, 1)))


def test_a_tolerance_of_whole_voxels_counts_whatever_the_rounding():
    ref = np.zeros((30, 9), bool)
    ref[2:9, 2:7] = True
    for step in (0.1, 0.3, 0.7, float(np.float32(0.1))):
        distances = surface_distances(np.roll(ref, 3, axis=0), ref, (step, 100.0))
        assert distances.nsd(round(3 * step, 6)) == 1
        assert distances.nsd(2.99 * step) < 1


def _smooth_pair(seed, shape=(24, 30, 20)):
    """Return two blobs that differ along their surface."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 3) for _ in range(2)]
    base = fields[0] / fields[0].std()
    return base > 0.3, base + 0.3 * fields[1] / fields[1].std() > 0.3


@pytest.mark.parametrize("spacing", SPACINGS_3D)
def test_monai_agrees(spacing):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(11)
    for pred, ref in (_smooth_pair(1), rng.random((2, 9, 8, 7)) < 0.2):
        masks = [torch.tensor(mask)[None, None].float() for mask in (pred, ref)]
        options = {"include_background": True, "spacing": [float(step) for step in spacing]}
        ours = surface_distances(pred, ref, spacing)
        theirs = metrics.compute_hausdorff_distance(*masks, percentile=95, **options)
        assert ours.hd95_mm == pytest.approx(theirs.item(), rel=1e-5)
        theirs = metrics.compute_average_surface_distance(*masks, symmetric=True, **options)
        assert ours.assd_mm == pytest.approx(theirs.item(), rel=1e-5)
        theirs = metrics.compute_surface_dice(*masks, [1.3], **options)
        assert ours.nsd(1.3) == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS_3D)
def test_simpleitk_agrees(spacing):
    """Overlap from its filter; distances by its contours and signed distance maps, on padded images."""
    sitk = pytest.importorskip("SimpleITK")
    pred, ref = _smooth_pair(2)
    images = [sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8)) for mask in (pred, ref)]
    for image in images:
        image.SetSpacing([float(step) for step in spacing[::-1]])
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(images[0], images[1])
    counts = count(pred, ref, pred.size)
    assert counts.dice == pytest.approx(overlap.GetDiceCoefficient())
    assert counts.iou == pytest.approx(overlap.GetJaccardCoefficient())
    assert 1 - counts.sensitivity == pytest.approx(overlap.GetFalseNegativeError())
    assert 1 - counts.precision == pytest.approx(overlap.GetFalseDiscoveryRate())
    assert counts.volume_similarity == pytest.approx(1 - abs(overlap.GetVolumeSimilarity()) / 2)
    contours = [sitk.LabelContour(image, fullyConnected=False) for image in images]
    maps = [
        sitk.GetArrayFromImage(
            sitk.Abs(sitk.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True))
        )
        for contour in contours
    ]
    there, back = (maps[1 - own][sitk.GetArrayFromImage(contours[own]) == 1].astype(float) for own in range(2))
    ours = surface_distances(pred, ref, spacing)
    assert ours.hd_mm == pytest.approx(max(there.max(), back.max()), rel=1e-5)
    assert ours.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert ours.assd_mm == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert ours.masd_mm == pytest.approx((there.mean() + back.mean()) / 2, rel=1e-5)
