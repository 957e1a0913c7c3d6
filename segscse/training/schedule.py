"""Optimisers and learning-rate schedules, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from segscse.config import OptimConfig


def _cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


def _poly(x: float) -> float:
    """nnU-Net's decay."""
    return (1 - x) ** 0.9


def _constant(x: float) -> float:
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "poly": _poly, "constant": _constant}


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Return the share of the peak rate at a progress in [0, 1]: a linear warm-up, then the schedule."""
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    share = (progress - config.warmup) / (1 - config.warmup)
    return SCHEDULES[config.schedule](min(max(share, 0.0), 1.0))


def build_optimizer(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with Nesterov momentum 0.99; vectors (norms, biases) are not decayed."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(groups, lr=config.lr)
