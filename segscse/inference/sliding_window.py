"""Sliding window: overlapping windows, Gaussian weights, mirroring; one implementation for 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations, islice, product

import torch
import torch.nn.functional as F

# Share of a window that its neighbour covers, unless told; nnU-Net's.
OVERLAP = 0.5
Network = Callable[[torch.Tensor], torch.Tensor]


def predict_volume(
    volume: torch.Tensor,
    network: Network,
    *,
    window: Sequence[int],
    slice_axis: int | None = None,
    overlap: float = OVERLAP,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 2,
) -> torch.Tensor:
    """Return the logits `(K, X, Y, Z)` of a volume `(C, X, Y, Z)`.

    Args:
        volume: preprocessed image.
        network: maps `(B, C, *window)` to logits `(B, K, *window)`.
        window: window size in voxels; two entries with `slice_axis`, else three.
        slice_axis: spatial axis that 2D windows are stacked along.
        overlap: share of a window that its neighbour covers, in [0, 1).
        mirror_axes: spatial axes of the volume to mirror along; logits are averaged over all combinations.
        batch_size: windows a network call.
    """
    batch = volume[None] if slice_axis is None else volume.movedim(slice_axis + 1, 0)
    window_axes = [axis for axis in range(volume.ndim - 1) if axis != slice_axis]
    flips = [window_axes.index(axis) + 2 for axis in mirror_axes if axis != slice_axis]
    logits = sliding_window(batch, mirrored(network, flips), window=window, overlap=overlap, batch_size=batch_size)
    return logits[0] if slice_axis is None else logits.movedim(0, slice_axis + 1)


def mirrored(network: Network, axes: Sequence[int]) -> Network:
    """Return the network averaged over mirroring its input along every subset of the tensor axes `axes`."""
    subsets = [subset for n in range(len(axes) + 1) for subset in combinations(axes, n)]
    if len(subsets) == 1:
        return network

    def averaged(x: torch.Tensor) -> torch.Tensor:
        total = network(x)
        for subset in subsets[1:]:
            total = total + network(x.flip(subset)).flip(subset)
        return total / len(subsets)

    return averaged


def sliding_window(
    batch: torch.Tensor, network: Network, *, window: Sequence[int], overlap: float, batch_size: int
) -> torch.Tensor:
    """Return the logits `(N, K, *S)` of images `(N, C, *S)`, float32; windows weigh most at their centre.

    Images smaller than the window are padded with zero (the mean of a normalised image) and cut back.
    """
    shape = batch.shape[2:]
    batch = _pad(batch, window)
    padded = batch.shape[2:]
    starts = [window_starts(extent, size, overlap) for extent, size in zip(padded, window, strict=True)]
    corners = list(product(*starts))
    items = iter(product(range(len(batch)), corners))
    weight = gaussian_weight(tuple(window)).to(batch.device) if len(corners) > 1 else None
    total: torch.Tensor | None = None
    while chunk := list(islice(items, batch_size)):
        crops = torch.stack([batch[n][_box(corner, window)] for n, corner in chunk])
        logits = network(crops).float()
        if total is None:
            total = logits.new_zeros((len(batch), logits.shape[1], *padded))
        for (n, corner), part in zip(chunk, logits, strict=True):
            total[n][_box(corner, window)] += part if weight is None else part * weight
    if total is None:
        raise ValueError("there are no images to predict")
    if weight is not None:
        total /= _total_weight(corners, window, padded, weight)
    return total[_box(_padding_before(shape, window), shape, leading=2)]


def window_starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return evenly spread window starts that cover `extent`; neighbours overlap by at least `overlap`."""
    if extent <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(extent - window) // step) + 1
    return [round(index * (extent - window) / (count - 1)) for index in range(count)]


@lru_cache(maxsize=8)
def gaussian_weight(window: tuple[int, ...], sigma_scale: float = 0.125) -> torch.Tensor:
    """Return the window's weights `(*window)`: a Gaussian with sigma = window / 8, as nnU-Net's, at least 1e-3.

    The floor keeps the sum of weights well above rounding where only window corners meet.
    """
    weight = torch.ones(())
    for size in window:
        position = torch.arange(size) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (position / (size * sigma_scale)) ** 2)
    return (weight / weight.max()).clamp(min=1e-3)


def _box(corner: Sequence[int], size: Sequence[int], leading: int = 1) -> tuple[slice, ...]:
    spatial = (slice(low, low + length) for low, length in zip(corner, size, strict=True))
    return (*[slice(None)] * leading, *spatial)


def _padding_before(shape: Sequence[int], window: Sequence[int]) -> list[int]:
    return [max(0, size - extent) // 2 for extent, size in zip(shape, window, strict=True)]


def _pad(batch: torch.Tensor, window: Sequence[int]) -> torch.Tensor:
    before = _padding_before(batch.shape[2:], window)
    after = [max(0, size - extent) - low for extent, size, low in zip(batch.shape[2:], window, before, strict=True)]
    if not any(before) and not any(after):
        return batch
    pairs: Iterator[int] = (
        value for low, high in zip(reversed(before), reversed(after), strict=True) for value in (low, high)
    )
    return F.pad(batch, list(pairs))


def _total_weight(
    corners: Sequence[tuple[int, ...]], window: Sequence[int], shape: Sequence[int], weight: torch.Tensor
) -> torch.Tensor:
    total = weight.new_zeros(tuple(shape))
    for corner in corners:
        total[_box(corner, window, leading=0)] += weight
    return total
