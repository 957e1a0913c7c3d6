"""What every attention block shares: the gate/apply contract, option checks and the fp32 arithmetic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segscse.errors import InputError, choose
from segscse.kernels.parts import GateParts, recalibrate, runs_here, watched
from segscse.nets.dims import batch_norm, check_spatial_dims, instance_norm

NORMS = ("group", "instance", "batch", "none")
HIDDEN_ACTS = ("relu", "none")


class AttentionBlock(nn.Module, ABC):
    """A block that keeps the shape of its input: `forward(x) = x * gate(x)` unless it says otherwise.

    Args:
        channels: C, the channels of the input `(B, C, *S)` and of the output.
        spatial_dims: number of axes in `*S`, 2 or 3.

    Attributes:
        kind: `"gate"` rescales a map and can follow any layer; `"conv"` takes a convolution's place.
        pools_to_mean: the gate or one of its halves sees only the mean of each channel over the whole map, which
            is the same for every image straight after an instance normalisation; see `check_placement`.
        pairs_positions: time, and without a fused kernel memory, grow with the square of the number of positions.
        out_channels: channels of the output.

    Raises:
        InputError: an argument is out of range.
    """

    kind: ClassVar[Literal["gate", "conv"]] = "gate"
    pools_to_mean: ClassVar[bool] = False
    pairs_positions: ClassVar[bool] = False
    _parts_hold: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        """Note whether `parts` still describes the gate: a subclass that changes the gate has to say its parts anew."""
        super().__init_subclass__()
        changed = not vars(cls).keys().isdisjoint(("forward", "apply_gate", "gate", "gate_of_mean"))
        cls._parts_hold = "parts" in vars(cls) or (cls._parts_hold and not changed)

    def __init__(self, channels: int, *, spatial_dims: int) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.channels = at_least("channels", channels, 1)
        self.spatial_dims = spatial_dims
        self.out_channels = channels

    @abstractmethod
    def gate(self, x: Tensor) -> Tensor:
        """Return the weights that rescale `x`; broadcastable to `x` unless the block says otherwise."""

    def parts(self) -> GateParts | None:
        """Return the gate in the form that the CPU kernels compute, or None when it is of another form."""
        return None

    def kernel_parts(self) -> GateParts | None:
        """Return `parts`; None where a subclass has changed what they describe."""
        return self.parts() if self._parts_hold else None

    def apply_gate(self, x: Tensor) -> Tensor:
        """Return the recalibrated map, `(B, C, *S)`; `forward` is this after a check of the input's shape."""
        parts = self.kernel_parts()
        # A channel gate alone is one mean and one product, which torch does as fast.
        if parts is not None and parts.weight is not None and runs_here(x) and not watched(self):
            return recalibrate(x, gate=parts)
        return x * self.gate(x).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return the recalibrated map, `(B, C, *S)`."""
        if x.ndim != self.spatial_dims + 2:
            raise InputError(
                f"{type(self).__name__} with spatial_dims={self.spatial_dims} takes an input of "
                f"{self.spatial_dims + 2} axes (B, C, *S), got {x.ndim}: {tuple(x.shape)}"
            )
        if x.shape[1] != self.channels and not torch.jit.is_tracing():
            raise InputError(f"{type(self).__name__} takes {self.channels} channels, got {tuple(x.shape)}")
        return self.apply_gate(x)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of this block."""
        return f"channels={self.channels}, spatial_dims={self.spatial_dims}"


