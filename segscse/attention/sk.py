"""Selective kernel convolution: branches of growing reach, mixed per channel. Takes a convolution's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    at_least,
    expand_like,
    global_mean,
    hidden_width,
    layer_norm_fp32,
    linear_fp32,
    no_autocast,
    norm_layer,
    odd,
    vector_norm,
)
from segscse.errors import InputError
from segscse.nets.dims import as_tuple, conv


class SelectiveKernel(AttentionBlock):
    r"""SK convolution: $V = \sum_m a_m U_m$, $a = \mathrm{softmax}_m(A\, \mathrm{relu}(\mathrm{norm}(W s)))$.

    Li et al., "Selective Kernel Networks", arXiv 1903.06586, eq. 1 to 6: $U_m$ is branch m (a 3-wide
    convolution of dilation m, norm, ReLU) and s the spatial mean of their sum. The output has the input's
    size and channels. It replaces a convolution (`kind = "conv"`) and costs `branches` of them.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        branches: M; 2 as in the paper.
        kernel_size: of the branches, odd, one for all axes or one per axis; 3 as in the paper. An axis of 1 is not
            dilated.
        groups: groups of the branches' convolutions. The paper has 32 in networks of 128 channels and more;
            1 here, because the top levels of a U-Net are narrower.
        reduction: r, 16 as in the paper.
        min_hidden: L, the floor of the hidden width; 32 as in the paper.
        norm: of the branches: `"group"`, `"instance"`, `"batch"` or None; unless it is None the hidden vector
            has a LayerNorm. The authors use BatchNorm, which raises on the vector at batch size 1.
    """

    kind: ClassVar[Literal["gate", "conv"]] = "conv"

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        branches: int = 2,
        kernel_size: int | Sequence[int] = 3,
        groups: int = 1,
        reduction: int = 16,
        min_hidden: int = 32,
        norm: str | None = "group",
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        if channels % at_least("groups", groups, 1):
            raise InputError(f"groups must divide the {channels} channels, got {groups}")
        kernel = tuple(odd("kernel_size", size) for size in as_tuple(kernel_size, spatial_dims))
        hidden = hidden_width(channels, reduction=reduction, min_hidden=min_hidden)
        self.branches = nn.ModuleList(
            _branch(channels, kernel, dilation=m + 1, groups=groups, norm=norm)
            for m in range(at_least("branches", branches, 2))
        )
        self.fc = nn.Linear(channels, hidden, bias=False)
        self.fc_norm = vector_norm(norm, hidden)
        self.select = nn.Linear(hidden, branches * channels, bias=False)

    def _weights(self, maps: list[Tensor]) -> Tensor:
        with no_autocast(maps[0]):
            s = torch.stack([global_mean(u) for u in maps]).sum(dim=0)  # (B, C); the mean of the sum
            z = F.relu(layer_norm_fp32(linear_fp32(s, self.fc), self.fc_norm))
            logits = linear_fp32(z, self.select).unflatten(1, (len(maps), self.channels))
            return logits.softmax(dim=1)  # (B, M, C)

    def gate(self, x: Tensor) -> Tensor:
        """Return the weights of the M branches, `(B, M, C, 1, ...)`, in fp32; they sum to 1 over M."""
        return expand_like(self._weights([branch(x) for branch in self.branches]), x)

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return the mixed branches, `(B, C, *S)`."""
        maps = [branch(x) for branch in self.branches]
        weights = expand_like(self._weights(maps), x).to(maps[0].dtype)
        mixed = maps[0] * weights[:, 0]
        for m, u in enumerate(maps[1:], start=1):
            mixed = mixed + u * weights[:, m]
        return mixed


def _branch(channels: int, kernel: tuple[int, ...], *, dilation: int, groups: int, norm: str | None) -> nn.Sequential:
    layer = conv(len(kernel))(
        channels,
        channels,
        kernel_size=kernel,
        padding=tuple(dilation * (size // 2) for size in kernel),
        dilation=dilation,
        groups=groups,
        bias=norm in (None, "none"),
    )
    return nn.Sequential(layer, norm_layer(norm, channels, spatial_dims=len(kernel)), nn.ReLU())
