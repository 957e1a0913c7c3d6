"""The model folder: `model.json`, `model.safetensors`, exported graphs; numbers and names, nothing that could run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from segscse.data.plan import Plan
from segscse.errors import InputError
from segscse.files import atomic_path, read_json, sha256_of, write_json
from segscse.inference.postprocess import label_of_step
from segscse.inference.weights import read_weights
from segscse.settings import SETTINGS

FORMAT = "segscse-model"
FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
KEYS_1 = ("format", "version", "plan", "network", "provenance")
KEYS = (*KEYS_1, "postprocessing", "engines", "sha256")
GRAPHS = {"openvino": ".xml", "onnxruntime": ".onnx"}
"""Engine to the suffix of the file that it opens; by another one OpenVINO would take it for another format."""
PRECISIONS = ("fp32", "half", "int8")
MAX_FEATURES = 65_536


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """The network as another engine reads it.

    Attributes:
        engine: `openvino` or `onnxruntime`.
        precision: `fp32`; `half`: bf16 or fp16 where the hardware multiplies in it; `int8`: quantised.
        files: names in the model folder; the first is the one that the engine opens.
        parity: what the export found, per precision that it ran: see `segscse.inference.parity.Parity`; for int8 also
            on `segscse.inference.parity.MADE_UP`.
    """

    engine: str
    precision: str
    files: tuple[str, ...]
    parity: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model folder holds, checked.

    Attributes:
        plan: preprocessing, window and labels.
        network: arguments of `segscse.nets.unet.UNet`.
        provenance: versions, seed, data fingerprint, score: whatever the run recorded.
        weights: the network's state.
        postprocessing: steps after the arg max, in order; see `segscse.inference.postprocess`.
        engines: exported graphs.
        folder: where it was read.
    """

    plan: Plan
    network: dict[str, Any]
    provenance: dict[str, Any]
    weights: dict[str, torch.Tensor]
    postprocessing: tuple[str, ...] = ()
    engines: tuple[ExportedGraph, ...] = ()
    folder: Path | None = None


def save_model(folder: Path, model: ModelFolder) -> None:
    """Write a model folder: the weights, and `model.json`, which says with every file's SHA-256 that it is whole.

    Both are written aside and then moved one right after the other, so that the model before is there until then. The
    files of `model.engines` must already lie in `folder`.
    """
    with atomic_path(folder / "model.json") as description, atomic_path(folder / WEIGHTS) as weights:
        # Not by `save_file`, whose files none but their owner may read.
        weights.write_bytes(save({name: value.contiguous().cpu() for name, value in model.weights.items()}))
        files = {name: folder / name for graph in model.engines for name in graph.files}
        content = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "plan": model.plan.to_json(),
            "network": model.network,
            "provenance": model.provenance,
            "postprocessing": list(model.postprocessing),
            "engines": [asdict(graph) for graph in model.engines],
            "sha256": {name: sha256_of(path) for name, path in {WEIGHTS: weights, **files}.items()},
        }
        write_json(description, content)


def set_postprocessing(path: str | Path, steps: Sequence[str]) -> None:
    """Change the steps after the arg max of a model; nothing is written where they are the same.

    Args:
        path: a model folder, or a run folder.
        steps: see `segscse.inference.postprocess`.

    Raises:
        InputError: no model there.
    """
    file = find_model(path) / "model.json"
    description = _description(file)
    if description["postprocessing"] != list(steps):
        write_json(file, {**read_json(file), "postprocessing": list(steps)})


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


def find_members(path: str | Path) -> list[Path]:
    """Return the folders of the models that a folder stands for: its own, or those of a cross-validation's folds.

    Raises:
        InputError: neither, or a fold or the cross-validation is not finished.
    """
    remedy = "Finish the cross-validation with --resume, or give the folds to be used one by one"
    named = [fold for fold in sorted(Path(path).glob("fold*")) if fold.name.removeprefix("fold").isdecimal()]
    folds = [fold for fold in named if (fold / "model" / "model.json").is_file()]
    for fold in folds:
        if not (fold / "validation" / "summary.json").is_file():
            raise InputError(
                "is not finished: this fold of the cross-validation has not been scored",
                file=fold,
                remedy=remedy,
            )
    begun = (Path(path) / SETTINGS).is_file()
    if folds and begun and not (Path(path) / "evaluation" / "summary.json").is_file():
        names = ", ".join(fold.name for fold in folds)
        raise InputError(f"is a cross-validation of which only {names} are finished", file=path, remedy=remedy)
    return [fold / "model" for fold in folds] or [find_model(path)]


def load_model(path: str | Path) -> ModelFolder:
    """Read a model folder, or a run folder's model, after comparing every file with its checksum.

    Folders of version 1, which have no checksums, are read, too.

    Raises:
        InputError: a file is missing, damaged, not the one that was written, of another version, or describes what no
            run writes.
    """
    folder = find_model(path)
    file = folder / "model.json"
    description = _description(file)
    if description["version"] != 1:
        _verify(folder, description["sha256"])
    plan = Plan.from_json(description["plan"], file)
    _check_ranges(description["provenance"], file)
    _check_steps(description["postprocessing"], plan, file)
    _check_network(description["network"], plan, file)
    return ModelFolder(
        plan=plan,
        network=dict(description["network"]),
        provenance=dict(description["provenance"]),
        weights=read_weights(folder / WEIGHTS),
        postprocessing=tuple(description["postprocessing"]),
        engines=tuple(_graph(item, description, file) for item in description["engines"]),
        folder=folder,
    )


