"""The summary of a table of scores: means that say what they leave out, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from segscse.evaluation.columns import (
    CALIBRATION,
    CONVENTION,
    CONVENTION_VERSION,
    DEFINITIONS,
    DISTANCES,
    SHARES,
    diagonal_mm_of,
)
from segscse.evaluation.statistics import mean_interval


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the table of `evaluate` into plain JSON values; null and a count where undefined.

    Every label and the whole carry `n_cases` (scored), `n_missed` (in the reference only),
    `n_false_positive_cases` (in the prediction only) and `n_both_empty`; the whole counts case-label pairs
    there. `overall.mean_dice` is the mean over labels of the mean over cases; `overall.mean_dice_by_case` the
    mean over cases of the mean over their defined labels.

    A distance is infinite where one mask is empty, so its `mean` is null as soon as one structure is missed or
    made up, and the `median` when half of them are: leaving these cases out would make the score of a model
    better by what it misses. `mean_penalised` counts an infinite distance as the image's diagonal.
    """
    diagonals: Mapping[str, float] = table.attrs.get("diagonal_mm", {})
    plain = table.assign(diagonal_mm=diagonal_mm_of(table))
    plain.attrs = {}  # pandas copies them at every step
    labels = [_summarise_label(group) for _, group in plain.groupby("label", sort=True)]
    by_case = foreground_dice(plain)
    overall = {
        "n_cases": int(plain["case"].nunique()),
        "n_labels": len(labels),
        "mean_dice": _mean([label["dice"]["mean"] for label in labels]),
        "mean_dice_by_case": _mean(by_case),
        "median_dice_by_case": _finite(by_case.median()),
        **{f"mean_{share}": _mean([label[share]["mean"] for label in labels]) for share in SHARES if share in plain},
        **_overall_distances(labels),
        **_empty_counts(plain),
    }
    return {
        "convention": CONVENTION,
        "convention_version": CONVENTION_VERSION,
        "nsd_tolerance_mm": table.attrs.get("nsd_tolerance_mm"),
        "definitions": {name: text for name, text in (DEFINITIONS | CALIBRATION).items() if name in plain},
        "overall": overall,
        "labels": labels,
        "grids": {
            case: {"spacing_mm": list(spacing), "diagonal_mm": diagonals.get(case)}
            for case, spacing in table.attrs.get("spacing_mm", {}).items()
        },
    }


def foreground_dice(table: pd.DataFrame) -> pd.Series:
    """Return each case's mean Dice over its defined labels (NaN when there is none), indexed by case."""
    return table.groupby("case", sort=True)["dice"].mean()


def _summarise_label(rows: pd.DataFrame) -> dict[str, Any]:
    dice = rows["dice"].dropna()
    interval = mean_interval(dice.to_numpy())
    return {
        "label": int(rows["label"].iloc[0]),
        "name": str(rows["name"].iloc[0]),
        "n_cases": len(rows),
        **_empty_counts(rows),
        "dice": {
            **_share(dice),
            "mean_interval_95": [_finite(interval.low), _finite(interval.high)],
            "mean_interval_method": interval.method,
        },
        **{share: _share(rows[share].dropna()) for share in SHARES if share in rows},
        **{name: _distance(rows[name], rows["diagonal_mm"]) for name in DISTANCES if name in rows},
    }


def _share(values: pd.Series) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": _finite(values.mean()),
        "median": _finite(values.median()),
        "std": _finite(values.std(ddof=1)),
    }


def _distance(values: pd.Series, diagonal_mm: pd.Series) -> dict[str, Any]:
    """Summarise one kind of distance; `n` counts all that are defined, `n_infinite` those with one mask empty."""
    values = values.dropna()
    infinite = np.isinf(values)
    return {
        "n": len(values),
        "n_infinite": int(infinite.sum()),
        "mean": _finite(values.mean()),
        "median": _finite(float(np.median(np.sort(values)))) if len(values) else None,
        "mean_penalised": _finite(values.where(~infinite, diagonal_mm).mean(skipna=False)),
    }


def _overall_distances(labels: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean over labels of each kind of distance, plain and penalised."""
    overall: dict[str, float | None] = {}
    for name in DISTANCES:
        known = [label[name] for label in labels if name in label and label[name]["n"]]
        stem = name.removesuffix("_mm")
        for key, what in ((f"mean_{stem}_mm", "mean"), (f"mean_{stem}_penalised_mm", "mean_penalised")):
            means = [each[what] for each in known]
            overall[key] = None if None in means else _mean(means)
    return overall


def _empty_counts(rows: pd.DataFrame) -> dict[str, int]:
    in_ref, in_pred = rows["n_ref"] > 0, rows["n_pred"] > 0
    return {
        "n_missed": int((in_ref & ~in_pred).sum()),
        "n_false_positive_cases": int((~in_ref & in_pred).sum()),
        "n_both_empty": int((~in_ref & ~in_pred).sum()),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values, None when there is none."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(defined)) if defined else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
