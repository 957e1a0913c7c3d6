"""What a run starts from: read, decided, checked against what its folder holds; nothing of the run is written here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from segscse.config import ExperimentConfig, TrainConfig, load_config
from segscse.data.fingerprint import same_content
from segscse.data.plan import context_note, load_plan
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.split import Split, make_split
from segscse.errors import InputError
from segscse.files import LOCK, is_temporary, read_json, remove_leftovers
from segscse.hardware import pick_precision, versions, working_device
from segscse.kernels.warm_up import compiling
from segscse.limits import require_disk
from segscse.nets.build import build_unet, check_attention, network_arguments, without_axes
from segscse.training.checkpoints import FOLDER, has_checkpoint, sound_checkpoint
from segscse.training.ddp import refuse_odd_parts, refuse_running_statistics
from segscse.training.loggers import check_loggers
from segscse.training.memory import require_room
from segscse.training.untrusted import refuse_foreign
from segscse.types import Progress

# What a run leaves before its first checkpoint.
BEGINNINGS = (
    LOCK,
    "cache",
    "checkpoints",
    "config.yaml",
    "fingerprint.json",
    "loggers.json",
    "metrics.csv",
    "mlflow",
    "plan.json",
    "run.json",
    "tensorboard",
    "wandb",
)
# What a run may go on with otherwise than it was started with, and the record's list of when it did.
MADE_WITH = ("versions", "device", "precision")
RESUMED = "resumed_with"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What `train_run` is asked for; see there."""

    dataset: str | Path
    folder: Path
    config: ExperimentConfig
    labels: str | Path | None
    fold: int | None
    budget: str | None
    resume: bool
    cache: Path | None
    runs: int
    beside: int


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What a run starts from, decided and checked.

    Attributes:
        folder: the run folder.
        config: the experiment.
        planned: the data set.
        split: which of its cases are trained and validated on.
        device: where it runs.
        precision: `bf16` or `fp32`.
        network: arguments of `segscse.nets.unet.UNet`.
        record: what `run.json` says.
        cache: folder for the cases that memory does not hold.
        checkpoint: the one to go on from; None for a run that starts.
    """

    folder: Path
    config: ExperimentConfig
    planned: PlannedDataset
    split: Split
    device: torch.device
    precision: str
    network: dict[str, Any]
    record: dict[str, Any]
    cache: Path
    checkpoint: Path | None = None


def set_up(request: RunRequest, console: Console, held: ExitStack, world: int = 1) -> RunSetup:
    """Read the data set and decide everything that a run starts from.

    Args:
        request: what is asked for.
        console: where progress and warnings are shown.
        held: ends with the run; kernels are compiled in it while data are read.
        world: number of processes that share the run.

    Raises:
        InputError: as `train_run`.
    """
    folder, config = request.folder, request.config
    if request.resume:
        config = _resumed_config(folder, config, request.budget)
    else:
        _refuse_used(folder)
    require_disk("the run", folder, 0, 0, "")  # whether anything can be written there
    remove_leftovers(*_places(folder))
    if request.budget is not None:
        config = replace(config, train=replace(config.train, budget=request.budget, max_steps=None))
    check_attention(config.model)
    check_loggers(config.train.loggers)
    device = working_device(config.train.device)
    if world > 1 and device.type == "mps":
        raise InputError("several processes cannot share device 'mps'", remedy="Give --train.device cpu")
    precision = pick_precision(config.train.precision, device)
    held.enter_context(kernels_compiling(device, precision))
    with counted(console, "reading the data set") as progress:
        planned = plan_dataset(request.dataset, config, labels=request.labels, progress=progress)
    for found in planned.warnings:
        warn(console, f"{found.file or found.case}: {found.problem}")
    if note := context_note(planned.plan, planned.fingerprint):
        warn(console, f"{request.dataset}: {note}")
    refuse_odd_parts(planned.plan.batch_size, world)
    split = make_split(planned.index.cases, request.fold, folds=config.data.folds, seed=config.data.split_seed)
    network = network_arguments(planned.plan, config.model)
    if request.resume and _has_axes_of_names(folder):
        network = without_axes(network)
    if world > 1:
        refuse_running_statistics(build_unet(network), world)
    record = _record(planned, split, device, precision) | {"processes": world, "attention": network["attention"]}
    cache = request.cache or folder / "cache"
    setup = RunSetup(folder, config, planned, split, device, precision, network, record, cache)
    many = {"runs": request.runs, "beside": request.beside, "processes": world}
    for text in require_room(planned, split, config, device, precision, folder, cache=request.cache, **many):
        warn(console, text)
    return _resumed(setup, console) if request.resume else setup


def warn(console: Console, text: str) -> None:
    """Show a warning, in one line."""
    console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def counted(console: Console, what: str) -> Iterator[Progress]:
    """Show what is going on and how many cases are done."""
    with console.status(what) as status:
        yield lambda done, total: status.update(f"{what}: {done} of {total} cases")


def _record(planned: PlannedDataset, split: Split, device: torch.device, precision: str) -> dict[str, Any]:
    """Return what a result needs to be traced and repeated; no path of the user's machine is in it."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "fold": split.fold,
        "training_cases": list(split.training),
        "validation_cases": list(split.validation),
        "fingerprint": planned.fingerprint.content,
        "label_volumes_ml": {str(label): list(pair) for label, pair in planned.fingerprint.label_volumes_ml.items()},
        "label_pieces": {str(label): most for label, most in planned.fingerprint.label_pieces.items()},
    }


