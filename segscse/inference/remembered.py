"""What `auto` found out about a model on this machine, kept in the user's cache for the next command."""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from segscse.errors import InputError
from segscse.files import digest, read_json, write_json
from segscse.hardware import cpu_name, pick_precision


@dataclass(frozen=True, slots=True)
class Trial:
    """What `auto` found out about an engine: milliseconds a window, or why it was not taken (then infinite)."""

    engine: str
    ms_per_window: float
    problem: str | None = None


def measurement_key(model: str, device: str) -> str:
    """Return a digest of everything that a measurement depends on.

    Args:
        model: digest of the model folder.
        device: as it was asked for.
    """
    versions = {}
    for package in ("segscse", "torch", "openvino", "onnxruntime"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    with_gpus = device != "cpu" and torch.cuda.is_available()
    # A home folder may be shared by many machines, and a machine's name by several, as of a container's.
    machine = [
        *(platform.node(), platform.machine(), cpu_name(), torch.backends.cpu.get_cpu_capability()),
        *(torch.get_num_threads(), pick_precision("auto", torch.device("cpu"))),
        *(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()) if with_gpus),
        torch.backends.mps.is_available(),
    ]
    return digest({"model": model, "device": device, "versions": versions, "machine": machine})


def recall(key: str) -> tuple[str, tuple[Trial, ...]] | None:
    """Return the engine that was taken and what was tried; None where nothing usable is kept."""
    try:
        kept = read_json(_path(key))
        trials = [Trial(one["engine"], one["ms_per_window"] or math.inf, one["problem"]) for one in kept["trials"]]
        return str(kept["taken"]), tuple(trials)
    except (InputError, KeyError, TypeError, RuntimeError):
        return None


def remember(key: str, taken: str, trials: tuple[Trial, ...]) -> None:
    """Keep what was found out; where the cache cannot be written, the next command measures again."""
    rows: list[dict[str, Any]] = [
        {
            "engine": trial.engine,
            "ms_per_window": trial.ms_per_window if math.isfinite(trial.ms_per_window) else None,
            "problem": trial.problem,
        }
        for trial in trials
    ]
    with suppress(InputError, RuntimeError):
        write_json(_path(key), {"taken": taken, "trials": rows})


def _path(key: str) -> Path:
    """Return the file of a measurement; RuntimeError where nobody knows the user's home folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "segscse" / "engines" / f"{key}.json"
