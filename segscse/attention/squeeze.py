"""Squeeze and excitation: the channel gate (cSE), the spatial gate (sSE) and both at once (scSE)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    SqueezeMLP,
    expand_like,
    flag,
    global_mean,
    logits_to_gate,
    one_of,
)
from segscse.kernels.parts import GateParts
from segscse.nets.dims import conv

AGGREGATIONS = ("add", "max", "mul", "concat")


class NoAttention(AttentionBlock):
    r"""The identity: the baseline of every comparison, `gate = 1`."""

    def gate(self, x: Tensor) -> Tensor:
        """Return ones, `(1, 1, 1, ...)`."""
        return x.new_ones(()).reshape((1,) * x.ndim)

    def parts(self) -> GateParts:
        """Return a gate of no parts."""
        return GateParts()

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return `x` itself."""
        return x


class ChannelSE(AttentionBlock):
    r"""cSE, the squeeze-and-excitation gate: one weight per channel from the spatial mean.

    Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, eq. 2 to 4; named cSE by Roy et al.,
    arXiv 1803.02579. For any number of spatial axes:

    $$z = \mathrm{mean}_p\, x(p), \quad g = \sigma(W_2\, \mathrm{relu}(W_1 z + b_1) + b_2), \quad y = g x$$

    The gate is `(B, C, 1, ...)` in (0, 1), about 0.5 at the start of training. It depends on the window over
    which the mean runs: predict with patches of the size used in training. Straight after an InstanceNorm the
    mean is that norm's own offset, so the gate would not see the image: place it after the non-linearity.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: r. 2 as in the scSE authors' code (SE itself uses 16 on maps of 256 channels and more);
            medical U-Nets are narrow at their top levels, and r = 2 adds about 2 % of parameters in 3D.
        bias: whether the two layers have a bias. True as in the authors' published networks.
        min_hidden: floor of the hidden width, not in the paper: without it C < r gives a constant gate.
        hidden_act: `"relu"` as in the paper; None reproduces ports that forgot it.
    """

    pools_to_mean: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        reduction: int = 2,
        bias: bool = True,
        min_hidden: int = 4,
        hidden_act: str | None = "relu",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.mlp = SqueezeMLP(channels, reduction=reduction, bias=bias, min_hidden=min_hidden, hidden_act=hidden_act)

    def gate(self, x: Tensor) -> Tensor:
        """Return the channel weights, `(B, C, 1, ...)`, in fp32."""
        return expand_like(self.gate_of_mean(global_mean(x)), x)

    def gate_of_mean(self, z: Tensor) -> Tensor:
        """Return the channel weights `(B, C)` that follow from the spatial mean `(B, C)`."""
        return logits_to_gate(self.mlp(z))

    def parts(self) -> GateParts:
        """Return the channel part."""
        return GateParts(self.gate_of_mean, tuple(self.mlp.parameters()))


class SpatialSE(AttentionBlock):
    r"""sSE, the spatial gate: one weight per position from a 1x1 convolution over the channels.

    Roy, Navab, Wachinger, "Concurrent Spatial and Channel Squeeze & Excitation in Fully Convolutional
    Networks", arXiv 1803.02579, eq. 3: $y(p) = \sigma(w \cdot x(p) + b)\, x(p)$.

    The gate is `(B, 1, *S)` in (0, 1). Nothing is pooled, so it does not depend on the patch size. The
    convolution has one output channel, as in the paper; ports with C of them compute something else.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        bias: whether the convolution has a bias. True as in the authors' code.
    """

    def __init__(self, channels: int, *, spatial_dims: int, bias: bool = True) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.conv = conv(spatial_dims)(channels, 1, kernel_size=1, bias=flag("bias", bias))

    def gate(self, x: Tensor) -> Tensor:
        """Return the spatial weights, `(B, 1, *S)`, in fp32."""
        return logits_to_gate(self.conv(x))

    def parts(self) -> GateParts | None:
        """Return the spatial part, as long as the convolution is torch's own."""
        plain = type(self.conv) is conv(self.spatial_dims)
        return GateParts(weight=self.conv.weight, bias=self.conv.bias) if plain else None


