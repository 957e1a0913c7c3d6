"""What the CPU kernels take: a map that they can read, a normalisation, a slope, and a gate in two parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from segscse.errors import InputError
from segscse.nets.dims import CHANNELS_LAST

MAX_CHANNELS = 1024
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
_counting: ContextVar[bool] = ContextVar("counting", default=False)


@dataclass(frozen=True, slots=True)
class GateParts:
    r"""A gate $g_c(z) + \sigma(w \cdot t(p) + w_0)$ of a map t with spatial mean z; a term may be absent, of both is 1.

    Attributes:
        channel: maps z, `(B, C)`, to $g_c$, `(B, C)`; None without this term.
        parameters: what `channel` learns.
        weight: w, C numbers in any shape; None without this term.
        bias: $w_0$, one number, or None.
    """

    channel: Callable[[Tensor], Tensor] | None = None
    parameters: tuple[Tensor, ...] = ()
    weight: Tensor | None = None
    bias: Tensor | None = None


def runs_here(x: Tensor) -> bool:
    """Return whether the kernels can take `x`: a map in channels-last memory of a CPU, not one that is traced."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or type(x) not in (Tensor, nn.Parameter):
        return False
    layout = CHANNELS_LAST.get(x.ndim - 2)
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and layout is not None
        and x.is_contiguous(memory_format=layout)
        and x.shape[1] <= MAX_CHANNELS
        and x.numel() > 0
    )


def watched(*modules: nn.Module | None) -> bool:
    """Return whether a hook waits at a layer or one of its parameters, which a kernel in its place would not call."""
    if _has_any_global_hook():
        return True
    for module in modules:
        for layer in () if module is None else module.modules():
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
                return True
            # A channel gate's parameters would have theirs called twice: by the kernel's own backward pass, too.
            for parameter in layer._parameters.values():
                if parameter is not None and parameter._backward_hooks:
                    return True
    return False


def recalibrate(
    x: Tensor,
    *,
    norm: tuple[Tensor, Tensor, float] | None = None,
    slope: float = 1.0,
    gate: GateParts | None = None,
) -> Tensor:
    r"""Return $t\,(g_c + g_s)$ with `t = leaky_relu(instance_norm(x))`, in its layout.

    Args:
        x: a map `(B, C, *S)` that `runs_here` accepts; the result has its shape and type.
        norm: weight and bias, `(C,)`, and epsilon of the instance normalisation; None for none.
        slope: of the leaky ReLU, above 0; 1 for none.
        gate: None for none.
    """
    weight, bias, eps = norm or (None, None, 0.0)
    parts = gate or GateParts()
    for what, given in (("normalisation", weight), ("spatial gate", parts.weight)):
        if given is not None and given.numel() != x.shape[1]:
            raise InputError(f"the {what} is of {given.numel()} channels, the map has {x.shape[1]}")
    if _counting.get():
        return _StandIn.apply(x, weight, parts.weight, parts.bias, *parts.parameters)
    # Numba takes a third of a second to import: only where it is needed.
    from segscse.kernels.function import Recalibrate

    return Recalibrate.apply(x, weight, bias, parts.weight, parts.bias, eps, slope, parts.channel, *parts.parameters)


@contextmanager
def counting() -> Iterator[None]:
    """In the body, keep what the kernels would keep and compute nothing: to count a network's memory, uncompiled."""
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)


class _StandIn(torch.autograd.Function):
    """Keeps what `segscse.kernels.function.Recalibrate` keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        return torch.zeros_like(x)
