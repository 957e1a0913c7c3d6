"""From a PyTorch network to the graph of another engine: window size fixed, any number of windows a call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from segscse.errors import InputError
from segscse.inference.engines import require

OPSET = 18


def to_openvino(network: torch.nn.Module, channels: int, window: Sequence[int]) -> Any:
    """Return the network as `openvino.Model`, input `(?, C, *window)`.

    The graph is traced: `torch.export` would take the norm apart into eleven operations, which OpenVINO then computes
    one by one; a trace keeps it whole (its `MVN`).

    Raises:
        InputError: OpenVINO is not installed, or a layer has no counterpart there.
    """
    openvino = require("openvino")
    example = torch.randn(2, channels, *window, generator=torch.Generator().manual_seed(0))
    with quiet(), torch.inference_mode(), _converting("OpenVINO"):
        model = openvino.convert_model(network.eval(), example_input=example, input=[(-1, channels, *window)])
    model.inputs[0].set_names({"image"})
    model.outputs[0].set_names({"logits"})
    return model


def to_onnx(network: torch.nn.Module, channels: int, window: Sequence[int]) -> bytes:
    """Return the network as an ONNX file's bytes, input `image` `(batch, C, *window)`, output `logits`.

    Raises:
        InputError: onnxscript is not installed, or a layer has no counterpart in ONNX.
    """
    require("onnxscript")
    example = torch.randn(2, channels, *window, generator=torch.Generator().manual_seed(0))
    with quiet(), torch.no_grad(), _converting("ONNX"):
        program = torch.onnx.export(
            network.eval(),
            (example,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # without a file name the program is returned
    return program.model_proto.SerializeToString()


@contextmanager
def _converting(target: str) -> Iterator[None]:
    """Turn what a converter raises, of many types, into one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        raise InputError(
            f"the network cannot be expressed in {target} ({reason})",
            remedy="Predict with --engine torch, or export to the other format",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the converters' notes to developers from a user's terminal, and their hands off the logging of others.

    OpenVINO's converter sets the root logger's level, filters and handlers.
    """
    root = logging.root
    previous, level, filters, handlers = root.manager.disable, root.level, root.filters[:], root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers
