"""Post-training quantisation to int8 by NNCF, and the windows of scans that it is calibrated and verified with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segscse.data.inputs import find_inputs
from segscse.data.network_grid import prepare_files
from segscse.data.plan import Plan
from segscse.errors import InputError
from segscse.inference.convert import quiet
from segscse.inference.engines import require
from segscse.inference.sliding_window import Network, window_starts
from segscse.types import Progress

MAX_CASES = 32
WINDOWS_PER_CASE = 8
# Windows of a scan in which foreground is looked for.
LOOKED_AT = 64


def calibration_windows(
    inputs: Sequence[Path], plan: Plan, network: Network, progress: Progress | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return windows `(1, C, *patch)` to calibrate with and, of other scans, windows to verify with.

    Up to 32 scans, spread over those given, each with up to 4 windows in which the network finds the most foreground
    and 4 that hold the most contrast. Every fourth scan verifies; with fewer than two the same windows do both.

    Args:
        inputs: scans, or folders of scans.
        plan: preprocessing and window.
        network: maps `(B, C, *window)` to logits `(B, K, *window)`.
        progress: called with the number of scans done and their total.

    Raises:
        InputError: a scan cannot be used, or there are none.
    """
    cases = list(find_inputs(list(inputs), len(plan.channels)).values())
    picks = np.unique(np.linspace(0, len(cases) - 1, min(MAX_CASES, len(cases))).round().astype(int))
    calibrate: list[torch.Tensor] = []
    verify: list[torch.Tensor] = []
    for done, pick in enumerate(picks, start=1):
        image = prepare_files(cases[pick], {plan.key: plan})[plan.key].image
        (verify if done % 4 == 2 else calibrate).extend(_telling(image, plan, network))
        if progress is not None:
            progress(done, len(picks))
    return calibrate, verify or calibrate


def quantise(model: Any, windows: Sequence[torch.Tensor]) -> Any:
    """Return an `openvino.Model` whose convolutions run in int8.

    Activations' ranges come from `windows`; weights are quantised symmetrically per channel, activations
    asymmetrically where they are not symmetric (NNCF's `mixed` preset, as after a leaky ReLU).

    Raises:
        InputError: NNCF is not installed, or it fails.
    """
    nncf = require("nncf")
    dataset = nncf.Dataset([window.numpy() for window in windows])
    try:
        with quiet():
            preset = nncf.QuantizationPreset.MIXED
            return nncf.quantize(model, dataset, preset=preset, subset_size=len(windows))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"NNCF cannot quantise the network ({reason})", remedy="Export without int8") from error


def _telling(image: torch.Tensor, plan: Plan, network: Network) -> list[torch.Tensor]:
    """Return windows `(1, C, *patch)` of an image `(C, X, Y, Z)`: half by foreground, half by variance.

    In a large image the network looks at those of most variance and at others, evenly spread.
    """
    windows = list(_windows(image, plan))
    ranked = sorted(range(len(windows)), key=lambda number: float(windows[number].var()), reverse=True)
    spread = np.linspace(0, len(windows) - 1, min(LOOKED_AT // 2, len(windows))).round().astype(int)
    looked_at = dict.fromkeys([*ranked[: LOOKED_AT // 2], *map(int, spread)])
    found = {number: int((network(windows[number]).argmax(dim=1) > 0).sum()) for number in looked_at}
    telling = [number for number in sorted(found, key=lambda number: -found[number]) if found[number]]
    chosen = dict.fromkeys([*telling[: WINDOWS_PER_CASE // 2], *ranked])
    return [windows[number].contiguous() for number in list(chosen)[:WINDOWS_PER_CASE]]


def _windows(image: torch.Tensor, plan: Plan) -> Iterator[torch.Tensor]:
    """Yield views of all windows `(1, C, *patch)` of an image."""
    batch = image[None] if plan.slice_axis is None else image.movedim(plan.slice_axis + 1, 0)
    padding = [(0, max(0, size - extent)) for extent, size in zip(batch.shape[2:], plan.patch_size, strict=True)]
    batch = torch.nn.functional.pad(batch, [edge for pair in reversed(padding) for edge in pair])
    sizes = zip(batch.shape[2:], plan.patch_size, strict=True)
    starts = [window_starts(extent, size, 0.5) for extent, size in sizes]
    for number, corner in product(range(len(batch)), product(*starts)):
        box = tuple(slice(low, low + size) for low, size in zip(corner, plan.patch_size, strict=True))
        yield batch[number][(slice(None), *box)][None]
