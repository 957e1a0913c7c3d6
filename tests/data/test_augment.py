import dataclasses

import numpy as np
import pytest
import torch
from apple import OnMps
from scipy.ndimage import gaussian_filter

from segscse.config import AugmentConfig
from segscse.data import augment
from segscse.data.augment import augment_batch, centre_cut, gaussian_blur, random_affine, random_mirror
from segscse.data.plan import Normalisation

NOTHING = AugmentConfig(
    spatial_p=0, mirror="none", noise_p=0, blur_p=0, brightness_p=0, contrast_p=0, low_resolution_p=0, gamma_p=0
)
INTENSITIES = ["noise_p", "blur_p", "brightness_p", "contrast_p", "low_resolution_p", "gamma_p"]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _draws(size, seed=0):
    return [np.random.default_rng([seed, index]) for index in range(size)]


def _batch(shape=(12, 14, 10), size=4, seed=0):
    image = torch.randn(size, 2, *shape, generator=_generator(seed))
    label = (torch.rand(size, *shape, generator=_generator(seed + 1)) * 3).to(torch.uint8)
    return image, label


def _coordinates(shape, size):
    """Return a batch whose only channel and whose label are a voxel's index along the first axis, plus one."""
    index = torch.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return index.float().expand(size, 1, *shape).clone(), index.to(torch.uint8).expand(size, *shape).clone()


def _plan(build_plan, dims, **fields):
    flat = {"spatial_dims": 2, "slice_axis": 2, "patch_size": (8, 8), "mirror_axes": (0, 1)} if dims == 2 else {}
    return build_plan(**{"spacing_mm": (1.0, 1.0, 1.0), **flat, **fields})


@pytest.mark.parametrize("dims", [2, 3])
class TestWholeBatches:
    def test_with_every_probability_zero_the_result_is_the_centre_cut(self, build_plan, dims):
        image, label = _batch((12, 14, 10)[:dims])
        plan = _plan(build_plan, dims)
        out, out_label = augment_batch(image, label, plan, NOTHING, _draws(4))
        middle = (slice(2, 10), slice(3, 11), slice(1, 9))[:dims]
        assert torch.equal(out, image[(..., *middle)])
        assert torch.equal(out_label, label[(..., *middle)])

    def test_equal_generators_give_equal_results_and_others_do_not(self, build_plan, dims):
        plan, config = _plan(build_plan, dims), AugmentConfig(spatial_p=0.7, noise_p=0.7, gamma_p=0.7)
        results = [augment_batch(*_batch((12, 14, 10)[:dims]), plan, config, _draws(4, seed)) for seed in (1, 1, 2)]
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
        assert not torch.equal(results[0][0], results[2][0])

    def test_what_becomes_of_a_sample_does_not_depend_on_the_others(self, build_plan, dims):
        plan, config = _plan(build_plan, dims), AugmentConfig(spatial_p=0.7, **dict.fromkeys(INTENSITIES, 0.5))
        whole = augment_batch(*_batch((12, 14, 10)[:dims], size=12), plan, config, _draws(12))
        image, label = _batch((12, 14, 10)[:dims], size=12)
        for part in (slice(0, None, 2), slice(1, None, 2)):
            out, out_label = augment_batch(image[part], label[part], plan, config, _draws(12)[part])
            torch.testing.assert_close(out, whole[0][part], rtol=0, atol=0)
            assert torch.equal(out_label, whole[1][part])

    def test_the_cut_that_came_in_is_left_as_it_is(self, build_plan, dims):
        image, label = _batch((12, 14, 10)[:dims])
        kept = image.clone(), label.clone()
        always = AugmentConfig(spatial_p=1, **dict.fromkeys(INTENSITIES, 1.0))
        out, out_label = augment_batch(image, label, _plan(build_plan, dims), always, _draws(4))
        assert torch.equal(image, kept[0])
        assert torch.equal(label, kept[1])
        assert out.dtype == torch.float32
        assert out_label.dtype == torch.uint8
        assert torch.isfinite(out).all()

    def test_labels_are_only_those_that_were_there(self, build_plan, dims):
        image, label = _batch((12, 14, 10)[:dims])
        config = AugmentConfig(spatial_p=1)
        _, out = augment_batch(image, (label * 20).to(torch.uint8), _plan(build_plan, dims), config, _draws(4))
        assert set(out.unique().tolist()) <= {0, 20, 40}

    @pytest.mark.parametrize("axis", [0, -1])
    def test_image_and_label_move_together(self, build_plan, dims, axis):
        axis %= dims
        image, label = _coordinates((40,) * dims, 6)
        image, label = image.transpose(2, 2 + axis), label.transpose(1, 1 + axis)
        plan = _plan(build_plan, dims, patch_size=(16,) * dims)
        config = dataclasses.replace(NOTHING, spatial_p=0.9, mirror="auto", scale=(0.8, 1.2))
        out, out_label = augment_batch(image, label, plan, config, _draws(6, axis))
        # A linear ramp is interpolated exactly, and the nearest voxel is at most half a voxel away.
        assert (out[:, 0] - out_label).abs().max() <= 0.5 + 1e-3
        assert (out_label > 0).all()
        assert not torch.equal(out, centre_cut(image, plan.patch_size))

    @pytest.mark.parametrize("name", INTENSITIES)
    def test_intensities_change_and_labels_do_not(self, build_plan, dims, name):
        image, label = _batch((12, 14, 10)[:dims])
        plan = _plan(build_plan, dims)
        out, out_label = augment_batch(image, label, plan, dataclasses.replace(NOTHING, **{name: 1.0}), _draws(4))
        cut = centre_cut(image, plan.patch_size)
        assert all(not torch.allclose(out[index], cut[index], atol=1e-4) for index in range(len(out)))
        assert torch.equal(out_label, centre_cut(label[:, None], plan.patch_size)[:, 0])


