"""Cross-validation: every fold trained, every case scored by the fold that has not seen it, in one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from segscse.api import config_of, subjects_of_cases, validate_run
from segscse.config import ExperimentConfig
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.split import n_folds
from segscse.errors import InputError
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.largest import compare_largest, decision
from segscse.files import read_json, write_json
from segscse.inference.model_folder import set_postprocessing
from segscse.ranks import ALONE, Group
from segscse.training.checkpoints import has_checkpoint
from segscse.training.run import Run, train_run
from segscse.types import Progress


def cross_validate(
    dataset: str | Path,
    *,
    out: str | Path,
    labels: str | Path | None = None,
    config: str | Path | ExperimentConfig | None = None,
    budget: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Train every fold into `<out>/fold<k>` and score all cases into `<out>/evaluation`.

    Where the scores show that keeping only the largest piece of a label raises its Dice, the folds' models do so from
    then on; `<out>/postprocessing.json` says what was found. The scores are of the predictions without it.

    Args:
        dataset: a data set, as for `segscse train`.
        out: the folder for everything.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: a configuration or its YAML file; the defaults if not given.
        budget: time a fold, such as `20m`; wins over the configuration's.
        resume: keep the folds in `out` that are finished, go on with the one that was interrupted, then the others.
        console: where progress is shown; nowhere if not given.
        progress: called with the number of validation cases that are segmented in a fold, and their total.
        group: processes among which the folds are dealt out, each trained by one of them; the first scores them all.

    Returns:
        The summary of the evaluation.

    Raises:
        InputError: something given cannot be used.
        Interrupted: a signal stopped the work; continue it with `resume=True`.
    """
    folder, chosen = Path(out), config_of(config)
    planned = group.on_first(lambda: _plan(dataset, folder, labels, chosen, resume=resume))
    # How many subjects there are is known once the scans are read: copies of a scan belong to one.
    folds = list(range(n_folds(planned.index.cases, chosen.data.folds)))
    for fold in group.share(folds):
        left = len(folds) - fold
        finish_fold(dataset, folder / f"fold{fold}", chosen, labels, fold, budget, resume, console, progress, left)
    group.barrier()
    return group.on_first(lambda: _score(folder, folds, planned))


def _plan(
    dataset: str | Path, folder: Path, labels: str | Path | None, config: ExperimentConfig, *, resume: bool
) -> PlannedDataset:
    """Return the data set of a cross-validation that may begin or go on in `folder`."""
    if not resume:
        refuse_used(folder)
    return plan_dataset(dataset, config, labels=labels)


def _score(folder: Path, folds: list[int], planned: PlannedDataset) -> dict[str, Any]:
    """Score all cases, each segmented by the fold that has not seen it; decide how the folds' models postprocess."""
    cases = {case.id: case for case in planned.index.cases}
    places = [folder / f"fold{fold}" for fold in folds]
    predictions = {name: _prediction(place, name) for place in places for name in _validated(place)}
    references = {name: case.label for name, case in cases.items() if case.label is not None}
    subjects = subjects_of_cases(cases.values())
    scored = evaluate_folders(
        predictions,
        references,
        folder / "evaluation",
        {name: case.images[0] for name, case in cases.items()},
        names=dict(planned.plan.labels),
        labels=planned.plan.label_ids,
        subjects=subjects,
    )
    pieces = decision(compare_largest(scored.table, predictions, references, subjects))
    write_json(folder / "postprocessing.json", pieces)
    for place in places:
        set_postprocessing(place, pieces["steps"])
    return scored.summary


def refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        InputError: it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remedy = "Choose another --out, or continue it with --resume"
        raise InputError("already exists and is not empty", file=folder, remedy=remedy)


def finish_fold(
    dataset: str | Path,
    folder: Path,
    config: ExperimentConfig,
    labels: str | Path | None,
    fold: int,
    budget: str | None,
    resume: bool,
    console: Console | None,
    progress: Progress | None,
    folds_left: int = 1,
) -> Run:
    """Train and validate a fold, as far as that has not been done; the arguments are those of `cross_validate`.

    Raises:
        InputError: something given cannot be used.
        Interrupted: a signal stopped the training.
    """
    started = resume and has_checkpoint(folder)
    before = _steps(folder) if started else None
    # A fold that was started knows its length; giving it again would make a longer run of a finished one.
    run = train_run(
        dataset,
        folder,
        config,
        labels=labels,
        fold=fold,
        budget=None if started else budget,
        resume=started,
        cache=folder.parent / "cache",  # every fold has the same cases, apart from which of them it trains on
        console=console,
        runs=folds_left,
    )
    scored = (folder / "validation" / "summary.json").is_file()
    if (
        not scored
        or run.steps != before
        or not all(_prediction(folder, case).is_file() for case in run.split.validation)
    ):
        validate_run(run, device=config.train.device, progress=progress)
    return run


def _validated(folder: Path) -> list[str]:
    """Return the validation cases of a fold."""
    return read_json(folder / "run.json")["validation_cases"]


def _steps(folder: Path) -> int | None:
    """Return the steps of the model that a fold has, or None without a model."""
    model = folder / "model" / "model.json"
    if not model.is_file():
        return None
    try:
        return read_json(model)["provenance"]["step"]
    except (KeyError, TypeError) as error:
        raise InputError("does not say its model's steps", file=model, remedy="Remove the fold's folder") from error


def _prediction(folder: Path, case: str) -> Path:
    return folder / "validation" / "predictions" / f"{case}.nii.gz"
