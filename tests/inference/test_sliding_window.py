from itertools import pairwise, product

import pytest
import torch
from monai.inferers import sliding_window_inference

from segscse.inference.sliding_window import gaussian_weight, mirrored, predict_volume, sliding_window, window_starts


def _constant(x):
    return torch.stack([torch.full_like(x[:, 0], value) for value in (1.5, -2.0, 0.25)], dim=1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 30), (8, 8, 8), (7, 9, 8), (23, 16, 9), (3, 40, 8)])
@pytest.mark.parametrize(("window", "slice_axis"), [((8, 8, 8), None), ((8, 8), 0), ((8, 8), 1), ((8, 8), 2)])
def test_constant_logits_come_out_as_they_went_in(shape, window, slice_axis):
    logits = predict_volume(torch.randn(2, *shape), _constant, window=window, slice_axis=slice_axis, batch_size=3)
    assert logits.shape == (3, *shape)
    for channel, value in zip(logits, (1.5, -2.0, 0.25), strict=True):
        torch.testing.assert_close(channel, torch.full(shape, value))


def test_an_image_of_one_window_is_one_pass():
    calls = []

    def network(x):
        calls.append(x.shape)
        return x**2

    x = torch.randn(1, 8, 6, 4)
    torch.testing.assert_close(predict_volume(x, network, window=(8, 6, 4))[0], x[0] ** 2, rtol=0, atol=0)
    assert calls == [(1, 1, 8, 6, 4)]


def test_an_image_smaller_than_the_window_is_padded_with_zero_on_both_sides():
    seen = []

    def network(x):
        seen.append(x)
        return x

    x = torch.ones(1, 3, 8)
    out = sliding_window(x[None], network, window=(6, 8), overlap=0.5, batch_size=1)
    torch.testing.assert_close(out[0], x)
    assert seen[0][0, 0].sum(dim=1).tolist() == [0, 8, 8, 8, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_voxelwise_network_gives_what_it_gives_on_the_whole(batch_size):
    x = torch.randn(2, 21, 13, 9)

    def network(v):
        return torch.stack([v[:, 0] * v[:, 1], v[:, 0] - v[:, 1]], dim=1)

    logits = predict_volume(x, network, window=(8, 8, 8), batch_size=batch_size)
    torch.testing.assert_close(logits, network(x[None])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_predicted_as_images_of_their_own(slice_axis):
    x = torch.randn(1, 6, 7, 8)

    def network(v):
        return v - v.mean(dim=(2, 3), keepdim=True)

    axes = [axis for axis in range(3) if axis != slice_axis]
    window = [x.shape[axis + 1] for axis in axes]
    logits = predict_volume(x, network, window=window, slice_axis=slice_axis, batch_size=4)
    expected = x - x.mean(dim=[axis + 1 for axis in axes], keepdim=True)
    torch.testing.assert_close(logits, expected)


def test_agrees_with_monais_where_windows_and_weights_are_the_same():
    """With an odd window, and extents that whole steps cover, both place and weigh windows alike."""
    torch.manual_seed(0)
    x = torch.rand(1, 1, 17, 13, 9)
    ramp = torch.linspace(0, 1, 9)[:, None, None] + torch.linspace(0, 2, 9)[None, :, None]

    def network(v):
        return v + ramp

    ours = sliding_window(x, network, window=(9, 9, 9), overlap=0.5, batch_size=2)
    theirs = sliding_window_inference(x, (9, 9, 9), 2, network, overlap=0.5, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    assert (ours - x).std() > 0.1  # the network does depend on the window


def test_windows_weigh_as_a_loop_over_voxels_says():
    x = torch.randn(1, 1, 10)
    ramp = torch.arange(4.0)
    ours = sliding_window(x, lambda v: v * ramp, window=(4,), overlap=0.5, batch_size=3)
    weight = gaussian_weight((4,))
    for voxel in range(10):
        parts = [(weight[voxel - s], x[0, 0, voxel] * ramp[voxel - s]) for s in (0, 2, 4, 6) if 0 <= voxel - s < 4]
        expected = sum(w * v for w, v in parts) / sum(w for w, _ in parts)
        torch.testing.assert_close(ours[0, 0, voxel], expected)


@pytest.mark.parametrize(
    ("extent", "window", "overlap", "expected"),
    [(8, 8, 0.5, [0]), (5, 8, 0.5, [0]), (16, 8, 0.5, [0, 4, 8]), (9, 8, 0.5, [0, 1]), (16, 8, 0.0, [0, 8])],
)
def test_windows_start_evenly(extent, window, overlap, expected):
    assert window_starts(extent, window, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_every_voxel_with_the_overlap_asked_for(overlap):
    for extent, window in product(range(1, 40), range(1, 20)):
        starts = window_starts(extent, window, overlap)
        covered = {voxel for start in starts for voxel in range(start, start + window)}
        assert covered >= set(range(extent))
        assert max(starts) <= max(0, extent - window)
        steps = [b - a for a, b in pairwise(starts)]
        assert all(0 < step <= max(1, int(window * (1 - overlap))) for step in steps)


def test_the_weight_is_largest_in_the_middle_and_never_zero():
    weight = gaussian_weight((9, 5))
    assert weight[4, 2] == weight.max() == 1
    assert weight.min() >= 1e-3
    torch.testing.assert_close(weight, weight.flip(0, 1))
    assert weight[4 + 1, 2] == pytest.approx(2.718281828 ** (-0.5 * (1 / (9 / 8)) ** 2), rel=1e-5)


class TestMirroring:
    def _network(self):
        torch.manual_seed(0)
        return torch.nn.Conv3d(1, 2, 3, padding=1)

    @torch.no_grad()
    def test_is_the_mean_over_all_flips(self):
        network, x = self._network(), torch.randn(2, 1, 5, 6, 4)
        total = torch.zeros(2, 2, 5, 6, 4)
        for flips in product([False, True], repeat=3):
            axes = [axis + 2 for axis, flip in enumerate(flips) if flip]
            total += network(x.flip(axes)).flip(axes)
        torch.testing.assert_close(mirrored(network, [2, 3, 4])(x), total / 8)

    @torch.no_grad()
    def test_makes_the_prediction_follow_a_mirrored_input(self):
        x = torch.randn(1, 12, 9, 8)
        arguments = {"window": (8, 8, 8), "mirror_axes": (0, 2), "batch_size": 2}
        straight = predict_volume(x, self._network(), **arguments)
        for axis in (1, 3):
            turned = predict_volume(x.flip(axis), self._network(), **arguments).flip(axis)
            torch.testing.assert_close(turned, straight, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_leaves_the_slice_axis_alone(self):
        network = torch.nn.Conv2d(1, 1, 3, padding=1)
        calls = []

        def counted(x):
            calls.append(1)
            return network(x)

        predict_volume(torch.randn(1, 4, 8, 8), counted, window=(8, 8), slice_axis=0, mirror_axes=(0, 1), batch_size=4)
        assert len(calls) == 2

    def test_without_axes_is_the_network_itself(self):
        assert mirrored(_constant, []) is _constant


def test_nothing_to_predict_is_a_defect():
    with pytest.raises(ValueError, match="no images"):
        sliding_window(torch.zeros(0, 1, 4), lambda x: x, window=(4,), overlap=0.5, batch_size=1)


def test_logits_are_single_precision_whatever_the_network_gives():
    out = sliding_window(torch.randn(1, 1, 12), lambda x: x.bfloat16(), window=(8,), overlap=0.5, batch_size=1)
    assert out.dtype == torch.float32