class ChannelSpatialSE(AttentionBlock):
    r"""scSE: the channel gate $g_c$ and the spatial gate $g_s$ side by side on the same input.

    Roy, Navab, Wachinger, arXiv 1803.02579 (addition) and "Recalibrating Fully Convolutional Networks with
    Spatial and Channel 'Squeeze & Excitation' Blocks", arXiv 1808.08127 (which compares four aggregations).

    | aggregation | output | gate(x) |
    |---|---|---|
    | `add` | $x (g_c + g_s)$ | `(B, C, *S)` in (0, 2) |
    | `max` | $\max(x g_c, x g_s)$, of the maps as in the authors' code | `(B, C, *S)` in (0, 1) |
    | `mul` | $x\, g_c g_s$, the product of the gates | `(B, C, *S)` in (0, 1) |
    | `concat` | $P\,[x g_c; x g_s]$, P a 1x1 convolution from 2C to C channels | `(B, 2C, *S)` in (0, 1) |

    All but `concat` have the same weights and yet compute different things, so a checkpoint must say which.
    `max` of the maps is x times the *smaller* gate where x < 0: it is not the maximum of the gates. The
    product of the two recalibrated *maps* would be $x^2 g_c g_s$ and lose the sign; `mul` is not that. The
    projection of `concat` starts as the addition and keeps C channels, which the paper's form does not.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        aggregation: `"add"` as in the first paper: both gates start near 0.5, so the block starts near the
            identity; `"max"` starts near x/2.
        reduction: r of the channel gate.
        bias: whether the layers of both gates have a bias.
        min_hidden: floor of the channel gate's hidden width.
        hidden_act: `"relu"` or None, in the channel gate.
    """

    pools_to_mean: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        aggregation: str = "add",
        reduction: int = 2,
        bias: bool = True,
        min_hidden: int = 4,
        hidden_act: str | None = "relu",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.aggregation = one_of("aggregation", aggregation, AGGREGATIONS)
        self.cse = ChannelSE(
            channels,
            spatial_dims=spatial_dims,
            reduction=reduction,
            bias=bias,
            min_hidden=min_hidden,
            hidden_act=hidden_act,
        )
        self.sse = SpatialSE(channels, spatial_dims=spatial_dims, bias=bias)
        self.project = _summing_projection(channels, spatial_dims) if aggregation == "concat" else None

    def gate(self, x: Tensor) -> Tensor:
        """Return the joint weights; see the table above for shape and range."""
        return _joint_gate(x, self.cse.gate(x), self.sse.gate(x), self.aggregation)

    def parts(self) -> GateParts | None:
        """Return both parts for `add`; the other aggregations do not add them."""
        channel, spatial = self.cse.kernel_parts(), self.sse.kernel_parts()
        if self.aggregation != "add" or channel is None or spatial is None:
            return None
        return replace(channel, weight=spatial.weight, bias=spatial.bias)

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return the recalibrated map, `(B, C, *S)`."""
        if self.aggregation == "add":
            return super().apply_gate(x)
        channel, spatial = self.cse.gate(x).to(x.dtype), self.sse.gate(x).to(x.dtype)
        if self.aggregation == "max":
            return torch.maximum(x * channel, x * spatial)
        if self.project is not None:
            return self.project(torch.cat([x * channel, x * spatial], dim=1))
        return x * _joint_gate(x, channel, spatial, self.aggregation)


def _joint_gate(x: Tensor, channel: Tensor, spatial: Tensor, aggregation: str) -> Tensor:
    if aggregation == "add":
        return channel + spatial
    if aggregation == "mul":
        return channel * spatial
    if aggregation == "max":
        return torch.where(x >= 0, torch.maximum(channel, spatial), torch.minimum(channel, spatial))
    return torch.cat([channel.expand_as(x), spatial.expand_as(x)], dim=1)


def _summing_projection(channels: int, spatial_dims: int) -> nn.Module:
    """Return a 1x1 convolution from 2C to C that starts as `[a; b] -> a + b`."""
    layer = conv(spatial_dims)(2 * channels, channels, kernel_size=1, bias=False)
    eye = torch.eye(channels).reshape(channels, channels, *(1 for _ in range(spatial_dims)))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([eye, eye], dim=1))
    return layer
