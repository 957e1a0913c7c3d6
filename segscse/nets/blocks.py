"""The U-Net's bricks: convolution, normalisation, non-linearity, and the attention gate that closes a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from segscse.attention import AttentionBlock
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


class PlainBlock(nn.Module):
    """Two `ConvNormAct`, then the gate: `(B, C, *S)` to `(B, out_channels, *(S / stride))`.

    The gate comes after the last non-linearity: straight after an instance normalisation every channel has
    the same mean, and a squeeze by averaging would not see the image.
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
        return self.attention(self.conv2(self.conv1(x)))


class ResidualBlock(PlainBlock):
    """`PlainBlock` with a shortcut; the gate acts on the branch, before the addition (SE-ResNet, arXiv 1709.01507).

    The branch ends in a non-linearity, for the reason given at `PlainBlock`; SE-ResNet gates the normalised map.
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


BLOCKS: dict[str, type[PlainBlock]] = {"plain": PlainBlock, "residual": ResidualBlock}
