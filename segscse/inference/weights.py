"""Weights in a safetensors file: its header is checked before the library reads it; nothing in it can run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from segscse.errors import InputError
from segscse.files import MAX_TEXT_BYTES, parse_json, require_plain


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        InputError: it cannot be read, its header is not sound, or a number in it is NaN or infinite.
    """
    try:
        _check_header(path)
        weights = load_file(path)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot be read ({' '.join(str(error).split())})", file=path, remedy="Copy the model folder again"
        ) from error
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"holds NaN or infinity in {name}", file=path, remedy="Use another model")
    return weights


def check_shapes(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare a network, which may lie on the device `meta` and take no memory, with weights for it.

    Raises:
        ValueError: names, shapes or kinds of numbers differ.
    """
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() ^ weights.keys()):
        raise ValueError(f"{missing[0]} is in one of them only")
    for name, value in wanted.items():
        given = weights[name]
        if given.shape != value.shape or given.is_floating_point() != value.is_floating_point():
            raise ValueError(f"{name} is {_kind(given)}, the network takes {_kind(value)}")


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 over names, kinds and numbers of weights."""
    total = hashlib.sha256()
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):  # a module's extra state may be anything
            continue
        total.update(f"{name}: {_kind(value)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _kind(value: torch.Tensor) -> str:
    return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")


def _check_header(path: Path) -> None:
    """Refuse a header that is longer than the file or our limit, or is no strict JSON: names must not repeat.

    Offsets, shapes and types are the library's to check, which it does before it reads the numbers.
    """
    require_plain(path)
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_TEXT_BYTES, path.stat().st_size - 8):
            raise ValueError(f"its header would have {length} bytes")
        parse_json(stream.read(length))
