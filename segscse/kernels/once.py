"""Functions whose gradient is a kernel's, and has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from segscse.errors import InputError


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the backward pass of an autograd function: it computes a gradient, and refuses to be differentiated itself.

    torch's `once_differentiable` alone notices that only where the gradient from above can be differentiated; else a
    part of the second derivative would be missing in silence.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # by `create_graph`
            raise InputError(
                "segscse's kernels have no second derivative",
                remedy="Compute what is differentiated twice by torch's own operations, on maps in contiguous memory",
            )
        return once(ctx, *gradients)

    return checked
