"""What Dice and cross-entropy need of a batch of patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from segscse.kernels.once import first_derivative_only

# From this many classes on, as many as a vector holds, `_SoftCounts` is faster (tests/benchmarks/bench_loss.py).
MANY_CLASSES = 16


def soft_counts(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r"""Return mean cross-entropy, soft intersections and soft sizes of the foreground classes, `(1 + 2 (K - 1),)`.

    With $p$ the softmax over the classes, the intersection of class $k$ is the sum of $p_k$ over the voxels of class
    $k$, its size the sum of $p_k$ over all voxels plus the number of voxels of class $k$. All in float32, or float64
    for logits in it.

    Args:
        logits: `(B, K, *S)`.
        target: `(B, *S)`, channel numbers.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = target.long()
    if logits.shape[1] >= MANY_CLASSES:
        return _SoftCounts.apply(logits, target)
    return dense_counts(logits, target)


def dense_counts(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return `soft_counts` of floating-point logits by one-hot maps, which autograd differentiates."""
    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp().flatten(2)[:, 1:]  # (B, K - 1, N)
    one_hot = torch.zeros_like(log_p).scatter_(1, target[:, None], 1.0).flatten(2)[:, 1:]
    intersection = (p * one_hot).sum(dim=(0, 2))
    size = p.sum(dim=(0, 2)) + one_hot.sum(dim=(0, 2))
    return torch.cat([F.nll_loss(log_p, target)[None], intersection, size])


class _SoftCounts(torch.autograd.Function):
    """The same with one map of all classes kept, and few passes over it; `dense_counts` keeps and passes over six.

    The classes of a voxel are handled side by side, as channels-last memory has them.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        n_classes = logits.shape[1]
        labels = target.reshape(-1)
        log_p = F.log_softmax(logits.movedim(1, -1).reshape(-1, n_classes), dim=1)
        cross_entropy = -log_p.gather(1, labels[:, None]).mean()
        p = log_p.exp_()
        # Hundreds of thousands of numbers below 1, one after the other: too many for float32, but Apple's GPUs have no
        # other.
        wide = torch.float32 if p.device.type == "mps" else torch.float64
        own = p.gather(1, labels[:, None])[:, 0].to(wide)
        intersection = own.new_zeros(n_classes).index_add_(0, labels, own)
        count = own.new_zeros(n_classes).index_add_(0, labels, torch.ones_like(own))
        size = p.sum(dim=0) + count  # a product of matrices would be in autocast's precision
        ctx.save_for_backward(p, labels)
        ctx.shape = logits.shape
        return torch.cat([cross_entropy[None], intersection[1:].to(p.dtype), size[1:].to(p.dtype)])

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        p, labels = ctx.saved_tensors
        batch, n_classes, *size = ctx.shape
        of_entropy = gradient[0] / len(labels)
        # The background has no Dice.
        of_intersection, of_size = (torch.cat([part.new_zeros(1), part]) for part in gradient[1:].chunk(2))
        own = p.gather(1, labels[:, None])[:, 0] * of_intersection[labels]
        through_softmax = p @ of_size + own
        of_logits = (of_size + (of_entropy - through_softmax)[:, None]).mul_(p)
        of_logits.scatter_add_(1, labels[:, None], (own - of_entropy)[:, None])
        return of_logits.view(batch, *size, n_classes).movedim(-1, 1), None
