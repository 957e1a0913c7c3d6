"""DANet's channel and position attention: weighted sums over all channels or all positions."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segscse.attention.base import AttentionBlock, fp32, hidden_width, linear_fp32, no_autocast, one_of

SIMILARITIES = ("released", "paper")


class ChannelAffinity(AttentionBlock):
    r"""DANet CAM: $y_j = \beta \sum_i a_{ji} x_i + x_j$, a the softmax over i of $\pm x_j \cdot x_i$.

    Fu et al., "Dual Attention Network for Scene Segmentation", arXiv 1809.02983, eq. 3 and 4. $\beta$ is
    the only parameter and starts at 0: the block starts as the identity.

    The energies are sums over all positions of a volume and overflow fp16, so the block works in fp32 under
    any autocast. Cost: $2 C^2 N$ multiplications for N positions; made for the deep levels of a network.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        similarity: `"released"` is the softmax of `max - energy` as in the authors' code, which attends to
            the *least* similar channels (they report that it trains better); `"paper"` is the paper's
            formula, the softmax of the energy.
        scale: divide the energies by the square root of N, which neither does: sums over the positions of a volume
            are so large that the softmax takes a single channel.
    """

    def __init__(self, channels: int, *, spatial_dims: int, similarity: str = "released", scale: bool = False) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        self.similarity = one_of("similarity", similarity, SIMILARITIES)
        self.scale = scale
        self.gamma = nn.Parameter(torch.zeros(1))

    def _affinity(self, rows: Tensor) -> Tensor:
        energy = rows @ rows.transpose(1, 2)
        if self.scale:
            energy = energy / rows.shape[-1] ** 0.5
        return torch.softmax(-energy if self.similarity == "released" else energy, dim=-1)

    def gate(self, x: Tensor) -> Tensor:
        """Return the affinity matrix `(B, C, C)`, rows summing to 1, in fp32; it does not multiply `x`."""
        with no_autocast(x):
            return self._affinity(fp32(x.flatten(2)))

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return `x` plus its weighted sums, `(B, C, *S)`."""
        with no_autocast(x):
            rows = fp32(x.flatten(2))
            # Transposed, so that OpenVINO does not take softmax(-energy) for attention with scale -1, which it
            # computes wrongly.
            mixed = (rows.transpose(1, 2) @ self._affinity(rows).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
            return (fp32(x) + fp32(self.gamma) * mixed).to(x.dtype)


class PositionAffinity(AttentionBlock):
    r"""DANet PAM: $y_j = \alpha \sum_i a_{ji} v_i + x_j$, a the softmax over i of $q_j \cdot k_i$.

    Fu et al., arXiv 1809.02983, eq. 1 and 2; q, k (C/r channels) and v are 1x1 convolutions. The energies
    are not scaled, as in the paper. $\alpha$ starts at 0: the block starts as the identity. It works in fp32
    under any autocast and needs no N x N matrix where PyTorch has a fused kernel; without one the matrix of
    N positions takes `4 N^2` bytes, so use it at the bottleneck only.

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        reduction: r of query and key; 8 as in the paper.
        min_hidden: floor of their width, not in the paper.
    """

    pairs_positions: ClassVar[bool] = True

    def __init__(self, channels: int, *, spatial_dims: int, reduction: int = 8, min_hidden: int = 4) -> None:
        super().__init__(channels, spatial_dims=spatial_dims)
        hidden = hidden_width(channels, reduction=reduction, min_hidden=min_hidden)
        self.query = nn.Linear(channels, hidden)
        self.key = nn.Linear(channels, hidden)
        self.value = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def gate(self, x: Tensor) -> Tensor:
        """Return the affinity matrix `(B, N, N)` of the N positions, in fp32; it does not multiply `x`."""
        with no_autocast(x):
            tokens = x.flatten(2).transpose(1, 2)  # (B, N, C), a view in either memory format
            energy = linear_fp32(tokens, self.query) @ linear_fp32(tokens, self.key).transpose(1, 2)
            return torch.softmax(energy, dim=-1)

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return `x` plus its weighted sums, `(B, C, *S)`."""
        with no_autocast(x):
            tokens = x.flatten(2).transpose(1, 2)  # (B, N, C), a view in either memory format
            parts = (self.query, self.key, self.value)
            query, key, value = (linear_fp32(tokens, part).unsqueeze(1) for part in parts)  # one head
            mixed = F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)
            return (fp32(x) + fp32(self.gamma) * mixed.transpose(1, 2).reshape(x.shape)).to(x.dtype)
