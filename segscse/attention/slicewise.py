"""Slice-wise channel gates for volumes: one weight per channel and slice, for anisotropic scans."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    SqueezeMLP,
    flag,
    fp32,
    logits_to_gate,
    mean_over,
    no_autocast,
    odd,
)
from segscse.attention.eca import ECA, channel_filter, filter_channels
from segscse.errors import InputError


class SliceGate(AttentionBlock):
    """Base of the gates that pool within each slice, `(B, C, D)`, and weight each channel of each slice.

    Args:
        channels: C.
        spatial_dims: 3; a 2D image has no slices to weigh.
        axis: the slice axis among the spatial axes, -3 to 2. -1 is the last: superior-inferior in segscse's axis
            order (R, A, S), so the slices of an axial scan; 0 is D of `(B, C, D, H, W)`. Training gives the axis
            with the coarsest spacing.
    """

    def __init__(self, channels: int, *, spatial_dims: int, axis: int = -1) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        if spatial_dims != 3:
            raise InputError(
                f"{type(self).__name__} weighs the slices of a volume, and a {spatial_dims}D image has none",
                remedy="Use 'cse' or 'eca' in 2D",
            )
        self.slice_dim = 2 + spatial_axis(axis, spatial_dims)

    @abstractmethod
    def slice_logits(self, z: Tensor) -> Tensor:
        """Return the logits `(B, C, D)` of the descriptors `z`, `(B, C, D)`."""

    def gate(self, x: Tensor) -> Tensor:
        """Return the weights, `(B, C, 1, 1, D)` with D at the slice axis, in fp32."""
        pooled = mean_over(x, [dim for dim in range(2, x.ndim) if dim != self.slice_dim])
        return logits_to_gate(self.slice_logits(pooled.flatten(2)).reshape(pooled.shape))


class SliceSE(SliceGate):
    r"""Slice-wise SE: the channel gate of each slice from that slice's own means, with shared weights.

    $g_d = \sigma(W_2\, \mathrm{relu}(W_1 z_d + b_1) + b_2)$, $z_d$ the mean of slice d over its plane. No
    paper of its own; it is SE (arXiv 1709.01507) with the mean taken per slice. The code known as
    `SELayer3DNew` applies its layers along the slice axis instead of the channels, which works only where
    the number of slices equals C; here the layers act on the channels and any number of slices will do.

    Args:
        channels: C.
        spatial_dims: 3.
        axis: the slice axis among the spatial axes; see `SliceGate`.
        reduction: r; 2 as in the scSE authors' code.
        bias: whether the two layers have a bias.
        min_hidden: floor of the hidden width.
        hidden_act: `"relu"` or None.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        axis: int = -1,
        reduction: int = 2,
        bias: bool = True,
        min_hidden: int = 4,
        hidden_act: str | None = "relu",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims, axis=axis)
        self.mlp = SqueezeMLP(channels, reduction=reduction, bias=bias, min_hidden=min_hidden, hidden_act=hidden_act)

    def slice_logits(self, z: Tensor) -> Tensor:
        """Return the logits `(B, C, D)`: the same two layers on every slice."""
        return self.mlp(z.transpose(1, 2)).transpose(1, 2)


class SliceECA(SliceGate):
    """Slice-wise ECA: one k-tap filter along the channels of each slice's means; k parameters in all.

    No paper of its own; ECA (arXiv 1910.03151) with the mean taken per slice.

    Args:
        channels: C.
        spatial_dims: 3.
        axis: the slice axis among the spatial axes; see `SliceGate`.
        kernel_size: k, odd; None takes it from C as ECA does.
        gamma: gamma of ECA's formula.
        b: b of ECA's formula.
        circular: wrap around at the ends of the channel axis instead of padding with zeros.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        axis: int = -1,
        kernel_size: int | None = None,
        gamma: int = 2,
        b: int = 1,
        circular: bool = False,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims, axis=axis)
        self.circular = flag("circular", circular)
        self.conv = channel_filter(channels, kernel_size=kernel_size, gamma=gamma, b=b, circular=circular)

    def slice_logits(self, z: Tensor) -> Tensor:
        """Return the logits `(B, C, D)`: the same filter on every slice."""
        slices = z.transpose(1, 2)  # (B, D, C)
        logits = filter_channels(slices.flatten(0, 1), self.conv, circular=self.circular)
        return logits.reshape(slices.shape).transpose(1, 2)


class DepthConvGate(SliceGate):
    r"""A dense convolution along the slices: $g = \sigma(W * z)$, W of shape `(C, C, k)`.

    What the code known as `eca_layer3d` computes. It is not ECA: it mixes all channels of k neighbouring
    slices with $kC^2$ weights (three times cSE's at k = 3 and r = 2), where ECA has k. The gate of a slice
    depends on its neighbours only, not on the patch.

    Args:
        channels: C.
        spatial_dims: 3.
        axis: the slice axis among the spatial axes; see `SliceGate`.
        kernel_size: k, odd.
        bias: whether the convolution has a bias; False as in that code.
    """

    def __init__(
        self, channels: int, *, spatial_dims: int, axis: int = -1, kernel_size: int = 3, bias: bool = False
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims, axis=axis)
        k = odd("kernel_size", kernel_size)
        self.conv = nn.Conv1d(channels, channels, kernel_size=k, padding=k // 2, bias=flag("bias", bias))

    def slice_logits(self, z: Tensor) -> Tensor:
        """Return the logits `(B, C, D)`."""
        bias = None if self.conv.bias is None else fp32(self.conv.bias)
        with no_autocast(z):
            return F.conv1d(z, fp32(self.conv.weight), bias, padding=self.conv.weight.shape[-1] // 2)


class ECADepth(AttentionBlock):
    """The product of `depth_conv_gate` and `eca`, both from the same input.

    What the code known as `eca_depth_spatial_layer3d` computes; the two run side by side there, not one
    after the other as its text says. Both gates start near 0.5, so the block starts near x/4.

    Args:
        channels: C.
        spatial_dims: 3.
        axis: the slice axis among the spatial axes; see `SliceGate`.
        kernel_size: k of both parts, odd.
    """

    pools_to_mean: ClassVar[bool] = True

    def __init__(self, channels: int, *, spatial_dims: int, axis: int = -1, kernel_size: int = 3) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.depth = DepthConvGate(channels, spatial_dims=spatial_dims, axis=axis, kernel_size=kernel_size)
        self.channel = ECA(channels, spatial_dims=spatial_dims, kernel_size=kernel_size)

    def gate(self, x: Tensor) -> Tensor:
        """Return the weights, `(B, C, 1, 1, D)` with D at the slice axis, in fp32."""
        return self.depth.gate(x) * self.channel.gate(x)


def spatial_axis(axis: int, spatial_dims: int) -> int:
    """Return `axis` among the spatial axes counted from 0; negative values count from the last."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -spatial_dims <= axis < spatial_dims:
        raise InputError(f"axis must be from {-spatial_dims} to {spatial_dims - 1}, got {axis!r}")
    return axis % spatial_dims
