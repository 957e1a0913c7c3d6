from itertools import pairwise, product

import pytest
import torch
from monai.inferers import sliding_window_inference
from naive import naive_logits

from segscse.errors import InputError
from segscse.inference.sliding_window import (
    axis_weights,
    classify_volume,
    mirrored,
    plan_sweep,
    predict_volume,
    stream_logits,
    window_starts,
)
from segscse.tensor_bytes import TensorBytes


def _constant(x):
    return torch.stack([torch.full_like(x[:, 0], value) for value in (1.5, -2.0, 0.25)], dim=1)


def _collected(stream, axis):
    """Return the logits of all steps as one tensor, each row as it was when it was finished."""
    parts, done = [], 0
    for rows in stream:
        parts.append(rows.values.narrow(axis + 1, done - rows.first, rows.stop - done).clone())
        done = rows.stop
    return torch.cat(parts, dim=axis + 1)


def _constant_of(n_classes):
    return lambda x: torch.ones(len(x), n_classes, *x.shape[2:])


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 30), (8, 8, 8), (7, 9, 8), (23, 16, 9), (3, 40, 8)])
@pytest.mark.parametrize(("window", "slice_axis"), [((8, 8, 8), None), ((8, 8), 0), ((8, 8), 1), ((8, 8), 2)])
def test_constant_logits_come_out_as_they_went_in(shape, window, slice_axis):
    logits = predict_volume(
        torch.randn(2, *shape), _constant, window=window, n_classes=3, slice_axis=slice_axis, batch_size=3
    )
    assert logits.shape == (3, *shape)
    for channel, value in zip(logits, (1.5, -2.0, 0.25), strict=True):
        torch.testing.assert_close(channel, torch.full(shape, value))


def test_an_image_of_one_window_is_one_pass():
    calls = []

    def network(x):
        calls.append(x.shape)
        return x**2

    x = torch.randn(1, 8, 6, 4)
    torch.testing.assert_close(predict_volume(x, network, window=(8, 6, 4), n_classes=1)[0], x[0] ** 2, rtol=0, atol=0)
    assert calls == [(1, 1, 8, 6, 4)]


