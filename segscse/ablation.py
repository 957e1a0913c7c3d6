"""Ablation: variants of the attention, trained alike and compared case by case."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console

from segscse.api import config_of, subjects_of_cases
from segscse.attention import ALIASES, block_options
from segscse.attention.spec import read_spec
from segscse.config import ExperimentConfig, load_config, to_builtin
from segscse.crossval import finish_fold
from segscse.data.prepare import PlannedDataset, plan_dataset
from segscse.data.split import make_split
from segscse.errors import InputError, Interrupted
from segscse.evaluation.ablation import Ablation, VariantCost, score_variants
from segscse.evaluation.columns import CONVENTION, CONVENTION_VERSION
from segscse.evaluation.tables import load_table
from segscse.files import read_json, write_json, write_text
from segscse.nets.build import check_attention
from segscse.ranks import ALONE, Group
from segscse.settings import SETTINGS, read_settings, refuse_other_data, refuse_used, shared_config
from segscse.study import OUTCOME, Study
from segscse.training.footprint import Footprint, measure_footprint
from segscse.training.log import FILE, read_log
from segscse.training.run import Run
from segscse.types import Progress

VARIANTS = ("none", "se", "scse", "eca")
FOLDS = (0, 1, 2)
SEEDS = 1
_SETTINGS = frozenset({"attention", "folds", "seeds", "fingerprint", "config"})
_RECORDED = ("versions", "device", "precision", "threads")


def ablate(
    dataset: str | Path,
    *,
    out: str | Path,
    attention: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    seeds: int | None = None,
    budget: str | None = None,
    steps: int | None = None,
    labels: str | Path | None = None,
    config: str | Path | ExperimentConfig | None = None,
    resume: bool = False,
    console: Console | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> Ablation:
    """Train variants of the attention on the same folds with the same seeds, and compare them with the first.

    The order is every variant's first fold before any variant's second, and all folds of a seed before the next seed;
    `<out>/ablation.json` and `ablation.md` are written at the end, and before whenever all variants have finished a
    fold; the first of several processes looks after each of its own runs.
    `<out>/<variant>/seed<s>_fold<k>` is a run like any other, and `<out>/<variant>/cases.csv` a table for `compare`.

    Args:
        dataset: a data set, as for `segscse train`.
        out: the folder for everything.
        attention: names of `segscse.attention.ATTENTION`, the baseline first; each stands in turn wherever the
            configuration has an attention block. Default: none, se, scse, eca; with `resume` what the ablation was
            started with, as for `folds` and `seeds`, which may also be given anew, for more runs.
        folds: numbers of cross-validation folds. Default: 0, 1, 2.
        seeds: how many trainings of every fold, with the configuration's seed and those after it. Default: 1.
        budget: time a run, such as `10m`; wins over the configuration's time or steps.
        steps: optimiser steps a run, in place of time, so that every variant makes the same number.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: a configuration or its YAML file; the defaults if not given.
        resume: keep the runs in `out` that are finished, go on with the one that was interrupted, then the others.
        console: where progress is shown; nowhere if not given.
        progress: called with the number of validation cases that are segmented in a run, and their total.
        group: processes among which the runs are dealt out, each trained by one of them; the first compares them all.

    Raises:
        InputError: something given cannot be used; then nothing was trained.
        Interrupted: a signal stopped the work; continue it with `resume=True`.
    """
    console = console or Console(stderr=True, quiet=True)
    given, length = config_of(config), (budget, steps)
    study, planned, footprints, parts = group.on_first(
        lambda: _begin(group.world, dataset, Path(out), labels, given, length, attention, folds, seeds, resume=resume)
    )
    cache = study.folder / "cache"
    finish = partial(
        finish_fold,
        dataset,
        labels=labels,
        resume=resume,
        console=console,
        progress=progress,
        cache=cache,
        beside=group.ranks.local_world,
    )
    written = 0
    for number in parts[group.rank]:
        _finish_run(study, number, planned, finish, console)
        if group.first and written < (whole := study.whole_rounds()) < len(study.rounds):
            written = whole
            _write(study, planned, study.rounds[:whole], footprints)
    group.barrier()
    return group.on_first(lambda: _write(study, planned, study.rounds, footprints))


def _begin(
    world: int,
    dataset: str | Path,
    out: Path,
    labels: str | Path | None,
    config: ExperimentConfig,
    length: tuple[str | None, int | None],
    attention: Sequence[str] | None,
    folds: Sequence[int] | None,
    seeds: int | None,
    *,
    resume: bool,
) -> tuple[Study, PlannedDataset, dict[str, Footprint], list[list[int]]]:
    """Decide and check an ablation, note its settings, measure what its variants take, and deal out its runs.

    `length` is budget and steps.
    """
    saved = read_settings(out, _SETTINGS, "ablation") if resume else {}
    if not resume:
        refuse_used(out)
    study = Study(
        out,
        tuple(saved.get("attention", VARIANTS) if attention is None else attention),
        tuple(saved.get("folds", FOLDS) if folds is None else folds),
        saved.get("seeds", SEEDS) if seeds is None else seeds,
        _config(config, *length, saved, out),
    )
    _check_variants(study)
    planned = plan_dataset(dataset, study.config, labels=labels)
    _check_data(study, planned, saved)
    footprints = {name: measure_footprint(planned.plan, study.config_of(name)) for name in study.attention}
    write_json(study.folder / SETTINGS, study.settings(planned.fingerprint.content))
    return study, planned, footprints, study.parts(world)


def _finish_run(
    study: Study, number: int, planned: PlannedDataset, finish: Callable[..., Run], console: Console
) -> None:
    """Do the n-th run, as far as that has not been done, and leave its `outcome.json`."""
    variant, seed, fold = study.runs[number - 1]
    what = f"run {number} of {len(study.runs)}: {variant}, seed {seed}, fold {fold}"
    folder = study.run_folder(variant, seed, fold)
    if study.finished(variant, seed, fold):
        console.print(f"{what}, finished before", highlight=False)
        return
    console.print(what, highlight=False)
    with _stopped_in(what, study.folder):
        left = len(study.runs) - number + 1
        run = finish(folder=folder, config=study.config_of(variant, seed), fold=fold, folds_left=left)
    _record(run, planned)


def _config(
    config: ExperimentConfig, budget: str | None, steps: int | None, saved: Mapping[str, Any], folder: Path
) -> ExperimentConfig:
    """Return the configuration of all runs: as given, or as `saved` where the ablation is resumed.

    Raises:
        InputError: both a budget and steps, or another configuration than the ablation was started with.
    """
    if budget is not None and steps is not None:
        raise InputError("an ablation takes a budget or a number of steps, got both", remedy="Give one of them")
    started = load_config(saved["config"]) if saved else None
    return shared_config(config, started, folder, budget=budget, steps=steps)


def _check_variants(study: Study) -> None:
    """Refuse what cannot be trained or compared.

    Raises:
        InputError: fewer than two variants, one of them twice, by whatever name, an unknown one, no place for them, no
            seed.
    """
    names = study.attention
    if len({name.lower() for name in names}) < max(2, len(names)):
        raise InputError(f"an ablation takes two different variants or more, got {', '.join(names)}")
    if study.seeds < 1:
        raise InputError(f"seeds must be 1 or more, got {study.seeds}")
    if not study.folds or len(set(study.folds)) < len(study.folds):
        raise InputError(f"folds must be different numbers, got {', '.join(map(str, study.folds)) or 'none'}")
    if not study.places:
        raise InputError(
            "the configuration has no attention at any position, so there is no place for the variants",
            remedy="Set model.attention.encoder, bottleneck, decoder, decoder_concat or skip to any block",
        )
    last = study.config.train.seed + study.seeds - 1
    for name in names:
        check_attention(study.config_of(name, last).model)
    specs = [read_spec(name) for name in names]
    blocks = [(ALIASES.get(name, name), {**block_options(name), **options}) for name, options in specs]
    for number, block in enumerate(blocks):
        if block in blocks[:number]:
            same = f"{names[blocks.index(block)]} and {names[number]}"
            raise InputError(f"an ablation takes different variants, and {same} are one", remedy="Leave one out")


def _check_data(study: Study, planned: PlannedDataset, saved: Mapping[str, Any]) -> None:
    """Refuse folds that are not there, and another data set than the ablation was started with.

    Raises:
        InputError: naming which.
    """
    data = study.config.data
    for fold in study.folds:
        make_split(planned.index.cases, fold, folds=data.folds, seed=data.split_seed)
    if saved:
        refuse_other_data(study.folder, saved, planned.fingerprint.content)


@contextmanager
def _stopped_in(what: str, folder: Path) -> Iterator[None]:
    """Say which run a signal stopped, and how to go on.

    Raises:
        Interrupted: as it came.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        number = stop.signum if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, f"stopped in {what}; continue with --resume (ablation folder: {folder})") from stop


def _record(run: Run, planned: PlannedDataset) -> None:
    """Write what a finished run cost: the mark that it is finished.

    Raises:
        InputError: the data set is no longer what the ablation was planned for.
    """
    if run.planned.plan != planned.plan or run.planned.fingerprint.content != planned.fingerprint.content:
        raise InputError("the data set has changed since the ablation was started", remedy="Start a new one")
    record = read_json(run.folder / "run.json")
    outcome = {
        "steps": run.steps,
        "step_ms": step_ms(run.folder / FILE),
        "inference_s": list(read_json(run.folder / "validation" / "seconds.json").values()),
        **{name: record[name] for name in _RECORDED},
    }
    write_json(run.folder / OUTCOME, outcome)


def step_ms(metrics_csv: Path) -> float | None:
    """Return the median time of a training step in ms, over the stretches of a log that hold no validation.

    None where there is no such stretch, in a run of fewer than 20 steps.
    """
    rows = [
        (float(row["step"]), float(row["seconds"]), bool(row["val_dice"]))
        for row in read_log(metrics_csv, ("step", "seconds", "val_dice"))
        if row["step"] and isfinite(float(row["seconds"] or "nan"))
    ]
    times = []
    before = (0.0, 0.0)
    for step, seconds, validated in rows:
        if step > before[0] and not validated:
            times.append(1000 * (seconds - before[1]) / (step - before[0]))
        before = (step, seconds)
    return round(median(times), 3) if times else None


