"""Doctor: what this machine has, what a training would take on it, and what would fail, each with its remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from segscse.config import ExperimentConfig, parse_duration
from segscse.data.index import Case
from segscse.data.plan import Plan
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.sampling import cut_size
from segscse.data.split import Split, make_split, n_folds
from segscse.data.transforms import preprocess
from segscse.errors import InputError
from segscse.hardware import Machine, examine_machine, pick_device, pick_precision, working_device
from segscse.limits import size_text
from segscse.nets.build import check_attention
from segscse.training.clock import VALIDATION_SHARE, affordable_cases
from segscse.training.memory import (
    TrainingEstimate,
    build_probe,
    case_grids,
    estimate_training,
    require_room,
    run_disk_bytes,
)
from segscse.training.run import n_batches
from segscse.training.trial import Trial, run_trial
from segscse.types import Progress

SMALL_SHARED_MEMORY = 64 * 2**20
MIN_TORCH = (2, 10)
FEW_STEPS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that would fail (`error`), may fail or is slow (`warning`), and what to do about it."""

    level: Literal["error", "warning"]
    problem: str
    remedy: str = ""

    def __str__(self) -> str:
        parts = (part for part in (self.problem, self.remedy) if part)
        return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training is expected to take; times are measured here and now.

    Attributes:
        plan: of the data set.
        device: where it would run.
        precision: `bf16` or `fp32`.
        training_cases: of the fold.
        validation_cases: of the fold; `validated_cases` of them are taken by the validations of the training.
        estimate: memory beyond the program's, worked out from shapes.
        peak: bytes of the process at its largest: measured steps, with the cases and a validation; 0 if unmeasured.
        trial: the measured steps; None where they failed.
        preprocess_s: seconds to preprocess all cases of the fold.
        validation_s: seconds of one validation.
        steps: that the budget has room for, or the number asked for.
        run_s: seconds of the training.
        cache_bytes: of cases on disk.
        run_bytes: of everything else in the run folder.
    """

    plan: Plan
    device: str
    precision: str
    training_cases: int
    validation_cases: int
    validated_cases: int
    estimate: TrainingEstimate
    peak: int
    trial: Trial | None
    preprocess_s: float
    validation_s: float
    steps: int
    run_s: float
    cache_bytes: int
    run_bytes: int


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that the doctor found; `forecast` is None without a data set, or where it cannot be planned for."""

    machine: Machine
    forecast: Forecast | None
    findings: tuple[Finding, ...]

    @property
    def fails(self) -> bool:
        """Whether something would fail."""
        return any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready value, folders as text."""
        value = asdict(self)
        value["machine"]["disk"]["folder"] = str(self.machine.disk.folder)
        return value


def diagnose(
    dataset: str | Path | None = None,
    *,
    out: str | Path = "runs",
    labels: str | Path | None = None,
    config: ExperimentConfig | None = None,
    fold: int | Literal["cv"] | None = 0,
    budget: str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine this machine and, with a data set, what its training would take; nothing is written.

    Args:
        dataset: as for `train`; the machine alone if not given.
        out: where outputs would go.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: the experiment; the defaults if not given.
        fold: number, None for all cases, or `cv` for every fold (the first is measured, disk counts for all).
        budget: time for training, in place of the configuration's.
        progress: called with the number of cases read and their total.
    """
    machine = examine_machine(out)
    chosen = config or ExperimentConfig()
    if budget is not None:
        chosen = replace(chosen, train=replace(chosen.train, budget=budget, max_steps=None))
    try:
        computes_on = pick_device(chosen.train.device).type
    except InputError:  # said below, where there is something to train on
        computes_on = chosen.train.device
    findings = machine_findings(machine, computes_on)
    forecast = None
    if dataset is not None:
        try:
            check_attention(chosen.model)
            device = working_device(chosen.train.device)
            planned = plan_dataset(dataset, chosen, labels=labels, progress=progress)
            forecast, more = _forecast(planned, chosen, device, fold, Path(out))
            findings += more
        except InputError as error:
            findings.append(Finding("error", str(error)))
    return Diagnosis(machine, forecast, tuple(findings))


