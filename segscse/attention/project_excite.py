"""Project & Excite: SE that keeps where along each axis, by projecting a volume onto its axes."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    flag,
    fp32,
    hidden_width,
    linear_fp32,
    logits_to_gate,
    mean_over,
    no_autocast,
)
from segscse.nets.dims import conv


class ProjectExcite(AttentionBlock):
    r"""PE: $g = \sigma(W_2 * \mathrm{relu}(W_1 * Z + b_1) + b_2)$, $Z(p) = \sum_a z_a(p_a)$.

    Rickmann et al., "'Project & Excite' Modules for Segmentation of Volumetric Medical Scans", arXiv
    1906.04649. $z_a$ is the mean over all axes but a, so Z is a volume made of three profiles; $W_1$, $W_2$
    are 1x1 convolutions. The gate is `(B, C, *S)` in (0, 1) and has cSE's parameters.

    $W_1$ is linear, so it acts here on the profiles and the results are added: the same numbers without the
    full-size C to C/r convolution. 2D is the same with two profiles, which the paper does not have; a volume
    one voxel deep differs from it by the profile of its depth, the global mean.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: r, 2 as in the paper.
        bias: whether the two layers have a bias.
        min_hidden: floor of the hidden width, not in the paper.
    """

    def __init__(
        self, channels: int, *, spatial_dims: int, reduction: int = 2, bias: bool = True, min_hidden: int = 4
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        hidden = hidden_width(channels, reduction=reduction, min_hidden=min_hidden)
        self.fc1 = nn.Linear(channels, hidden, bias=flag("bias", bias))
        self.fc2 = conv(spatial_dims)(hidden, channels, kernel_size=1, bias=bias)

    def _projected(self, x: Tensor) -> Tensor:
        """Return `W1 * Z + b1`, `(B, hid, *S)`, in the type and memory format of `x`."""
        first, *rest = (z.movedim(1, -1) for z in profiles(x))
        parts = [linear_fp32(first, self.fc1)]  # the bias counts once
        parts += [F.linear(z, fp32(self.fc1.weight)) for z in rest]
        parts = [part.to(x.dtype) for part in parts]
        if x.is_contiguous():
            return reduce(torch.add, [part.movedim(-1, 1).contiguous() for part in parts])
        return reduce(torch.add, parts).movedim(-1, 1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the weights, `(B, C, *S)`, in fp32."""
        with no_autocast(x):
            hidden = self._projected(x)
        return logits_to_gate(self.fc2(F.relu(hidden)))


def profiles(x: Tensor) -> list[Tensor]:
    """Return, per spatial axis, the mean over the other ones: `(B, C, 1, ..., n_axis, ..., 1)`, in fp32."""
    axes = range(2, x.ndim)
    return [mean_over(x, [other for other in axes if other != axis]) for axis in axes]