class TestMirroring:
    @pytest.mark.parametrize("allowed", [(), (0,), (1, 2), (0, 1, 2)])
    def test_only_the_axes_of_the_plan_are_mirrored(self, build_plan, allowed):
        config = dataclasses.replace(NOTHING, mirror="auto")
        plan = _plan(build_plan, 3, patch_size=(6, 6, 6), mirror_axes=allowed)
        for axis in range(3):
            image, label = _coordinates((6, 6, 6), 32)
            image, label = image.transpose(2, 2 + axis), label.transpose(1, 1 + axis)
            out, out_label = augment_batch(image, label, plan, config, _draws(32))
            flipped = torch.tensor([not torch.equal(out[n], image[n]) for n in range(32)])
            assert flipped.any() == (axis in allowed)
            assert not flipped.all()
            assert torch.equal(out[:, 0], out_label.float())
            assert all(torch.equal(out[n], image[n].flip(1 + axis)) for n in flipped.nonzero()[:, 0])

    def test_in_2d_axes_are_counted_within_the_slice(self, build_plan):
        plan = _plan(build_plan, 2, slice_axis=0, patch_size=(6, 6), mirror_axes=(2,))
        image, label = _coordinates((6, 6), 32)
        config = dataclasses.replace(NOTHING, mirror="auto")
        assert torch.equal(augment_batch(image, label, plan, config, _draws(32))[0], image)
        image, label = image.transpose(2, 3), label.transpose(1, 2)
        assert not torch.equal(augment_batch(image, label, plan, config, _draws(32))[0], image)

    def test_half_of_the_samples_are_mirrored(self):
        image, label = _coordinates((4, 4), 2000)
        out, _ = random_mirror(image, label, [0], _draws(2000))
        assert (out[:, 0, 0, 0] == 4).float().mean() == pytest.approx(0.5, abs=0.05)