def machine_findings(machine: Machine, computes_on: str = "cpu") -> list[Finding]:
    """Return what is wrong with a machine whatever the data set, when this kind of device computes."""
    found: list[Finding] = []
    disk, kernels = machine.disk, machine.kernels
    if not disk.writable:
        found.append(Finding("error", f"{disk.folder}: cannot be written to", "Choose another folder with --out"))
    if _numbers(machine.versions["torch"]) < MIN_TORCH:
        wanted, old = ".".join(map(str, MIN_TORCH)), machine.versions["torch"]
        found.append(Finding("error", f"torch {old} is older than {wanted}", f"pip install 'torch>={wanted}'"))
    if not kernels.run:
        problem = f"the CPU kernels do not work here ({kernels.problem})"
        level: Literal["error", "warning"] = "error" if computes_on == "cpu" else "warning"
        found.append(Finding(level, problem, "Reinstall numba; other devices need no such kernels"))
    elif kernels.cache is None:
        problem = "compiled kernels cannot be kept, so every training waits some ten seconds for them"
        found.append(Finding("warning", problem, "Set NUMBA_CACHE_DIR to a folder that you alone can write to"))
    if machine.idle_gpus:
        problem = f"torch cannot use {machine.idle_gpus} of the machine's GPUs"
        remedy = "Install the driver that this torch wants, or a torch for this driver; or one is full or another's"
        found.append(Finding("warning", problem, remedy))
    if machine.threads < machine.cores:
        problem = f"torch uses {machine.threads} of {machine.cores} cores"
        names = [name for name in machine.settings if name.endswith("NUM_THREADS")]
        found.append(Finding("warning", problem, f"Unset {' and '.join(names) or 'what limits its threads'}"))
    if machine.threads > machine.cores:
        problem = f"torch uses {machine.threads} threads on {machine.cores} cores, which slows all of them down"
        found.append(Finding("warning", problem, f"Set OMP_NUM_THREADS={machine.cores}"))
    if machine.shared_memory is not None and machine.shared_memory < SMALL_SHARED_MEMORY:
        problem = f"/dev/shm has {size_text(machine.shared_memory)} free; training and prediction do not need it"
        found.append(Finding("warning", problem, "Your own loader processes do: enlarge it (docker --shm-size)"))
    return found


def _forecast(
    planned: PlannedDataset, config: ExperimentConfig, device: torch.device, fold: int | Literal["cv"] | None, out: Path
) -> tuple[Forecast, list[Finding]]:
    """Measure what a training takes, and find what would fail."""
    folds = n_folds(planned.index.cases, config.data.folds) if fold == "cv" else 1
    number = 0 if fold == "cv" else fold
    split = make_split(planned.index.cases, number, folds=config.data.folds, seed=config.data.split_seed)
    precision = pick_precision(config.train.precision, device)
    kept, n_weights = build_probe(planned.plan, config, precision if device.type == "cpu" else "fp32")
    estimate = estimate_training(planned, split, config, kept, n_weights)
    disk = run_disk_bytes(planned, split, config, n_weights)
    findings: list[Finding] = []

    def room() -> list[str]:
        # A run that is yet to come: what other runs have written into `out` is none of it.
        return require_room(planned, split, config, device, precision, out / "new run", runs=folds)

    fits = _noted(findings, room)
    trial = _measured(planned, split, config, device, precision, findings) if fits else None
    taken, validation_s = _validation(planned, split, config, trial)
    steps, run_s = _length(config, trial, validation_s)
    if trial is not None and steps < FEW_STEPS:
        problem = f"the run has {steps} steps, too few to learn much from"
        findings.append(Finding("warning", problem, "Give a larger --budget, or a smaller --data.max-patch-voxels"))
    forecast = Forecast(
        plan=planned.plan,
        device=device.type,
        precision=precision,
        training_cases=len(split.training),
        validation_cases=len(split.validation),
        validated_cases=taken,
        estimate=estimate,
        peak=0 if trial is None else _peak(trial, estimate),
        trial=trial,
        preprocess_s=_preprocess_seconds(planned, split) if trial is not None else 0.0,
        validation_s=validation_s,
        steps=steps,
        run_s=run_s,
        cache_bytes=disk.cases,
        run_bytes=folds * disk.rest,
    )
    return forecast, findings


