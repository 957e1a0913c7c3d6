"""Optimisers and learning-rate schedules, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from segscse.config import OptimConfig
from segscse.training.muon import Muon


def _cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


def _poly(x: float) -> float:
    """nnU-Net's decay."""
    return (1 - x) ** 0.9


def _constant(x: float) -> float:
    return 1.0


# Muon's and AdamW's rates give the best Dice of short runs (tests/benchmarks/README.md); SGD's numbers are nnU-Net's.
PEAK_RATES = {"muon": 8e-3, "adamw": 3e-3, "sgd": 1e-2}
WEIGHT_DECAYS = {"muon": 1e-2, "adamw": 1e-2, "sgd": 3e-5}
SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": _cosine, "poly": _poly, "constant": _constant}


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Return the share of the peak rate at a progress in [0, 1]: a linear warm-up, then the schedule."""
    if progress < config.warmup:
        return max(progress / config.warmup, 0.01)
    share = (progress - config.warmup) / (1 - config.warmup)
    return SCHEDULES[config.schedule](min(max(share, 0.0), 1.0))


def peak_rate(config: OptimConfig) -> float:
    """Return the peak learning rate: the given one, or the optimiser's own."""
    return PEAK_RATES[config.name] if config.lr is None else config.lr


def build_optimizer(parameters: Iterable[torch.nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """Return the named optimiser; vectors (norms, biases) are not decayed, nor made orthogonal by Muon."""
    matrices: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    decay = WEIGHT_DECAYS[config.name] if config.weight_decay is None else config.weight_decay
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    lr = peak_rate(config)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.99, nesterov=True)
    if config.name == "muon":
        optimizer: torch.optim.AdamW = Muon([{**groups[0], "orthogonal": True}, groups[1]], lr=lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    # Says that the optimiser unscales fp16 gradients by itself. Ours are never scaled, and in bf16, too, Lightning
    # refuses to clip the gradients of such an optimiser.
    optimizer._step_supports_amp_scaling = False
    return optimizer
