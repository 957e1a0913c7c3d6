"""The only table that tells 2D from 3D: layer classes and tuples by number of spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from segscse.errors import InputError

_CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_CONV_TRANSPOSE: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_BATCH_NORM: dict[int, type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]] = {
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}

CHANNELS_LAST: dict[int, torch.memory_format] = {2: torch.channels_last, 3: torch.channels_last_3d}

INTERPOLATION = {2: "bilinear", 3: "trilinear"}
"""The name that `torch.nn.functional.interpolate` gives to linear interpolation."""


def check_spatial_dims(spatial_dims: int) -> int:
    """Return `spatial_dims` when it is 2 or 3.

    Raises:
        InputError: for any other value.
    """
    if spatial_dims not in _CONV:
        raise InputError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    return spatial_dims


def conv(spatial_dims: int) -> Callable[..., nn.Conv2d | nn.Conv3d]:
    """Return the convolution class for `(B, C, *S)` with `len(S) == spatial_dims`."""
    return _CONV[check_spatial_dims(spatial_dims)]


def conv_transpose(spatial_dims: int) -> Callable[..., nn.ConvTranspose2d | nn.ConvTranspose3d]:
    """Return the transposed-convolution class."""
    return _CONV_TRANSPOSE[check_spatial_dims(spatial_dims)]


def batch_norm(spatial_dims: int) -> Callable[..., nn.BatchNorm2d | nn.BatchNorm3d]:
    """Return the batch-normalisation class."""
    return _BATCH_NORM[check_spatial_dims(spatial_dims)]


def instance_norm(spatial_dims: int) -> Callable[..., nn.InstanceNorm2d | nn.InstanceNorm3d]:
    """Return the instance-normalisation class."""
    return _INSTANCE_NORM[check_spatial_dims(spatial_dims)]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return `(B, C, *S)` in channels-last memory, in which CPU convolutions and norms run without copies."""
    return x.contiguous(memory_format=CHANNELS_LAST[check_spatial_dims(x.ndim - 2)])


def network_to_channels_last(network: nn.Module, spatial_dims: int) -> nn.Module:
    """Put a network's weights into channels-last memory, in place, and return it."""
    return network.to(memory_format=CHANNELS_LAST[check_spatial_dims(spatial_dims)])  # type: ignore[call-overload]


def as_tuple(value: int | Sequence[int], spatial_dims: int) -> tuple[int, ...]:
    """Return one int per spatial axis from an int or a sequence.

    Raises:
        InputError: the sequence's length is not `spatial_dims`.
    """
    if isinstance(value, int):
        return (value,) * check_spatial_dims(spatial_dims)
    items = tuple(int(item) for item in value)
    if len(items) != check_spatial_dims(spatial_dims):
        raise InputError(f"expected {spatial_dims} values, one per spatial axis, got {items}")
    return items