def _measured(
    planned: PlannedDataset,
    split: Split,
    config: ExperimentConfig,
    device: torch.device,
    precision: str,
    findings: list[Finding],
) -> Trial | None:
    """Make some steps; where they fail, add a finding."""
    cut = cut_size(planned.plan, _shapes(planned, split.training), spatial=config.augment.spatial_p > 0)
    trial = run_trial(planned.plan, config, cut, device, precision)
    if isinstance(trial, Trial):
        return trial
    remedy = "Give a smaller --data.batch-size or --data.max-patch-voxels"
    findings.append(Finding("error", f"a training step failed: {trial}", remedy))
    return None


def _shapes(planned: PlannedDataset, cases: Sequence[str]) -> list[tuple[int, ...]]:
    grids = case_grids(planned)
    return [grids[name] for name in cases]


def _noted(findings: list[Finding], check: Callable[[], list[str]]) -> bool:
    """Turn a refusal or warnings into findings; return whether it was no refusal."""
    try:
        findings += [Finding("warning", warning) for warning in check()]
    except InputError as error:
        findings.append(Finding("error", str(error)))
        return False
    return True


def _preprocess_seconds(planned: PlannedDataset, split: Split) -> float:
    """Preprocess the case of median size, and scale its time by the voxels of all."""
    voxels = dict(zip(planned.fingerprint.cases, map(prod, planned.fingerprint.shapes), strict=True))
    cases: dict[str, Case] = {case.id: case for case in planned.index.cases}
    used = sorted((*split.training, *split.validation), key=voxels.__getitem__)
    case = cases[used[len(used) // 2]]
    seconds = []
    for _ in range(2):  # the first finds out about MONAI's imports
        start = time.perf_counter()
        preprocess(case.images, case.label, planned.plan)
        seconds.append(time.perf_counter() - start)
    return seconds[-1] * sum(voxels[name] for name in used) / voxels[case.id]


def _validation(
    planned: PlannedDataset, split: Split, config: ExperimentConfig, trial: Trial | None
) -> tuple[int, float]:
    """Return how many cases a validation of the training takes, and its seconds."""
    shapes = zip(split.validation, _shapes(planned, split.validation), strict=True)
    calls = {name: n_batches(shape, planned.plan) for name, shape in shapes}
    if trial is None:
        return len(calls), 0.0
    taken = list(calls)
    if config.train.max_steps is None:
        taken = affordable_cases([calls], VALIDATION_SHARE * parse_duration(config.train.budget) / trial.window_s)
    return len(taken), sum(calls[name] for name in taken) * trial.window_s


def _length(config: ExperimentConfig, trial: Trial | None, validation_s: float) -> tuple[int, float]:
    """Return the steps of a training and its seconds; validations take a twentieth of a budget, or one case."""
    train = config.train
    if trial is None:
        return 0, 0.0
    if train.max_steps is not None:
        return train.max_steps, train.max_steps * trial.step_s + train.validations * validation_s
    budget = parse_duration(train.budget)
    validations = min(train.validations * validation_s, max(VALIDATION_SHARE * budget, validation_s))
    return int(max(0.0, budget - validations) / trial.step_s), budget


def _peak(trial: Trial, estimate: TrainingEstimate) -> int:
    """Return the expected peak: the measured steps, or what else is largest, with the cases beside it."""
    steps = trial.peak - trial.program
    others = max(estimate.reading, estimate.weights + estimate.validation)
    return trial.program + estimate.cases + max(steps, others)


def _numbers(text: str) -> tuple[int, ...]:
    """Return `(2, 10)` of `2.10.1+cpu`."""
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())
