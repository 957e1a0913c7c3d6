"""Dice plus cross-entropy, over one or several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def dice_ce_loss(logits: torch.Tensor, target: torch.Tensor, *, smooth: float = 1.0) -> torch.Tensor:
    """Return the mean cross-entropy plus one minus the soft Dice, averaged over the foreground classes.

    Dice is summed over the batch (nnU-Net's "batch Dice") and in float32; a class that is absent and not predicted
    contributes no loss, by the smoothing in numerator and denominator (Drozdzal et al., arXiv 1608.04117).

    Args:
        logits: `(B, K, *S)`.
        target: `(B, *S)`, channel numbers.
        smooth: added to numerator and denominator, in voxels.
    """
    logits = logits.float()
    target = target.long()
    log_p = F.log_softmax(logits, dim=1)
    cross_entropy = F.nll_loss(log_p, target)
    p = log_p.exp().flatten(2)[:, 1:]  # (B, K - 1, N)
    one_hot = torch.zeros_like(log_p).scatter_(1, target[:, None], 1.0).flatten(2)[:, 1:]
    intersection = (p * one_hot).sum(dim=(0, 2))
    size = p.sum(dim=(0, 2)) + one_hot.sum(dim=(0, 2))
    dice = (2 * intersection + smooth) / (size + smooth)
    return cross_entropy + (1 - dice.mean())


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
