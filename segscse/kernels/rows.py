r"""Compiled loops over a channels-last map, `(B, N, C)`: voxel after voxel, the C channels of each side by side.

Every kernel takes a range of voxels of the whole batch, `low` to `high` of `B * N`, so that threads share a map, and
frees Python's lock. Maps are float32, float64, or bfloat16 seen as uint16; arithmetic is in the type of `table`, and
sums pass to float64 after `BLOCK` voxels.

`table` is `(B, 10, C)`, its rows named by `Row`: the numbers that turn a value into the result. With
$h = x\,\mathrm{scale} - \mathrm{offset}$ and $n = \gamma h + \beta$, the activation is $t = n$ where $n > 0$, else
$\mathrm{slope}\, n$, and the gate is $g + \sigma(w \cdot t + w_0)$.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from segscse.kernels.parts import MAX_CHANNELS

BLOCK = 256
# Voxels whose spatial gates are worked out together: vectors of them, and a map's rows that stay in the first cache.
TOGETHER = 64
# Sums may be reordered (that is what vectors need); NaN and infinity keep their meaning.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}

# What a kernel computes for a voxel goes through one flat work array, one row of it a quantity. With constant distances
# between the rows and a known largest C the compiler sees that they do not overlap, and makes vector loops of any
# length; rows that are no multiple of 4096 bytes apart do not wait for each other in the processor's store buffer.
STRIDE = MAX_CHANNELS + 40


class Row(IntEnum):
    """Rows of `table`; those from POOLED on serve the backward pass."""

    SCALE = 0
    OFFSET = 1
    GAMMA = 2
    BETA = 3
    GATE = 4
    WEIGHT = 5
    POOLED = 6
    FACTOR = 7
    MEAN_GRADIENT = 8
    MEAN_PRODUCT = 9


class Sum(IntEnum):
    """Rows of the sums of a backward pass, see `backward_sums`."""

    BETA = 0
    GAMMA = 1
    SLOPE = 2
    SLOPE_PRODUCT = 3
    GATE = 4
    WEIGHT = 5
    BIAS = 6


SCALE, OFFSET, GAMMA, BETA, GATE, WEIGHT, POOLED, FACTOR, MEAN_GRADIENT, MEAN_PRODUCT = (
    int(row) * STRIDE for row in Row
)
# Rows of the forward pass' work array: normalisation as n = product x + addend, weight and gate.
PRODUCT, ADDEND, WEIGHTS, GATES = (row * STRIDE for row in range(4))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call and keep the machine code on disk, where a folder can be written."""
    try:
        compiled: Any = njit(nogil=True, fastmath=FAST_MATH, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True, fastmath=FAST_MATH)(function)
    save = compiled._cache.save_overload

    def save_if_there_is_room(*compiled_for: Any) -> None:
        with suppress(OSError):  # a full disk or quota, on which a prediction need not fail
            save(*compiled_for)

    compiled._cache.save_overload = save_if_there_is_room
    return compiled


