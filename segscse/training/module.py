"""SegModule: the Lightning module around a UNet; a loss on patches, MONAI's Dice on whole volumes."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from monai.metrics import compute_dice
from torch import nn

from segscse.config import OptimConfig
from segscse.data.plan import Plan
from segscse.inference.sliding_window import classify_volume
from segscse.nets.dims import channels_last
from segscse.ranks import ALONE, Group
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
        group: the processes that share batches and validation cases.
    """

    def __init__(
        self, network: nn.Module, plan: Plan, optim: OptimConfig, clock: RunClock, group: Group = ALONE
    ) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.optim = optim
        self.clock = clock
        self.group = group
        self.scores: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, K, *S)` of a batch `(B, C, *S)`, at full resolution, in evaluation mode."""
        return self.network(channels_last(x))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch of patches, the whole batch where processes share it."""
        factor = lr_factor(self.optim, self.clock.progress)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = peak_rate(self.optim) * factor
        return deep_supervision_loss(self.forward(batch["image"]), batch["label"], world=self.group.world)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Segment one whole volume and keep its Dice; an empty item is nobody's case.

        MONAI gives no score to a case without a label whatever was predicted there; a made-up structure is 0 here.
        """
        if not batch:
            return
        predicted = classify_volume(
            batch["image"],
            self.forward,
            window=self.plan.patch_size,
            n_classes=len(self.plan.labels),
            slice_axis=self.plan.slice_axis,
            batch_size=self.plan.batch_size,
        )
        reference, n_labels = batch["label"].long(), len(self.plan.labels)
        dice = compute_dice(
            predicted[None, None], reference[None, None], include_background=False, num_classes=n_labels
        )
        counts = [map_.flatten().bincount(minlength=n_labels)[1:] for map_ in (predicted, reference)]
        self.scores[batch["case"]] = dice[0].masked_fill((counts[0] > 0) & (counts[1] == 0), 0.0).cpu()

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice over the cases, of all processes, that have a label or wrongly predict it.

        The cases are added up by name, so that the mean does not depend on who has which.
        """
        parts = self.group.gather(self.scores)
        scores = {name: part[name] for part in parts for name in part}
        if len(scores) != sum(len(part) for part in parts):
            raise RuntimeError("a validation case was given to two processes")
        per_label = torch.nanmean(torch.stack([scores[name] for name in sorted(scores)]), dim=0)
        self.scores = {}
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
