"""The verbs that train, use and convert models: heavy imports wait until a verb needs them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from segscse.cli.flags import read_fold
from segscse.cli.options import Configs, Device, Devices, Engine, ExportEngine, Labels, Nodes
from segscse.cli.terminal import make_console, say, say_outcome, say_scores, show_bar
from segscse.config import ExperimentConfig, FlatConfig, load_config
from segscse.launch import require_processes
from segscse.ranks import Ranks, joined


def train(
    dataset: Path,
    *,
    out: Path | None = None,
    fold: str = "0",
    budget: str | None = None,
    resume: bool = False,
    labels: Labels = None,
    devices: Devices = None,
    nodes: Nodes = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> None:
    """Train one fold or all of them, then segment and score the validation cases on their own grids.

    Args:
        dataset: As for `segscse check`.
        out: Run folder. Default: runs/<data set>_<2d|3d>_fold<fold>.
        fold: Number of the cross-validation fold, `all` to train on every case, or `cv` to train and score every fold.
        budget: Time for training, such as 90s, 20m or 2h; wins over train.budget and train.max_steps.
        resume: Continue the run in --out.
        labels: Folder of label maps that pair with the images by name.
        devices: Processes on this machine, one a GPU or a part of the cores. They share every batch, or with
            --fold cv the folds. Under torchrun or srun it is what those started.
        nodes: Machines; each runs this command under torchrun or srun.
        config: YAML file of settings; may be given repeatedly, later files win, and flags win over all.
        experiment: Settings of the experiment.
    """
    ranks = require_processes(devices, nodes)
    name = dataset.resolve().name.removesuffix(".csv")
    place = "cv" if fold == "cv" else f"fold{fold}"
    folder = out or Path("runs") / f"{name}_{experiment.model.spatial_dims}d_{place}"
    task = _train_all_folds if fold == "cv" else _train_one_fold
    task(_Training(ranks, dataset, folder, experiment, labels, fold, budget, resume))


@dataclass(frozen=True, slots=True)
class _Training:
    """What `train` is asked for."""

    ranks: Ranks
    dataset: Path
    folder: Path
    config: ExperimentConfig
    labels: Path | None
    fold: str
    budget: str | None
    resume: bool


def _train_one_fold(asked: _Training) -> None:
    from segscse.api import validate_run
    from segscse.hardware import pick_device
    from segscse.training.run import train_run

    number, device = read_fold(asked.fold), _device(asked)
    nccl = asked.ranks.world > 1 and pick_device(device).type == "cuda"
    console = make_console(quiet=asked.ranks.rank > 0)
    with joined(asked.ranks, nccl=nccl) as group:
        run_ = train_run(
            asked.dataset,
            asked.folder,
            asked.config,
            labels=asked.labels,
            fold=number,
            budget=asked.budget,
            resume=asked.resume,
            console=console,
            group=group,
        )
        if group.first:
            say(f"trained {run_.steps} steps: {run_.folder}")
        if not run_.split.validation:
            return
        with show_bar(console, "validating") as progress:
            summary = validate_run(run_, device=device, progress=progress, group=group)
    if group.first:
        say_scores(summary, run_.folder / "validation")


def _device(asked: _Training) -> str:
    """Return the device that a training asks for: a resumed one keeps that which it was started with."""
    file = asked.folder / "config.yaml"
    started = asked.resume and file.is_file()
    return (load_config(file) if started else asked.config).train.device


def _train_all_folds(asked: _Training) -> None:
    from segscse.crossval import cross_validate
    from segscse.files import read_json

    console = make_console(quiet=asked.ranks.rank > 0)
    with joined(asked.ranks) as group, show_bar(console, "validating") as progress:
        summary = cross_validate(
            asked.dataset,
            out=asked.folder,
            labels=asked.labels,
            config=asked.config,
            budget=asked.budget,
            resume=asked.resume,
            console=console,
            progress=progress,
            group=group,
        )
    if group.first:
        say_scores(summary, asked.folder / "evaluation")
        for row in read_json(asked.folder / "postprocessing.json")["labels"]:
            if row["taken"]:
                say(f"the models keep only the largest piece of {row['name']}: Dice {row['difference']:+.4f}")


def predict(
    model: Path,
    inputs: Annotated[list[Path], Parameter(name="INPUT", negative="")],
    /,
    *,
    out: Path,
    ensemble: Annotated[list[Path] | None, Parameter(negative="")] = None,
    tta: bool = False,
    probabilities: bool = False,
    uncertainty: bool = False,
    foreground_only: bool = False,
    resume: bool = False,
    memory: str | None = None,
    format: Literal["nifti", "input"] = "nifti",  # noqa: A002, the flag's name
    engine: Engine = "auto",
    device: Device = "auto",
    devices: Devices = None,
    nodes: Nodes = None,
) -> int:
    """Segment scans; label maps come back on each scan's own grid.

    Beside them go quality.csv, which says which cases to look at first, and predictions.json for --resume. What
    another model made of a case that fails now is removed.

    Args:
        model: Run folder or model folder; the folder of a cross-validation stands for the models of its folds, whose
            probabilities are averaged.
        inputs: Images, DICOM series folders, folders of either, or CSV files (case,image[,image2...]).
        out: Folder for the label maps, <case>.nii.gz.
        ensemble: A further run or model whose probabilities are averaged with the first's; may be given repeatedly.
        tta: Average over inputs mirrored along the axes that training mirrored: better by a little, up to 8 times
            slower.
        probabilities: Also write probabilities/<case>.nii.gz, (X, Y, Z, label) in steps of 1/255.
        uncertainty: Also write uncertainty/<case>.nii.gz, the entropy of every voxel between 0 and 1, and with an
            ensemble disagreement/<case>.nii.gz, the part of it that its members disagree about.
        foreground_only: Leave out windows that hold nothing but background air; no other voxel changes by it.
        resume: Leave out cases whose label map is there, made from the same scan, model and settings.
        memory: Limit such as 4GB, which the batch and the rows that are open at once are chosen for.
        format: nifti, or input for each scan's own format (DICOM SEG for a DICOM series).
        engine: What computes the network; auto takes the fastest of those that the model was exported for, or torch.
        device: Where to run.
        devices: Processes on this machine, one a GPU or a part of the cores, that share the cases; --memory is of
            each. Under torchrun or srun it is what those started.
        nodes: Machines; each runs this command under torchrun or srun.
    """
    ranks = require_processes(devices, nodes)
    with _no_collection():
        from segscse.inference.memory import parse_bytes
        from segscse.inference.pipeline import predict_files
        from segscse.inference.predictor import load
        from segscse.inference.segment import Options

    limit = None if memory is None else parse_bytes(memory)
    options = Options(probabilities=probabilities, uncertainty=uncertainty, foreground_only=foreground_only)
    speak = say if ranks.rank == 0 else _silent
    with joined(ranks) as group, show_bar(make_console(quiet=ranks.rank > 0), "predicting") as progress:
        # The engines take the threads that joining leaves to this process.
        loaded = partial(load, model, *(ensemble or ()), device=device, engine=engine, mirror=tta)
        if group.world > 1:  # the first compares engines, on quiet cores; the others recall what it has taken
            group.on_first(lambda: len(loaded().members))
        predictor = loaded()
        if len(predictor.members) > 1:
            speak(f"{len(predictor.members)} models, whose probabilities are averaged")
        for one in predictor.members:
            speak(f"engine: {one.chosen}")
            if tta and not one.plan.mirror_axes:
                speak(f"--tta changes nothing: {one.folder} was trained without mirroring")
        outcome = predict_files(
            predictor,
            inputs,
            out,
            options=options,
            form=format,
            resume=resume,
            memory=limit,
            say=speak,
            progress=progress,
            group=group,
        )
    if group.first:
        say_outcome(outcome, out, foreground_only=foreground_only, resumed=resume)
    return 2 if outcome.failures else 0


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage in the body: importing torch makes none, and looking for it takes a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _silent(text: str) -> None:
    """Say nothing: the first process speaks for all."""


def export(
    model: Path,
    /,
    *,
    out: Path,
    engine: Annotated[list[ExportEngine] | None, Parameter(name=("--engine", "--format"), negative="")] = None,
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto",
    calibrate: Annotated[list[Path] | None, Parameter(negative="")] = None,
) -> None:
    """Write a model for OpenVINO or ONNX Runtime: one folder with all that prediction needs, compared with PyTorch.

    Args:
        model: Run folder or model folder.
        out: The new folder.
        engine: openvino (the default) or onnx; repeat for both.
        precision: Of OpenVINO; bf16 is half precision where the hardware has it; int8 needs --calibrate.
        calibrate: Scan, or folder of scans, to calibrate int8 with and to compare on; may be given repeatedly.
    """
    from segscse.inference.export import export_model

    engines = engine or ["openvino"]
    with show_bar(make_console(), "reading") as progress:
        exported = export_model(
            model, out, engines=engines, precision=precision, calibrate=calibrate or (), progress=progress
        )
    for graph in exported.engines:
        for ran, parity in graph.parity.items():
            say(
                f"{graph.engine} {ran}: logits differ from PyTorch's by {parity['error']:.2g} of their spread, "
                f"{100 * parity['flipped']:.2g} % of the foreground by label ({parity['windows']} windows)"
            )
    say(f"model: {out}")


def demo(*, out: Path = Path("demo"), budget: str = "100s", seed: int = 0) -> None:
    """Make phantom scans, plan, train, predict and evaluate them, and say where the report lies.

    Args:
        out: Folder for everything.
        budget: Time for training.
        seed: Of the phantoms and of the training.
    """
    from segscse.demo import run_demo

    summary = run_demo(out, budget=budget, seed=seed, say=say, console=make_console())
    say_scores(summary, out / "evaluation")
