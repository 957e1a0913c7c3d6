"""The autograd function that normalises, activates and gates a map, and keeps nothing but its input.

A block of a U-Net ends in instance normalisation, leaky ReLU and a gate. One after the other they write the map three
times, and keep as many copies for the backward pass. Here the forward pass reads it twice or three times (for the
moments, for the mean behind a channel gate, for the result) and writes it once; the backward pass computes everything
anew from the input, in two passes whatever the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segscse.kernels import rows
from segscse.kernels.once import first_derivative_only
from segscse.kernels.rows import Row, Sum
from segscse.kernels.threads import bounds, run_in_parallel
from segscse.nets.dims import CHANNELS_LAST

# Numbers of a map below which one more thread costs more than it saves.
SHARE = 1 << 17


class Recalibrate(torch.autograd.Function):
    """See `segscse.kernels.parts.recalibrate`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        slope: float,
        channel_gate: Callable[[Tensor], Tensor] | None,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the map; of all that is computed on the way, only numbers per channel are kept."""
        source = _to_voxels(x)
        table = _table(source, gamma, beta, weight, eps)
        number = table.dtype.type
        ctx.scalars = (number(slope), weight is not None, number(0.0 if bias is None else bias.item()))
        ctx.pooled = None
        if channel_gate is not None:
            total = _add_up(rows.activation_sums, (source,), (source.shape[0], source.shape[2]), table, number(slope))
            ctx.pooled = _gate_of(channel_gate, total / source.shape[1], table, any(ctx.needs_input_grad))
            table[:, Row.GATE] = ctx.pooled[1].detach().numpy()
        elif weight is None:
            table[:, Row.GATE] = 1
        result, target = _empty(x)
        _share_out(source, lambda low, high: rows.forward_rows(source, target, low, high, table, *ctx.scalars))
        ctx.save_for_backward(x, gamma, weight, bias, *parameters)
        ctx.table = table
        return result

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the map and of all parameters."""
        x, gamma, weight, bias, *parameters = ctx.saved_tensors
        source, upstream, table = _to_voxels(x), _to_voxels(gradients[0].to(x.dtype)), ctx.table.copy()
        samples, voxels, channels = source.shape
        kept = np.empty((samples, voxels, 2), table.dtype)
        total = _add_up(rows.backward_sums, (source, upstream), (samples, 7, channels), table, *ctx.scalars, kept)
        of_gate: list[Tensor | None] = []
        if ctx.pooled is not None:
            mean, gate = ctx.pooled
            learned = [parameter for parameter in parameters if parameter.requires_grad]
            of_mean, *found = torch.autograd.grad(
                gate, (mean, *learned), torch.from_numpy(total[:, Sum.GATE]).to(gate.dtype), retain_graph=True
            )
            left = iter(found)
            of_gate = [next(left) if parameter.requires_grad else None for parameter in parameters]
            table[:, Row.POOLED] = of_mean.numpy() / voxels
            total[:, Sum.BETA] += table[:, Row.POOLED] * total[:, Sum.SLOPE]
            total[:, Sum.GAMMA] += table[:, Row.POOLED] * total[:, Sum.SLOPE_PRODUCT]
        if gamma is not None:
            table[:, Row.FACTOR] = table[:, Row.SCALE] * table[:, Row.GAMMA]
            table[:, Row.MEAN_GRADIENT] = total[:, Sum.BETA] / voxels
            table[:, Row.MEAN_PRODUCT] = total[:, Sum.GAMMA] / voxels
        result, target = _empty(x)
        arguments = (table, *ctx.scalars[:2], kept)
        _share_out(source, lambda low, high: rows.backward_rows(source, upstream, target, low, high, *arguments))
        sums = total.sum(axis=0)
        of_norm = (None, None) if gamma is None else (_like(gamma, sums[Sum.GAMMA]), _like(gamma, sums[Sum.BETA]))
        of_weight = None if weight is None else _like(weight, sums[Sum.WEIGHT])
        of_bias = None if bias is None else _like(bias, sums[Sum.BIAS, :1])
        return (result, *of_norm, of_weight, of_bias, None, None, None, *of_gate)


