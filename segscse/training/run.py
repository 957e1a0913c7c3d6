"""A training run: a folder with everything that made the model, and the model."""

from __future__ import annotations

import logging
import math
import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console

from segscse.config import ExperimentConfig, parse_duration, save_config, to_builtin
from segscse.data.datamodule import SegDataModule
from segscse.data.index import Case
from segscse.data.plan import Plan, save_plan
from segscse.data.prepare import PlannedDataset
from segscse.data.sampling import PatchSampler, cut_size
from segscse.data.split import Split
from segscse.data.store import CaseStore
from segscse.errors import Interrupted
from segscse.files import only_writer, read_json, write_json
from segscse.hardware import keep_freed_memory
from segscse.inference.model_folder import ModelFolder, save_model
from segscse.inference.sliding_window import OVERLAP, window_starts
from segscse.nets.build import build_unet
from segscse.nets.dims import network_to_channels_last
from segscse.ranks import ALONE, Group, deal_by_size
from segscse.training.averaging import AveragedWeights, weight_average
from segscse.training.callbacks import RunKeeper, RunProgress
from segscse.training.checkpoints import WholeCheckpoints, step_of, take_for_last
from segscse.training.clock import RunClock
from segscse.training.ddp import ddp_strategy, refuse_shared_gpus
from segscse.training.display import run_html
from segscse.training.log import FILE, MetricsTable
from segscse.training.loggers import GuardedLogger, open_loggers
from segscse.training.module import SegModule
from segscse.training.setup import RESUMED, RunRequest, RunSetup, counted, set_up, warn
from segscse.training.signals import StopRequest
from segscse.training.tensorboard import ValidationPictures
from segscse.types import Progress

LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "fp32": "32-true"}


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        folder: holds `config.yaml`, `plan.json`, `fingerprint.json`, `run.json`, `metrics.csv`, `checkpoints/`,
            `model/`.
        dice: the model's Dice on the validation cases, on the network's grid; on some of them where all would have
            taken more than a twentieth of the time. None without such cases.
        steps: optimiser steps.
        split: which cases were trained and validated on.
        planned: the data set.
    """

    folder: Path
    dice: float | None
    steps: int
    split: Split = field(repr=False)
    planned: PlannedDataset = field(repr=False)

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
    cache: Path | None = None,
    console: Console | None = None,
    group: Group = ALONE,
    runs: int = 1,
    beside: int = 1,
) -> Run:
    """Train one fold and leave a run folder.

    Processes that share the run share every batch and the validation cases, and only the first writes: the result is
    that of one process but for the order in which numbers are added up. They must share the run folder's file system.

    Args:
        dataset: as for `open_dataset`.
        folder: the run folder; new, or with `resume` the one to continue.
        config: the experiment; with `resume` the defaults, or what the run was started with, but for its length.
        labels: the folder of label maps, when `dataset` is a folder of images.
        fold: cross-validation fold, or None to train on every case.
        budget: time such as `20m`, in place of the configuration's time or steps; with `resume` the new length.
        resume: continue the run in `folder`, which is longer now if `budget` or `train.max_steps` says so; one that
            was killed before its first checkpoint starts again.
        cache: folder for the cases that memory does not hold, which runs on the same data can share; the run folder's
            `cache` if not given.
        console: where progress is shown; nowhere if not given.
        group: the processes that share the run, all of which call this.
        runs: runs like this one that the disk has to hold, such as the folds of a cross-validation.
        beside: runs like this one that share the machine's memory at a time, this one among them.

    Raises:
        InputError: the data set, the configuration or the folder cannot be used, or memory or disk are too small.
        Interrupted: a signal stopped the run; its folder holds a checkpoint and a usable model.
    """
    if console is None or not group.first:
        console = Console(stderr=True, quiet=True)
    _quiet_lightning()
    request = RunRequest(dataset, folder, config, labels, fold, budget, resume, cache, runs, beside)
    with ExitStack() as held:

        def begin() -> RunSetup:
            held.enter_context(only_writer(folder))
            return set_up(request, console, held, group.world)

        setup = group.on_first(begin)
        if setup.device.type == "cuda":
            refuse_shared_gpus(group)
        with group.bound():
            keeper = _fit(setup, console, group)
    dice = keeper.dice if math.isfinite(keeper.dice) else None
    return Run(folder, dice, keeper.clock.step, setup.split, setup.planned)


def _fit(setup: RunSetup, console: Console, group: Group) -> RunKeeper:
    """Train, from a checkpoint if there is one, until the clock or a signal says stop; return the keeper."""
    if setup.device.type == "cpu":
        keep_freed_memory()
    config, folder, plan = setup.config, setup.folder, setup.planned.plan
    pl.seed_everything(config.train.seed, workers=True, verbose=False)
    # Whatever depends on time is decided by the first process' clock, so that all make the same steps.
    clock = RunClock(
        parse_duration(config.train.budget),
        config.train.max_steps,
        config.train.validations,
        now=lambda: group.from_first(monotonic()),
    )
    network = network_to_channels_last(build_unet(setup.network), plan.spatial_dims)
    with counted(console, "preprocessing") as progress:
        data = _data(setup, clock, progress, group)
    # Everything that can be refused has been: from here on there is a run.
    group.on_first(lambda: _write_beginnings(setup))
    average = weight_average(config.optim)
    keeper = _keeper(setup, clock, average, group)
    # The average comes first, so that the keeper's checkpoints hold it up to their own step.
    callbacks = [*([average] if average else []), keeper, RunProgress(clock, console), ValidationPictures(plan)]
    loggers: list[GuardedLogger] = []
    if group.first:
        step = None if setup.checkpoint is None else step_of(setup.checkpoint)
        loggers = open_loggers(config, folder, lambda line: warn(console, line), step)
    trainer = _trainer(setup, callbacks, loggers, group)
    module = SegModule(network, plan, config.optim, clock, group)
    try:
        trainer.fit(module, data, ckpt_path=setup.checkpoint, weights_only=True)
    except SystemExit as error:  # Lightning's answer to signals that the keeper does not see, such as a second SIGINT
        number = signal.SIGINT if isinstance(error.__context__, KeyboardInterrupt) else signal.SIGTERM
        raise Interrupted(number, f"stopped at once, at step {clock.step} (run folder: {folder})") from error
    keeper.agree_on_stop()
    if keeper.stop.signum is not None:  # it came after the last step
        raise Interrupted(keeper.stop.signum, f"stopped when the run had ended (run folder: {folder})")
    return keeper


def _write_beginnings(setup: RunSetup) -> None:
    """Write what the run was started with."""
    save_config(setup.folder / "config.yaml", setup.config)
    if setup.checkpoint is not None:
        take_for_last(setup.checkpoint)
        if RESUMED in setup.record:
            saved = read_json(setup.folder / "run.json")
            write_json(setup.folder / "run.json", {**saved, RESUMED: setup.record[RESUMED]})
    else:
        save_plan(setup.folder / "plan.json", setup.planned.plan)
        write_json(setup.folder / "fingerprint.json", setup.planned.fingerprint.to_json())
        write_json(setup.folder / "run.json", setup.record)


def _keeper(setup: RunSetup, clock: RunClock, average: AveragedWeights | None, group: Group) -> RunKeeper:
    config, folder, plan = setup.config, setup.folder, setup.planned.plan

    def save(weights: dict[str, torch.Tensor], scores: dict[str, Any]) -> None:
        if not group.first:
            return
        chosen = {"step": clock.step, "validation": scores, "config": to_builtin(asdict(config))}
        chosen |= {"validated_cases": clock.validation_cases() if clock.validations_done else []}
        save_model(folder / "model", ModelFolder(plan, setup.network, {**setup.record, **chosen}, weights))

    columns = ["step", "seconds", "progress", "lr", "train_loss", "val_dice"]
    columns += [f"val_dice_{label}" for label, _ in plan.labels[1:]]
    return RunKeeper(
        folder,
        clock,
        MetricsTable(folder / FILE, columns, writes=group.first),
        StopRequest(),
        save,
        average=average,
        checkpoint_every_s=parse_duration(config.train.checkpoint_every),
        patience=config.train.patience,
        group=group,
    )


def _trainer(setup: RunSetup, callbacks: list[pl.Callback], loggers: list[GuardedLogger], group: Group) -> pl.Trainer:
    plugins: list[Any] = [WholeCheckpoints()]
    places: dict[str, Any] = {"devices": [torch.cuda.current_device()] if setup.device.type == "cuda" else 1}
    if group.world > 1:
        places |= {"num_nodes": group.ranks.nodes, "strategy": ddp_strategy(group, setup.device)}
    else:
        # What a launcher says of this process is not meant for a run that it makes alone.
        plugins.append(LightningEnvironment())
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
    return pl.Trainer(
        accelerator=setup.device.type,
        **places,
        precision=LIGHTNING_PRECISION[setup.precision],  # type: ignore[arg-type]
        max_epochs=-1,
        callbacks=callbacks,
        plugins=plugins,
        logger=loggers,
        gradient_clip_val=setup.config.optim.clip_norm,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        limit_val_batches=1.0 if setup.split.validation else 0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10**9,
        default_root_dir=setup.folder,
    )


def _data(setup: RunSetup, clock: RunClock, progress: Progress, group: Group) -> SegDataModule:
    planned, split, config = setup.planned, setup.split, setup.config
    ids = {*split.training, *split.validation}
    cases = [case for case in planned.index.cases if case.id in ids]
    store = _prepared(setup, cases, progress, group)
    shapes = store.shapes()
    parts = deal_by_size({name: n_batches(shapes[name], planned.plan) for name in split.validation}, group.world)
    clock.validation_calls = parts
    sampler = PatchSampler(
        store=store,
        cases=split.training,
        plan=planned.plan,
        cut_size=cut_size(
            planned.plan, [shapes[name] for name in split.training], spatial=config.augment.spatial_p > 0
        ),
        foreground_share=config.data.foreground_share,
        seed=config.train.seed,
        labelled=store.with_foreground(split.training),
    )
    # Without validation cases nothing would end a round but the end of the run.
    rounds = bool(split.validation)
    return SegDataModule(
        sampler,
        list(parts[group.rank]),
        config.augment,
        lambda: clock.step,
        lambda: clock.done or (rounds and clock.round_done),
        clock.validation_cases,
        group,
    )


def _prepared(setup: RunSetup, cases: list[Case], progress: Progress, group: Group) -> CaseStore:
    """Return the preprocessed cases; several processes share the work, and the arrays by files in the run's cache."""
    plan, folder, memory_gb = setup.planned.plan, setup.cache, setup.config.data.cache_gb
    if group.world > 1:
        memory_gb = 0.0
        CaseStore(group.share(cases), plan, folder, memory_gb).prepare(progress)
        group.barrier()
    store = CaseStore(cases, plan, folder, memory_gb)
    store.prepare(progress)
    return store


def n_batches(shape: Sequence[int], plan: Plan) -> int:
    """Return the network calls that the sliding window makes for a volume `(X, Y, Z)`, half overlapping."""
    windows = math.prod(
        len(window_starts(shape[axis], size, OVERLAP))
        for axis, size in zip(plan.window_axes, plan.patch_size, strict=True)
    )
    slices = 1 if plan.slice_axis is None else shape[plan.slice_axis]
    return math.ceil(windows * slices / plan.batch_size)


def _quiet_lightning() -> None:
    """Lightning's hints address people who write trainers; segscse shows its own progress and errors."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of kernels of one voxel: either is right
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
