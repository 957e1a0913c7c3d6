"""The tables of `segscse doctor`."""

from __future__ import annotations

from typing import Any

from segscse.doctor import Forecast
from segscse.hardware import Machine
from segscse.limits import size_text
from segscse.training.callbacks import format_seconds


def machine_table(machine: Machine) -> Any:
    """Return what a machine has, a row each."""
    memory, disk, kernels = machine.memory, machine.disk, machine.kernels
    gpu = [f"{name}, {size_text(free)} of {size_text(total)} free" for name, total, free in machine.gpu]
    limit = "" if memory.by == "machine" else f", limited by {memory.by}"
    how = {"openmp": "on torch's threads", "pool": "on threads beside torch's"}[kernels.threads]
    work = f"work, {how}" if kernels.run else f"do not work ({kernels.problem})"
    rows = {
        "system": machine.system,
        "processor": machine.cpu,
        "cores": f"{machine.cores}; torch uses {machine.threads} threads",
        "thread settings": " ".join(f"{name}={value}" for name, value in machine.settings.items()) or "none",
        "memory": f"{size_text(memory.available)} of {size_text(memory.total)} can be had{limit}",
        "shared memory": "none" if machine.shared_memory is None else f"{size_text(machine.shared_memory)} free",
        "GPU": "; ".join(gpu) or ("Apple MPS" if machine.mps else "none"),
        "device": f"{machine.device}, {'bf16' if machine.bf16 else 'fp32'}",
        "disk": f"{size_text(disk.free)} free at {disk.folder}{'' if disk.writable else ', not writable'}",
        "CPU kernels": f"{work}; machine code in {kernels.cache or 'no folder'}",
        "versions": _versions(machine.versions),
        "other packages": _versions(machine.packages) or "unknown: segscse is not installed",
        "engines": ", ".join(machine.engines),
    }
    return _table("this machine", rows)


def forecast_table(found: Forecast) -> Any:
    """Return what a training would take, a row each."""
    plan, trial = found.plan, found.trial
    rows = {
        "cases": f"{found.training_cases} to train on, {found.validation_cases} to validate on",
        "patch": f"{plan.patch_size}, {plan.batch_size} a step, on {found.device} in {found.precision}",
        "memory, from shapes": f"{found.estimate} beside the program",
        "disk": f"{size_text(found.cache_bytes)} of cases, {size_text(found.run_bytes)} of checkpoints, model and logs",
    }
    if trial is not None:
        device = f", {size_text(trial.device_peak)} on the GPU" if trial.device_peak else ""
        rows |= {
            "step": f"{1000 * trial.step_s:.0f} ms (median of {trial.steps}); the first {trial.first_s:.1f} s",
            "memory, measured": f"{size_text(trial.peak)} in those steps{device}; {size_text(found.peak)} in all",
            "preprocessing": f"{format_seconds(found.preprocess_s)} for all cases, once",
            "validation": f"{format_seconds(found.validation_s)} each, of {found.validated_cases} cases",
            "training": f"{found.steps} steps in {format_seconds(found.run_s)}",
        }
    return _table("this training", rows)


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _table(title: str, rows: dict[str, str]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", title, show_lines=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table