def _places(folder: Path) -> list[Path]:
    """Return the folders of a run into which it writes."""
    return [folder, *(folder / name for name in (FOLDER, "model")), *(folder / "cache").glob("*")]


def _only_begun(folder: Path) -> bool:
    """Return whether a folder holds nothing but what a run leaves that never reached a checkpoint."""
    names = {item.name for item in folder.iterdir() if not is_temporary(item)}
    return names <= set(BEGINNINGS) and not has_checkpoint(folder)


def _refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything but the beginnings of a run that never reached a checkpoint."""
    if not _only_begun(folder):
        raise InputError(
            "already exists and is not empty",
            file=folder,
            remedy="Choose another --out, or continue it with --resume",
        )


def _resumed_config(folder: Path, config: ExperimentConfig, length: str | None) -> ExperimentConfig:
    """Return the configuration that the run was started with; only `length` and the number of steps may be others."""
    needed = ["config.yaml"] if _only_begun(folder) else ["config.yaml", "plan.json", "run.json"]
    for name in needed:
        if not (folder / name).is_file():
            raise InputError(f"cannot be resumed: it has no {name}", file=folder, remedy="Start it without --resume")
    saved = load_config(folder / "config.yaml")
    budget, steps = saved.train.budget, saved.train.max_steps
    same_length = replace(config, train=replace(config.train, budget=budget, max_steps=steps))
    if same_length not in (saved, ExperimentConfig(train=TrainConfig(budget=budget, max_steps=steps))):
        raise InputError(
            "was started with another configuration",
            file=folder,
            remedy="Resume without --config and other settings",
        )
    given = config.train.budget
    if length is None and given not in (budget, TrainConfig().budget):
        raise InputError(
            f"was started with a budget of {budget}, the configuration says {given}",
            file=folder,
            remedy=f"Say how long the whole run shall be, such as --budget {budget}",
        )
    return replace(saved, train=replace(saved.train, max_steps=config.train.max_steps or steps))


def _resumed(setup: RunSetup, console: Console) -> RunSetup:
    """Return the setup with the checkpoint that the run goes on from; as it is if it was killed before the first one.

    Where versions, device or precision are no longer those before, the record says from when on.

    Raises:
        InputError: it was started with other data, or there is no sound checkpoint.
    """
    if _only_begun(setup.folder):
        warn(console, f"{setup.folder}: has no checkpoint yet; the run starts from the beginning")
        return setup
    _refuse_other_data(setup)
    saved = read_json(setup.folder / "run.json")
    resumed = saved.get(RESUMED, [])
    before, now = _made_with(resumed[-1] if resumed else saved), _made_with(setup.record)
    if other := [f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]:
        warn(console, f"{setup.folder}: was run with {'; '.join(other)}: results may differ a little")
        resumed = [*resumed, {name: setup.record[name] for name in ("created", *MADE_WITH)}]
    checkpoint, problem = sound_checkpoint(setup.folder)
    if problem:
        warn(console, problem)
    refuse_foreign(checkpoint)
    record = setup.record | ({RESUMED: resumed} if resumed else {})
    return replace(setup, checkpoint=checkpoint, record=record)


def _made_with(record: dict[str, Any]) -> dict[str, Any]:
    """Return by name what numbers may depend on: versions, device and precision."""
    return {**record.get("versions", {}), "device": record.get("device"), "precision": record.get("precision")}


def _has_axes_of_names(folder: Path) -> bool:
    """Return whether a run is of a version that took no slice axis from the data: its record names no attention."""
    if _only_begun(folder):
        return False
    saved = read_json(folder / "run.json")
    return isinstance(saved, dict) and "attention" not in saved


def _refuse_other_data(setup: RunSetup) -> None:
    """Refuse to go on with other voxels, another split or plan than the run was started with, or a strange file."""
    saved = read_json(setup.folder / "run.json")
    if not isinstance(saved, dict):
        raise InputError("is no record of a run", file=setup.folder / "run.json", remedy="Start it without --resume")
    other = [] if same_content(saved.get("fingerprint"), setup.record["fingerprint"]) else ["data set"]
    names = ("fold", "training_cases", "validation_cases")
    other += [name for name in names if saved.get(name) != setup.record[name]]
    plan, planned = (replace(each, reasons=()) for each in (load_plan(setup.folder / "plan.json"), setup.planned.plan))
    if not other and plan.version != planned.version:
        raise InputError(
            f"was planned by an earlier segscse (plans of version {plan.version}, this one makes {planned.version})",
            file=setup.folder,
            remedy="Go on with the segscse that it was started with (run.json says which), or start a new run",
        )
    if not other and plan != planned:
        other = ["plan"]
    if other:
        raise InputError(
            f"was started with another {other[0].replace('_', ' ')}",
            file=setup.folder,
            remedy="Resume with the data set and the fold that it was started with",
        )


def kernels_compiling(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Compile what a training on this device needs while the data are read."""
    if device.type != "cpu":
        return nullcontext()
    return compiling(torch.bfloat16 if precision == "bf16" else torch.float32)