@intrinsic
def _from_bfloat16(context: Any, bits: Any) -> Any:
    """A bfloat16 is the upper half of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], word), word(16)), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _to_bfloat16(context: Any, value: Any) -> Any:
    """Round to nearest, ties to even. A NaN that arithmetic makes has upper bits that are not all 0, and keeps them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(arguments[0], word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.add(bits, builder.add(odd, word(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, word(16)), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _float_of(context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _sigmoids(values: Any, number: Any) -> None:
    """Put the sigmoid of the first values in their place."""


@overload(_sigmoids, inline="always", strict=False)
def _sigmoids_overload(values: Any, number: Any) -> Callable[..., Any]:
    return _sigmoids_32 if values.dtype == types.float32 else _sigmoids_64


def _sigmoids_64(values: Any, number: Any) -> None:
    for k in range(number):
        values[k] = 1 / (1 + np.exp(-values[k]))


# exp in 32 bits as in Cephes (expf): 2 ** n times a polynomial of the rest, which unlike a call makes vector loops.
_ONE, _HALF, _LOG2_E = np.float32(1), np.float32(0.5), np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87), np.float32(88)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


def _sigmoids_32(values: Any, number: Any) -> None:
    for k in range(number):
        x = -values[k]
        x = _LEAST if x < _LEAST else x
        x = _MOST if x > _MOST else x
        n = np.floor(x * _LOG2_E + _HALF)
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
        power = _float_of(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))  # type: ignore[call-arg, var-annotated]
        values[k] = _ONE / (_ONE + (p * r * r + r + _ONE) * power)


def _wide(stored: Any) -> Any:
    """Return a stored value as a number to compute with."""


@overload(_wide, inline="always", strict=False)
def _wide_overload(stored: Any) -> Callable[..., Any]:
    if isinstance(stored, types.Integer):
        return lambda stored: _from_bfloat16(stored)  # type: ignore[call-arg]
    return lambda stored: stored


def _narrow(array: Any, value: Any) -> Any:
    """Return a number as `array` stores it."""


@overload(_narrow, inline="always", strict=False)
def _narrow_overload(array: Any, value: Any) -> Callable[..., Any]:
    if isinstance(array.dtype, types.Integer):
        return lambda array, value: _to_bfloat16(value)  # type: ignore[call-arg]
    return lambda array, value: value


@_compiled
def moments(x: np.ndarray, low: int, high: int, shift: np.ndarray, total: np.ndarray) -> None:
    """Add the sums of `x - shift` and of its square to `total`, `(B, 2, C)`; `shift` is `(B, C)`.

    The shift, any value of the map, keeps the difference of the two from cancelling where the mean is far from 0.
    """
    voxels, channels = x.shape[1:]
    some = np.zeros((2, channels), shift.dtype)
    for sample in range(low // voxels, (high - 1) // voxels + 1):
        source, base = x[sample], shift[sample]
        begin, end = max(low - sample * voxels, 0), min(high - sample * voxels, voxels)
        for start in range(begin, end, BLOCK):
            some[:] = 0
            for voxel in range(start, min(start + BLOCK, end)):
                for c in range(channels):
                    difference = _wide(source[voxel, c]) - base[c]
                    some[0, c] += difference
                    some[1, c] += difference * difference
            total[sample] += some


@_compiled
def activation_sums(
    x: np.ndarray, low: int, high: int, table: np.ndarray, slope: np.floating, total: np.ndarray
) -> None:
    """Add the sums of the activation to `total`, `(B, C)`."""
    voxels, channels = x.shape[1:]
    some = np.zeros(channels, table.dtype)
    for sample in range(low // voxels, (high - 1) // voxels + 1):
        source, p = x[sample], table[sample]
        product, addend = p[0] * p[2], p[3] - p[1] * p[2]
        begin, end = max(low - sample * voxels, 0), min(high - sample * voxels, voxels)
        for start in range(begin, end, BLOCK):
            some[:] = 0
            for voxel in range(start, min(start + BLOCK, end)):
                for c in range(channels):
                    n = _wide(source[voxel, c]) * product[c] + addend[c]
                    some[c] += n if n > 0 else n * slope
            total[sample] += some


@_compiled
def forward_rows(
    x: np.ndarray,
    y: np.ndarray,
    low: int,
    high: int,
    table: np.ndarray,
    slope: np.floating,
    spatial: bool,
    bias: np.floating,
) -> None:
    """Write the activation times its gate; `spatial` says whether the gate has its sigmoid."""
    voxels, channels = x.shape[1], min(x.shape[2], MAX_CHANNELS)
    work, gates = np.empty(4 * STRIDE, table.dtype), np.zeros(TOGETHER, table.dtype)
    for sample in range(low // voxels, (high - 1) // voxels + 1):
        source, target, p = x[sample], y[sample], table[sample]
        work[PRODUCT : PRODUCT + channels] = p[0] * p[2]
        work[ADDEND : ADDEND + channels] = p[3] - p[1] * p[2]
        work[WEIGHTS : WEIGHTS + channels] = p[5]
        work[GATES : GATES + channels] = p[4]
        begin, end = max(low - sample * voxels, 0), min(high - sample * voxels, voxels)
        for start in range(begin, end, TOGETHER):
            stop = min(start + TOGETHER, end)
            if spatial:
                for voxel in range(start, stop):
                    logit = bias
                    for c in range(channels):
                        n = _wide(source[voxel, c]) * work[PRODUCT + c] + work[ADDEND + c]
                        logit += (n if n > 0 else n * slope) * work[WEIGHTS + c]
                    gates[voxel - start] = logit
                _sigmoids(gates, stop - start)
            for voxel in range(start, stop):
                gate = gates[voxel - start]
                for c in range(channels):
                    n = _wide(source[voxel, c]) * work[PRODUCT + c] + work[ADDEND + c]
                    t = n if n > 0 else n * slope
                    target[voxel, c] = _narrow(target, t * (work[GATES + c] + gate))


@_compiled
def backward_sums(  # noqa: C901, one nest of loops, which the compiler turns into vector code as a whole
    x: np.ndarray,
    dy: np.ndarray,
    low: int,
    high: int,
    table: np.ndarray,
    slope: np.floating,
    spatial: bool,
    bias: np.floating,
    kept: np.ndarray,
    total: np.ndarray,
) -> None:
    r"""Add what the gradients need to `total`, `(B, 7, C)`, and keep two numbers a voxel in `kept`, `(B, N, 2)`.

    With $s$ = 1 or the slope and $e$ the gradient of the activation but for what comes through its mean, the sums are
    $\sum s e$, $\sum s e h$, $\sum s$, $\sum s h$, then the gradients of g, w and $w_0$. The first two are linear in
    the gradient of the mean, so the third and fourth complete them once that is known, without another pass.
    """
    voxels, channels = x.shape[1], min(x.shape[2], MAX_CHANNELS)
    work, gates, dots = np.empty(12 * STRIDE, table.dtype), np.zeros(BLOCK, table.dtype), np.zeros(BLOCK, table.dtype)
    one = slope / slope
    for sample in range(low // voxels, (high - 1) // voxels + 1):
        source, upstream = x[sample], dy[sample]
        for k in range(6):
            work[k * STRIDE : k * STRIDE + channels] = table[sample, k]
        begin, end = max(low - sample * voxels, 0), min(high - sample * voxels, voxels)
        for start in range(begin, end, BLOCK):
            work[6 * STRIDE :] = 0
            stop, bias_sum = min(start + BLOCK, end), slope * 0
            if spatial:
                for voxel in range(start, stop):
                    logit, dot = bias, slope * 0
                    for c in range(channels):
                        h = _wide(source[voxel, c]) * work[SCALE + c] - work[OFFSET + c]
                        n = h * work[GAMMA + c] + work[BETA + c]
                        t = n if n > 0 else n * slope
                        logit += t * work[WEIGHT + c]
                        dot += t * _wide(upstream[voxel, c])
                    gates[voxel - start], dots[voxel - start] = logit, dot
                _sigmoids(gates, stop - start)
                for voxel in range(start, stop):
                    gate = gates[voxel - start]
                    dots[voxel - start] *= gate * (one - gate)
                    kept[sample, voxel, 0] = gate
                    kept[sample, voxel, 1] = dots[voxel - start]
                    bias_sum += dots[voxel - start]
            for voxel in range(start, stop):
                gate, dlogit = gates[voxel - start], dots[voxel - start]
                for c in range(channels):
                    h = _wide(source[voxel, c]) * work[SCALE + c] - work[OFFSET + c]
                    n = h * work[GAMMA + c] + work[BETA + c]
                    s, d = one if n > 0 else slope, _wide(upstream[voxel, c])
                    t = n * s
                    e = (d * (work[GATE + c] + gate) + dlogit * work[WEIGHT + c]) * s
                    work[6 * STRIDE + c] += e
                    work[7 * STRIDE + c] += e * h
                    work[8 * STRIDE + c] += s
                    work[9 * STRIDE + c] += s * h
                    work[10 * STRIDE + c] += d * t
                    work[11 * STRIDE + c] += dlogit * t
            for k in range(6):
                for c in range(channels):
                    total[sample, k, c] += work[(6 + k) * STRIDE + c]
            total[sample, 6, 0] += bias_sum


@_compiled
def backward_rows(
    x: np.ndarray,
    dy: np.ndarray,
    dx: np.ndarray,
    low: int,
    high: int,
    table: np.ndarray,
    slope: np.floating,
    spatial: bool,
    kept: np.ndarray,
) -> None:
    """Write the gradient of `x`."""
    voxels, channels = x.shape[1], min(x.shape[2], MAX_CHANNELS)
    work = np.empty(10 * STRIDE, table.dtype)
    one, gate, dlogit = slope / slope, slope * 0, slope * 0
    for sample in range(low // voxels, (high - 1) // voxels + 1):
        source, upstream, target = x[sample], dy[sample], dx[sample]
        for k in range(10):
            work[k * STRIDE : k * STRIDE + channels] = table[sample, k]
        for voxel in range(max(low - sample * voxels, 0), min(high - sample * voxels, voxels)):
            if spatial:
                gate, dlogit = kept[sample, voxel, 0], kept[sample, voxel, 1]
            for c in range(channels):
                h = _wide(source[voxel, c]) * work[SCALE + c] - work[OFFSET + c]
                s = one if h * work[GAMMA + c] + work[BETA + c] > 0 else slope
                e = _wide(upstream[voxel, c]) * (work[GATE + c] + gate) + dlogit * work[WEIGHT + c] + work[POOLED + c]
                rest = e * s - work[MEAN_GRADIENT + c] - h * work[MEAN_PRODUCT + c]
                target[voxel, c] = _narrow(target, work[FACTOR + c] * rest)
