"""The Python verbs behind `segscse.plan` and `segscse.train`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
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
from segscse.files import only_writer, write_json
from segscse.inference.predictor import load_one
from segscse.nets.build import check_attention
from segscse.ranks import ALONE, Group
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
    chosen = config_of(config)
    check_attention(chosen.model)
    return plan_dataset(dataset, chosen, labels=labels).plan


def train(
    dataset: str | Path,
    *,
    out: str | Path,
    labels: str | Path | None = None,
    config: str | Path | ExperimentConfig | None = None,
    budget: str | None = None,
    fold: int | None = 0,
    resume: bool = False,
    group: Group = ALONE,
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
        group: the processes that share the run, of a script that torchrun or `srun` started; see
            `segscse.ranks.joined`.

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
        group=group,
    )
    if run.split.validation:
        device = load_config(run.folder / "config.yaml").train.device  # a resumed run keeps its own
        validate_run(run, device=device, group=group)
    return run


def config_of(config: str | Path | ExperimentConfig | None) -> ExperimentConfig:
    """Return a configuration from its file, itself, or the defaults."""
    return config if isinstance(config, ExperimentConfig) else load_config(*([config] if config is not None else []))


def validate_run(
    run: Run, *, device: str = "auto", progress: Progress | None = None, group: Group = ALONE
) -> dict[str, Any]:
    """Segment a run's validation cases on their own grids and score them into `<run>/validation`.

    `seconds.json` there says how long each case took, from its file to the label map. With `train.patience` the model
    is the best of the run's validations on these same cases, so that its score is a little optimistic.

    Args:
        run: a finished run.
        device: where to predict.
        progress: called with the number of cases done and their total.
        group: the processes that share the cases; the first scores them all.

    Returns:
        The summary that `summary.json` holds.

    Raises:
        InputError: a case cannot be predicted, or another process writes into the run's folder.
    """
    with ExitStack() as held:
        group.on_first(lambda: held.enter_context(only_writer(run.folder)))  # lest the run goes on meanwhile
        return _validate(run, device, progress, group)


def _validate(run: Run, device: str, progress: Progress | None, group: Group) -> dict[str, Any]:
    held_out = set(run.split.validation)
    cases = {case.id: case for case in run.planned.index.cases if case.id in held_out}
    folder = run.folder / "validation"
    predictor = load_one(run.folder, device=device)
    predictor.postprocessing = ()  # a cross-validation decides about it by these predictions
    predictions = {name: folder / "predictions" / f"{name}.nii.gz" for name in cases}
    mine, seconds = group.share(list(cases)), {}
    for done, name in enumerate(mine, start=1):
        start = perf_counter()
        segmentation = predictor.predict(cases[name].images)
        seconds[name] = round(perf_counter() - start, 4)
        segmentation.save(predictions[name])
        if progress is not None:
            progress(done, len(mine))
    every = {name: value for part in group.gather(seconds) for name, value in part.items()}
    return group.on_first(lambda: _score(run, folder, predictions, predictor.plan, every))


def _score(
    run: Run, folder: Path, predictions: dict[str, Path], plan: Plan, seconds: dict[str, float]
) -> dict[str, Any]:
    """Score segmented validation cases into a folder."""
    cases = {case.id: case for case in run.planned.index.cases if case.id in predictions}
    write_json(folder / "seconds.json", {name: seconds[name] for name in cases})
    references = {case.id: case.label for case in cases.values() if case.label is not None}
    return evaluate_folders(
        predictions,
        references,
        folder,
        {case.id: case.images[0] for case in cases.values()},
        names=dict(plan.labels),
        labels=plan.label_ids,
        subjects=subjects_of_cases(cases.values()),
        provenance=load_provenance(run.folder),
    ).summary


def subjects_of_cases(cases: Iterable[Case]) -> dict[str, str] | None:
    """Return the subject of every case by its id; None where every case is a subject of its own."""
    subjects = {case.id: case.subject for case in cases}
    return subjects if len(set(subjects.values())) < len(subjects) else None
