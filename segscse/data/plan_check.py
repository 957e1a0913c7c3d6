"""Checks of a plan that was read from a file: what a stranger wrote there must be numbers that a plan can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segscse.data.plan import Plan

# Far beyond every use, and small enough that no memory is asked for that a plan of our own would not ask for.
MAX_PATCH_VOXELS = 2**27
MAX_BATCH = 4096
MAX_STAGES = 16
MAX_STRIDE = 16
MAX_KERNEL = 31
MAX_CHANNELS = 1024
MAX_LABELS = 10_000
SCHEMES = ("ct", "zscore", "zscore_nonzero")


def plan_problem(plan: Plan) -> str:
    """Return the first field of a plan whose value no plan can have, in words; nothing if all are good."""
    for name, good in _RULES.items():
        try:
            sound = good(plan)
        except (TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            return f"{name} is {_short(getattr(plan, name))}"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # True is an int, too


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _texts(values: Any, most: int) -> bool:
    return isinstance(values, tuple) and len(values) <= most and all(isinstance(item, str) for item in values)


def _stages(plan: Plan, stages: Any, good: Callable[[Any], bool]) -> bool:
    """Return whether there is one tuple per stage, each with one good number per axis of the network."""
    return 1 <= len(stages) <= MAX_STAGES and all(
        len(stage) == plan.spatial_dims and all(good(size) for size in stage) for stage in stages
    )


def _strides(plan: Plan) -> bool:
    return _stages(plan, plan.strides, lambda size: _whole(size, 1, MAX_STRIDE)) and set(plan.strides[0]) == {1}


def _kernels(plan: Plan) -> bool:
    odd = _stages(plan, plan.kernel_sizes, lambda size: _whole(size, 1, MAX_KERNEL) and size % 2 == 1)
    return odd and len(plan.kernel_sizes) == len(plan.strides)


def _patch(plan: Plan) -> bool:
    sizes = plan.patch_size
    whole = len(sizes) == plan.spatial_dims and all(_whole(size, 1, MAX_PATCH_VOXELS) for size in sizes)
    if not whole or not _strides(plan) or math.prod(sizes) > MAX_PATCH_VOXELS:
        return False
    return all(size % math.prod(steps) == 0 for size, steps in zip(sizes, zip(*plan.strides, strict=True), strict=True))


def _normalisation(plan: Plan) -> bool:
    return len(plan.normalisation) == len(plan.channels) and all(
        item.scheme in SCHEMES
        and all(_number(value) for value in (item.mean, item.std, item.low, item.high))
        and item.std > 0
        and item.low <= item.high
        for item in plan.normalisation
    )


def _labels(plan: Plan) -> bool:
    pairs = [(number, name) for number, name in plan.labels]
    sound = all(_whole(number, 0, 2**63 - 1) and isinstance(name, str) for number, name in pairs)
    unique = len({number for number, _ in pairs}) == len(pairs)
    return sound and unique and 1 <= len(pairs) <= MAX_LABELS and pairs[0][0] == 0


_RULES: dict[str, Callable[[Plan], bool]] = {
    "dataset": lambda plan: isinstance(plan.dataset, str),
    "spatial_dims": lambda plan: type(plan.spatial_dims) is int and plan.spatial_dims in (2, 3),
    "spacing_mm": lambda plan: len(plan.spacing_mm) == 3 and all(_number(mm) and mm > 0 for mm in plan.spacing_mm),
    "slice_axis": lambda plan: plan.slice_axis is None if plan.spatial_dims == 3 else _whole(plan.slice_axis, 0, 2),
    "strides": _strides,
    "kernel_sizes": _kernels,
    "patch_size": _patch,
    "batch_size": lambda plan: _whole(plan.batch_size, 1, MAX_BATCH),
    "channels": lambda plan: bool(plan.channels) and _texts(plan.channels, MAX_CHANNELS),
    "normalisation": _normalisation,
    "labels": _labels,
    "mirror_axes": lambda plan: (
        set(plan.mirror_axes) <= set(plan.window_axes)
        and len(set(plan.mirror_axes)) == len(plan.mirror_axes)
        and all(type(axis) is int for axis in plan.mirror_axes)
    ),
    "reasons": lambda plan: _texts(plan.reasons, MAX_LABELS),
}