def _to_voxels(x: Tensor) -> np.ndarray:
    """Return `(B, C, *S)` as `(B, N, C)`, a view where memory is channels-last; bfloat16 as uint16."""
    voxels = x.detach().movedim(1, -1).reshape(x.shape[0], -1, x.shape[1]).contiguous()
    return voxels.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else voxels.numpy()


def _empty(x: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return an empty map of the shape and type of `x` in channels-last memory, and the same memory as voxels."""
    result = torch.empty(x.shape, dtype=x.dtype, memory_format=CHANNELS_LAST[x.ndim - 2])
    return result, _to_voxels(result)


def _numbers(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().flatten().numpy()


def _like(parameter: Tensor, gradient: np.ndarray) -> Tensor:
    return torch.from_numpy(gradient).to(parameter.dtype).reshape(parameter.shape)


def _table(
    source: np.ndarray, gamma: Tensor | None, beta: Tensor | None, weight: Tensor | None, eps: float
) -> np.ndarray:
    """Return the kernels' table, `(B, 10, C)`; the gate is still 0."""
    samples, voxels, channels = source.shape
    number = np.float64 if source.dtype == np.float64 else np.float32
    table = np.zeros((samples, len(Row), channels), number)
    table[:, [Row.SCALE, Row.GAMMA, Row.FACTOR]] = 1
    if gamma is not None and beta is not None:
        shift = source[:, 0]
        if source.dtype == np.uint16:
            shift = (shift.astype(np.uint32) << 16).view(np.float32)
        total = _add_up(rows.moments, (source,), (samples, 2, channels), np.ascontiguousarray(shift)) / voxels
        with np.errstate(invalid="ignore"):  # an image that is not finite stays so, without numpy's warning
            rstd = 1 / np.sqrt(np.maximum(total[:, 1] - total[:, 0] ** 2, 0) + eps)
        table[:, Row.SCALE] = rstd
        table[:, Row.OFFSET] = (total[:, 0] + shift) * rstd
        table[:, Row.GAMMA] = _numbers(gamma)
        table[:, Row.BETA] = _numbers(beta)
    if weight is not None:
        table[:, Row.WEIGHT] = _numbers(weight)
    return table


def _gate_of(
    channel_gate: Callable[[Tensor], Tensor], mean: np.ndarray, table: np.ndarray, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean and its channel gate, `(B, C)`, joined by an autograd graph when `differentiate`."""
    pooled = torch.from_numpy(mean.astype(table.dtype))
    if not differentiate:
        return pooled, channel_gate(pooled)
    with torch.enable_grad():
        pooled.requires_grad_()
        return pooled, channel_gate(pooled)


# ── Sharing the voxels out among threads ──


def _add_up(
    kernel: Callable[..., None], maps: tuple[np.ndarray, ...], shape: tuple[int, ...], *args: Any
) -> np.ndarray:
    """Return the sums, float64, that a kernel adds up over all voxels, the same whichever thread is the first."""
    totals: dict[int, np.ndarray] = {}

    def part(low: int, high: int) -> None:
        totals[low] = total = np.zeros(shape)
        kernel(*maps, low, high, *args, total)

    _share_out(maps[0], part)
    first, *others = (totals[low] for low in sorted(totals))
    return sum(others, start=first)


def _share_out(source: np.ndarray, work: Callable[[int, int], None]) -> None:
    """Call `work(low, high)` on ranges that cover all voxels, one a thread; small maps are not worth several."""
    voxels = source.shape[0] * source.shape[1]
    shares = max(1, min(torch.get_num_threads(), source.size // SHARE, voxels))
    cuts = bounds(voxels, shares)
    run_in_parallel(lambda index: work(cuts[index], cuts[index + 1]), shares)
