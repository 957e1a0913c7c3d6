"""Random augmentation of whole batches on their device: space first, then intensity, as nnU-Net orders them.

Every sample draws from random numbers of its own, on the CPU: what becomes of it depends neither on the samples beside
it, so that processes can share a batch, nor on the device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from segscse.config import AugmentConfig
from segscse.data.plan import ANISOTROPY, Plan
from segscse.nets.dims import INTERPOLATION

# Random numbers of every sample of a batch.
Draws = Sequence[np.random.Generator]


def augment_batch(
    image: torch.Tensor, label: torch.Tensor, plan: Plan, config: AugmentConfig, draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(B, C, *patch)` images and `(B, *patch)` labels from larger cuts, randomly changed.

    Args:
        image: `(B, C, *cut)`.
        label: `(B, *cut)`, whole numbers.
        plan: patch size, spacing and mirror axes.
        config: what to do how often.
        draws: one generator a sample; equal states give equal results.
    """
    spacing = [plan.spacing_mm[axis] for axis in plan.window_axes]
    image, label = random_affine(image, label, plan.patch_size, spacing, config, draws)
    masked = [number for number, scheme in enumerate(plan.normalisation) if scheme.scheme == "zscore_nonzero"]
    outside = image[:, masked] == 0
    for intensity in (_noise, _blur, _brightness, _contrast):
        image = intensity(image, config, draws)
    image = _low_resolution(image, config, draws, coarse_axes(spacing))
    image = _gamma(image, config, draws)
    if masked:  # what surrounds a masked scan is 0 in prediction, whatever its intensities are
        image[:, masked] = image[:, masked].masked_fill(outside, 0.0)
    if config.mirror != "none":
        axes = [plan.window_axes.index(axis) for axis in plan.mirror_axes]
        image, label = random_mirror(image, label, axes, draws)
    return image, label


