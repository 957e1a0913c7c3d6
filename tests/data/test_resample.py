import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Orientationd, Spacingd
from scipy.ndimage import map_coordinates

from segscse.data.resample import resample, sample_axis, zoom_grid
from segscse.data.transforms import preprocess

CANONICAL = (("L", "R"), ("P", "A"), ("I", "S"))


@pytest.mark.parametrize(("mode", "order"), [("linear", 1), ("nearest", 0)])
def test_equals_scipy_at_the_same_places(mode, order):
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(1, 7, 9, 5)).astype(np.float32)
    places = [np.sort(rng.uniform(0, extent - 1, size)) for extent, size in zip((7, 9, 5), (12, 4, 5), strict=True)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    expected = map_coordinates(volume[0], grid, order=order, mode="nearest")
    np.testing.assert_allclose(resample(torch.from_numpy(volume), places, mode)[0], expected, atol=1e-5)


def test_places_beyond_the_border_have_its_value():
    values = torch.tensor([[2.0, 4.0, 8.0]])
    assert sample_axis(values, np.array([-3.0, -0.4, 1.5, 2.3, 9.0]), 1).tolist() == [[2.0, 2.0, 6.0, 8.0, 8.0]]


def test_whole_places_give_the_voxels_themselves_and_the_input_is_left_alone():
    values = torch.randn(1, 6)
    kept = values.clone()
    assert torch.equal(sample_axis(values, np.array([4.0, 0.0, 1.0]), 1), values[:, [4, 0, 1]])
    sample_axis(values, np.array([0.5]), 1)
    assert torch.equal(values, kept)


def test_a_grid_keeps_its_first_voxel_and_an_axis_without_a_target():
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    places, out = zoom_grid((9, 5, 4), affine, (1.0, None, 2.0))
    assert [place.tolist() for place in places] == [
        [0, 2, 4, 6, 8],
        [0, 1, 2, 3, 4],
        pytest.approx([0, 2 / 3, 4 / 3, 2, 8 / 3, 10 / 3]),
    ]
    np.testing.assert_allclose(out, [[1, 0, 0, 5], [0, 2, 0, 6], [0, 0, 2, 7], [0, 0, 0, 1]])


def _monai(array, label, affine, spacing):
    """Orient, crop and resample as MONAI's own transforms do."""
    keys = ["image", "label"]
    chain = Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=CANONICAL),
            CropForegroundd(keys, source_key="image", select_fn=lambda x: x > x.min(), margin=1, allow_smaller=True),
            Spacingd(keys, pixdim=spacing, mode=["bilinear", "nearest"], padding_mode="border", dtype=np.float32),
        ]
    )
    tensors = (torch.from_numpy(item.astype(np.float32))[None] for item in (array, label))
    return chain({key: MetaTensor(item, affine=torch.tensor(affine)) for key, item in zip(keys, tensors, strict=True)})


@pytest.mark.parametrize("spacing", [(1.03, 1.04, 2.1), (0.45, 1.7, 1.3), (0.8, 0.9, 2.5)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1)])
def test_preprocessing_equals_monais_chain(tmp_path, make_volume, build_plan, spacing, flips):
    rng = np.random.default_rng(3)
    array = np.zeros((17, 20, 11), np.float32)
    array[3:15, 4:20, 2:9] = rng.normal(50, 9, (12, 16, 7))
    label = (rng.random((17, 20, 11)) > 0.7).astype(np.uint8)
    affine = np.diag([0.8 * flips[0], 0.9 * flips[1], 2.5 * flips[2], 1.0])
    affine[:3, 3] = (3, -8, 12)
    plan = build_plan(spacing_mm=spacing, labels=((0, "background"), (1, "front")))
    paths = [make_volume(tmp_path / f"{name}.nii", item, affine) for name, item in (("i", array), ("l", label))]
    ours, theirs = preprocess(paths[:1], paths[1], plan), _monai(array, label, affine, spacing)
    image = theirs["image"].as_tensor()
    image = (image - image.mean()) / image.std(correction=0)
    assert ours.image.shape == image.shape
    np.testing.assert_allclose(ours.image, image, atol=2e-3)
    np.testing.assert_allclose(ours.affine, np.asarray(theirs["image"].affine), atol=1e-5)
    assert (ours.label == theirs["label"].as_tensor()[0]).float().mean() > 0.995  # but for ties
