"""Which engine predicts: the one asked for, or the fastest here that computes what PyTorch computes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from segscse.data.plan import Plan
from segscse.errors import InputError, choose
from segscse.hardware import pick_precision, working_device
from segscse.inference.engines import (
    EXTRAS,
    FORMATS,
    PACKAGES,
    Engine,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    TorchEngine,
    installed,
)
from segscse.inference.manifest import folder_digest
from segscse.inference.model_folder import ExportedGraph, ModelFolder
from segscse.inference.parity import compare, made_up_tolerance, probe_windows
from segscse.inference.remembered import Trial, measurement_key, recall, remember
from segscse.inference.weights import check_shapes
from segscse.nets.build import build_unet

REPEATS = 3


def load_engine(model: ModelFolder, name: str, device: str) -> tuple[Engine, tuple[Trial, ...]]:
    """Return the engine for a model, ready, and what `auto` tried.

    Args:
        model: a model folder that was read.
        name: `torch`; `openvino` or `onnxruntime` (also `onnx`): the folder's graph, which its export has
            verified, or else a graph that is made and verified now; `auto`: PyTorch or one of the folder's graphs.
        device: `auto`, `cpu`, `cuda` or `mps`; graphs run on the CPU.

    Raises:
        InputError: unknown, not installed, not for this device, or too far from PyTorch.
    """
    name = FORMATS.get(name, name)
    if name == "auto":
        return _fastest(model, device)
    if name not in PACKAGES:
        raise choose("engine", name, ("auto", *PACKAGES))
    if name == "torch":
        return _torch_engine(model, working_device(device)), ()
    if device not in ("auto", "cpu"):
        raise InputError(f"{name} runs on the CPU here, not on {device!r}", remedy="Use --engine torch or --device cpu")
    graph = next((graph for graph in model.engines if graph.engine == name), None)
    return (_convert(model, name) if graph is None else _open(model, graph)), ()


def build_network(model: ModelFolder) -> torch.nn.Module:
    """Return the U-Net with the model's weights, in evaluation mode.

    Raises:
        InputError: weights and description do not fit.
    """
    try:
        with torch.device("meta"):  # sizes of a stranger's choice are compared before memory is taken for them
            check_shapes(build_unet(model.network), model.weights)
        network = build_unet(model.network)
        network.load_state_dict(model.weights)
    except InputError as error:
        raise InputError(error.problem, file=error.file or model.folder, remedy=error.remedy) from error
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"weights and description do not fit ({str(error).splitlines()[0]})",
            file=model.folder,
            remedy="Copy the model folder again",
        ) from error
    return network.eval()


def reference_engine(network: torch.nn.Module, plan: Plan, device: torch.device | None = None) -> TorchEngine:
    """Return PyTorch in fp32, which every other engine is compared with."""
    return TorchEngine(network, device or torch.device("cpu"), "fp32", plan.spatial_dims)


def trained_precision(provenance: Mapping[str, Any]) -> Literal["auto", "bf16", "fp32"]:
    """Return `fp32` for a model that its maker asked to train in 32 bit, else `auto`."""
    found: Any = provenance
    for name in ("config", "train", "precision"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return "fp32" if found == "fp32" else "auto"


def _torch_engine(model: ModelFolder, device: torch.device) -> TorchEngine:
    precision = pick_precision(trained_precision(model.provenance), device)
    return TorchEngine(build_network(model), device, precision, model.plan.spatial_dims)


def _open(model: ModelFolder, graph: ExportedGraph) -> Engine:
    if model.folder is None:
        raise ValueError("a model that lies in no folder has no graphs")
    file = model.folder / graph.files[0]
    if not installed(graph.engine):
        raise InputError(
            f"{graph.engine} is not installed",
            remedy=f"pip install 'segscse[{EXTRAS[graph.engine]}]' or use --engine torch",
        )
    try:
        return OpenVinoEngine(file, graph.precision) if graph.engine == "openvino" else OnnxRuntimeEngine(file)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-300:]
        raise InputError(f"{graph.engine} cannot read it ({reason})", file=file, remedy="Export again") from error


def _convert(model: ModelFolder, name: str) -> Engine:
    """Make the graph now, for a model that was not exported, and compare it with PyTorch."""
    from segscse.inference.convert import to_onnx, to_openvino

    network = build_network(model)
    channels, window = len(model.plan.channels), model.plan.patch_size
    if name == "openvino":
        precision = "fp32" if trained_precision(model.provenance) == "fp32" else "half"
        engine: Engine = OpenVinoEngine(to_openvino(network, channels, window), precision)
    else:
        engine = OnnxRuntimeEngine(to_onnx(network, channels, window))
    windows = probe_windows(model.plan)
    reference = reference_engine(network, model.plan)
    parity = compare(engine, [reference(one) for one in windows], windows)
    if problem := parity.problem(engine.precision):
        raise InputError(f"{name} cannot be used: {problem}", remedy="Use --engine torch")
    return engine


def _fastest(model: ModelFolder, device: str) -> tuple[Engine, tuple[Trial, ...]]:
    """Return the fastest engine that agrees with PyTorch, as it was measured here before, or is now.

    With no graph that could run there is nothing to compare, and PyTorch is taken as it is.
    """
    graphs = [graph for graph in model.engines if installed(graph.engine) and device in ("auto", "cpu")]
    if not graphs or model.folder is None:
        return _torch_engine(model, working_device(device)), ()
    key = measurement_key(folder_digest(model.folder), device)
    if (known := recall(key)) is not None:
        taken, trials = known
        if taken == "torch":
            return _torch_engine(model, working_device(device)), trials
        if graph := next((graph for graph in graphs if graph.engine == taken), None):
            return _open(model, graph), trials
    engine, trials = _measure(model, graphs, device)
    remember(key, engine.name, trials)
    return engine, trials


def _measure(model: ModelFolder, graphs: Sequence[ExportedGraph], device: str) -> tuple[Engine, tuple[Trial, ...]]:
    """Time PyTorch and the graphs on this model's window; of those that agree with PyTorch, take the fastest."""
    torch_engine = _torch_engine(model, working_device(device))
    windows = probe_windows(model.plan)
    reference = reference_engine(build_network(model), model.plan)
    expected = [reference(window) for window in windows]
    batch = windows[0].expand(model.plan.batch_size, *windows[0].shape[1:]).contiguous()
    trials = []
    if torch_engine.device.type != "cpu":
        # Systems' own libraries have computed convolutions wrongly; a GPU's 32 bits may be fewer inside (TF32).
        problem = compare(torch_engine, expected, windows).problem("bf16")
        if problem is not None:
            trials.append(Trial(str(torch_engine), float("inf"), problem))
            torch_engine = _torch_engine(model, torch.device("cpu"))
    best: Engine = torch_engine
    shortest = _seconds(torch_engine, batch)
    trials.append(Trial(str(torch_engine), 1000 * shortest / len(batch)))
    for graph in graphs:
        try:
            engine = _open(model, graph)
        except InputError as error:
            trials.append(Trial(graph.engine, float("inf"), error.problem))
            continue
        allowed = made_up_tolerance(engine.precision, graph.parity)
        if problem := compare(engine, expected, windows).problem(engine.precision, allowed):
            trials.append(Trial(str(engine), float("inf"), problem))
            continue
        seconds = _seconds(engine, batch)
        trials.append(Trial(str(engine), 1000 * seconds / len(batch)))
        if seconds < shortest:
            best, shortest = engine, seconds
    return best, tuple(trials)


def _seconds(engine: Engine, batch: torch.Tensor) -> float:
    """Return the shortest of three calls, or of two when they are long; the first warms up."""
    batch = batch.to(engine.device)
    times: list[float] = []
    while len(times) < (REPEATS if not times or min(times) < 0.25 else 2):
        start = time.perf_counter()
        engine(batch).cpu()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def describe(trials: Sequence[Trial]) -> str:
    """Return what `auto` tried, in one line."""
    return ", ".join(
        f"{trial.engine} {trial.ms_per_window:.0f} ms a window" if trial.problem is None else f"{trial.engine}: refused"
        for trial in trials
    )
