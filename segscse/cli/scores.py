"""The verbs that score and compare: heavy imports wait until a verb needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from segscse.cli.flags import read_by_label, read_label, read_names, read_numbers, read_tolerance
from segscse.cli.options import Configs, Devices, Labels, Nodes
from segscse.cli.terminal import make_console, say, say_scores, say_warnings, show_bar
from segscse.config import ExperimentConfig, FlatConfig
from segscse.errors import InputError
from segscse.launch import require_processes
from segscse.ranks import joined


def evaluate(
    *,
    pred: Path,
    ref: Path,
    out: Path,
    images: Path | None = None,
    labels: str | None = None,
    names: str | None = None,
    nsd_tolerance_mm: str = "1",
    probabilities: Path | None = None,
    missing: Literal["error", "empty"] = "error",
    workers: int | None = None,
    subjects: Path | None = None,
    model: Path | None = None,
    viewer: bool = True,
) -> None:
    """Score label maps against references: cases.csv, summary.json, conventions.txt and report.html.

    Args:
        pred: Folder of predictions.
        ref: Folder of references; files pair by name.
        out: Folder for the results.
        images: Folder of images to show under the report's overlays.
        labels: Labels to score, such as 1,2,5; every one that occurs if not given.
        names: Names of labels, such as 1=liver,2=spleen.
        nsd_tolerance_mm: Tolerance of the surface Dice, such as 2, or one per label, 1=2,2=1.5.
        probabilities: Folder `probabilities` that predict --probabilities wrote; adds ECE and Brier. Needs --labels.
        missing: What to do about references without a prediction: refuse (error), or count them as wrong (empty).
        workers: Cases scored at a time; one per core, at most 4, if not given.
        subjects: CSV with the columns case,subject, where subjects have several cases.
        model: Run or model folder that made the predictions; its record goes into the report.
        viewer: Embed a viewer and the worst, median and best case in the report.
    """
    from segscse.evaluation.folders import evaluate_folders
    from segscse.evaluation.tables import load_provenance

    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, got {workers}")
    with show_bar(make_console(), "scoring") as progress:
        scored = evaluate_folders(
            pred,
            ref,
            out,
            images,
            missing,
            None if names is None else read_by_label("--names", names),
            None if labels is None else [read_label("--labels", text) for text in labels.split(",")],
            nsd_tolerance_mm=read_tolerance(nsd_tolerance_mm),
            probabilities_dir=probabilities,
            workers=workers,
            subjects=subjects,
            provenance=None if model is None else load_provenance(model),
            viewer=viewer,
            progress=progress,
            warn=lambda text: say_warnings([(str(out), text)]),
        )
    say_warnings(scored.table.attrs["notes"])
    say_scores(scored.summary, out)


def compare(
    evaluations: Annotated[list[Path], Parameter(name="EVALUATION", negative="")],
    /,
    *,
    metric: str = "dice",
    subjects: Path | None = None,
    pairs: Literal["first", "all"] = "first",
    out: Path | None = None,
) -> None:
    """Compare evaluations case by case: paired differences, intervals, Wilcoxon with Holm, ranks, and a verdict.

    Args:
        evaluations: Evaluation folders or cases.csv files, two or more; the first is the baseline.
        metric: Column of cases.csv to compare, such as dice, hd95_mm or nsd.
        subjects: CSV with the columns case,subject, where subjects have several cases.
        pairs: Compare every evaluation with the first, or all pairs.
        out: Also write comparison.json and comparison.md to this folder.
    """
    from segscse.evaluation.comparison import compare as compare_tables
    from segscse.files import write_json, write_text

    if len(evaluations) < 2:
        raise InputError("there must be two evaluations or more to compare", remedy="Give their folders")
    compared = compare_tables(
        *evaluations,
        metric=metric,
        subjects=subjects,
        pairs=pairs,
    )
    for letter, path in zip(compared.names, evaluations, strict=True):
        say(f"{letter}: {path}")
    say(str(compared))
    if out is not None:
        write_json(out / "comparison.json", {"evaluations": [str(path) for path in evaluations], **compared.to_json()})
        write_text(out / "comparison.md", compared.to_markdown())
        say(f"comparison: {out}")


def ablate(
    dataset: Path,
    *,
    attention: str | None = None,
    folds: str | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    steps: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    labels: Labels = None,
    devices: Devices = None,
    nodes: Nodes = None,
    config: Configs = None,
    experiment: FlatConfig = ExperimentConfig(),  # noqa: B008, frozen
) -> None:
    """Train variants of the attention alike and compare them with the first: ablation.json and ablation.md.

    Args:
        dataset: As for `segscse check`.
        attention: Blocks to compare, the baseline first; each stands in turn wherever the settings have one.
            Default: none,se,scse,eca; with --resume what the ablation was started with, as for folds and seeds.
        folds: Numbers of the cross-validation folds to train. Default: 0,1,2.
        seeds: Trainings of every fold, with train.seed and the seeds after it. Default: 1.
        budget: Time for each training, such as 90s, 20m or 2h; wins over train.budget and train.max_steps.
        steps: Optimiser steps of each training, in place of time.
        out: Folder for everything. Default: runs/<data set>_<2d|3d>_ablation.
        resume: Continue the ablation in --out: no finished run is repeated; folds and seeds may be added.
        labels: Folder of label maps that pair with the images by name.
        devices: Processes on this machine, one a GPU or a part of the cores, that share the trainings. Under torchrun
            or srun it is what those started.
        nodes: Machines; each runs this command under torchrun or srun.
        config: YAML file of settings; may be given repeatedly, later files win, and flags win over all.
        experiment: Settings of the experiment.
    """
    ranks = require_processes(devices, nodes)
    from segscse.ablation import ablate as run_ablation

    name = dataset.resolve().name.removesuffix(".csv")
    console = make_console(quiet=ranks.rank > 0)
    with joined(ranks) as group, show_bar(console, "validating") as progress:
        ablation = run_ablation(
            dataset,
            out=out or Path("runs") / f"{name}_{experiment.model.spatial_dims}d_ablation",
            attention=None if attention is None else read_names("--attention", attention),
            folds=None if folds is None else read_numbers("--folds", folds),
            seeds=seeds,
            budget=budget,
            steps=steps,
            labels=labels,
            config=experiment,
            resume=resume,
            console=console,
            progress=progress,
            group=group,
        )
    if group.first:
        say(str(ablation))
        say(f"ablation: {ablation.folder / 'ablation.md'}")