class TestAffine:
    def test_a_quarter_turn_is_numpys_rot90(self):
        array = torch.randn(1, 9, 9, generator=_generator())
        matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        grid = augment._grid(matrix, (9, 9), (9, 9), (1.0, 1.0))
        for mode in ("bilinear", "nearest"):
            turned = augment._sample(array, grid, mode)[0]
            np.testing.assert_allclose(turned, np.rot90(array[0].numpy(), -1), atol=1e-5)

    @pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 2), (1, 2)])
    def test_a_quarter_turn_in_each_plane_of_a_volume_is_rot90(self, a, b):
        array = torch.randn(1, 7, 7, 7, generator=_generator())
        matrix = torch.eye(3)
        matrix[a, a] = matrix[b, b] = 0
        matrix[a, b], matrix[b, a] = -1, 1
        turned = augment._sample(array, augment._grid(matrix, (7, 7, 7), (7, 7, 7), (1.0, 1.0, 1.0)), "bilinear")
        np.testing.assert_allclose(turned[0], np.rot90(array[0].numpy(), -1, axes=(a, b)), atol=1e-5)

    def test_no_turn_is_the_centre_cut_for_odd_and_even_sizes(self):
        for source, target in [((9, 12), (4, 7)), ((8, 9), (5, 6))]:
            array = torch.randn(1, 1, *source, generator=_generator())
            sampled = augment._sample(array[0], augment._grid(torch.eye(2), source, target, (1.0, 3.0)), "bilinear")
            np.testing.assert_allclose(sampled, centre_cut(array, target)[0], atol=1e-5)

    def test_a_turn_is_made_in_millimetres(self):
        array = torch.zeros(1, 17, 17)
        array[0, 8, 11] = 1.0  # 6 mm from the centre along the second axis
        matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        turned = augment._sample(array, augment._grid(matrix, (17, 17), (17, 17), (1.0, 2.0)), "bilinear")
        assert turned[0, 14, 8] == pytest.approx(1.0, abs=1e-5)

    @pytest.mark.parametrize(("factor", "edge"), [(2.0, 12), (0.5, 3), (1.0, 6)])
    def test_a_factor_above_one_enlarges(self, factor, edge):
        image = torch.zeros(1, 1, 40, 40)
        image[..., 17:23, 17:23] = 1.0
        config = AugmentConfig(rotation_deg=0.0, scale=(factor, factor), spatial_p=1.0)
        out, label = random_affine(image, image[:, 0].to(torch.uint8), (24, 24), (1.0, 1.0), config, _draws(1))
        assert label.sum().item() == pytest.approx(edge**2, rel=0.35)
        assert out.sum().item() == pytest.approx(edge**2, rel=0.1)

    def test_rotations_are_rotations_within_the_limit(self):
        matrices = augment._rotations((8, 8), (1.0, 1.0), 30.0, _draws(200))
        np.testing.assert_allclose(matrices @ matrices.mT, np.eye(2)[None].repeat(200, 0), atol=1e-5)
        angles = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
        assert -30.0 <= angles.min() < -25.0
        assert 25.0 < angles.max() <= 30.0
        solid = augment._rotations((8, 8, 8), (1.0, 1.0, 2.9), 30.0, _draws(50))
        np.testing.assert_allclose(torch.linalg.det(solid), 1.0, atol=1e-5)
        assert (solid[:, 2, :2].abs() > 1e-3).any()

    @pytest.mark.parametrize("apart", [0, 1, 2])
    @pytest.mark.parametrize(("edge", "step"), [(24, 3.5), (7, 1.0), (3, 2.0), (1, 1.0)])
    def test_an_axis_over_three_times_coarser_or_shorter_is_never_mixed_with_the_others(self, apart, edge, step):
        spacing, patch = [1.0, 1.0, 1.0], [24, 24, 24]
        spacing[apart], patch[apart] = step, edge
        matrices = augment._rotations(patch, spacing, 30.0, _draws(50))
        expected = torch.eye(3)[apart].expand(50, 3)
        assert torch.equal(matrices[:, apart], expected)
        assert torch.equal(matrices[:, :, apart], expected)
        others = [axis for axis in range(3) if axis != apart]
        assert (matrices[:, others[0], others[1]].abs() > 1e-3).any()

    @pytest.mark.parametrize("shape", [(24, 24, 1), (30, 30, 9)])
    def test_a_thin_volume_is_not_turned_out_of_itself(self, shape):
        config = AugmentConfig(scale=(1.0, 1.0), spatial_p=1.0)
        image, label = torch.ones(4, 1, *shape), torch.ones(4, *shape, dtype=torch.uint8)
        patch = (16, 16, shape[2])
        _, label = random_affine(image, label, patch, (1.0, 1.0, 0.5), config, _draws(4))
        assert label.float().mean() > 0.99

    @pytest.mark.parametrize("shape", [(64, 16), (16, 16, 64)])
    def test_an_elongated_patch_is_zoomed_alike_along_all_axes(self, shape):
        config = AugmentConfig(rotation_deg=0.0, scale=(1.5, 1.5), spatial_p=1.0)
        axes = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
        ball = (sum(axis**2 for axis in axes) <= 16).float()[None, None]
        spacing = (1.0,) * len(shape)
        image, _ = random_affine(ball, ball[:, 0].to(torch.uint8), shape, spacing, config, _draws(1))
        inside = (image[0, 0] > 0.5).nonzero()
        widths = inside.amax(0) - inside.amin(0) + 1
        assert set(widths.tolist()) == {12}

    def test_beyond_the_image_there_is_background(self):
        image, label = torch.ones(1, 1, 8, 8), torch.ones(1, 8, 8, dtype=torch.uint8)
        config = AugmentConfig(rotation_deg=0.0, scale=(0.5, 0.5), spatial_p=1.0)
        out, out_label = random_affine(image, label, (8, 8), (1.0, 1.0), config, _draws(1))
        assert out[0, 0, 0, 0] == 0
        assert out_label[0, 0, 0] == 0
        assert out_label[0, 4, 4] == 1

    def test_labels_are_sampled_on_the_cpu_where_apples_gpu_cannot(self, monkeypatch):
        real, label = augment.F.grid_sample, torch.arange(27, dtype=torch.uint8).reshape(1, 3, 3, 3)
        grid = augment._grid(torch.eye(3), (3, 3, 3), (3, 3, 3), (1.0, 1.0, 1.0))

        def sample(volume, *arguments, mode, **options):
            if mode == "nearest" and isinstance(volume, OnMps):
                raise RuntimeError("grid_sampler_3d: Unsupported Nearest interpolation")
            return real(volume, *arguments, mode=mode, **options)

        monkeypatch.setattr(augment.F, "grid_sample", sample)
        sampled = augment._sample(label.as_subclass(OnMps), grid.as_subclass(OnMps), "nearest")
        assert sampled.device.type == "mps"
        assert torch.equal(sampled.cpu(), label)

    def test_the_given_share_of_samples_is_moved(self):
        image, label = _coordinates((6, 6), 2000)
        config = dataclasses.replace(NOTHING, spatial_p=0.3)
        out, _ = random_affine(image, label, (4, 4), (1.0, 1.0), config, _draws(2000))
        moved = (out != centre_cut(image, (4, 4))).flatten(1).any(1)
        assert moved.float().mean() == pytest.approx(1 - 0.7**2, abs=0.04)  # a turn, a zoom or both


