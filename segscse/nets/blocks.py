"""The U-Net's bricks: convolution, normalisation, non-linearity, and the attention gate that closes a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from segscse.attention import AttentionBlock
from segscse.attention.sk import SelectiveKernel
from segscse.kernels.parts import recalibrate, runs_here, watched
from segscse.kernels.single import convolve
from segscse.nets.dims import as_tuple, conv
from segscse.nets.norm import InstanceNorm

LEAK = 0.01


class ConvNormAct(nn.Sequential):
    """Convolution, instance normalisation, leaky ReLU: `(B, C, *S)` to `(B, out_channels, *(S / stride))`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: C.
        out_channels: channels of the result.
        kernel_size: odd, one number or one per axis.
        stride: one number or one per axis.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
    ) -> None:
        kernel = as_tuple(kernel_size, spatial_dims)
        padding = tuple(size // 2 for size in kernel)
        super().__init__(
            # The normalisation that follows takes away any constant, so a bias would learn nothing.
            conv(spatial_dims)(in_channels, out_channels, kernel, as_tuple(stride, spatial_dims), padding, bias=False),
            InstanceNorm(out_channels),
            nn.LeakyReLU(LEAK, inplace=True),
        )

    @property
    def norm(self) -> InstanceNorm:
        """The normalisation."""
        return cast(InstanceNorm, self[1])

    @property
    def act(self) -> nn.LeakyReLU:
        """The non-linearity."""
        return cast(nn.LeakyReLU, self[2])

    def forward(self, x: torch.Tensor, attention: AttentionBlock | None = None) -> torch.Tensor:
        """Return the feature map, recalibrated by `attention` where one is given.

        On a CPU one kernel does all that follows the convolution, unless a hook waits at one of the layers, a layer has
        been replaced, or the block's gate is of another form.
        """
        norm, act = self.norm, self.act
        x = convolve(self[0], x)
        gate = None if attention is None else attention.kernel_parts()
        fits = type(norm) is InstanceNorm and type(act) is nn.LeakyReLU and (attention is None or gate is not None)
        if fits and runs_here(x) and not watched(norm, act, attention):
            return recalibrate(x, norm=(norm.weight, norm.bias, norm.eps), slope=act.negative_slope, gate=gate)
        if watched(norm, act):
            act.inplace = False  # a hook may keep the map before it; and torch refuses it beside backward hooks
        x = act(norm(x))
        return x if attention is None else attention(x)


class PlainBlock(nn.Module):
    """Two `ConvNormAct`, then the gate: `(B, C, *S)` to `(B, out_channels, *(S / stride))`.

    The gate comes after the last non-linearity: straight after an instance normalisation a channel has the same mean
    in every image, and a squeeze by averaging would not see the image.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        attention: AttentionBlock,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(spatial_dims, in_channels, out_channels, kernel_size=kernel_size, stride=stride)
        self.conv2 = ConvNormAct(spatial_dims, out_channels, out_channels, kernel_size=kernel_size)
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's recalibrated feature map."""
        return self.conv2(self.conv1(x), self.attention)


class ResidualBlock(PlainBlock):
    """`PlainBlock` with a shortcut; the gate acts on the branch, before the addition (SE-ResNet, arXiv 1709.01507).

    The branch ends in a non-linearity, for the reason given at `PlainBlock`, and none follows the addition; SE-ResNet
    gates the normalised map, and has its ReLU after the addition.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        attention: AttentionBlock,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride,
            attention=attention,
        )
        strides = as_tuple(stride, spatial_dims)
        same = in_channels == out_channels and set(strides) == {1}
        projection = [
            conv(spatial_dims)(in_channels, out_channels, 1, strides, bias=False),
            InstanceNorm(out_channels),
        ]
        self.shortcut: nn.Module = nn.Identity() if same else nn.Sequential(*projection)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the shortcut plus the recalibrated branch."""
        return self.shortcut(x) + super().forward(x)


class SelectiveBlock(nn.Module):
    """`PlainBlock` with a selective kernel in place of its second convolution (SKNet, arXiv 1903.06586).

    SKNet has it between two 1x1 convolutions with a shortcut around the three.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        attention: AttentionBlock,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(spatial_dims, in_channels, out_channels, kernel_size=kernel_size, stride=stride)
        self.select = SelectiveKernel(out_channels, spatial_dims=spatial_dims, kernel_size=kernel_size)
        self.attention = attention

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's recalibrated feature map."""
        return self.attention(self.select(self.conv1(x)))


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "plain": PlainBlock,
    "residual": ResidualBlock,
    "selective": SelectiveBlock,
}
