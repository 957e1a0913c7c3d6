"""The one place that knows both sides: a plan and a model configuration in, a UNet out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segscse.attention import block_options
from segscse.attention.spec import read_spec
from segscse.config import AttentionConfig, ModelConfig
from segscse.data.plan import Plan, coarsest_axis
from segscse.nets.unet import POSITIONS, UNet, build_gate


def network_arguments(plan: Plan, config: ModelConfig) -> dict[str, Any]:
    """Return the arguments of `UNet` as builtin values, as `model.json` keeps them."""
    return {
        "spatial_dims": plan.spatial_dims,
        "in_channels": len(plan.channels),
        "out_channels": len(plan.labels),
        "features": [min(config.base_features * 2**i, config.max_features) for i in range(len(plan.strides))],
        "strides": [list(stride) for stride in plan.strides],
        "kernel_sizes": [list(kernel) for kernel in plan.kernel_sizes],
        "attention": {position: list(_spec(position, config.attention, plan)) for position in POSITIONS},
        "block": config.block,
        "deep_supervision": config.deep_supervision,
    }


def check_attention(config: ModelConfig) -> None:
    """Refuse attention that no network can have, before any data are read.

    Raises:
        InputError: a name or an option is unknown, a value is none that the block can have, or the block is none for
            this number of spatial axes or replaces a convolution.
    """
    for position in POSITIONS:
        build_gate(_spec(position, config.attention), config.base_features, config.spatial_dims)


def build_unet(arguments: Mapping[str, Any]) -> UNet:
    """Build the network that `network_arguments` describes."""
    return UNet(**arguments)


def without_axes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network whose slice-wise gates take the axis of their name, whatever the spacing."""
    attention = {
        position: [name, {option: value for option, value in options.items() if option != "axis"}]
        for position, (name, options) in arguments["attention"].items()
    }
    return {**arguments, "attention": attention}


def _spec(position: str, config: AttentionConfig, plan: Plan | None = None) -> tuple[str, dict[str, Any]]:
    """Return the name of a block, and those of its options that configuration and plan decide."""
    name, options = read_spec(getattr(config, position))
    known = block_options(name)
    if config.reduction is not None and "reduction" in known:
        options.setdefault("reduction", config.reduction)
    if plan is not None and plan.slice_axis is None and "axis" in known:
        options.setdefault("axis", coarsest_axis(plan.spacing_mm, plan.patch_size))
    return name, options