class SqueezeMLP(nn.Module):
    """`fc2(act(fc1(z)))` on vectors `(..., C)`, in fp32 under any autocast: the two layers of an SE gate.

    Args:
        channels: C.
        reduction: r; the hidden width is `max(min_hidden, C // r)`.
        bias: whether both layers have a bias.
        min_hidden: floor of the hidden width. `C // r` is 0 for C < r, and then the gate is a constant.
        hidden_act: `"relu"`, or None for the linear form that circulates in some ports.
    """

    def __init__(self, channels: int, *, reduction: int, bias: bool, min_hidden: int, hidden_act: str | None) -> None:
        super().__init__()
        hidden = hidden_width(channels, reduction=reduction, min_hidden=min_hidden)
        self.hidden_act = one_of("hidden_act", hidden_act, HIDDEN_ACTS)
        self.fc1 = nn.Linear(channels, hidden, bias=flag("bias", bias))
        self.fc2 = nn.Linear(hidden, channels, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits of the gate, `(..., C)`, in fp32."""
        with no_autocast(z):
            hidden = linear_fp32(z, self.fc1)
            return linear_fp32(F.relu(hidden) if self.hidden_act == "relu" else hidden, self.fc2)


# ── Arithmetic ──


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return the context in which autocast does not touch operations on the device of `x`.

    A channel gate costs next to nothing, so fp32 is free there; `.float()` alone would be undone by the
    autocast of the next layer. Outside autocast it is empty, which keeps exported graphs plain.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or as it is when it is already that or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_fp32(z: Tensor, layer: nn.Linear) -> Tensor:
    """Return `layer(z)` in fp32 even when the weights are half precision; call it within `no_autocast`."""
    bias = None if layer.bias is None else fp32(layer.bias)
    return F.linear(fp32(z), fp32(layer.weight), bias)


def layer_norm_fp32(z: Tensor, norm: nn.Module) -> Tensor:
    """Return `norm(z)` in fp32, where `norm` comes from `vector_norm`; call it within `no_autocast`."""
    if not isinstance(norm, nn.LayerNorm):
        return z
    return F.layer_norm(z, norm.normalized_shape, fp32(norm.weight), fp32(norm.bias), norm.eps)


def mean_over(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the mean of `x` over `dims`, kept as axes of size 1 and accumulated in fp32."""
    return x.mean(dim=tuple(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def global_mean(x: Tensor) -> Tensor:
    """Return the spatial mean of `x`, `(B, C)`, in fp32."""
    return mean_over(x, range(2, x.ndim)).flatten(1)


def expand_like(z: Tensor, x: Tensor) -> Tensor:
    """Return `(B, C)` as `(B, C, 1, ...)` with the rank of `x`."""
    return z.reshape(*z.shape, *(1 for _ in range(x.ndim - 2)))


def logits_to_gate(logits: Tensor) -> Tensor:
    """Return `sigmoid(logits)` computed in fp32."""
    return torch.sigmoid(fp32(logits))


# ── Option checks ──


def at_least(option: str, value: int, minimum: int) -> int:
    """Return `value` when it is an integer not below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise InputError(f"{option} must be an integer of at least {minimum}, got {value!r}")
    return int(value)


def odd(option: str, value: int) -> int:
    """Return `value` when it is a positive odd integer; an even kernel would change the map's size."""
    if at_least(option, value, 1) % 2 == 0:
        raise InputError(f"{option} must be odd, got {value}", remedy=f"Use {value - 1} or {value + 1}")
    return value


def flag(option: str, value: bool) -> bool:
    """Return `value` when it is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{option} must be true or false, got {value!r}")
    return value


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> str:
    """Return `value` when it is among `allowed`, where None counts as `"none"`."""
    name = "none" if value is None else value
    if name not in allowed:
        raise choose(option, str(name), allowed)
    return name


def hidden_width(channels: int, *, reduction: int, min_hidden: int) -> int:
    """Return `max(min_hidden, channels // reduction)`."""
    return max(at_least("min_hidden", min_hidden, 1), channels // at_least("reduction", reduction, 1))


def norm_layer(norm: str | None, channels: int, *, spatial_dims: int) -> nn.Module:
    """Return the norm of a map `(B, C, *S)`: `"group"` (one group), `"instance"`, `"batch"` or None."""
    name = one_of("norm", norm, NORMS)
    if name == "group":
        return nn.GroupNorm(1, channels)
    if name == "instance":
        return instance_norm(spatial_dims)(channels, affine=True)
    return batch_norm(spatial_dims)(channels) if name == "batch" else nn.Identity()


def vector_norm(norm: str | None, width: int) -> nn.Module:
    """Return the norm of a hidden vector `(B, width)`: LayerNorm unless None.

    BatchNorm of a vector raises in training at batch size 1, so no named norm means that here.
    """
    if one_of("norm", norm, NORMS) == "none":
        return nn.Identity()
    if width == 1:
        raise InputError("a norm over 1 hidden unit is constant", remedy="Raise min_hidden or set norm to None")
    return nn.LayerNorm(width)
