"""Dice plus cross-entropy, over one or several resolutions, and over a batch that processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from segscse.training.soft_counts import soft_counts

# Added to numerator and denominator of Dice, in voxels.
SMOOTH = 1.0


def dice_ce_loss(logits: torch.Tensor, target: torch.Tensor, *, smooth: float = SMOOTH) -> torch.Tensor:
    """Return the mean cross-entropy plus one minus the soft Dice, averaged over the foreground classes.

    Dice is summed over the batch (nnU-Net's "batch Dice") and in float32; a class that is absent and not predicted
    contributes no loss, by the smoothing in numerator and denominator (Drozdzal et al., arXiv 1608.04117).

    Args:
        logits: `(B, K, *S)`.
        target: `(B, *S)`, channel numbers.
        smooth: added to numerator and denominator, in voxels.
    """
    return _loss(soft_counts(logits, target), smooth)


def _loss(sums: torch.Tensor, smooth: float) -> torch.Tensor:
    """Return the loss from `soft_counts`."""
    cross_entropy, (intersection, size) = sums[0], sums[1:].chunk(2)
    dice = (2 * intersection + smooth) / (size + smooth)
    return cross_entropy + (1 - dice.mean())


def deep_supervision_loss(
    outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, *, world: int = 1
) -> torch.Tensor:
    """Return `dice_ce_loss` summed over resolutions, weighted 1, 1/2, 1/4, ... and normalised to a sum of one.

    Args:
        outputs: logits `(B, K, *S)`, or a list of them, finest first.
        target: `(B, *S)` at the finest resolution; reduced by nearest neighbour for the others.
        world: number of processes whose parts, of equal size, make the batch. The loss is then that of the whole batch
            in every process, and the mean of the processes' gradients, which DDP takes, is its gradient.
    """
    levels = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sums = []
    for logits in levels:
        size = logits.shape[2:]
        coarse = target if size == target.shape[1:] else _reduce(target, size)
        sums.append(soft_counts(logits, coarse))
    if world > 1:
        sums = list(_whole_batch(torch.stack(sums), world))
    weights = [0.5**level for level in range(len(levels))]
    losses = [_loss(of_level, SMOOTH) for of_level in sums]
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)  # type: ignore[return-value]


def _whole_batch(sums: torch.Tensor, world: int) -> torch.Tensor:
    """Return the rows of `soft_counts` of the whole batch from those of its parts: mean of means, sums of sums."""
    share = torch.ones_like(sums[0])
    share[0] = 1 / world
    return _SumOverProcesses.apply(sums * share, world)


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes that all go on with the result in the same way.

    Each of them has the gradient of one and the same loss by the sum, which is that by its own part. DDP will divide
    by the number of processes what is to be added up, so it is multiplied here.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, world: int) -> torch.Tensor:
        ctx.world = world
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.world, None


def _reduce(target: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].to(target.dtype)
