"""Cross-validation: every fold trained, every case scored by the fold that has not seen it, in one evaluation."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from segscse.api import config_of, subjects_of_cases, validate_run
from segscse.config import ExperimentConfig, load_config, to_builtin
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.split import n_folds
from segscse.errors import InputError
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.largest import compare_largest, decision
from segscse.files import read_json, write_json
from segscse.inference.model_folder import set_postprocessing
from segscse.ranks import ALONE, Group
from segscse.settings import SETTINGS, read_settings, refuse_other_data, refuse_used, shared_config
from segscse.training.checkpoints import has_checkpoint
from segscse.training.run import Run, train_run
from segscse.types import Progress

_SETTINGS = frozenset({"fingerprint", "config"})


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
        config: a configuration or its YAML file; the defaults if not given, with `resume` what the cross-validation
            was started with.
        budget: time a fold, such as `20m`; wins over the configuration's.
        resume: keep the folds in `out` that are finished, go on with the one that was interrupted, then the others,
            all with the configuration and the length that the first was started with.
        console: where progress is shown; nowhere if not given.
        progress: called with the number of validation cases that are segmented in a fold, and their total.
        group: processes among which the folds are dealt out, each trained by one of them; the first scores them all.

    Returns:
        The summary of the evaluation.

    Raises:
        InputError: something given cannot be used.
        Interrupted: a signal stopped the work; continue it with `resume=True`.
    """
    folder, given = Path(out), config_of(config)
    chosen, planned = group.on_first(lambda: _begin(dataset, folder, labels, given, budget, resume=resume))
    # How many subjects there are is known once the scans are read: copies of a scan belong to one.
    folds = list(range(n_folds(planned.index.cases, chosen.data.folds)))
    for fold in group.share(folds):
        left = len(folds) - fold
        place, beside = folder / f"fold{fold}", group.ranks.local_world
        finish_fold(dataset, place, chosen, labels, fold, resume, console, progress, left, beside=beside)
    group.barrier()
    return group.on_first(lambda: _score(folder, folds, planned))


def _begin(
    dataset: str | Path,
    folder: Path,
    labels: str | Path | None,
    config: ExperimentConfig,
    budget: str | None,
    *,
    resume: bool,
) -> tuple[ExperimentConfig, PlannedDataset]:
    """Return configuration and data set of a cross-validation that may begin or go on in `folder`; note them there."""
    saved = _started(folder) if resume else {}
    if not resume:
        refuse_used(folder)
    chosen = shared_config(config, load_config(saved["config"]) if saved else None, folder, budget=budget)
    _refuse_other_folds(folder, chosen)
    planned = plan_dataset(dataset, chosen, labels=labels)
    content = planned.fingerprint.content
    if saved:
        refuse_other_data(folder, saved, content)
    write_json(folder / SETTINGS, {"fingerprint": content, "config": to_builtin(asdict(chosen))})
    return chosen, planned


def _started(folder: Path) -> dict[str, Any]:
    """Return what a cross-validation was started with; its folds say so where it has no settings.

    Raises:
        InputError: the folder holds none.
    """
    begun = None if (folder / SETTINGS).exists() else next(iter(_begun(folder)), None)
    if begun is None:
        return read_settings(folder, _SETTINGS, "cross-validation")
    record = read_json(begun / "run.json")
    content = record.get("fingerprint") if isinstance(record, dict) else None
    return {"fingerprint": content, "config": to_builtin(asdict(load_config(begun / "config.yaml")))}


def _begun(folder: Path) -> list[Path]:
    """Return the folders of the folds that have begun."""
    return [path.parent for path in sorted(folder.glob("fold*/config.yaml")) if path.with_name("run.json").is_file()]


def _refuse_other_folds(folder: Path, config: ExperimentConfig) -> None:
    """Refuse folds that are trained with another configuration or length than the others will be.

    Raises:
        InputError: naming the first.
    """
    for fold in _begun(folder):
        if has_checkpoint(fold) and load_config(fold / "config.yaml") != config:
            raise InputError(
                "is another configuration or length than the other folds', and all folds must have the same",
                file=fold / "config.yaml",
                remedy=f"Remove {fold.name}, which is then trained anew, or start again with another --out",
            )


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


def finish_fold(
    dataset: str | Path,
    folder: Path,
    config: ExperimentConfig,
    labels: str | Path | None,
    fold: int,
    resume: bool,
    console: Console | None,
    progress: Progress | None,
    folds_left: int = 1,
    cache: Path | None = None,
    beside: int = 1,
) -> Run:
    """Train and validate a fold, as far as that has not been done; the arguments are those of `cross_validate`.

    `cache` is for the cases that memory does not hold; beside the fold's folder if not given. `beside` is the number
    of processes on this machine that do such work at once.

    Raises:
        InputError: something given cannot be used.
        Interrupted: a signal stopped the training.
    """
    started = resume and has_checkpoint(folder)
    before = _steps(folder) if started else None
    run = train_run(
        dataset,
        folder,
        config,
        labels=labels,
        fold=fold,
        resume=started,
        cache=cache or folder.parent / "cache",  # every fold has the same cases, apart from which it trains on
        console=console,
        runs=folds_left,
        beside=beside,
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
