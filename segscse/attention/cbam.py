"""CBAM: a channel gate from mean and maximum, then a spatial gate from a convolution over both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segscse.attention.base import (
    AttentionBlock,
    SqueezeMLP,
    expand_like,
    fp32,
    global_mean,
    logits_to_gate,
    norm_layer,
    odd,
)
from segscse.nets.dims import as_tuple, conv


class CBAMChannel(AttentionBlock):
    r"""CBAM's channel gate: $g = \sigma(\mathrm{MLP}(\mathrm{mean}_p x) + \mathrm{MLP}(\max_p x))$, one MLP.

    Woo et al., "CBAM: Convolutional Block Attention Module", arXiv 1807.06521, eq. 2. The gate is
    `(B, C, 1, ...)` in (0, 1).

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: r, 16 as in the paper.
        bias: whether the MLP has biases; True as in the authors' code, some ports drop them.
        min_hidden: floor of the hidden width, not in the paper: C < 16 would leave none.
        hidden_act: `"relu"` or None.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        reduction: int = 16,
        bias: bool = True,
        min_hidden: int = 4,
        hidden_act: str | None = "relu",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.mlp = SqueezeMLP(channels, reduction=reduction, bias=bias, min_hidden=min_hidden, hidden_act=hidden_act)

    def gate(self, x: Tensor) -> Tensor:
        """Return the channel weights, `(B, C, 1, ...)`, in fp32."""
        highest = fp32(x.amax(dim=tuple(range(2, x.ndim))))
        return expand_like(logits_to_gate(self.mlp(global_mean(x)) + self.mlp(highest)), x)


class CBAMSpatial(AttentionBlock):
    r"""CBAM's spatial gate: $g = \sigma(\mathrm{norm}(w * [\max_c x; \mathrm{mean}_c x]))$, w k wide.

    Woo et al., arXiv 1807.06521, eq. 3; the norm and the order (maximum first) are the authors' code. The
    gate is `(B, 1, *S)` in (0, 1); the map's borders are padded with zeros.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        kernel_size: k, odd, one for all axes or one per axis: 7 as in the paper, but 7 slices of a
            thick-slice scan span centimetres, so there use e.g. `(7, 7, 3)`.
        norm: `"group"`, `"instance"`, `"batch"` or None. The authors use BatchNorm; the default normalises
            each image on its own, because 3D training runs with batches of one or two.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        kernel_size: int | Sequence[int] = 7,
        norm: str | None = "group",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        kernel = tuple(odd("kernel_size", k) for k in as_tuple(kernel_size, spatial_dims))
        padding = tuple(k // 2 for k in kernel)
        layer: Any = conv(spatial_dims)  # a union of classes whose tuples differ in length
        self.conv = layer(2, 1, kernel_size=kernel, padding=padding, bias=norm in (None, "none"))
        self.norm = norm_layer(norm, 1, spatial_dims=spatial_dims)

    def gate(self, x: Tensor) -> Tensor:
        """Return the spatial weights, `(B, 1, *S)`, in fp32."""
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)  # (B, 2, *S)
        return logits_to_gate(self.norm(self.conv(pooled)))


class CBAM(AttentionBlock):
    r"""CBAM: the channel gate, then the spatial gate of the result, $y = g_s(g_c x)\, g_c x$.

    Woo et al., arXiv 1807.06521, eq. 1. One after the other, where scSE has its two gates side by side.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: r of the channel gate.
        bias: whether the channel gate's MLP has biases.
        min_hidden: floor of the hidden width.
        hidden_act: `"relu"` or None.
        kernel_size: the spatial gate's kernel, odd, one for all axes or one per axis.
        norm: the spatial gate's norm.
    """

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        reduction: int = 16,
        bias: bool = True,
        min_hidden: int = 4,
        hidden_act: str | None = "relu",
        kernel_size: int | Sequence[int] = 7,
        norm: str | None = "group",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.channel = CBAMChannel(
            channels,
            spatial_dims=spatial_dims,
            reduction=reduction,
            bias=bias,
            min_hidden=min_hidden,
            hidden_act=hidden_act,
        )
        self.spatial = CBAMSpatial(channels, spatial_dims=spatial_dims, kernel_size=kernel_size, norm=norm)

    def gate(self, x: Tensor) -> Tensor:
        """Return the product of both gates, `(B, C, *S)` in (0, 1), in fp32."""
        channel = self.channel.gate(x)
        return channel * self.spatial.gate(x * channel.to(x.dtype))

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return the recalibrated map, `(B, C, *S)`."""
        return self.spatial.apply_gate(self.channel.apply_gate(x))