def random_affine(
    image: torch.Tensor,
    label: torch.Tensor,
    patch_size: Sequence[int],
    spacing_mm: Sequence[float],
    config: AugmentConfig,
    draws: Draws,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate and zoom about the centre, in millimetres, and cut the patch; untouched samples are only cut.

    Along coarse axes nothing moves, as in nnU-Net's anisotropic data.
    """
    rotate = _chance(config.spatial_p, draws)
    zoom = _chance(config.spatial_p, draws)
    matrices = _rotations(patch_size, spacing_mm, config.rotation_deg, draws)
    matrices[~rotate] = torch.eye(len(spacing_mm))
    factor = _uniform(*config.scale, draws)
    scale = torch.where(zoom, 1 / factor, 1.0)[:, None].repeat(1, len(spacing_mm))
    scale[:, sorted(coarse_axes(spacing_mm))] = 1.0
    matrices = matrices * scale[:, None]
    moved = rotate | zoom
    image_out, label_out = (
        centre_cut(image, patch_size).clone(),
        centre_cut(label[:, None], patch_size)[:, 0].clone(),
    )
    for index in moved.nonzero()[:, 0].tolist():
        grid = _grid(matrices[index].to(image.device), image.shape[2:], patch_size, spacing_mm)
        image_out[index] = _sample(image[index], grid, "bilinear")
        label_out[index] = _sample(label[index][None], grid, "nearest")[0]
    return image_out, label_out


def coarse_axes(spacing_mm: Sequence[float]) -> set[int]:
    """Return the axes over three times coarser than the finest, along which no voxels are interpolated."""
    return {axis for axis, step in enumerate(spacing_mm) if step > ANISOTROPY * min(spacing_mm)}


def centre_cut(volume: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the middle `size` voxels of the spatial axes of `(B, C, *S)`, as a view."""
    for axis, length in enumerate(size, start=2):
        volume = volume.narrow(axis, (volume.shape[axis] - length) // 2, length)
    return volume


def random_mirror(
    image: torch.Tensor, label: torch.Tensor, axes: Sequence[int], draws: Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip each sample along each of the given spatial axes with probability one half."""
    for axis in axes:
        chosen = _chance(0.5, draws)
        if chosen.any():
            image = torch.where(_spread(chosen, image), image.flip(axis + 2), image)
            label = torch.where(_spread(chosen, label), label.flip(axis + 1), label)
    return image, label


def _chance(probability: float, draws: Draws) -> torch.Tensor:
    return torch.tensor([rng.random() < probability for rng in draws])


def _uniform(low: float, high: float, draws: Draws) -> torch.Tensor:
    return torch.tensor([rng.uniform(low, high) for rng in draws], dtype=torch.float32)


def _by_channel(low: float, high: float, draws: Draws, image: torch.Tensor) -> torch.Tensor:
    """Return `(B, C)` numbers, a draw for each channel of `(B, C, *S)`."""
    return torch.tensor(np.array([rng.uniform(low, high, image.shape[1]) for rng in draws]), dtype=torch.float32)


def _spread(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shape `(B,)` or `(B, C)` so that it broadcasts over `like`, on its device."""
    return values.to(like.device).reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def _rotations(patch_size: Sequence[int], spacing_mm: Sequence[float], limit_deg: float, draws: Draws) -> torch.Tensor:
    """Return `(B, D, D)` rotation matrices.

    No rotation mixes a coarse axis with the others, nor, of the rest, one along which the patch is over three times
    shorter in mm: a patch is thin where scans are, and would be turned out of them.
    """
    dims, size = len(spacing_mm), len(draws)
    extents = [edge * step for edge, step in zip(patch_size, spacing_mm, strict=True)]
    for axis in coarse_axes(spacing_mm):
        extents[axis] = 0.0
    apart = {axis for axis, extent in enumerate(extents) if ANISOTROPY * extent < max(extents)}
    matrices = torch.eye(dims).repeat(size, 1, 1)
    for a in range(dims):
        for b in range(a + 1, dims):
            limit = 0.0 if apart & {a, b} else math.radians(limit_deg)
            angle = _uniform(-limit, limit, draws)
            turn = torch.eye(dims).repeat(size, 1, 1)
            turn[:, a, a] = turn[:, b, b] = angle.cos()
            turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
            matrices = matrices @ turn
    return matrices


def _grid(
    matrix: torch.Tensor, source: Sequence[int], target: Sequence[int], spacing_mm: Sequence[float]
) -> torch.Tensor:
    """Return the `grid_sample` grid `(1, *target, D)` that maps patch voxels into the cut, centre on centre."""
    device = matrix.device
    scale = torch.tensor(spacing_mm, device=device, dtype=matrix.dtype)
    axes = [torch.arange(n, device=device, dtype=matrix.dtype) - (n - 1) / 2 for n in target]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) * scale
    start = [(s - t) // 2 + (t - 1) / 2 for s, t in zip(source, target, strict=True)]
    voxels = (offsets @ matrix.T) / scale + torch.tensor(start, device=device, dtype=matrix.dtype)
    extent = torch.tensor(source, device=device, dtype=matrix.dtype)
    return ((voxels * 2 + 1) / extent - 1).flip(-1)[None]


def _sample(volume: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "nearest" and grid.device.type == "mps":  # torch 2.10 and 2.11 have none there for volumes
        found = _sample(volume.cpu(), grid.cpu(), mode)
        return volume.new_empty(found.shape).copy_(found)
    sampled = F.grid_sample(volume[None].to(grid.dtype), grid, mode=mode, padding_mode="zeros", align_corners=False)
    return sampled[0].to(volume.dtype)


def _noise(image: torch.Tensor, config: AugmentConfig, draws: Draws) -> torch.Tensor:
    chosen = _chance(config.noise_p, draws)
    sigma = _uniform(0, 0.1, draws).sqrt()
    for index in chosen.nonzero()[:, 0].tolist():
        noise = torch.from_numpy(draws[index].standard_normal(tuple(image[index].shape), dtype=np.float32))
        image[index] += (sigma[index] * noise).to(image.device)
    return image


def _blur(image: torch.Tensor, config: AugmentConfig, draws: Draws) -> torch.Tensor:
    chosen = _chance(config.blur_p, draws)
    sigma = _uniform(0.5, 1.0, draws)
    for index in chosen.nonzero()[:, 0].tolist():
        image[index] = gaussian_blur(image[index], float(sigma[index]))
    return image


def gaussian_blur(volume: torch.Tensor, sigma_vox: float) -> torch.Tensor:
    """Smooth `(C, *S)` along each spatial axis; the border is repeated outwards."""
    radius = max(1, math.ceil(3 * sigma_vox))
    offsets = torch.arange(-radius, radius + 1, device=volume.device, dtype=volume.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_vox) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(1, volume.ndim):
        moved = volume.movedim(axis, -1)
        lines = moved.reshape(1, -1, moved.shape[-1])
        padded = F.pad(lines, (radius, radius), mode="replicate")[0][:, None]
        volume = F.conv1d(padded, kernel[None, None])[:, 0].reshape(moved.shape).movedim(-1, axis)
    return volume


def _brightness(image: torch.Tensor, config: AugmentConfig, draws: Draws) -> torch.Tensor:
    chosen = _chance(config.brightness_p, draws)
    factor = torch.where(chosen[:, None], _by_channel(0.75, 1.25, draws, image), 1.0)
    return image * _spread(factor, image) if chosen.any() else image


def _contrast(image: torch.Tensor, config: AugmentConfig, draws: Draws) -> torch.Tensor:
    chosen = _chance(config.contrast_p, draws)
    factor = _by_channel(0.75, 1.25, draws, image).to(image.device)
    for index in chosen.nonzero()[:, 0].tolist():
        flat = image[index].flatten(1)
        mean, low, high = flat.mean(1, keepdim=True), flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        stretched = (flat - mean) * factor[index][:, None] + mean
        image[index] = stretched.clamp(low, high).reshape(image[index].shape)
    return image


def _low_resolution(
    image: torch.Tensor, config: AugmentConfig, draws: Draws, kept: Collection[int] = ()
) -> torch.Tensor:
    """Take voxels away and interpolate them again, but along the spatial axes `kept`."""
    chosen = _chance(config.low_resolution_p, draws)
    factor = _uniform(0.5, 1.0, draws)
    mode = INTERPOLATION[image.ndim - 2]
    for index in chosen.nonzero()[:, 0].tolist():
        size = image.shape[2:]
        factors = [1.0 if axis in kept else float(factor[index]) for axis in range(len(size))]
        small = [max(1, round(n * share)) for n, share in zip(size, factors, strict=True)]
        coarse = F.interpolate(image[index][None], size=small, mode="nearest-exact")
        image[index] = F.interpolate(coarse, size=size, mode=mode, align_corners=False)[0]
    return image


def _gamma(image: torch.Tensor, config: AugmentConfig, draws: Draws) -> torch.Tensor:
    """Apply a gamma curve per channel, to the inverted image one time in four; mean and spread are kept."""
    chosen = _chance(config.gamma_p, draws)
    inverted = _chance(0.25, draws)
    exponent = _by_channel(0.7, 1.5, draws, image).to(image.device)
    for index in chosen.nonzero()[:, 0].tolist():
        sign = -1.0 if inverted[index] else 1.0
        flat = image[index].flatten(1) * sign
        mean, std = flat.mean(1, keepdim=True), flat.std(1, keepdim=True)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        curved = ((flat - low) / (high - low).clamp(min=1e-7)) ** exponent[index][:, None]
        curved = (curved - curved.mean(1, keepdim=True)) / curved.std(1, keepdim=True).clamp(min=1e-7)
        image[index] = ((curved * std + mean) * sign).reshape(image[index].shape)
    return image
