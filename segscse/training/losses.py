"""Dice plus cross-entropy, over one or several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from segscse.training.soft_counts import soft_counts


def dice_ce_loss(logits: torch.Tensor, target: torch.Tensor, *, smooth: float = 1.0) -> torch.Tensor:
    """Return the mean cross-entropy plus one minus the soft Dice, averaged over the foreground classes.

    Dice is summed over the batch (nnU-Net's "batch Dice") and in float32; a class that is absent and not predicted
    contributes no loss, by the smoothing in numerator and denominator (Drozdzal et al., arXiv 1608.04117).

    Args:
        logits: `(B, K, *S)`.
        target: `(B, *S)`, channel numbers.
        smooth: added to numerator and denominator, in voxels.
    """
    cross_entropy, *counts = soft_counts(logits, target).split([1, *[logits.shape[1] - 1] * 2])
    intersection, size = counts
    dice = (2 * intersection + smooth) / (size + smooth)
    return cross_entropy[0] + (1 - dice.mean())


def deep_supervision_loss(outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """Return `dice_ce_loss` summed over resolutions, weighted 1, 1/2, 1/4, ... and normalised to a sum of one.

    Args:
        outputs: logits `(B, K, *S)`, or a list of them, finest first.
        target: `(B, *S)` at the finest resolution; reduced by nearest neighbour for the others.
    """
    if isinstance(outputs, torch.Tensor):
        return dice_ce_loss(outputs, target)
    weights = [0.5**level for level in range(len(outputs))]
    losses = []
    for logits in outputs:
        size = logits.shape[2:]
        coarse = target if size == target.shape[1:] else _reduce(target, size)
        losses.append(dice_ce_loss(logits, coarse))
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)  # type: ignore[return-value]


def _reduce(target: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0].to(target.dtype)
