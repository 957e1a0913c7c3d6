"""Engines: what computes the network; PyTorch, OpenVINO and ONNX Runtime behind one call."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from segscse.errors import InputError
from segscse.hardware import autocast
from segscse.nets.dims import channels_last, network_to_channels_last

PACKAGES: dict[str, str] = {"torch": "torch", "openvino": "openvino", "onnxruntime": "onnxruntime"}
"""Engine to the package that it needs."""
EXTRAS: dict[str, str] = {"openvino": "openvino", "onnxruntime": "onnx", "onnxscript": "onnx", "nncf": "int8"}
"""Package to the extra of segscse that brings it."""
FORMATS = {"onnx": "onnxruntime"}
"""A graph's format, where that has another name, to the engine that runs it."""
OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class Engine(ABC):
    """Computes logits `(B, K, *window)` from normalised windows `(B, C, *window)`; the window has one size.

    Attributes:
        name: `torch`, `openvino` or `onnxruntime`.
        precision: `fp32`, `bf16`, `fp16` or `int8`: what it multiplies in.
        device: where windows are taken and logits returned.
    """

    name: str
    precision: str
    device: torch.device

    @abstractmethod
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K, *window)` of `windows`, `(B, C, *window)`."""

    def __str__(self) -> str:
        where = f" on {self.device.type}" if self.name == "torch" else ""
        return f"{self.name} {self.precision}{where}"


class TorchEngine(Engine):
    """PyTorch on CPU, CUDA or MPS, in eager mode and channels-last memory.

    Args:
        network: the U-Net, with its weights.
        device: where to run.
        precision: `bf16` runs under autocast, `fp32` as it is.
        spatial_dims: 2 or 3.
    """

    name = "torch"

    def __init__(self, network: torch.nn.Module, device: torch.device, precision: str, spatial_dims: int) -> None:
        self.network = network_to_channels_last(network.eval().to(device), spatial_dims)
        self.device = device
        self.precision = precision

    @torch.inference_mode()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits on the engine's device."""
        with autocast(self.device, self.precision):
            return self.network(channels_last(windows.to(self.device)))


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU, with as many threads as torch has.

    Args:
        model: an `openvino.Model` or the path of its `.xml`.
        precision: `fp32`; `half` for bf16 or fp16 where the hardware multiplies in it and fp32 elsewhere; `bf16` and
            `fp16` for just that (emulated, slowly, where the hardware lacks it); `int8` for a quantised model, whose
            other layers run as `half`.

    Raises:
        InputError: OpenVINO is not installed.
    """

    name = "openvino"
    device = torch.device("cpu")

    def __init__(self, model: Any, precision: str) -> None:
        core = _openvino_core()
        floats = half_precision(core) if precision in ("half", "int8") else precision
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": OPENVINO_TYPES[floats],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(model if not isinstance(model, Path) else str(model), "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        names = {short: name for name, short in OPENVINO_TYPES.items()}
        self.precision = "int8" if precision == "int8" else names[used]
        self._request = compiled.create_infer_request()

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits on the CPU; one call at a time."""
        inputs = windows.detach().cpu().float().contiguous().numpy()
        return torch.from_numpy(self._request.infer([inputs], share_inputs=True)[0])


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on the CPU in fp32, with as many threads as torch has.

    Args:
        model: the path of an ONNX file, or its bytes.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot read the model.
    """

    name = "onnxruntime"
    precision = "fp32"
    device = torch.device("cpu")

    def __init__(self, model: Path | bytes) -> None:
        onnxruntime = require("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        file, content = (model, str(model)) if isinstance(model, Path) else (None, model)
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no other base in common
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"onnxruntime cannot read it ({reason})", file=file, remedy="Export again") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits on the CPU."""
        inputs = windows.detach().cpu().float().contiguous().numpy()
        return torch.from_numpy(self._session.run(None, {self._input: inputs})[0])


def half_precision(core: Any) -> str:
    """Return `bf16` or `fp16` where OpenVINO's CPU device multiplies in it (AMX, AVX512-BF16, Arm), else `fp32`."""
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return next((name for name in ("bf16", "fp16") if name.upper() in offered), "fp32")


@cache
def _openvino_core() -> Any:
    """Return the process's one OpenVINO core, which lives to the end.

    Its CPU plugin gives the thread that loads it a stack for signals, and unmaps that when another thread lets go of
    the last core: the next signal, Ctrl-C for one, is then a segmentation fault.
    """
    return require("openvino").Core()


def installed(engine: str) -> bool:
    """Return whether an engine's package is there, without importing it."""
    return find_spec(PACKAGES[engine]) is not None


def require(package: str) -> Any:
    """Import an optional package.

    Raises:
        InputError: it is not installed; the remedy names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{package} is not installed ({error})", remedy=f"pip install 'segscse[{EXTRAS[package]}]'"
        ) from error
