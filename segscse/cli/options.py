"""Types of flags that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Device = Literal["auto", "cpu", "cuda", "mps"]
Engine = Literal["auto", "torch", "openvino", "onnxruntime", "onnx"]
ExportEngine = Literal["openvino", "onnxruntime", "onnx"]
Devices = Annotated[int | None, Parameter(name="--devices")]
Nodes = Annotated[int | None, Parameter(name="--nodes")]
Labels = Annotated[Path | None, Parameter(name="--labels")]
Configs = Annotated[list[Path] | None, Parameter(name="--config", negative="")]
