"""Parity: how far another engine's logits lie from PyTorch's, and how far they may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from segscse.data.plan import Plan
from segscse.inference.sliding_window import Network
from segscse.nets.dims import INTERPOLATION

PROBE_WINDOWS = 4
MADE_UP = "int8 on made-up windows"
"""Under this name an export records the parity of a quantised graph on `probe_windows`, beside that on scans."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a precision may differ by from PyTorch's 32-bit logits; see `Parity` for both numbers."""

    error: float
    flipped: float


# Rounding of 32-bit sums in another order gives 1e-6 to 1e-5 (1e-3 with TF32); bf16 keeps 8 bits of a number, and
# int8 is let in by what it does to the labels. A difference in the graph shows as an error of 0.1 to 2.
TOLERANCES = {
    "fp32": Tolerance(error=0.002, flipped=0.002),
    "bf16": Tolerance(error=0.05, flipped=0.02),
    "fp16": Tolerance(error=0.05, flipped=0.02),
    "int8": Tolerance(error=0.25, flipped=0.02),
}
# How much further from PyTorch than where it was exported a quantised graph may be on the same windows.
FURTHER = 1.5


@dataclass(frozen=True, slots=True)
class Parity:
    """Two sets of logits, compared.

    Attributes:
        error: root mean square of the difference, over the standard deviation of PyTorch's logits.
        flipped: voxels whose label differs, over the voxels that either calls foreground.
        windows: how many windows were compared.
        foreground: voxels that either calls foreground.
    """

    error: float
    flipped: float
    windows: int
    foreground: int

    def problem(self, precision: str, allowed: Tolerance | None = None) -> str | None:
        """Return why this is too far for a precision, or None; `allowed` takes the place of its tolerance."""
        allowed = allowed or TOLERANCES[precision]
        if self.error <= allowed.error and self.flipped <= allowed.flipped:  # NaN is no parity
            return None
        return (
            f"its logits differ from PyTorch's by {self.error:.3g} of their spread and {self.flipped:.3g} of the "
            f"foreground voxels change their label; allowed in {precision}: {allowed.error:g} and {allowed.flipped:g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready value."""
        return asdict(self)


def made_up_tolerance(precision: str, exported: Mapping[str, Any]) -> Tolerance:
    """Return how far a graph may be from PyTorch on `probe_windows`, given the parities that its export recorded.

    A graph that was quantised for scans changes more labels on windows that no scanner makes. Its export has compared
    it on scans; here it has to compute what it computed there, and its logits may never be further than int8's.
    """
    found = exported.get(MADE_UP)
    if precision != "int8" or not isinstance(found, Mapping):
        return TOLERANCES[precision]
    error, flipped = found.get("error"), found.get("flipped")
    if not isinstance(error, (int, float)) or not isinstance(flipped, (int, float)):
        return TOLERANCES[precision]
    least = TOLERANCES["fp32"]
    most = TOLERANCES["int8"].error
    return Tolerance(min(FURTHER * error + least.error, most), FURTHER * flipped + least.flipped)


def compare(network: Network, reference: Iterable[torch.Tensor], windows: Sequence[torch.Tensor]) -> Parity:
    """Compare a network with logits that PyTorch computes for the same windows.

    Args:
        network: maps `(B, C, *window)` to logits `(B, K, *window)`.
        reference: PyTorch's logits, `(B, K, *window)` for each of `windows`; of an iterator one is held at a time.
        windows: `(B, C, *window)`.
    """
    squares, total, total_squares, count = 0.0, 0.0, 0.0, 0
    differing, foreground = 0, 0
    for logits, window in zip(reference, windows, strict=True):
        expected, got = logits.cpu(), network(window).cpu()  # MPS has no 64 bits
        ours, theirs = got.argmax(dim=1), expected.argmax(dim=1)
        expected = expected.double()
        squares += (got - expected).square_().sum().item()
        total += expected.sum().item()
        total_squares += expected.square_().sum().item()
        count += expected.numel()
        differing += int((ours != theirs).sum())
        foreground += int(((ours > 0) | (theirs > 0)).sum())
    spread = (max(total_squares - total**2 / count, 0.0) / (count - 1)) ** 0.5
    error = (squares / count) ** 0.5 / max(spread, 1e-12)
    return Parity(error, differing / max(foreground, 1), sum(len(window) for window in windows), foreground)


def probe_windows(plan: Plan, count: int = PROBE_WINDOWS, seed: int = 0) -> list[torch.Tensor]:
    """Return made-up normalised windows `(1, C, *patch)`: smooth noise of three scales, mean 0, variance 1.

    They stand in for scans where none are given: the network's maps get structure of every size to answer to.
    """
    generator = torch.Generator().manual_seed(seed)
    mode = INTERPOLATION[plan.spatial_dims]
    windows = []
    for _ in range(count):
        total = torch.zeros(1, len(plan.channels), *plan.patch_size)
        for scale in (1, 4, 16):
            size = [max(1, -(-edge // scale)) for edge in plan.patch_size]
            noise = torch.randn(1, len(plan.channels), *size, generator=generator)
            total += F.interpolate(noise, size=plan.patch_size, mode=mode) * (scale**0.5)
        windows.append((total - total.mean()) / total.std().clamp(min=1e-6))
    return windows
