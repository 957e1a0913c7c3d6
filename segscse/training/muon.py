"""Muon: momentum whose matrix is made orthogonal before it is subtracted; AdamW for what is no matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        super().__init__(groups, lr=lr, fused=True)

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
            by_size: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_size.setdefault(min(as_matrix(parameter).shape), []).append(parameter)
            for parameters in by_size.values():
                self._step_matrices(parameters, group["lr"], group["weight_decay"])
        return loss

    def _step_matrices(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """Step parameters whose matrices have as many rows, or columns, one as the other."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())  # AdamW looks for it when it reads a checkpoint
                state["momentum"] = torch.zeros_like(parameter)
            state["step"] += 1
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = orthogonal([as_matrix(update) for update in torch._foreach_lerp(gradients, momenta, MOMENTUM)])
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        for parameter, update in zip(parameters, updates, strict=True):
            kernel_last = parameter.movedim(1, -1)
            kernel_last.sub_(update.reshape(kernel_last.shape), alpha=0.2 * max(update.shape) ** 0.5 * lr)


def as_matrix(weights: Tensor) -> Tensor:
    """Return `(out, in, *kernel)` as a matrix `(out, kernel * in)` that shares the memory of channels-last weights."""
    return weights.movedim(1, -1).reshape(len(weights), -1)


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return about the nearest matrices whose singular values are all 1, by five Newton-Schulz steps in fp32.

    A step maps X to $(a I + b G + c G^2) X$ with $G = X X^T$. The polynomials are multiplied up in the small square
    matrices, of all X together, and applied to X once, which for convolutions saves most of the work.

    Args:
        matrices: whose smaller sides are equal.
    """
    wide = [(matrix.T if _tall(matrix) else matrix).float() for matrix in matrices]
    wide = [matrix / (matrix.norm() + 1e-7) for matrix in wide]
    products = _newton_schulz(torch.stack([matrix @ matrix.T for matrix in wide]))
    return [
        ((product @ x).T if _tall(matrix) else product @ x).to(matrix.dtype)
        for matrix, x, product in zip(matrices, wide, products, strict=True)
    ]


def _newton_schulz(gram: Tensor) -> Tensor:
    """Return what makes matrices X with products $X X^T$, `(B, n, n)`, orthogonal when multiplied from the left."""
    a, b, c = COEFFICIENTS
    identity = torch.eye(gram.shape[-1], device=gram.device)
    product = identity.expand_as(gram)
    for step in range(STEPS):
        factor = torch.baddbmm(a * identity + b * gram, gram, gram, alpha=c)
        product = factor if step == 0 else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    return product


def _tall(matrix: Tensor) -> bool:
    return matrix.shape[0] > matrix.shape[1]
