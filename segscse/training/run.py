"""A training run: a folder with everything that made the model, and the model."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from segscse.config import ExperimentConfig, TrainConfig, load_config, parse_duration, save_config, to_builtin
from segscse.data.datamodule import SegDataModule
from segscse.data.plan import Plan, load_plan, save_plan
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.sampling import PatchSampler, cut_size
from segscse.data.split import Split, make_split
from segscse.data.store import CaseStore
from segscse.errors import InputError, Interrupted
from segscse.files import read_json, write_json
from segscse.hardware import keep_freed_memory, pick_device, pick_precision, versions
from segscse.inference.model_folder import ModelFolder, save_model
from segscse.inference.sliding_window import OVERLAP, window_starts
from segscse.kernels.warm_up import compiling
from segscse.limits import require_disk
from segscse.nets.build import build_unet, check_attention, network_arguments
from segscse.nets.dims import network_to_channels_last
from segscse.training.averaging import EmaWeights
from segscse.training.callbacks import MetricsTable, RunKeeper, RunProgress
from segscse.training.clock import RunClock
from segscse.training.display import run_html
from segscse.training.memory import require_room
from segscse.training.module import SegModule
from segscse.training.signals import StopRequest
from segscse.training.tensorboard import ValidationPictures
from segscse.types import Progress

# What a run leaves before its first checkpoint.
BEGINNINGS = (
    "cache",
    "checkpoints",
    "config.yaml",
    "fingerprint.json",
    "metrics.csv",
    "plan.json",
    "run.json",
    "tensorboard",
)
LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "fp32": "32-true"}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        folder: holds `config.yaml`, `plan.json`, `fingerprint.json`, `run.json`, `metrics.csv`, `checkpoints/`,
            `model/`.
        dice: the model's Dice on the validation cases, on the network's grid; None without such cases.
        steps: optimiser steps.
        split: which cases were trained and validated on.
        planned: the data set.
    """

    folder: Path
    dice: float | None
    steps: int
    split: Split
    planned: PlannedDataset

    def _repr_html_(self) -> str:
        """Show the run in a notebook."""
        return run_html(self)


def train_run(
    dataset: str | Path,
    folder: Path,
    config: ExperimentConfig,
    *,
    labels: str | Path | None = None,
    fold: int | None = 0,
    budget: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    runs: int = 1,
) -> Run:
    """Train one fold and leave a run folder.

    Args:
        dataset: as for `open_dataset`.
        folder: the run folder; new, or with `resume` the one to continue.
        config: the experiment; with `resume` the defaults, or what the run was started with.
        labels: the folder of label maps, when `dataset` is a folder of images.
        fold: cross-validation fold, or None to train on every case.
        budget: time such as `20m`, in place of the configuration's time or steps; with `resume` the new length.
        resume: continue the run in `folder`, which is longer now if `budget` or `train.max_steps` says so.
        console: where progress is shown; nowhere if not given.
        runs: runs like this one that the disk has to hold, such as the folds of a cross-validation.

    Raises:
        InputError: the data set, the configuration or the folder cannot be used, or memory or disk are too small.
        Interrupted: a signal stopped the run; its folder holds a checkpoint and a usable model.
    """
    console = console or Console(stderr=True, quiet=True)
    if resume:
        config = _resumed_config(folder, config)
    else:
        _refuse_used(folder)
    require_disk("the run", folder, 0, 0, "")  # whether anything can be written there
    if budget is not None:
        config = replace(config, train=replace(config.train, budget=budget, max_steps=None))
    check_attention(config.model)
    device = pick_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    with _kernels_compiling(device, precision):
        with _counted(console, "reading the data set") as progress:
            planned = plan_dataset(dataset, config, labels=labels, progress=progress)
        for item in planned.warnings:
            _warn(console, f"{item.file or item.case}: {item.problem}")
        split = make_split(planned.index.cases, fold, folds=config.data.folds, seed=config.data.split_seed)
        setup = _Setup(folder, config, planned, split, device, precision, _record(planned, split, device, precision))
        if resume:
            _refuse_other_data(setup)
        for text in require_room(planned, split, config, device, precision, folder, runs=runs):
            _warn(console, text)
        keeper = _fit(setup, console, resume=resume)
    dice = keeper.dice if math.isfinite(keeper.dice) else None
    return Run(folder, dice, keeper.clock.step, split, planned)


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a run starts from, decided and checked."""

    folder: Path
    config: ExperimentConfig
    planned: PlannedDataset
    split: Split
    device: torch.device
    precision: str
    record: dict[str, Any]


def _fit(setup: _Setup, console: Console, *, resume: bool) -> RunKeeper:
    """Train until the clock or a signal says stop; return the keeper, which knows the model's Dice."""
    _quiet_lightning()
    if setup.device.type == "cpu":
        keep_freed_memory()
    config, folder, plan = setup.config, setup.folder, setup.planned.plan
    pl.seed_everything(config.train.seed, workers=True, verbose=False)
    clock = RunClock(parse_duration(config.train.budget), config.train.max_steps, config.train.validations)
    arguments = network_arguments(plan, config.model)
    network = network_to_channels_last(build_unet(arguments), plan.spatial_dims)
    with _counted(console, "preprocessing") as progress:
        data = _data(setup, clock, progress)
    # Everything that can be refused has been: from here on there is a run.
    save_config(folder / "config.yaml", config)
    if not resume:
        save_plan(folder / "plan.json", plan)
        write_json(folder / "fingerprint.json", setup.planned.fingerprint.to_json())
        write_json(folder / "run.json", setup.record)
    ema = EmaWeights(config.optim.ema_decay) if config.optim.ema_decay > 0 else None
    keeper = _keeper(setup, clock, arguments, ema)
    # The average comes first, so that the keeper's checkpoints hold it up to their own step.
    trainer = _trainer(setup, [*([ema] if ema else []), keeper, RunProgress(clock, console), ValidationPictures(plan)])
    module = SegModule(network, plan, config.optim, clock)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, data, ckpt_path=checkpoint if resume else None, weights_only=True)
    except SystemExit as error:  # Lightning's answer to signals that the keeper does not see, such as a second SIGINT
        number = signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(number, f"stopped at once, at step {clock.step} (run folder: {folder})") from error
    if keeper.stop.signum is not None:  # it came after the last step
        raise Interrupted(keeper.stop.signum, f"stopped when the run had ended (run folder: {folder})")
    return keeper


