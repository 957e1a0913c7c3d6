"""The Python verbs behind `segscse.plan` and `segscse.train`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console

from segscse.config import ExperimentConfig, load_config
from segscse.data.index import Case
from segscse.data.plan import Plan
from segscse.data.prepare import plan_dataset
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.tables import load_provenance
from segscse.files import write_json
from segscse.inference.predictor import load
from segscse.training.run import Run, train_run
from segscse.types import Progress


def plan(
    dataset: str | Path,
    *,
    labels: str | Path | None = None,
    config: str | Path | ExperimentConfig | None = None,
) -> Plan:
    """Return what a data set implies for a network.

    Args:
        dataset: a data set, as for `segscse plan`.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: a configuration or its YAML file; the defaults if not given.

    Raises:
        InputError: the data set or the configuration has errors.
    """
    return plan_dataset(dataset, config_of(config), labels=labels).plan


def train(
    dataset: str | Path,
    *,
    out: str | Path,
    labels: str | Path | None = None,
    config: str | Path | ExperimentConfig | None = None,
    budget: str | None = None,
    fold: int | None = 0,
    resume: bool = False,
) -> Run:
    """Train one fold, segment and score its validation cases into `<out>/validation`, and return the run.

    Args:
        dataset: a data set, as for `segscse train`.
        out: the run folder.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: a configuration or its YAML file; the defaults if not given.
        budget: time such as `20m`; wins over the configuration's.
        fold: cross-validation fold, or None to train on every case.
        resume: continue an interrupted run.

    Raises:
        InputError: something given cannot be used.
        Interrupted: a signal stopped the run; continue it with `resume=True`.
    """
    chosen = config_of(config)
    run = train_run(
        dataset,
        Path(out),
        chosen,
        labels=labels,
        fold=fold,
        budget=budget,
        resume=resume,
        console=Console(stderr=True),
    )
    if run.split.validation:
        validate_run(run, device=chosen.train.device)
    return run


def config_of(config: str | Path | ExperimentConfig | None) -> ExperimentConfig:
    """Return a configuration from its file, itself, or the defaults."""
    return config if isinstance(config, ExperimentConfig) else load_config(*([config] if config is not None else []))


def validate_run(run: Run, *, device: str = "auto", progress: Progress | None = None) -> dict[str, Any]:
    """Segment a run's validation cases on their own grids and score them into `<run>/validation`.

    `seconds.json` there says how long each case took, from its file to the label map. With `train.patience` the model
    is the best of the run's validations on these same cases, so that its score is a little optimistic.

    Args:
        run: a finished run.
        device: where to predict.
        progress: called with the number of cases done and their total.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        InputError: a case cannot be predicted.
    """
    held_out = set(run.split.validation)
    cases = {case.id: case for case in run.planned.index.cases if case.id in held_out}
    folder = run.folder / "validation"
    predictor = load(run.folder, device=device)
    predictions, seconds = {}, {}
    for done, case in enumerate(cases.values(), start=1):
        predictions[case.id] = folder / "predictions" / f"{case.id}.nii.gz"
        start = perf_counter()
        segmentation = predictor.predict(case.images)
        seconds[case.id] = round(perf_counter() - start, 4)
        segmentation.save(predictions[case.id])
        if progress is not None:
            progress(done, len(cases))
    write_json(folder / "seconds.json", seconds)
    references = {case.id: case.label for case in cases.values() if case.label is not None}
    return evaluate_folders(
        predictions,
        references,
        folder,
        {case.id: case.images[0] for case in cases.values()},
        names=dict(predictor.plan.labels),
        labels=predictor.plan.label_ids,
        subjects=subjects_of_cases(cases.values()),
        provenance=load_provenance(run.folder),
    ).summary


def subjects_of_cases(cases: Iterable[Case]) -> dict[str, str] | None:
    """Return the subject of every case by its id; None where every case is a subject of its own."""
    subjects = {case.id: case.subject for case in cases}
    return subjects if len(set(subjects.values())) < len(subjects) else None
