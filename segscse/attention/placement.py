"""Where a gate may stand: straight after an instance normalisation, one that squeezes to means cannot see the image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from segscse.attention.base import AttentionBlock
from segscse.attention.squeeze import NoAttention
from segscse.errors import InputError
from segscse.nets.norm import InstanceNorm

_INSTANCE_NORMS = (InstanceNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_PASSES_ON = (nn.Identity, NoAttention, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""What leaves the map as it is, at least in evaluation."""


def check_placement(network: nn.Module) -> None:
    r"""Refuse a gate that directly follows an instance normalisation and squeezes to the channels' means.

    An instance normalisation gives channel c of every image the same mean, its own bias $\beta_c$ (0 without one).
    A gate of that mean alone is the same for every image: `cse`, `eca`, and a half of `scse`, `bam` and
    `eca_depth`. Gates with a maximum, with means per slice or axis, or without pooling see the image there, too.

    Found is what the order of modules tells: within `nn.Sequential` containers, nested ones included, whose
    `forward` is `nn.Sequential`'s own. Group normalisation with one channel a group counts as instance
    normalisation; identities and dropout between the two do not separate them.

    Args:
        network: any module.

    Raises:
        InputError: there is such a gate; the message names its position in `network`.
    """
    for name, module in network.named_modules():
        if not _runs_in_order(module):
            continue
        steps = [step for step in _steps(module, name) if not isinstance(step[1], _PASSES_ON)]
        for (before, norm), (position, gate) in pairwise(steps):
            if isinstance(gate, AttentionBlock) and gate.pools_to_mean and _normalises_by_instance(norm):
                raise InputError(
                    f"{type(gate).__name__} at {position!r} directly follows the {type(norm).__name__} at {before!r}, "
                    "after which the mean of every channel is the normalisation's own bias, the same for every image, "
                    "so the gate would not see the image",
                    remedy="Place the gate after the non-linearity",
                )


def _runs_in_order(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _steps(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that run one after the other, with their names, containers opened."""
    if not _runs_in_order(module):
        yield name, module
        return
    for key, child in module._modules.items():  # `named_children` leaves out a module's second occurrence
        if child is not None:
            yield from _steps(child, f"{name}.{key}" if name else key)


def _normalises_by_instance(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return isinstance(module, _INSTANCE_NORMS)