def _keeper(setup: _Setup, clock: RunClock, arguments: dict[str, Any], ema: EmaWeights | None) -> RunKeeper:
    config, folder, plan = setup.config, setup.folder, setup.planned.plan

    def save(weights: dict[str, torch.Tensor], scores: dict[str, Any]) -> None:
        chosen = {"step": clock.step, "validation": scores, "config": to_builtin(asdict(config))}
        save_model(folder / "model", ModelFolder(plan, arguments, {**setup.record, **chosen}, weights))

    columns = ["step", "seconds", "progress", "lr", "train_loss", "val_dice"]
    columns += [f"val_dice_{label}" for label, _ in plan.labels[1:]]
    return RunKeeper(
        folder,
        clock,
        MetricsTable(folder / "metrics.csv", columns),
        StopRequest(),
        save,
        ema=ema,
        checkpoint_every_s=parse_duration(config.train.checkpoint_every),
        patience=config.train.patience,
    )


def _trainer(setup: _Setup, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        accelerator=setup.device.type,
        devices=1,
        precision=LIGHTNING_PRECISION[setup.precision],  # type: ignore[arg-type]
        max_epochs=-1,
        callbacks=callbacks,
        logger=TensorBoardLogger(setup.folder, name="tensorboard", version=""),
        gradient_clip_val=setup.config.optim.clip_norm,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if setup.split.validation else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10**9,
        default_root_dir=setup.folder,
    )


def _data(setup: _Setup, clock: RunClock, progress: Progress) -> SegDataModule:
    planned, split, config = setup.planned, setup.split, setup.config
    ids = {*split.training, *split.validation}
    cases = [case for case in planned.index.cases if case.id in ids]
    store = CaseStore(cases, planned.plan, setup.folder / "cache", config.data.cache_gb)
    store.prepare(progress)
    shapes = store.shapes()
    clock.validation_batches = sum(n_batches(shapes[name], planned.plan) for name in split.validation)
    sampler = PatchSampler(
        store=store,
        cases=split.training,
        plan=planned.plan,
        cut_size=cut_size(
            planned.plan, [shapes[name] for name in split.training], spatial=config.augment.spatial_p > 0
        ),
        foreground_share=config.data.foreground_share,
        seed=config.train.seed,
    )
    # Without validation cases nothing would end a round but the end of the run.
    rounds = bool(split.validation)
    return SegDataModule(
        sampler,
        split.validation,
        config.augment,
        lambda: clock.step,
        lambda: clock.done or (rounds and clock.round_done),
    )


def n_batches(shape: Sequence[int], plan: Plan) -> int:
    """Return the network calls that the sliding window makes for a volume `(X, Y, Z)`, half overlapping."""
    windows = math.prod(
        len(window_starts(shape[axis], size, OVERLAP))
        for axis, size in zip(plan.window_axes, plan.patch_size, strict=True)
    )
    slices = 1 if plan.slice_axis is None else shape[plan.slice_axis]
    return math.ceil(windows * slices / plan.batch_size)


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
    }


def _refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything but the beginnings of a run that never reached a checkpoint."""
    if not folder.exists():
        return
    names = {item.name for item in folder.iterdir()} if folder.is_dir() else {folder.name}
    unfinished = names <= set(BEGINNINGS) and not (folder / "checkpoints" / "last.ckpt").exists()
    if not unfinished:
        raise InputError(
            "already exists and is not empty",
            file=folder,
            remedy="Choose another --out, or continue it with --resume",
        )


def _resumed_config(folder: Path, config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration that the run was started with; only its length may be another."""
    for name in ("config.yaml", "plan.json", "run.json", "checkpoints/last.ckpt"):
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
    return replace(saved, train=replace(saved.train, max_steps=config.train.max_steps or steps))


def _refuse_other_data(setup: _Setup) -> None:
    """Refuse to go on with other voxels, another split or another plan than the run was started with."""
    saved = read_json(setup.folder / "run.json")
    names = ("fingerprint", "fold", "training_cases", "validation_cases")
    other = [name for name in names if saved.get(name) != setup.record[name]]
    if not other and load_plan(setup.folder / "plan.json") != setup.planned.plan:
        other = ["plan"]
    if other:
        raise InputError(
            f"was started with another {other[0].replace('_', ' ')}",
            file=setup.folder,
            remedy="Resume with the data set and the fold that it was started with",
        )


def _kernels_compiling(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Compile what a training on this device needs while the data are read."""
    if device.type != "cpu":
        return nullcontext()
    return compiling(torch.bfloat16 if precision == "bf16" else torch.float32)


def _warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", style="yellow", highlight=False)


@contextmanager
def _counted(console: Console, what: str) -> Iterator[Progress]:
    """Show what is going on and how many cases are done."""
    with console.status(what) as status:
        yield lambda done, total: status.update(f"{what}: {done} of {total} cases")


def _quiet_lightning() -> None:
    """Lightning's hints address people who write trainers; segscse shows its own progress and errors."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
