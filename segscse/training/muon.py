"""Muon: momentum whose matrix is made orthogonal before it is subtracted; AdamW for what is no matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# Quintic of the Newton-Schulz iteration: its fixed points spread over 0.7 to 1.2, which five steps reach from 1e-2 on.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for convolutions, AdamW for the rest.

    A convolution's weights `(out, in, *kernel)` are a matrix `(out, in * kernel)`. Its Nesterov momentum is replaced by
    the nearest matrix with orthogonal rows (or columns), so that every direction of the layer learns at one pace. As in
    Liu et al., arXiv 2502.16982, eq. 4, the step is scaled by `0.2 sqrt(max(out, in * kernel))`, AdamW's usual size,
    so that one learning rate and one decoupled weight decay serve both.

    Args:
        groups: as for AdamW; groups with `orthogonal` true hold parameters of two or more axes.
        lr: learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = self.param_groups
        matrices = [group for group in everything if group.get("orthogonal")]
        self.param_groups = [group for group in everything if not group.get("orthogonal")]
        try:
            super().step()
        finally:
            self.param_groups = everything
        for group in matrices:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_matrix(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _step_matrix(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when it reads a checkpoint
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonal(as_matrix(torch.lerp(gradient, momentum, MOMENTUM)))
        parameter.mul_(1 - lr * weight_decay)
        scale = 0.2 * max(update.shape) ** 0.5 * lr
        kernel_last = parameter.movedim(1, -1)
        kernel_last.sub_(update.reshape(kernel_last.shape), alpha=scale)


def as_matrix(weights: Tensor) -> Tensor:
    """Return `(out, in, *kernel)` as a matrix `(out, kernel * in)` that shares the memory of channels-last weights."""
    return weights.movedim(1, -1).reshape(len(weights), -1)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are all 1, by five Newton-Schulz steps in fp32.

    A step maps X to $(a I + b G + c G^2) X$ with $G = X X^T$. The polynomials are multiplied up in the small square
    matrices and applied to X once, which for a convolution saves most of the work.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = identity = torch.eye(len(x), device=x.device)
    for step in range(STEPS):
        factor = torch.addmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor if step == 0 else factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return (x.T if tall else x).to(matrix.dtype)
