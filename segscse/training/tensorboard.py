"""What TensorBoard shows beside the curves: an example prediction and the gates' statistics at every validation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_rgb
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from segscse.attention import AttentionBlock
from segscse.data.plan import Plan
from segscse.evaluation.scene import grey_limits, label_colour
from segscse.inference.sliding_window import predict_volume
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
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if batch_idx or not boards or not trainer.is_global_zero:
            return
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
        for board in boards:
            board.add_image("example: image, prediction, reference", picture, step, dataformats="HWC")
            for name, weights in gates.items():
                board.add_histogram(f"gate/{name}", weights, step)
                board.add_scalar(f"gate_mean/{name}", float(weights.mean()), step)
                board.add_scalar(f"gate_std/{name}", float(weights.std(correction=0)), step)


def example_window(image: torch.Tensor, label: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Cut one window around the middle of the foreground from an image `(C, X, Y, Z)` and its label map `(X, Y, Z)`.

    Returns:
        Both cut, and the axis to show slices of: that of the 2D windows, else the one with the fewest voxels.
    """
    found = torch.nonzero(label)
    centre = found.float().mean(dim=0).round().long().tolist() if len(found) else [size // 2 for size in label.shape]
    sizes = [1, 1, 1]
    for axis, size in zip(plan.window_axes, plan.patch_size, strict=True):
        sizes[axis] = size
    cut = []
    for at, size, extent in zip(centre, sizes, label.shape, strict=True):
        start = min(max(0, at - size // 2), max(0, extent - size))
        cut.append(slice(start, start + size))
    window = label[tuple(cut)]
    return image[(slice(None), *cut)], window, int(np.argmin(window.shape))


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
def gate_weights(network: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect, by layer, a sample of the gates' weights from the next forward pass.

    Only of blocks whose gate multiplies the map: an affinity matrix or a choice among branches is no gate in that
    sense. A block within another block is not listed on its own.
    """
    found: dict[str, torch.Tensor] = {}
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
                flat = weights.float().flatten()
                found[name] = flat[:: max(1, flat.numel() // _SAMPLE)].cpu()

        return hook

    for name, module in network.named_modules():
        if isinstance(module, AttentionBlock) and not any(name.startswith(f"{parent}.") for parent in outer):
            outer.append(name)
            handles.append(module.register_forward_hook(listen(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
