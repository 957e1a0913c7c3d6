"""Moving average of the weights: Lightning's weight averaging, with a decay that starts small."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class EmaWeights(WeightAveraging):
    """Exponential moving average that is validated, exported and kept in checkpoints.

    The decay is `min(decay, (1 + n) / (10 + n))` after n updates (as in Polyak averaging of TensorFlow's
    `ExponentialMovingAverage`), so that a short run does not average in its random start.

    Args:
        decay: of the average, once the run is long.
    """

    def __init__(self, decay: float) -> None:
        def update(averaged: Sequence[Tensor], current: Sequence[Tensor], n: Tensor | int) -> None:
            share = 1 - min(decay, (1 + int(n)) / (10 + int(n)))
            torch._foreach_lerp_(list(averaged), list(current), share)

        super().__init__(multi_avg_fn=torch.no_grad()(update))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the current weights in the module, so that the last checkpoint can go on from them."""

    def network_state(self) -> dict[str, Tensor] | None:
        """Return the averaged weights of the module's `network`, or None before training."""
        if self._average_model is None:
            return None
        prefix = "module.network."
        state = self._average_model.state_dict()
        return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
