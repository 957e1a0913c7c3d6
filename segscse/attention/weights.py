"""Reading attention weights that other code saved, by the names that its modules have there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product

import torch
from torch import Tensor

from segscse.attention.base import AttentionBlock
from segscse.attention.cbam import CBAM, CBAMChannel, CBAMSpatial
from segscse.attention.danet import ChannelAffinity, PositionAffinity
from segscse.attention.project_excite import ProjectExcite
from segscse.attention.slicewise import ECADepth
from segscse.attention.squeeze import ChannelSE, ChannelSpatialSE, SpatialSE
from segscse.errors import InputError

Layout = dict[str, str]  # our module or parameter -> its name in the foreign file

_MLP: tuple[Layout, ...] = tuple(
    {"mlp.fc1": fc1, "mlp.fc2": fc2}
    for fc1, fc2 in (
        ("fc1", "fc2"),  # ai-med's squeeze_and_excitation, PyMIC, wolny
        ("fc.0", "fc.2"),  # SENet ports, MONAI
        ("1", "3"),  # segmentation_models.pytorch, inside its `cSE`
        ("conv1", "conv2"),
        ("Conv_Squeeze", "Conv_Excitation"),
        ("mlp.1", "mlp.3"),  # CBAM's authors
        ("shared_MLP.0", "shared_MLP.2"),
        ("mlp.0", "mlp.2"),
    )
)
_SSE: tuple[Layout, ...] = tuple({"conv": name} for name in ("0", "squeeze", "Conv1x1", "Conv1x1x1"))
_SCSE_PARTS = (("cse", "sse"), ("cSE", "sSE"), ("channel_att", "spatial_att"))
_CBAM_SPATIAL: tuple[Layout, ...] = (
    {"conv": "spatial.conv", "norm": "spatial.bn"},  # CBAM's authors
    {"conv": "conv2d"},
    {"conv": "conv1"},
)
_CBAM_PARTS = (("ChannelGate", "SpatialGate"), ("channel_attention", "spatial_attention"), ("ca", "sa"))


def load_attention_weights(block: AttentionBlock, state_dict: Mapping[str, Tensor], *, prefix: str = "") -> None:
    r"""Copy weights that other code saved into `block`, by name; both 1x1 convolutions and Linear layers fit.

    Read are, besides the block's own names:

    - `cse`, `cbam_channel`: `fc1/fc2` (ai-med's squeeze_and_excitation), `fc.0/fc.2` (SENet ports, MONAI),
      `1/3` (segmentation_models.pytorch), `conv1/conv2`, `Conv_Squeeze/Conv_Excitation`, `mlp.1/mlp.3`,
      `mlp.0/mlp.2` and `shared_MLP.0/shared_MLP.2`;
    - `sse`: `0`, `squeeze`, `Conv1x1` and `Conv1x1x1`;
    - `scse`: the names of `cse` and `sse` within `cSE/sSE` or `channel_att/spatial_att`;
    - `eca_depth`: `conv_spatial/conv_depth`; `project_excite`: `conv_c/conv_cT` (ai-med);
    - `cbam`: the names of `cbam_channel` within `ChannelGate/SpatialGate` (the authors),
      `channel_attention/spatial_attention` or `ca/sa`;
    - `danet_cam`: `gamma.scale`; `danet_pam`: `query_conv/key_conv/value_conv`.

    `bam` and `sk` take their own names only.

    Names do not tell what the other code computes with the weights: choose the options to match. ai-med
    joins scSE by `"max"`, segmentation_models.pytorch by `"add"`; `Conv_Squeeze` ports have no ReLU
    (`hidden_act=None`); the layers of `SELayer3DNew` act on slices and fit no block here. A bias that the
    file lacks becomes 0, which computes the same.

    Args:
        block: what `build_attention` returned.
        state_dict: the saved tensors.
        prefix: reads only the keys that start with it, e.g. `"decoder.blocks.0.attention1.attention."`.

    Raises:
        InputError: no known layout fits the keys exactly, or a shape differs. The block is then unchanged.
    """
    given = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    given = {k: v for k, v in given.items() if not k.endswith("num_batches_tracked")}
    own = {k: v for k, v in block.state_dict().items() if not k.endswith("num_batches_tracked")}
    for layout in ({}, *_layouts(block)):
        names = {key: _foreign_name(key, layout) for key in own}
        required = {name for key, name in names.items() if not _optional(key)}
        if required <= given.keys() <= set(names.values()):
            _copy(own, given, names)
            return
    raise InputError(
        f"no known layout of {type(block).__name__} fits the keys {_listed(given)}"
        + (f" under the prefix {prefix!r}" if prefix else ""),
        remedy=f"Its own layout is {_listed(own)}; give `prefix` to pick one block out of a network, and "
        "build the block with bias=True if the keys have a bias",
    )


def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    wrong = [
        f"{names[key]} has shape {tuple(given[names[key]].shape)}, expected {tuple(value.shape)}"
        for key, value in own.items()
        if names[key] in given and _core(given[names[key]].shape) != _core(value.shape)
    ]
    if wrong:
        remedy = "Build the block with the channels, reduction, min_hidden and kernel_size of these weights"
        raise InputError("; ".join(wrong), remedy=remedy)
    with torch.no_grad():
        for key, value in own.items():
            name = names[key]
            value.copy_(given[name].reshape(value.shape)) if name in given else value.zero_()


def _layouts(block: AttentionBlock) -> Iterable[Layout]:
    return _LAYOUTS.get(type(block), tuple)()


def _scse_layouts() -> Iterable[Layout]:
    for (cse, sse), mlp, spatial in product(_SCSE_PARTS, _with_own(_MLP), _with_own(_SSE, "conv")):
        yield _nest("cse", cse, mlp) | _nest("sse", sse, spatial)


def _cbam_layouts() -> Iterable[Layout]:
    for (channel, spatial), mlp, sp in product(_CBAM_PARTS, _MLP, _with_own(_CBAM_SPATIAL, "conv")):
        yield _nest("channel", channel, mlp) | _nest("spatial", spatial, sp)


def _with_own(layouts: Iterable[Layout], *modules: str) -> Iterable[Layout]:
    """Return `layouts` and, before them, the one in which `modules` keep our names."""
    return ({name: name for name in modules or ("mlp.fc1", "mlp.fc2")}, *layouts)


def _nest(ours: str, theirs: str, layout: Layout) -> Layout:
    return {f"{ours}.{key}": f"{theirs}.{name}" for key, name in layout.items()}


def _foreign_name(key: str, layout: Layout) -> str:
    for ours, theirs in layout.items():
        if key == ours or key.startswith(ours + "."):
            return theirs + key[len(ours) :]
    return key


def _optional(key: str) -> bool:
    return key.endswith(".bias") and "norm" not in key


def _core(shape: torch.Size) -> tuple[int, ...]:
    """Return `shape` without the trailing ones in which 1x1 convolutions and Linear layers differ."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _listed(keys: Iterable[str], most: int = 12) -> str:
    names = sorted(keys)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "(none)"


_LAYOUTS: dict[type[AttentionBlock], Callable[[], Iterable[Layout]]] = {
    ChannelSE: lambda: _MLP,
    CBAMChannel: lambda: _MLP,
    SpatialSE: lambda: _SSE,
    ChannelSpatialSE: _scse_layouts,
    CBAMSpatial: lambda: _CBAM_SPATIAL,
    CBAM: _cbam_layouts,
    ECADepth: lambda: ({"depth.conv": "conv_spatial", "channel.conv": "conv_depth"},),
    ProjectExcite: lambda: ({"fc1": "conv_c", "fc2": "conv_cT"},),
    ChannelAffinity: lambda: ({"gamma": "gamma.scale"},),
    PositionAffinity: lambda: ({"query": "query_conv", "key": "key_conv", "value": "value_conv"},),
}
