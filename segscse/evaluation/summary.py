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
)
from segscse.evaluation.metrics import is_comparable, metrics_in
from segscse.evaluation.statistics import QUANTILES, describe

_SUFFIX = {**dict.fromkeys(DISTANCES, "_penalised"), "volume_diff_ml": "_absolute"}
"""What a statistic is called whose values are not the column's own, as `comparable` says."""


def summarise(table: pd.DataFrame, described: pd.DataFrame | None = None) -> dict[str, Any]:
    """Summarise the table of `evaluate` into plain JSON values; null and a count where undefined.

    Every label and the whole carry `n_cases` (scored), `n_missed` (in the reference only),
    `n_false_positive_cases` (in the prediction only) and `n_both_empty`; the whole counts case-label pairs
    there. `overall.mean_dice` is the mean over labels of the mean over cases; `overall.mean_dice_by_case` the
    mean over cases of the mean over their defined labels.

    A distance is infinite where one mask is empty, so its `mean` is null as soon as one structure is missed or
    made up, and the `median` when half of them are: leaving these cases out would make the score of a model
    better by what it misses. `mean_penalised` and all else of that name count an infinite distance as the image's
    diagonal; what is `_absolute` takes a difference by its size.

    Every score has, per label and in `overall.scores` over all labels, its mean with a 95 % interval (drawn over
    subjects where the table has a column `subject`), median, standard deviation and quantiles, as `describe` finds
    them; null where a distance is infinite and the image's diagonal not known.

    Args:
        table: as `evaluate` returns it.
        described: what `describe` says of the table, when it is known already.
    """
    if described is None:
        described = describe(table, [each.column for each in metrics_in(table) if is_comparable(table, each)])
    diagonals: Mapping[str, float] = table.attrs.get("diagonal_mm", {})
    plain = table.copy()
    plain.attrs = {}  # pandas copies them at every step
    statistics = _Statistics(described)
    labels = [_summarise_label(group, statistics) for _, group in plain.groupby("label", sort=True)]
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
        "n_missing_predictions": len(table.attrs.get("missing_predictions", ())),
        "scores": {
            metric.column: {"n": int(plain.groupby("case")[metric.column].count().gt(0).sum())}
            | statistics.of(metric.column, None)
            for metric in metrics_in(plain)
        },
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


class _Statistics:
    """The rows of `describe`, by metric and label; without a label, that over all labels or of the only one."""

    def __init__(self, described: pd.DataFrame) -> None:
        self.rows = {(row["metric"], row["label"]): row for row in described.to_dict("records")}
        labels = {label for _, label in self.rows}
        self.whole = 0 if 0 in labels else next(iter(labels), 0)

    def of(self, column: str, label: int | None) -> dict[str, Any]:
        """Return mean, interval, median, deviation and quantiles as JSON values; null where undefined."""
        row = self.rows.get((column, self.whole if label is None else label), {})
        known = {name: _finite(row.get(name, math.nan)) for name in ("mean", "low", "high", "median", "std")}
        suffix = _SUFFIX.get(column, "")
        return {
            f"mean{suffix}": known["mean"],
            f"mean{suffix}_interval_95": [known["low"], known["high"]],
            f"mean{suffix}_interval_method": row.get("method", "none"),
            f"median{suffix}": known["median"],
            f"std{suffix}": known["std"],
            f"quantiles{suffix}": {
                f"{level:g}": _finite(row.get("median" if level == 0.5 else f"q{100 * level:02.0f}", math.nan))
                for level in QUANTILES
            },
        }


def _summarise_label(rows: pd.DataFrame, statistics: _Statistics) -> dict[str, Any]:
    label = int(rows["label"].iloc[0])
    scores = {
        metric: {"n": int(rows[metric].count()), **statistics.of(metric, label)}
        for metric in ("dice", *SHARES, "volume_diff_ml")
        if metric in rows
    }
    distances = {name: {**_distance(rows[name]), **statistics.of(name, label)} for name in DISTANCES if name in rows}
    return {
        "label": label,
        "name": str(rows["name"].iloc[0]),
        "n_cases": len(rows),
        **_empty_counts(rows),
        **scores,
        **distances,
    }


def _distance(values: pd.Series) -> dict[str, Any]:
    """Summarise one kind of distance; `n` counts all that are defined, `n_infinite` those with one mask empty."""
    values = values.dropna()
    return {
        "n": len(values),
        "n_infinite": int(np.isinf(values).sum()),
        "mean": _finite(values.mean()),
        "median": _finite(float(np.median(np.sort(values)))) if len(values) else None,
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
        "n_both_empty": int((~in_ref & ~in_pred & rows["dice"].isna()).sum()),  # else it has no prediction
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the defined values, None when there is none."""
    defined = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(defined)) if defined else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
