"""Attention blocks by name: `build_attention("scse", 32, spatial_dims=3)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from segscse.attention.bam import BAM
from segscse.attention.base import AttentionBlock
from segscse.attention.cbam import CBAM, CBAMChannel, CBAMSpatial
from segscse.attention.danet import ChannelAffinity, PositionAffinity
from segscse.attention.eca import ECA
from segscse.attention.placement import check_placement
from segscse.attention.project_excite import ProjectExcite
from segscse.attention.sk import SelectiveKernel
from segscse.attention.slicewise import DepthConvGate, ECADepth, SliceECA, SliceSE
from segscse.attention.squeeze import ChannelSE, ChannelSpatialSE, NoAttention, SpatialSE
from segscse.attention.weights import load_attention_weights
from segscse.errors import InputError, choose

__all__ = [
    "ALIASES",
    "ATTENTION",
    "BLOCKS",
    "PRESETS",
    "AttentionBlock",
    "block_options",
    "build_attention",
    "check_placement",
    "load_attention_weights",
]

BLOCKS: dict[str, type[AttentionBlock]] = {
    "none": NoAttention,
    "cse": ChannelSE,
    "sse": SpatialSE,
    "scse": ChannelSpatialSE,
    "eca": ECA,
    "slice_se": SliceSE,
    "slice_eca": SliceECA,
    "depth_conv_gate": DepthConvGate,
    "eca_depth": ECADepth,
    "project_excite": ProjectExcite,
    "cbam": CBAM,
    "cbam_channel": CBAMChannel,
    "cbam_spatial": CBAMSpatial,
    "bam": BAM,
    "sk": SelectiveKernel,
    "danet_cam": ChannelAffinity,
    "danet_pam": PositionAffinity,
}
"""Canonical name to class."""

ALIASES: dict[str, str] = {
    "se": "cse",
    "cSE": "cse",
    "cSEBlock": "cse",
    "Channel_SE": "cse",
    "SELayer": "cse",
    "SELayer3D": "cse",
    "sSE": "sse",
    "sSEBlock": "sse",
    "Spatial_SE": "sse",
    "scSE": "scse",
    "scSEblock": "scse",
    "Spatial_Channel_SE": "scse",
    "eca_layer": "eca",
    "ECA-3D": "eca",
    "eca3d": "eca",
    "SELayer3DNew": "slice_se",
    "eca_layer3d": "depth_conv_gate",
    "eca_depth_spatial_layer3d": "eca_depth",
    "pe": "project_excite",
    "CBAM": "cbam",
    "ChannelAttentionModule": "cbam_channel",
    "ChannelAttention": "cbam_channel",
    "ENCAM": "cbam_channel",
    "SpatialAttentionModule": "cbam_spatial",
    "BAM": "bam",
    "SKConv": "sk",
    "cam": "danet_cam",
    "CAM": "danet_cam",
    "pam": "danet_pam",
    "PAM": "danet_pam",
}
"""Other names under which the same blocks are known, to the canonical one."""

PRESETS: dict[str, dict[str, Any]] = {
    "ENCAM": {"reduction": 8, "bias": False},
    "ChannelAttention": {"reduction": 8, "bias": False},
    "SELayer3DNew": {"axis": 0},  # the code of that name keeps the slices in D of (B, C, D, H, W)
    "eca_layer3d": {"axis": 0},
    "eca_depth_spatial_layer3d": {"axis": 0},
}
"""Aliases that ask for another form of the canonical block, to its options; training gives an axis of its own.

Defaults of all other aliases are the canonical block's, whatever the code that first used the name has: a `SELayer`
there squeezes by 16 and has no bias, which is `SELayer:reduction=16:bias=false` here.
"""


def _builder(name: str) -> Callable[..., AttentionBlock]:
    block = BLOCKS[ALIASES.get(name, name)]
    return partial(block, **PRESETS[name]) if name in PRESETS else block


ATTENTION: dict[str, Callable[..., AttentionBlock]] = {name: _builder(name) for name in (*BLOCKS, *ALIASES)}
"""Every name, canonical or alias, to its builder `(channels, *, spatial_dims, **options)`."""


def build_attention(name: str, channels: int, *, spatial_dims: int, **options: Any) -> AttentionBlock:
    """Build an attention block for maps `(B, C, *S)`.

    Args:
        name: a key of `ATTENTION`.
        channels: C.
        spatial_dims: 2 or 3.
        **options: the block's own options; see `block_options(name)`.

    Returns:
        A module with `.gate(x)`, `.forward(x)`, `.out_channels` and `.kind`.

    Raises:
        InputError: the name, an option's name or a value is not one that the block knows.
    """
    if name not in ATTENTION:
        raise choose("attention block", str(name), ATTENTION)
    allowed = block_options(name)
    for option in options:
        if not allowed:
            raise InputError(f"attention block {name!r} takes no options, got {option!r}")
        if option not in allowed:
            raise choose(f"{name} option", option, allowed)
    return ATTENTION[name](channels, spatial_dims=spatial_dims, **options)


def block_options(name: str) -> dict[str, Any]:
    """Return the options of a block and their defaults."""
    if name not in ATTENTION:
        raise choose("attention block", str(name), ATTENTION)
    parameters = inspect.signature(ATTENTION[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("channels", "spatial_dims")}
