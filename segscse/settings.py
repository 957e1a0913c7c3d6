"""What all runs of a cross-validation or an ablation share: noted when the first starts, kept to when they resume."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from segscse.config import ExperimentConfig
from segscse.data.fingerprint import same_content
from segscse.errors import InputError
from segscse.files import is_temporary, read_json

SETTINGS = "settings.json"


def refuse_used(folder: Path) -> None:
    """Refuse a folder that holds anything but the settings of runs none of which has begun.

    Raises:
        InputError: it does.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or any(item.name != SETTINGS and not is_temporary(item) for item in folder.iterdir()):
        remedy = "Choose another --out, or continue it with --resume"
        raise InputError("already exists and is not empty", file=folder, remedy=remedy)


def read_settings(folder: Path, names: Set[str], what: str) -> dict[str, Any]:
    """Return what the runs in a folder were started with.

    Args:
        folder: of all runs.
        names: of the settings.
        what: the kind of study that has settings of these names.

    Raises:
        InputError: the folder holds none of this kind.
    """
    file = folder / SETTINGS
    saved = read_json(file) if file.is_file() else None
    if not isinstance(saved, dict) or saved.keys() != names:
        raise InputError(f"holds no {what} to resume", file=folder, remedy="Start it without --resume")
    return saved


def with_length(config: ExperimentConfig, budget: str | None, steps: int | None = None) -> ExperimentConfig:
    """Return a configuration with another length where one is given: a budget, or steps, which come before it."""
    train = config.train
    if budget is not None:
        train = replace(train, budget=budget, max_steps=None)
    return replace(config, train=train if steps is None else replace(train, max_steps=steps))


def shared_config(
    config: ExperimentConfig,
    started: ExperimentConfig | None,
    folder: Path,
    *,
    budget: str | None = None,
    steps: int | None = None,
) -> ExperimentConfig:
    """Return the configuration of all runs: as given, or as they were started with.

    Args:
        config: as given; the defaults where nothing was.
        started: what the runs were started with; None for new ones.
        folder: of all runs.
        budget: time a run, where one is given.
        steps: steps a run, likewise.

    Raises:
        InputError: something is given that the runs were not started with.
    """
    given = with_length(config, budget, steps)
    if started is None:
        return given
    if given != started and (config != ExperimentConfig() or with_length(started, budget, steps) != started):
        raise InputError(
            "was started with another configuration or length, and its runs must all have the same",
            file=folder,
            remedy="Resume without --config and other settings, and without a length",
        )
    return started


def refuse_other_data(folder: Path, saved: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse another data set than the runs in a folder were started with.

    Raises:
        InputError: it is another.
    """
    if not same_content(saved["fingerprint"], fingerprint):
        remedy = "Resume with the data set that it was started with"
        raise InputError("was started with another data set", file=folder, remedy=remedy)
