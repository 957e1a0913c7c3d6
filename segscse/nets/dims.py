"""The only table that tells 2D from 3D: layer classes and tuples by number of spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

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


def check_spatial_dims(spatial_dims: int) -> int:
    """Return `spatial_dims` when it is 2 or 3.

    Raises:
        InputError: for any other value.
    """
    if spatial_dims not in _CONV:
        raise InputError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}")
    return spatial_dims


def conv(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Return the convolution class for `(B, C, *S)` with `len(S) == spatial_dims`."""
    return _CONV[check_spatial_dims(spatial_dims)]


def conv_transpose(spatial_dims: int) -> type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]:
    """Return the transposed-convolution class."""
    return _CONV_TRANSPOSE[check_spatial_dims(spatial_dims)]


def batch_norm(spatial_dims: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    """Return the batch-normalisation class."""
    return _BATCH_NORM[check_spatial_dims(spatial_dims)]


def instance_norm(spatial_dims: int) -> type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]:
    """Return the instance-normalisation class."""
    return _INSTANCE_NORM[check_spatial_dims(spatial_dims)]


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
