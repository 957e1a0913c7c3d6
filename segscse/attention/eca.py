"""ECA: a channel gate from one short filter that slides along the channel axis."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import (
    AttentionBlock,
    at_least,
    expand_like,
    flag,
    fp32,
    global_mean,
    logits_to_gate,
    no_autocast,
    odd,
)
from segscse.errors import InputError
from segscse.kernels.parts import GateParts


class ECA(AttentionBlock):
    r"""ECA, in 2D and 3D: $g = \sigma(w * z)$, z the spatial mean, `*` a k-tap filter along the channels.

    Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", arXiv
    1910.03151, eq. 9 and 12: $k = |\log_2(C)/\gamma + b/\gamma|_{odd}$. No bias, k parameters in all.

    The gate is `(B, C, 1, ...)` in (0, 1). Like every global mean it depends on the patch size.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        kernel_size: k, odd. None takes it from C: 3 for 8 to 96 channels, 5 for 128 to 1024. The authors'
            layer is fixed at 3 and their released models set it by hand.
        gamma: $\gamma$ of the formula.
        b: b of the formula.
        circular: wrap around at the ends of the channel axis, since channels have no order. The paper
            pads with zeros, so the first and last channel see less.
    """

    pools_to_mean: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        spatial_dims: int,
        kernel_size: int | None = None,
        gamma: int = 2,
        b: int = 1,
        circular: bool = False,
    ) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.circular = flag("circular", circular)
        self.conv = channel_filter(channels, kernel_size=kernel_size, gamma=gamma, b=b, circular=circular)

    def gate(self, x: Tensor) -> Tensor:
        """Return the channel weights, `(B, C, 1, ...)`, in fp32."""
        return expand_like(self.gate_of_mean(global_mean(x)), x)

    def gate_of_mean(self, z: Tensor) -> Tensor:
        """Return the channel weights `(B, C)` that follow from the spatial mean `(B, C)`."""
        return logits_to_gate(filter_channels(z, self.conv, circular=self.circular))

    def parts(self) -> GateParts:
        """Return the channel part."""
        return GateParts(self.gate_of_mean, tuple(self.conv.parameters()))


def adaptive_kernel(channels: int, *, gamma: int = 2, b: int = 1) -> int:
    """Return ECA's kernel for C channels: `|(log2(C) + b) / gamma|` raised to odd, and at least 3.

    The floor is not in the paper: k = 1, which the formula gives for C <= 4, mixes no channels at all.
    """
    k = int(abs((math.log2(channels) + b) / at_least("gamma", gamma, 1)))
    return max(k if k % 2 else k + 1, 3)


def channel_filter(
    channels: int, *, kernel_size: int | None, gamma: int = 2, b: int = 1, circular: bool = False
) -> nn.Conv1d:
    """Return the k-tap filter that ECA slides along C channels."""
    adaptive = adaptive_kernel(channels, gamma=gamma, b=at_least("b", b, 0))
    k = adaptive if kernel_size is None else odd("kernel_size", kernel_size)
    if circular and k // 2 > channels:
        raise InputError(f"kernel_size {k} wraps more than once around {channels} channels")
    return nn.Conv1d(1, 1, kernel_size=k, padding=k // 2, bias=False)


def filter_channels(z: Tensor, layer: nn.Conv1d, *, circular: bool = False) -> Tensor:
    """Return `z`, `(B, C)`, filtered along C in fp32."""
    k = layer.weight.shape[-1]
    with no_autocast(z):
        rows = fp32(z).unsqueeze(1)  # (B, 1, C)
        padded = F.pad(rows, (k // 2, k // 2), mode="circular" if circular else "constant")
        return F.conv1d(padded, fp32(layer.weight)).squeeze(1)
