"""Export: one folder that predicts without training code, written only when it computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from segscse.errors import InputError, choose
from segscse.files import atomic_folder, atomic_path
from segscse.inference.convert import to_onnx, to_openvino
from segscse.inference.engines import FORMATS, Engine, OnnxRuntimeEngine, OpenVinoEngine, TorchEngine, require
from segscse.inference.model_folder import ExportedGraph, ModelFolder, load_model, save_model
from segscse.inference.parity import MADE_UP, Parity, compare, probe_windows
from segscse.inference.select import build_network, reference_engine, trained_precision
from segscse.limits import require_disk
from segscse.types import Progress

Precision = Literal["auto", "fp32", "bf16", "int8"]


def export_model(
    run: str | Path,
    out: str | Path,
    *,
    engines: Sequence[str] = ("openvino",),
    precision: Precision = "auto",
    calibrate: Sequence[Path] = (),
    progress: Progress | None = None,
) -> ModelFolder:
    """Write a run's model with its network as graphs of other engines; the folder appears when all of it is right.

    Each graph is compared with PyTorch in fp32 first, on windows of `calibrate` or on made-up ones, within
    `segscse.inference.parity.TOLERANCES`.

    Args:
        run: a run folder or a model folder.
        out: the new folder; must not exist, or be empty.
        engines: `openvino`, `onnxruntime` (also `onnx`), or both.
        precision: of OpenVINO: `fp32`; `bf16`, which means half precision where the hardware has it; `int8`, which
            needs `calibrate`; `auto` is bf16 unless the model was made to be fp32. ONNX is always fp32.
        calibrate: scans to calibrate int8 with, and to compare on.
        progress: called with the number of scans read and their total.

    Raises:
        InputError: a package is missing, the disk is too small, the network cannot be converted, or its output
            differs too much.
    """
    model = load_model(run)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("exists already", file=out, remedy="Give another folder with --out")
    engines = [FORMATS.get(engine, engine) for engine in engines]
    _check(engines, precision, calibrate)
    _require_room(model, out, len(engines), precision)
    chosen = "fp32" if precision == "auto" and trained_precision(model.provenance) == "fp32" else precision
    network = build_network(model)
    reference = reference_engine(network, model.plan)
    calibration, windows = _windows(model, calibrate, reference, progress)
    with atomic_folder(out) as folder:
        graphs = []
        if "openvino" in engines:
            graphs.append(_openvino(model, reference, folder, chosen, calibration, windows))
        if "onnxruntime" in engines:
            graphs.append(_onnx(model, reference, folder, windows))
        exported = replace(model, engines=tuple(graphs), folder=out)
        save_model(folder, exported)
    return exported


def _check(engines: Sequence[str], precision: str, calibrate: Sequence[Path]) -> None:
    """Refuse what cannot work before any time is spent on it."""
    if precision == "int8" and not calibrate:
        raise InputError("int8 needs scans to calibrate with", remedy="Give some training scans with --calibrate")
    if precision in ("bf16", "int8") and "openvino" not in engines:
        raise InputError(f"ONNX Runtime computes in fp32 here, not in {precision}", remedy="Add --engine openvino")
    needed = {"openvino": ["openvino"], "onnxruntime": ["onnxruntime", "onnxscript"]}
    for engine in engines:
        if engine not in needed:
            raise choose("engine", engine, needed)
        for package in needed[engine] + (["nncf"] if (engine, precision) == ("openvino", "int8") else []):
            require(package)


def _require_room(model: ModelFolder, out: Path, n_graphs: int, precision: str) -> None:
    """Refuse a disk on which the weights do not fit, once for PyTorch and once a graph."""
    weights = sum(value.nbytes for value in model.weights.values())
    least = weights * (1 + n_graphs / (4 if precision == "int8" else 1))
    require_disk("the model", out, least, least, "Free disk space, or choose another --out")


def _windows(
    model: ModelFolder, calibrate: Sequence[Path], reference: TorchEngine, progress: Progress | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    if not calibrate:
        return [], probe_windows(model.plan)
    from segscse.inference.quantise import calibration_windows  # reads images

    return calibration_windows(calibrate, model.plan, reference, progress)


def _openvino(
    model: ModelFolder,
    reference: TorchEngine,
    folder: Path,
    precision: str,
    calibration: Sequence[torch.Tensor],
    windows: Sequence[torch.Tensor],
) -> ExportedGraph:
    openvino = require("openvino")
    graph: Any = to_openvino(reference.network, len(model.plan.channels), model.plan.patch_size)
    found = [_verified(OpenVinoEngine(graph, "fp32"), reference, windows)]
    kept = {"fp32": "fp32", "int8": "int8"}.get(precision, "half")
    if kept == "half":
        found.append(_verified(OpenVinoEngine(graph, "bf16"), reference, windows))
    if kept == "int8":
        from segscse.inference.quantise import quantise

        graph = quantise(graph, calibration)
        engine, made_up = OpenVinoEngine(graph, "int8"), probe_windows(model.plan)
        beside = compare(engine, map(reference, made_up), made_up)
        found = [_verified(engine, reference, windows), (MADE_UP, beside.to_json())]
    # The pair is written by OpenVINO itself, under the names that the `.xml` is opened by.
    openvino.save_model(graph, str(folder / "openvino.xml"), compress_to_fp16=False)
    return ExportedGraph("openvino", kept, ("openvino.xml", "openvino.bin"), dict(found))


def _onnx(model: ModelFolder, reference: TorchEngine, folder: Path, windows: Sequence[torch.Tensor]) -> ExportedGraph:
    content = to_onnx(reference.network, len(model.plan.channels), model.plan.patch_size)
    found = _verified(OnnxRuntimeEngine(content), reference, windows)
    with atomic_path(folder / "model.onnx") as temporary:
        temporary.write_bytes(content)
    return ExportedGraph("onnxruntime", "fp32", ("model.onnx",), dict([found]))


def _verified(engine: Engine, reference: TorchEngine, windows: Sequence[torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the precision that ran and how near it is.

    Raises:
        InputError: it is not near enough, or it was quantised and there is no foreground to tell by.
    """
    parity: Parity = compare(engine, map(reference, windows), windows)
    if engine.precision == "int8" and not parity.foreground:
        raise InputError(
            f"not exported: in the {parity.windows} windows of scans that int8 is verified on, nothing is found",
            remedy="Give --calibrate more scans, with what the model is to find",
        )
    if problem := parity.problem(engine.precision):
        remedy = "Export with --precision fp32" if engine.precision != "fp32" else "Predict with --engine torch"
        raise InputError(f"not exported: in {engine.name}, {problem}", remedy=remedy)
    return engine.precision, parity.to_json()