def _description(file: Path) -> dict[str, Any]:
    value = read_json(file)
    no_model = InputError("is no segscse model", file=file, remedy="Train or export it again")
    if not isinstance(value, Mapping) or value.get("format") != FORMAT or "version" not in value:
        raise no_model
    if value["version"] not in (1, FORMAT_VERSION):
        raise InputError(
            f"is of version {value['version']}, this segscse reads 1 and {FORMAT_VERSION}",
            file=file,
            remedy="Use the segscse that wrote it",
        )
    if set(value) != set(KEYS_1 if value["version"] == 1 else KEYS):
        raise no_model
    description = {"postprocessing": [], "engines": [], "sha256": {}, **value}
    kinds = {"network": Mapping, "provenance": Mapping, "postprocessing": list, "engines": list, "sha256": Mapping}
    if not all(isinstance(description[name], kind) for name, kind in kinds.items()):
        raise no_model
    return description


def _verify(folder: Path, sums: Mapping[str, Any]) -> None:
    """Refuse a folder whose files are not those that were written; names must stay within the folder."""
    if WEIGHTS not in sums or not all(re.fullmatch(r"[\w-][\w.-]*", name) for name in sums):
        raise InputError("is no segscse model", file=folder / "model.json", remedy="Train or export it again")
    for name, expected in sums.items():
        if sha256_of(folder / name) != expected:
            raise InputError(
                "is not the file that was written (its SHA-256 is another)",
                file=folder / name,
                remedy="Copy the model folder again",
            )


def _check_network(network: Mapping[str, Any], plan: Plan, file: Path) -> None:
    """Refuse a network that the plan does not imply; its sizes must be whole numbers before anything is built."""
    implied = {
        "spatial_dims": plan.spatial_dims,
        "in_channels": len(plan.channels),
        "out_channels": len(plan.labels),
        "strides": [list(stride) for stride in plan.strides],
        "kernel_sizes": [list(kernel) for kernel in plan.kernel_sizes],
    }
    wrong = [name for name, value in implied.items() if network.get(name) != value]
    features = network.get("features")
    if (
        not isinstance(features, list)
        or len(features) != len(plan.strides)
        or not all(type(size) is int and 1 <= size <= MAX_FEATURES for size in features)
    ):
        wrong.append("features")
    if wrong:
        raise InputError(
            f"network and plan do not fit ({wrong[0]} is {str(network.get(wrong[0]))[:80]})",
            file=file,
            remedy="Copy the model folder again",
        )


def _check_steps(steps: Sequence[Any], plan: Plan, file: Path) -> None:
    """Refuse steps after the arg max that are not known, or not of this model's labels, each once."""
    chosen = [label_of_step(step) for step in steps]
    if len(set(chosen)) < len(chosen) or not set(chosen) <= set(plan.label_ids[1:]):
        raise InputError(
            f"asks for the postprocessing {str(steps)[:80]}, which this segscse does not know",
            file=file,
            remedy="Use the segscse that wrote it",
        )


def _check_ranges(provenance: Mapping[str, Any], file: Path) -> None:
    """Refuse a record whose volumes and pieces, the parts of it that predictions are compared with, are no numbers."""
    volumes = provenance.get("label_volumes_ml", {})
    pairs = list(volumes.values()) if isinstance(volumes, Mapping) else [None]
    if not all(
        isinstance(pair, list) and [type(item) in (int, float) for item in pair] == [True] * 2 for pair in pairs
    ):
        raise InputError(
            f"has a record of label volumes that is none ({str(volumes)[:80]})",
            file=file,
            remedy="Copy the model folder again",
        )
    pieces = provenance.get("label_pieces", {})
    if not isinstance(pieces, Mapping) or not all(type(most) is int for most in pieces.values()):
        raise InputError(
            f"has a record of label pieces that is none ({str(pieces)[:80]})",
            file=file,
            remedy="Copy the model folder again",
        )


def _graph(item: Any, description: Mapping[str, Any], file: Path) -> ExportedGraph:
    """Read an exported graph's description; every file of it must have been verified."""
    try:
        graph = ExportedGraph(item["engine"], item["precision"], tuple(item["files"]), dict(item["parity"]))
        known = graph.engine in GRAPHS and graph.precision in PRECISIONS and bool(graph.files)
        known = known and set(graph.files) <= set(description["sha256"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError("is no segscse model", file=file, remedy="Export it again") from error
    if not known or not graph.files[0].endswith(GRAPHS[graph.engine]):
        raise InputError(
            f"lists an unknown engine, or a file of another kind or without a checksum: {graph.engine}, "
            f"{', '.join(map(str, graph.files))}",
            file=file,
            remedy="Export it again",
        )
    return graph
