"""SegModule: the Lightning module around a UNet; a loss on patches, MONAI's Dice on whole volumes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from monai.metrics import DiceMetric
from torch import nn

from segscse.config import OptimConfig
from segscse.data.plan import Plan
from segscse.inference.sliding_window import predict_volume
from segscse.nets.dims import channels_last
from segscse.training.clock import RunClock
from segscse.training.losses import deep_supervision_loss
from segscse.training.schedule import build_optimizer, lr_factor, peak_rate


class SegModule(pl.LightningModule):
    """Trains a network on patches and validates it on whole volumes.

    Logs `val_dice` (mean over cases of each label, then over labels) and `val_dice_<label>` per validation.

    Args:
        network: maps `(B, C, *S)` to logits, or to a list of them in training mode.
        plan: window, labels and axes.
        optim: optimiser and schedule.
        clock: tells how far the run is.
    """

    def __init__(self, network: nn.Module, plan: Plan, optim: OptimConfig, clock: RunClock) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.optim = optim
        self.clock = clock
        self.made_up: list[torch.Tensor] = []
        self.dice = DiceMetric(include_background=False, reduction="none", num_classes=len(plan.labels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, *S)` of a batch `(B, C, *S)`, at full resolution, in evaluation mode."""
        return self.network(channels_last(x))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch of patches."""
        factor = lr_factor(self.optim, self.clock.progress)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = peak_rate(self.optim) * factor
        return deep_supervision_loss(self.forward(batch["image"]), batch["label"])

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Segment one whole volume and add it to the Dice."""
        logits = predict_volume(
            batch["image"],
            self.forward,
            window=self.plan.patch_size,
            n_classes=len(self.plan.labels),
            slice_axis=self.plan.slice_axis,
            batch_size=self.plan.batch_size,
        )
        predicted, reference = logits.argmax(dim=0), batch["label"].long()
        self.dice(y_pred=predicted[None, None], y=reference[None, None])
        counts = [map_.flatten().bincount(minlength=len(self.plan.labels))[1:] for map_ in (predicted, reference)]
        self.made_up.append((counts[0] > 0) & (counts[1] == 0))

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice over the cases that have a label or wrongly predict it.

        MONAI leaves out cases without the label whatever was predicted there; a made-up structure is 0 here.
        """
        scores = torch.as_tensor(self.dice.aggregate())
        per_label = torch.nanmean(scores.masked_fill(torch.stack(self.made_up), 0.0), dim=0)
        self.dice.reset()
        self.made_up.clear()
        for (label, _), value in zip(self.plan.labels[1:], per_label, strict=True):
            self.log(f"val_dice_{label}", value)
        self.log("val_dice", torch.nanmean(per_label))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the rate is set before each step from the clock."""
        return build_optimizer(self.network.parameters(), self.optim)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the clock with the weights."""
        checkpoint["clock"] = self.clock.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the clock to where the checkpoint was made."""
        self.clock.load_state_dict(checkpoint["clock"])
