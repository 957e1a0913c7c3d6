"""The demonstration: the whole path on generated scans, with nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from segscse.config import load_config
from segscse.data.phantom import make_phantom_dataset
from segscse.errors import InputError
from segscse.evaluation.folders import evaluate_folders
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.training.run import train_run

# Small enough for two cores and two minutes; a study would take the defaults.
SETTINGS = {"model": {"base_features": 8}, "data": {"max_patch_voxels": 50_000}, "train": {"validations": 2}}


def run_demo(
    out: Path,
    *,
    budget: str,
    seed: int,
    say: Callable[[str], None],
    console: Console,
    cases: int = 20,
    test_cases: int = 4,
) -> dict[str, Any]:
    """Make phantoms under `out`, train on some, segment and score the held-out ones; return the summary.

    Args:
        out: folder for everything.
        budget: time for training.
        seed: of the phantoms and of the training.
        say: takes one line of news.
        console: where training draws.
        cases: number of phantoms to train and validate on.
        test_cases: number of held-out phantoms.

    Raises:
        InputError: `out` cannot be used.
        Interrupted: a signal stopped the training.
    """
    if (out / "run").exists():
        raise InputError("holds a demonstration already", file=out, remedy="Remove it or choose another --out")
    config = load_config(SETTINGS, overrides={"train": {"budget": budget, "seed": seed}})
    dataset = make_phantom_dataset(out / "phantoms", cases=cases, test_cases=test_cases, seed=seed)
    say(f"phantom scans: {dataset}")
    run = train_run(dataset, out / "run", config, fold=0, console=console)
    say(f"trained {run.steps} steps: {run.folder}")
    predictor = load(run.folder)
    predict_files(predictor, [dataset / "imagesTs"], out / "predictions")
    return evaluate_folders(
        out / "predictions",
        dataset / "labelsTs",
        out / "evaluation",
        dataset / "imagesTs",
        names=dict(predictor.plan.labels),
        labels=predictor.plan.label_ids,
    ).summary