def test_an_image_smaller_than_the_window_is_padded_with_zero_on_both_sides():
    seen = []

    def network(x):
        seen.append(x)
        return x

    x = torch.ones(1, 3, 8, 1)
    out = predict_volume(x, network, window=(6, 8, 1), n_classes=1, batch_size=1)
    torch.testing.assert_close(out, x)
    assert seen[0][0, 0].sum(dim=(1, 2)).tolist() == [0, 8, 8, 8, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_voxelwise_network_gives_what_it_gives_on_the_whole(batch_size):
    x = torch.randn(2, 21, 13, 9)

    def network(v):
        return torch.stack([v[:, 0] * v[:, 1], v[:, 0] - v[:, 1]], dim=1)

    logits = predict_volume(x, network, window=(8, 8, 8), n_classes=2, batch_size=batch_size)
    torch.testing.assert_close(logits, network(x[None])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
def test_slices_are_predicted_as_images_of_their_own(slice_axis):
    x = torch.randn(1, 6, 7, 8)

    def network(v):
        return v - v.mean(dim=(2, 3), keepdim=True)

    axes = [axis for axis in range(3) if axis != slice_axis]
    window = [x.shape[axis + 1] for axis in axes]
    logits = predict_volume(x, network, window=window, n_classes=1, slice_axis=slice_axis, batch_size=4)
    expected = x - x.mean(dim=[axis + 1 for axis in axes], keepdim=True)
    torch.testing.assert_close(logits, expected)


def test_agrees_with_monais_where_windows_and_weights_are_the_same():
    """Where whole steps cover the extents both place windows alike; MONAI's own weights have a floor."""
    torch.manual_seed(0)
    x = torch.rand(1, 1, 17, 13, 9)
    ramp = torch.linspace(0, 1, 9)[:, None, None] + torch.linspace(0, 2, 9)[None, :, None]

    def network(v):
        return v + ramp

    ours = predict_volume(x[0], network, window=(9, 9, 9), n_classes=1, batch_size=2)[None]
    gauss = torch.exp(-0.5 * ((torch.arange(9.0) - 4) / (9 / 8)) ** 2)
    weight = gauss[:, None, None] * gauss[:, None] * gauss
    theirs = sliding_window_inference(x, (9, 9, 9), 2, network, overlap=0.5, roi_weight_map=weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (ours - x).std() > 0.1  # the network does depend on the window


def test_windows_weigh_as_a_loop_over_voxels_says():
    x = torch.randn(1, 1, 1, 10)
    ramp = torch.arange(4.0)
    ours = predict_volume(x, lambda v: v * ramp, window=(1, 1, 4), n_classes=1, batch_size=3)
    weight = [2.718281828 ** (-0.5 * (place / (4 / 8)) ** 2) for place in (-1.5, -0.5, 0.5, 1.5)]
    for voxel in range(10):
        parts = [(weight[voxel - s], x.flatten()[voxel] * ramp[voxel - s]) for s in (0, 2, 4, 6) if 0 <= voxel - s < 4]
        expected = sum(w * v for w, v in parts) / sum(w for w, _ in parts)
        torch.testing.assert_close(ours[0, 0, 0, voxel], expected)


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


@pytest.mark.parametrize(("extent", "size"), [(9, 9), (30, 8), (31, 9), (5, 8), (1, 4), (100, 1)])
def test_the_weights_of_an_axis_sum_to_one_and_favour_the_middle(extent, size):
    starts = window_starts(extent, size, 0.5)
    weights = axis_weights(extent, size, starts)
    total = torch.zeros(extent)
    for start, weight in weights.items():
        total[start : start + size] += weight
    torch.testing.assert_close(total, torch.ones(extent))
    if len(starts) > 2:
        middle = weights[starts[1]]
        assert middle.argmax() in (size // 2 - 1, size // 2)
        assert middle.min() > 0


class TestSlabs:
    SHAPES = ((23, 17, 9), (9, 23, 17), (17, 9, 23), (30, 5, 1), (1, 1, 1), (8, 9, 8), (3, 40, 8), (25, 25, 25))

    def _network(self):
        torch.manual_seed(0)
        return torch.nn.Conv3d(2, 3, 3, padding=1)

    @torch.no_grad()
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("batch_size", [1, 3, 40])
    @pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
    def test_give_what_the_whole_volume_gives(self, shape, batch_size, overlap):
        x, network = torch.randn(2, *shape), self._network()
        expected = naive_logits(x, network, window=(8, 9, 8), overlap=overlap)
        for axis in range(3):
            sweep = plan_sweep(shape, (8, 9, 8), batch_size=batch_size, overlap=overlap, axis=axis)
            found, done = torch.full((3, *shape), torch.nan), 0
            for rows in stream_logits(x, network, sweep, n_classes=3):
                assert rows.first == max(0, done - 1)
                # what was finished before comes again as it was
                carried = rows.values.narrow(axis + 1, 0, done - rows.first)
                torch.testing.assert_close(carried, found.narrow(axis + 1, rows.first, done - rows.first))
                new = rows.values.narrow(axis + 1, done - rows.first, rows.stop - done)
                found.narrow(axis + 1, done, rows.stop - done).copy_(new)
                done = rows.stop
            assert done == shape[axis]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("slice_axis", [0, 1, 2])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_give_what_the_whole_volume_gives_in_2d(self, slice_axis, axis):
        torch.manual_seed(0)
        x, network = torch.randn(1, 11, 19, 6), torch.nn.Conv2d(1, 2, 3, padding=1)
        expected = naive_logits(x, network, window=(8, 6), slice_axis=slice_axis)
        sweep = plan_sweep(x.shape[1:], (8, 6), slice_axis=slice_axis, batch_size=5, axis=axis)
        found = _collected(stream_logits(x, network, sweep, n_classes=2), axis)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_are_swept_along_the_axis_that_keeps_the_open_slab_smallest(self):
        assert plan_sweep((100, 40, 40), (16, 16, 16)).axis == 0
        assert plan_sweep((40, 40, 100), (16, 16, 16)).axis == 2
        assert plan_sweep((40, 40, 100), (32, 32, 8)).axis == 2
        assert plan_sweep((40, 90, 100), (32, 32), slice_axis=1).axis == 1
        sweep = plan_sweep((40, 40, 100), (16, 16, 16), batch_size=2)
        assert (sweep.layers, sweep.depth, sweep.slab_voxels) == (1, 17, 17 * 1600)

    def test_take_several_layers_together_where_one_does_not_fill_a_batch(self):
        sizes = []

        def network(windows):
            sizes.append(len(windows))
            return windows

        predict_volume(torch.randn(1, 8, 8, 64), network, window=(8, 8, 8), n_classes=1, batch_size=4)
        assert sizes == [4, 4, 4, 3]

    @pytest.mark.parametrize("length", [60, 240])
    def test_hold_as_many_logits_however_long_the_volume(self, length):
        sweep = plan_sweep((20, 20, length), (8, 8, 8), batch_size=2)
        held = set()
        for rows in stream_logits(torch.randn(1, 20, 20, length), _constant_of(7), sweep, n_classes=7):
            held.add(rows.values.untyped_storage().nbytes())
        assert held == {9 * 7 * 20 * 20 * 4}

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_are_refused_when_the_network_returns_no_numbers(self, value):
        with pytest.raises(InputError, match="the network returned NaN or infinity"):
            predict_volume(torch.zeros(1, 4, 4, 4), lambda x: x + value, window=(4, 4, 4), n_classes=1)


class TestLeavingOut:
    @torch.no_grad()
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_windows_without_wanted_voxels_changes_nothing_at_those_that_are_wanted(self, axis):
        torch.manual_seed(0)
        x, network = torch.randn(1, 40, 36, 44), torch.nn.Conv3d(1, 3, 3, padding=1)
        wanted = torch.zeros(x.shape[1:], dtype=torch.bool)
        wanted[3:12, 20:30, 8:12] = wanted[30, 2, 40] = True
        sweep = plan_sweep(x.shape[1:], (8, 8, 8), batch_size=3, axis=axis)
        seen = [0, 0]

        def advance(evaluated, left_out):
            seen[0] += evaluated
            seen[1] += left_out

        found = _collected(stream_logits(x, network, sweep, n_classes=3, wanted=wanted, advance=advance), axis)
        expected = naive_logits(x, network, window=(8, 8, 8))
        torch.testing.assert_close(found[:, wanted], expected[:, wanted], rtol=1e-4, atol=1e-5)
        assert sum(seen) == sweep.n_windows
        covered = torch.zeros_like(wanted)
        evaluated = 0
        for corner in product(*sweep.starts):
            box = tuple(slice(low, low + 8) for low in corner)
            if wanted[box].any():
                covered[box] = True
                evaluated += 1
        assert seen[0] == evaluated < sweep.n_windows / 2
        assert (found[:, ~covered].argmax(dim=0) == 0).all()
        assert found[:, ~covered].softmax(dim=0)[0].min() == 1


class TestMirroring:
    def _network(self):
        torch.manual_seed(0)
        return torch.nn.Conv3d(1, 2, 3, padding=1)

    @torch.no_grad()
    @pytest.mark.parametrize(("batch_size", "calls"), [(1, [2] * 8), (4, [4] * 4), (7, [6, 6, 4]), (16, [16])])
    def test_is_the_mean_over_all_flips_which_share_calls(self, batch_size, calls):
        network, x = self._network(), torch.randn(2, 1, 5, 6, 4)
        seen = []

        def counted(windows):
            seen.append(len(windows))
            return network(windows)

        total = torch.zeros(2, 2, 5, 6, 4)
        for flips in product([False, True], repeat=3):
            axes = [axis + 2 for axis, flip in enumerate(flips) if flip]
            total += network(x.flip(axes)).flip(axes)
        torch.testing.assert_close(mirrored(counted, [2, 3, 4], batch_size)(x), total / 8)
        assert seen == calls

    @torch.no_grad()
    def test_makes_the_prediction_follow_a_mirrored_input(self):
        x = torch.randn(1, 12, 9, 8)
        arguments = {"window": (8, 8, 8), "mirror_axes": (0, 2), "batch_size": 2, "n_classes": 2}
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

        predict_volume(
            torch.randn(1, 4, 8, 8), counted, window=(8, 8), n_classes=1, slice_axis=0, mirror_axes=(0, 1), batch_size=4
        )
        assert len(calls) == 2

    def test_averages_half_precision_in_32_bits(self):
        x = torch.randn(1, 3, 8, 8, 8)
        mean = mirrored(lambda windows: windows.bfloat16(), [2, 3, 4], 2)(x)
        torch.testing.assert_close(mean, x.bfloat16().float(), rtol=0, atol=1e-6)

    def test_without_axes_is_the_network_itself(self):
        assert mirrored(_constant, [], 2) is _constant


@pytest.mark.parametrize("shape", [(5, 1, 30), (23, 16, 9), (40, 20, 31)])
@pytest.mark.parametrize(("window", "slice_axis"), [((8, 8, 8), None), ((8, 8), 0), ((8, 8), 2)])
def test_classes_are_those_of_the_largest_logits(shape, window, slice_axis):
    network = (torch.nn.Conv2d if slice_axis is not None else torch.nn.Conv3d)(2, 5, 3, padding=1)
    arguments = {"window": window, "n_classes": 5, "slice_axis": slice_axis, "batch_size": 3}
    x = torch.randn(2, *shape)
    with torch.no_grad():
        classes, logits = classify_volume(x, network, **arguments), predict_volume(x, network, **arguments)
    assert classes.dtype == torch.int64
    assert torch.equal(classes, logits.argmax(dim=0))


def test_classes_are_found_without_all_logits_at_once():
    x, n_classes = torch.zeros(1, 16, 16, 256), 40
    with TensorBytes() as counter:
        classify_volume(x, _constant_of(n_classes), window=(16, 16, 16), n_classes=n_classes)
    assert counter.peak < 0.6 * 4 * n_classes * x.numel()


def test_logits_are_single_precision_whatever_the_network_gives():
    out = predict_volume(torch.randn(1, 1, 1, 12), lambda x: x.bfloat16(), window=(1, 1, 8), n_classes=1)
    assert out.dtype == torch.float32
