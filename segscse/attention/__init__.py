"""Attention blocks by name: `build_attention("scse", 32, spatial_dims=3)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from segscse.attention.base import AttentionBlock
from segscse.attention.eca import ECA
from segscse.attention.squeeze import ChannelSE, ChannelSpatialSE, NoAttention, SpatialSE
from segscse.errors import InputError, choose

__all__ = ["ALIASES", "ATTENTION", "BLOCKS", "PRESETS", "AttentionBlock", "build_attention"]

BLOCKS: dict[str, type[AttentionBlock]] = {
    "none": NoAttention,
    "cse": ChannelSE,
    "sse": SpatialSE,
    "scse": ChannelSpatialSE,
    "eca": ECA,
}
"""Canonical name to class."""

ALIASES: dict[str, str] = {
    "se": "cse",
    "cSE": "cse",
    "SELayer": "cse",
    "SELayer3D": "cse",
    "sSE": "sse",
    "scSE": "scse",
    "eca_layer": "eca",
    "ECA-3D": "eca",
    "eca3d": "eca",
}
"""Other names under which the same blocks are known, to the canonical one."""

PRESETS: dict[str, dict[str, Any]] = {}
"""Aliases whose defaults differ from the canonical block's, to those defaults."""


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
