"""InstanceNorm that stays in channels-last memory, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segscse.nets.dims import exporting


class InstanceNorm(nn.Module):
    """Instance normalisation for `(B, C, *S)` (Ulyanov et al., arXiv 1607.08022), affine, without running statistics.

    The result is `torch.nn.InstanceNorm2d/3d(affine=True)`'s. Those copy a channels-last tensor to contiguous
    memory and back; here each sample goes through the batch-norm kernels, which keep the layout.

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
        if x.device.type != "cpu" or exporting():
            return torch.nn.functional.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return _PerSampleNorm.apply(x, self.weight, self.bias, self.eps)


class _PerSampleNorm(torch.autograd.Function):
    """Batch normalisation of one sample at a time, without the copies that slicing under autograd would make."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        parts = [torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, eps) for sample in x.split(1)]
        ctx.eps = eps
        ctx.save_for_backward(x, weight, *(part[1] for part in parts), *(part[2] for part in parts))
        return parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        size = len(x)
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                grad, sample, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
            )
            for grad, sample, mean, rstd in zip(grads[0].split(1), x.split(1), saved[:size], saved[size:], strict=True)
        ]
        grad_x = parts[0][0] if size == 1 else torch.cat([part[0] for part in parts])
        return grad_x, sum(part[1] for part in parts), sum(part[2] for part in parts), None
