"""The model folder: `model.safetensors` and `model.json`; numbers and names, nothing that could run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from segscse.data.plan import Plan
from segscse.errors import InputError
from segscse.files import atomic_path, read_json, write_json

FORMAT = "segscse-model"
FORMAT_VERSION = 1
KEYS = ("format", "version", "plan", "network", "provenance")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model folder holds, checked.

    Attributes:
        plan: preprocessing, window and labels.
        network: arguments of `segscse.nets.unet.UNet`.
        provenance: versions, seed, data fingerprint, score: whatever the run recorded.
        weights: the network's state.
    """

    plan: Plan
    network: dict[str, Any]
    provenance: dict[str, Any]
    weights: dict[str, torch.Tensor]


def save_model(folder: Path, model: ModelFolder) -> None:
    """Write a model folder; the weights come first, because `model.json` says that the folder is whole."""
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "plan": model.plan.to_json(),
        "network": model.network,
        "provenance": model.provenance,
    }
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file({name: value.contiguous().cpu() for name, value in model.weights.items()}, temporary)
    write_json(folder / "model.json", description)


def find_model(path: str | Path) -> Path:
    """Return the folder with `model.json` for a model folder or a run folder.

    Raises:
        InputError: neither.
    """
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "model.json").is_file():
            return folder
    raise InputError(
        "holds no model (no model.json, no model/model.json)",
        file=path,
        remedy="Give a run folder or a model folder",
    )


def load_model(path: str | Path) -> ModelFolder:
    """Read a model folder, or a run folder's model.

    Raises:
        InputError: a file is missing, damaged or of another version.
    """
    folder = find_model(path)
    description = read_json(folder / "model.json")
    if not isinstance(description, Mapping) or set(description) != set(KEYS) or description["format"] != FORMAT:
        raise InputError("is no segscse model", file=folder / "model.json", remedy="Train or export it again")
    if description["version"] != FORMAT_VERSION:
        raise InputError(
            f"is of version {description['version']}, this segscse reads {FORMAT_VERSION}",
            file=folder / "model.json",
            remedy="Use the segscse that wrote it",
        )
    weights_file = folder / "model.safetensors"
    try:
        weights = load_file(weights_file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot be read ({error})", file=weights_file, remedy="Copy the model folder again"
        ) from error
    plan = Plan.from_json(description["plan"], folder / "model.json")
    if not all(isinstance(description[name], Mapping) for name in ("network", "provenance")):
        raise InputError("is no segscse model", file=folder / "model.json", remedy="Train or export it again")
    return ModelFolder(plan, dict(description["network"]), dict(description["provenance"]), weights)