class TestIntensities:
    @pytest.mark.parametrize("sigma", [0.5, 0.8, 1.0, 2.3])
    @pytest.mark.parametrize("shape", [(13, 17), (9, 11, 13), (3, 2, 5)])
    def test_blurring_equals_scipys_gaussian_filter(self, sigma, shape):
        volume = torch.randn(2, *shape, generator=_generator())
        radius = int(np.ceil(3 * sigma))
        expected = [gaussian_filter(channel, sigma, mode="nearest", radius=radius) for channel in volume.numpy()]
        np.testing.assert_allclose(gaussian_blur(volume, sigma), np.stack(expected), atol=1e-5)

    def test_gamma_keeps_mean_and_spread_and_the_order_of_intensities(self):
        image, _ = _batch((10, 10))
        out = augment._gamma(image.clone(), dataclasses.replace(NOTHING, gamma_p=1.0), _draws(4))
        np.testing.assert_allclose(out.flatten(2).mean(2), image.flatten(2).mean(2), atol=1e-4)
        np.testing.assert_allclose(out.flatten(2).std(2), image.flatten(2).std(2), rtol=1e-3)
        assert torch.equal(out.flatten(2).argsort(2), image.flatten(2).argsort(2))

    def test_contrast_keeps_the_range(self):
        image, _ = _batch((10, 10), size=32)
        out = augment._contrast(image.clone(), dataclasses.replace(NOTHING, contrast_p=1.0), _draws(32))
        assert (out.flatten(2).amax(2) <= image.flatten(2).amax(2) + 1e-6).all()
        assert (out.flatten(2).amin(2) >= image.flatten(2).amin(2) - 1e-6).all()

    def test_brightness_is_one_factor_per_sample_and_channel(self):
        image = torch.rand(32, 3, 10, 10, generator=_generator()) + 0.5
        out = augment._brightness(image, dataclasses.replace(NOTHING, brightness_p=1.0), _draws(32))
        factors = (out / image).flatten(2)
        np.testing.assert_allclose(factors, factors[:, :, :1].expand_as(factors), rtol=1e-4)
        assert len(factors[:, :, 0].unique()) == 32 * 3
        assert 0.75 <= factors.min() < 0.85
        assert 1.15 < factors.max() <= 1.25 + 1e-5

    @pytest.mark.parametrize("name", ["contrast", "gamma"])
    def test_channels_that_are_alike_are_changed_each_by_itself(self, name):
        image = torch.rand(1, 1, 10, 10, generator=_generator()).expand(4, 3, 10, 10).clone()
        out = getattr(augment, f"_{name}")(image, dataclasses.replace(NOTHING, **{f"{name}_p": 1.0}), _draws(4))
        assert all(not torch.allclose(sample[a], sample[b]) for sample in out for a, b in ((0, 1), (0, 2), (1, 2)))

    def test_noise_is_added_with_a_variance_of_at_most_a_tenth(self):
        image = torch.zeros(64, 1, 20, 20)
        out = augment._noise(image, dataclasses.replace(NOTHING, noise_p=1.0), _draws(64))
        variances = out.flatten(1).var(1)
        assert variances.max() < 0.13
        assert variances.mean() == pytest.approx(0.05, abs=0.015)

    def test_low_resolution_smooths_and_keeps_the_shape(self):
        image, _ = _batch((16, 16, 16))
        out = augment._low_resolution(image.clone(), dataclasses.replace(NOTHING, low_resolution_p=1.0), _draws(4))
        assert out.shape == image.shape
        assert (out.flatten(1).std(1) < image.flatten(1).std(1)).all()

    def test_nothing_is_interpolated_across_coarse_slices(self, build_plan):
        slices = torch.randn(1, 1, 1, 1, 12).expand(6, 1, 24, 24, 12).clone()  # differ along the coarse axis alone
        label = (slices[:, 0] > 0).to(torch.uint8)
        plan = _plan(build_plan, 3, patch_size=(12, 12, 8), spacing_mm=(1.0, 1.0, 5.0))
        changes = {"spatial_p": 1.0, "scale": (0.6, 0.8), "low_resolution_p": 1.0}
        out, out_label = augment_batch(slices, label, plan, dataclasses.replace(NOTHING, **changes), _draws(6))
        torch.testing.assert_close(out, centre_cut(slices, (12, 12, 8)))
        assert torch.equal(out_label, centre_cut(label[:, None], (12, 12, 8))[:, 0])

    def test_what_surrounds_a_masked_scan_stays_zero(self, build_plan):
        image, label = torch.randn(4, 2, 12, 12, 12), torch.zeros(4, 12, 12, 12, dtype=torch.uint8)
        image[:, :, :6] = 0
        whole, masked = (Normalisation(name, 0.0, 1.0, -1.0, 1.0) for name in ("zscore", "zscore_nonzero"))
        plan = _plan(build_plan, 3, patch_size=(12, 12, 12), channels=("a", "b"), normalisation=(whole, masked))
        config = dataclasses.replace(NOTHING, **dict.fromkeys(INTENSITIES, 1.0))
        out, _ = augment_batch(image, label, plan, config, _draws(4))
        assert (out[:, 1, :6] == 0).all()
        assert (out[:, 1, 6:] != 0).all()
        assert (out[:, 0] != 0).float().mean() > 0.99

    def test_low_resolution_moves_nothing(self):
        ramp = torch.linspace(-1, 1, 24)
        image = (ramp[:, None, None] + 2 * ramp[None, :, None] - ramp).expand(8, 1, 24, 24, 24)
        out = augment._low_resolution(image.clone(), dataclasses.replace(NOTHING, low_resolution_p=1.0), _draws(8))
        error = (out - image)[..., 4:-4, 4:-4, 4:-4].flatten(1).mean(1)
        assert error.abs().max() < 0.3 * float(ramp[1] - ramp[0])  # of the sum of the slopes, 2

    def test_contrast_is_a_factor_of_the_spread(self):
        image = torch.randn(32, 1, 30, 30, generator=_generator())
        image[:, :, 0, :2] = torch.tensor([-9.0, 9.0])  # so that hardly anything is cut off
        out = augment._contrast(image.clone(), dataclasses.replace(NOTHING, contrast_p=1.0), _draws(32))
        factors = out[..., 1:, :].flatten(1).std(1) / image[..., 1:, :].flatten(1).std(1)
        assert 0.74 < factors.min() < 0.85
        assert 1.15 < factors.max() < 1.26

    def test_a_constant_image_stays_finite(self):
        always = dataclasses.replace(NOTHING, **dict.fromkeys(INTENSITIES, 1.0))
        image = torch.full((2, 1, 8, 8, 8), 3.0)
        for intensity in (augment._blur, augment._contrast, augment._low_resolution, augment._gamma):
            out = intensity(image.clone(), always, _draws(2))
            np.testing.assert_allclose(out, image, atol=1e-4)
