"""Convolutions of a batch of one, for which torch leaves oneDNN and takes up to ten times as long.

In fp32 on a CPU torch sends a batch of one to kernels of its own when channels times the first two spatial axes are
few (`use_mkldnn` in ATen's Convolution.cpp), whatever the third axis and the arithmetic; they also return a map that is
not in channels-last memory. Forward, oneDNN can be asked for by name. Backward, the sample is cut into two overlapping
halves along its first axis: a batch of two, with the same arithmetic and the same result.
"""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segscse.kernels.once import first_derivative_only
from segscse.kernels.parts import watched
from segscse.nets.dims import channels_last

# ATen's limit on the product of channels and the first two spatial axes.
FEW = 20480
# A layer of another class may compute something else.
LAYERS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """Return `layer(x)` for a convolution in 2D or 3D, by oneDNN where torch would not take it.

    Args:
        layer: a convolution.
        x: `(B, C, *S)`.
    """
    conv = cast(nn.Conv3d, layer)
    if not _slow(conv, x):
        return conv(x)
    return cast(Tensor, _Convolution.apply(x, conv.weight, conv.bias, conv.stride, conv.padding))


def upsample(layer: nn.Module, x: Tensor) -> Tensor:
    """Return `layer(x)` for a transposed convolution whose kernel is its stride: each voxel becomes a block of voxels.

    Args:
        layer: a transposed convolution.
        x: `(B, C, *S)`.
    """
    conv = cast(nn.ConvTranspose3d, layer)
    whole = conv.kernel_size == conv.stride and not any((*conv.padding, *conv.output_padding))
    if not _slow(conv, x) or not whole:
        return conv(x)
    dims, kernel, channels = x.ndim - 2, conv.kernel_size, conv.out_channels
    rows = channels_last(x).movedim(1, -1)
    blocks = rows @ conv.weight.movedim(1, -1).reshape(conv.in_channels, -1)
    if conv.bias is not None:
        blocks = blocks + conv.bias.repeat(prod(kernel))
    blocks = blocks.reshape(*rows.shape[:-1], *kernel, channels)
    order = chain.from_iterable((1 + axis, 1 + dims + axis) for axis in range(dims))
    shape = [size * step for size, step in zip(x.shape[2:], kernel, strict=True)]
    return blocks.permute(0, *order, 1 + 2 * dims).reshape(1, *shape, channels).movedim(-1, 1)


def _slow(layer: nn.Conv3d | nn.ConvTranspose3d, x: Tensor) -> bool:
    """Return whether torch would take a kernel of its own, and this can do better."""
    return (
        type(layer) in LAYERS
        and x.shape[0] == 1
        and 0 < prod(x.shape[1:4]) <= FEW
        and x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == "cpu"
        and type(x) in (Tensor, nn.Parameter)
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and layer.groups == 1
        and set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and not watched(layer)
    )


class _Convolution(torch.autograd.Function):
    """A convolution by oneDNN."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.bias = stride, padding, bias is not None
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1,) * len(stride), 1)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (step, *_), (before, *others), rest = ctx.stride, ctx.padding, (0, 0) * (x.ndim - 3)
        half = -(-gradient.shape[2] // 2)
        length = (half - 1) * step + weight.shape[2]  # of the input that half of the output comes from
        after = half * step + length - before - x.shape[2]  # negative where the last of the input is not reached
        padded = F.pad(x, (*rest, before, after))
        halves = torch.cat([padded[:, :, :length], padded[:, :, half * step :]])
        whole = F.pad(gradient, (*rest, 0, 2 * half - gradient.shape[2]))
        gradients = torch.cat([whole[:, :, :half], whole[:, :, half:]])
        by_halves, by_weight, by_bias = torch.ops.aten.convolution_backward(
            channels_last(gradients),
            channels_last(halves),
            weight,
            [weight.shape[0]] if ctx.bias else None,
            ctx.stride,
            [0, *others],
            [1] * len(ctx.stride),
            False,
            [0] * len(ctx.stride),
            1,
            [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.bias and ctx.needs_input_grad[2]],
        )
        by_x = None
        if ctx.needs_input_grad[0]:
            added = torch.zeros_like(padded)
            added[:, :, :length] += by_halves[:1]
            added[:, :, half * step :] += by_halves[1:]
            by_x = F.pad(added, (*rest, -before, -after))
        return by_x, by_weight, by_bias, None, None
