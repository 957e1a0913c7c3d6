"""Averages of the weights over a run: Lightning's weight averaging, with a share of its own for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

from segscse.config import OptimConfig

# In a short run the weights get better to the end, and those of its first half do harm: with a power of 1 it loses
# 0.002 of Dice after 400 steps. In a long one they come to fit the training cases as the rate falls, and the average
# gains from the steps before: 0.002 after 5600 (Task04, fold 0, a run each).
POWERS = (1.0, 8.0)
SETTLED = 4000


def polynomial_share(n: int) -> float:
    """Polynomial-decay averaging (Shamir and Zhang, arXiv 1212.1824): step n counts as a power of n.

    We let the power fall, from 8 (the last tenth of the steps, about) to 1 (half of it is of the last 29 %).
    """
    power = min(max(SETTLED / max(n, 1), POWERS[0]), POWERS[1])
    return (power + 1) / (n + 1 + power)


def ema_share(n: int, decay: float) -> float:
    """Exponential moving average.

    The decay is `min(decay, (1 + n) / (10 + n))` (as in TensorFlow's `ExponentialMovingAverage`), so that a short run
    does not average in its random start.
    """
    return 1 - min(decay, (1 + n) / (10 + n))


# By name, what gives the share of the current weights in an average that n steps' weights have gone into before.
AVERAGES: dict[str, Callable[[OptimConfig], Callable[[int], float]]] = {
    "polynomial": lambda config: polynomial_share,
    "ema": lambda config: partial(ema_share, decay=config.ema_decay),
}


class AveragedWeights(WeightAveraging):
    """Average of the weights over the steps, which is validated, exported and kept in checkpoints.

    Args:
        share: gives the share of the current weights in an average that n steps' weights have gone into before.
    """

    def __init__(self, share: Callable[[int], float]) -> None:
        def update(averaged: Sequence[Tensor], current: Sequence[Tensor], n: Tensor | int) -> None:
            pairs = list(zip(averaged, current, strict=True))
            numbers = [pair for pair in pairs if pair[0].is_floating_point()]
            if numbers:  # torch calls this for each type of number by itself
                torch._foreach_lerp_([old for old, _ in numbers], [new for _, new in numbers], share(int(n)))
            for old, new in pairs:
                if not old.is_floating_point():  # a count of batches, which has no average
                    old.copy_(new)

        super().__init__(multi_avg_fn=torch.no_grad()(update))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average on the device that trains.

        Lightning would make it where the module is, which the strategy moves to the device only after this.
        """
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the current weights in the module, so that the last checkpoint can go on from them."""

    def network_state(self) -> dict[str, Tensor] | None:
        """Return the averaged weights of the module's `network`, or None before training."""
        if self._average_model is None:
            return None
        prefix = "module.network."
        state = self._average_model.state_dict()
        return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def weight_average(config: OptimConfig) -> AveragedWeights | None:
    """Return the average that a configuration asks for, if any."""
    return None if config.average == "none" else AveragedWeights(AVERAGES[config.average](config))
