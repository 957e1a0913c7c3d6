"""InstanceNorm that stays in channels-last memory, forward and backward."""

from __future__ import annotations

import torch
from torch import nn

from segscse.kernels.parts import recalibrate, runs_here


class InstanceNorm(nn.Module):
    """Instance normalisation for `(B, C, *S)` (Ulyanov et al., arXiv 1607.08022), affine, without running statistics.

    The result is `torch.nn.InstanceNorm2d/3d(affine=True)`'s. On a CPU those copy a channels-last tensor to contiguous
    memory and back; here a kernel of our own keeps the layout.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each sample and channel over space: `(B, C, *S)` to the same shape."""
        if runs_here(x):
            return recalibrate(x, norm=(self.weight, self.bias, self.eps))
        # torch.nn.functional's refuses maps of one voxel, which deep stages of small patches have
        return torch.instance_norm(
            x, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )
