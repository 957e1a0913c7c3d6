"""The Python verbs behind `segscse.plan` and `segscse.train`."""

from __future__ import annotations

from pathlib import Path

from segscse.config import ExperimentConfig, load_config
from segscse.data.plan import Plan
from segscse.data.prepare import plan_dataset


def plan(
    dataset: str | Path, *, labels: str | Path | None = None, config: str | Path | ExperimentConfig | None = None
) -> Plan:
    """Return what a data set implies for a network.

    Args:
        dataset: a data set, as for `segscse plan`.
        labels: the folder of label maps, when `dataset` is a folder of images.
        config: a configuration or its YAML file; the defaults if not given.

    Raises:
        InputError: the data set or the configuration has errors.
    """
    return plan_dataset(dataset, _config(config, None), labels=labels).plan


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
    """Train one fold and return its run.

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
    from rich.console import Console

    return train_run(
        dataset, Path(out), _config(config, budget), labels=labels, fold=fold, resume=resume,
        console=Console(stderr=True),
    )


def _config(config: str | Path | ExperimentConfig | None, budget: str | None) -> ExperimentConfig:
    overrides = {"train": {"budget": budget}} if budget is not None else None
    if isinstance(config, ExperimentConfig):
        from dataclasses import replace

        return replace(config, train=replace(config.train, budget=budget)) if budget is not None else config
    return load_config(*([config] if config is not None else []), overrides=overrides)
