"""What loggers show beside the curves: an example prediction and the gates' statistics at every validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_rgb
from pytorch_lightning.callbacks import Callback

from segscse.attention import AttentionBlock
from segscse.data.plan import Plan
from segscse.evaluation.scene import grey_limits, label_colour
from segscse.inference.sliding_window import predict_volume
from segscse.training.loggers import GuardedLogger
from segscse.training.module import SegModule

_OPACITY = 0.45
_SAMPLE = 10_000  # gate weights in a histogram


class ValidationPictures(Callback):
    """Writes `example` (image, prediction, reference) and `gate/<layer>` at every validation.

    One window around the reference of the first validation case is segmented once more for it: next to the windows
    of a validation that costs nothing that can be measured (`tests/benchmarks/bench_tensorboard.py`).

    Args:
        plan: window, labels and axes.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._due = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the first case."""
        self._due = True

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the picture and the statistics of the first case."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, GuardedLogger) and logger.working]
        if not self._due or not batch or not loggers:
            return
        self._due = False
        assert isinstance(pl_module, SegModule)  # the trainer only ever gets one
        plan = self.plan
        image, label, axis = example_window(batch["image"], batch["label"], plan)
        with gate_weights(pl_module.network) as gates:
            logits = predict_volume(
                image,
                pl_module.forward,
                window=plan.patch_size,
                n_classes=len(plan.labels),
                slice_axis=plan.slice_axis,
            )
        picture = example_picture(image[0], logits.argmax(dim=0), label, axis, plan.label_ids)
        step = pl_module.clock.step
        scalars = {f"gate_{what}/{name}": value for name, gate in gates.items() for what, value in gate.moments.items()}
        for logger in loggers:
            logger.log_picture("example: image, prediction, reference", picture, step)
            logger.log_metrics(scalars, step)
            for name, gate in gates.items():
                logger.log_histogram(f"gate/{name}", gate.sample, step)


@dataclass(frozen=True, slots=True)
class GateStatistics:
    """What a block's gate did to one window.

    Attributes:
        mean: over all of its weights; `std` likewise.
        sample: up to 10000 of them, for a histogram, `(N,)` float32.
    """

    mean: float
    std: float
    sample: np.ndarray

    @property
    def moments(self) -> dict[str, float]:
        """Mean and standard deviation by name."""
        return {"mean": self.mean, "std": self.std}


def example_window(image: torch.Tensor, label: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Cut one window around the middle of the foreground from an image `(C, X, Y, Z)` and its label map `(X, Y, Z)`.

    Returns:
        Both cut, and the axis to show slices of: that of the 2D windows, else the one with the fewest voxels.
    """
    centre = foreground_centre(label)
    sizes = [1, 1, 1]
    for axis, size in zip(plan.window_axes, plan.patch_size, strict=True):
        sizes[axis] = size
    cut = []
    for at, size, extent in zip(centre, sizes, label.shape, strict=True):
        start = min(max(0, at - size // 2), max(0, extent - size))
        cut.append(slice(start, start + size))
    window = label[tuple(cut)]
    return image[(slice(None), *cut)], window, int(np.argmin(window.shape))


def foreground_centre(label: torch.Tensor) -> list[int]:
    """Return the voxel nearest to the foreground's centre of mass in `(X, Y, Z)`, or the middle without foreground."""
    mask = label > 0
    centre = []
    for axis, size in enumerate(label.shape):
        counts = mask.sum(dim=[other for other in range(label.ndim) if other != axis]).cpu().double()
        total = float(counts.sum())
        centre.append(round(float(counts @ torch.arange(size).double()) / total) if total else size // 2)
    return centre


def example_picture(
    image: torch.Tensor, predicted: torch.Tensor, label: torch.Tensor, axis: int, label_ids: tuple[int, ...]
) -> np.ndarray:
    """Return the slice with the most reference as RGB `(H, 3 W, 3)`, uint8: image, prediction, reference.

    Args:
        image: one channel, `(X, Y, Z)`.
        predicted: label map of the network's channels.
        label: reference, likewise.
        axis: the axis to cut.
        label_ids: label id of every channel, for its colour; the first is the background.
    """
    index = int((label > 0).sum(dim=[other for other in range(3) if other != axis]).argmax())
    grey, *maps = (array.select(axis, index).float().cpu().numpy() for array in (image, predicted, label))
    low, high = grey_limits(grey)
    base = np.repeat(np.clip((np.nan_to_num(grey) - low) / (high - low), 0, 1)[..., None], 3, axis=2)
    panels = [base]
    for labels in maps:
        panel = base.copy()
        for channel, label_id in enumerate(label_ids):
            if channel:
                mask = labels == channel
                panel[mask] = (1 - _OPACITY) * panel[mask] + _OPACITY * np.array(to_rgb(label_colour(label_id)))
        panels.append(panel)
    return np.rint(255 * np.concatenate(panels, axis=1)).astype(np.uint8)


@contextmanager
def gate_weights(network: torch.nn.Module) -> Iterator[dict[str, GateStatistics]]:
    """Collect, by layer, the statistics of the gates' weights in the next forward pass.

    Only of blocks whose gate multiplies the map: an affinity matrix or a choice among branches is no gate in that
    sense. A block within another block is not listed on its own.
    """
    found: dict[str, GateStatistics] = {}
    handles = []
    outer: list[str] = []

    def listen(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            assert isinstance(module, AttentionBlock)  # only these are listened to
            with torch.no_grad():
                weights = module.gate(inputs[0])
            multiplies = weights.ndim == inputs[0].ndim and all(
                size in (1, full) for size, full in zip(weights.shape, inputs[0].shape, strict=True)
            )
            if name not in found and multiplies and weights.numel() > 1:
                found[name] = gate_statistics(weights)

        return hook

    for name, module in network.named_modules():
        if not isinstance(module, AttentionBlock) or any(name.startswith(f"{parent}.") for parent in outer):
            continue
        outer.append(name)
        if not module.pairs_positions:  # that affinity matrix may be larger than all else
            handles.append(module.register_forward_hook(listen(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gate_statistics(weights: torch.Tensor) -> GateStatistics:
    """Sum up a gate's weights, of any shape.

    The sample is drawn at random, with a seed of its own: every n-th weight would be the same row or column of the map
    again and again where n is a multiple of its size.
    """
    flat = weights.float().flatten()
    sample = flat
    if len(flat) > _SAMPLE:
        sample = flat[torch.randint(len(flat), (_SAMPLE,), generator=torch.Generator().manual_seed(0)).to(flat.device)]
    return GateStatistics(float(flat.mean()), float(flat.std(correction=0)), sample.cpu().numpy())
