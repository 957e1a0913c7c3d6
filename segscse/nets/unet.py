"""UNet: one encoder-decoder for 2D and 3D, with an attention block by name at every position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from segscse.attention import ATTENTION, AttentionBlock, build_attention, check_placement
from segscse.errors import InputError, choose
from segscse.kernels.single import upsample
from segscse.nets.blocks import BLOCKS, LEAK
from segscse.nets.dims import as_tuple, check_spatial_dims, conv, conv_transpose

POSITIONS = ("encoder", "bottleneck", "decoder", "decoder_concat", "skip")
AttentionSpec = str | tuple[str, Mapping[str, Any]]


class UNet(nn.Module):
    """U-Net (Ronneberger et al., arXiv 1505.04597; in 3D Çiçek et al., arXiv 1606.06650) with attention blocks.

    As in nnU-Net, stages change resolution by strided convolutions on the way down and transposed ones on the
    way up, and normalise by instance. As in Roy et al. (arXiv 1808.08127), the gate closes every encoder and
    decoder block, so that the pooled map and the skip connection both carry the recalibrated features.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        features: channels per stage, finest first.
        strides: per stage, one number or one per axis; the first is 1. Default: 1, then 2.
        kernel_sizes: per stage, one odd number or one per axis. Default: 3.
        attention: a block's name for encoder and decoder, or a mapping from `encoder`, `bottleneck`,
            `decoder`, `decoder_concat`, `skip` to a name or a `(name, options)` pair; positions not named have none.
        block: `plain`, `residual` or `selective`.
        deep_supervision: in training mode, return a list of logits, finest first, instead of one tensor.

    Raises:
        InputError: lengths differ, the first stride is not 1, a kernel is even, a name or an option is unknown, a block
            replaces a convolution, or a gate stands where it would not see the image (see `check_placement`).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] | None = None,
        kernel_sizes: Sequence[int | Sequence[int]] | None = None,
        attention: str | Mapping[str, AttentionSpec] = "none",
        block: Literal["plain", "residual", "selective"] = "plain",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        steps = _per_stage("strides", strides, [1] + [2] * (len(features) - 1), spatial_dims)
        kernels = _per_stage("kernel_sizes", kernel_sizes, [3] * len(features), spatial_dims)
        if set(steps[0]) != {1}:
            raise InputError(f"the first stage has stride 1, so that logits have the input's size; got {steps[0]}")
        if even := [kernel for kernel in kernels if any(size % 2 == 0 for size in kernel)]:
            raise InputError(f"kernel sizes must be odd, so that a convolution keeps the size; got {even[0]}")
        if block not in BLOCKS:
            raise choose("block", block, BLOCKS)
        gates = _attention_by_position(attention)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.deep_supervision = deep_supervision
        self.divisor = tuple(math.prod(axis) for axis in zip(*steps, strict=True))

        def make_block(position: str, c_in: int, c_out: int, stage: int, stride: Sequence[int] | int) -> nn.Module:
            gate = build_gate(gates[position], c_out, spatial_dims)
            return BLOCKS[block](spatial_dims, c_in, c_out, kernel_size=kernels[stage], stride=stride, attention=gate)

        last = len(features) - 1
        widths = [in_channels, *features]
        self.encoder = nn.ModuleList(
            make_block("bottleneck" if i == last else "encoder", widths[i], widths[i + 1], i, steps[i])
            for i in range(len(features))
        )
        self.skip = nn.ModuleList(build_gate(gates["skip"], features[i], spatial_dims) for i in range(last))
        self.concat = nn.ModuleList(
            build_gate(gates["decoder_concat"], 2 * features[i], spatial_dims) for i in range(last)
        )
        self.up = nn.ModuleList(
            conv_transpose(spatial_dims)(features[i + 1], features[i], steps[i + 1], steps[i + 1], bias=False)
            for i in range(last)
        )
        self.decoder = nn.ModuleList(make_block("decoder", 2 * features[i], features[i], i, 1) for i in range(last))
        n_heads = max(1, last - 1) if deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims)(features[i], out_channels, 1) for i in range(n_heads))
        check_placement(self)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits `(B, out_channels, *S)`; in training with deep supervision a list, finest first.

        Args:
            x: `(B, in_channels, *S)`; every axis of `S` divisible by `self.divisor`.

        Raises:
            InputError: the shape does not fit.
        """
        self._check(x)
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        logits = []
        for i in reversed(range(len(self.decoder))):
            both = torch.cat([self.skip[i](maps[i]), upsample(self.up[i], x)], dim=1)
            x = self.decoder[i](self.concat[i](both))
            if i < len(self.heads) and (i == 0 or self.training):
                logits.append(self.heads[i](x))
        if not len(self.decoder):
            logits = [self.heads[0](x)]
        return logits[::-1] if self.training and self.deep_supervision else logits[-1]

    def _check(self, x: torch.Tensor) -> None:
        shape = tuple(x.shape[2:])
        fits = len(shape) == self.spatial_dims and x.shape[1] == self.in_channels
        if not fits or any(s % d for s, d in zip(shape, self.divisor, strict=True)):
            raise InputError(
                f"UNet(spatial_dims={self.spatial_dims}) takes (B, {self.in_channels}, *S) with S divisible by "
                f"{self.divisor}, got {tuple(x.shape)}",
                remedy="Pad the input; the sliding window does so",
            )


def _per_stage(
    name: str, given: Sequence[int | Sequence[int]] | None, default: Sequence[int], spatial_dims: int
) -> list[tuple[int, ...]]:
    values = default if given is None else given
    if len(values) != len(default):
        raise InputError(f"{name} must have one entry per stage ({len(default)}), got {len(values)}")
    return [as_tuple(value, spatial_dims) for value in values]


def _attention_by_position(attention: str | Mapping[str, AttentionSpec]) -> dict[str, AttentionSpec]:
    if isinstance(attention, str):
        attention = {"encoder": attention, "decoder": attention}
    for position in attention:
        if position not in POSITIONS:
            raise choose("attention position", position, POSITIONS)
    return {position: attention.get(position, "none") for position in POSITIONS}


def build_gate(spec: AttentionSpec, channels: int, spatial_dims: int) -> AttentionBlock:
    """Return the block that gates maps `(B, channels, *S)`.

    Raises:
        InputError: no such block, an option that it does not know, or a block that replaces a convolution.
    """
    name, options = (spec, {}) if isinstance(spec, str) else spec
    if name in ATTENTION and getattr(ATTENTION[name], "kind", "gate") != "gate":
        raise InputError(
            f"attention block {name!r} replaces a convolution and cannot gate a U-Net stage",
            remedy="Give --model.block selective, which has it in every stage",
        )
    return build_attention(name, channels, spatial_dims=spatial_dims, **options)


def _initialise(module: nn.Module) -> None:
    """He initialisation for the leaky ReLU (arXiv 1502.01852); attention blocks keep their own."""
    if any(parameter.is_meta for parameter in module.parameters()):
        return  # without memory there is nothing to set, and torch would import its compiler for it
    for child in module.children():
        if isinstance(child, AttentionBlock):
            continue
        if isinstance(child, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(child.weight, a=LEAK)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        _initialise(child)