def _write(
    study: Study, planned: PlannedDataset, rounds: Sequence[tuple[int, int]], footprints: dict[str, Footprint]
) -> Ablation:
    """Compare what all variants have finished, and write it."""
    outcomes = {
        name: [read_json(study.run_folder(name, *round_) / OUTCOME) for round_ in rounds] for name in study.attention
    }
    costs = {name: _cost(of, footprints[name]) for name, of in outcomes.items()}
    runs = {
        name: [(seed, load_table(study.run_folder(name, seed, fold) / "validation", name)) for seed, fold in rounds]
        for name in study.attention
    }
    variants, comparison, tables = score_variants(runs, costs, subjects_of_cases(planned.index.cases))
    for name, table in tables.items():
        write_text(study.variant_folder(name) / "cases.csv", table.to_csv(index=False, lineterminator="\n"))
    ablation = Ablation(
        folder=study.folder,
        dataset=planned.plan.dataset,
        length=study.length,
        rounds=tuple(rounds),
        n_rounds=len(study.rounds),
        n_cases=tables[study.attention[0]]["case"].nunique(),
        variants=variants,
        comparison=comparison,
    )
    every = [outcome for of in outcomes.values() for outcome in of]
    record = {
        "convention": CONVENTION,
        "convention_version": CONVENTION_VERSION,
        "made_with": {name: _different(outcome[name] for outcome in every) for name in _RECORDED},
        "config": to_builtin(asdict(study.config)),
    }
    write_json(study.folder / "ablation.json", {**ablation.to_json(), **record})
    write_text(study.folder / "ablation.md", ablation.to_markdown())
    return ablation


def _cost(outcomes: Sequence[dict[str, Any]], footprint: Footprint) -> VariantCost:
    known = [outcome["step_ms"] for outcome in outcomes if outcome["step_ms"] is not None]
    seconds = [value for outcome in outcomes for value in outcome["inference_s"]]
    return VariantCost(
        parameters=footprint.parameters,
        step_ms=median(known) if known else float("nan"),
        steps=fmean(outcome["steps"] for outcome in outcomes),
        memory_bytes=float(footprint.peak_bytes),
        inference_s=median(seconds),
    )


def _different(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur, each once: more than one where an ablation moved to another machine."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
