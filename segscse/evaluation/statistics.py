"""Statistics over cases: means with intervals, medians and quantiles, per label and over labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from segscse.evaluation.bootstrap import Interval, mean_interval, mean_intervals, mean_of_means_interval
from segscse.evaluation.metrics import Metric, comparable, metric_of, metrics_in, subjects_of

__all__ = ["QUANTILES", "describe", "mean_interval"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def describe(
    table: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    *,
    subjects: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Describe the table of `evaluate`: one row per metric and label, and one per metric over all labels.

    Args:
        table: as `evaluate` returns it.
        metrics: columns to describe. Default: all that `METRICS` knows and the table holds.
        subjects: the subject of every case; intervals are then drawn over subjects. Default: the column
            `subject`, if there is one, else every case is its own subject.

    Returns:
        Columns `metric, label, name, n, n_undefined, n_infinite, mean, low, high, method, std, median, q05, q25,
        q75, q95, min, max`. `low` and `high` are the ends of the mean's 95 % interval (`segscse.evaluation.bootstrap`).
        Infinite distances, counted by `n_infinite`, enter everything as the image's diagonal. Over all labels
        (`label` 0, `name` "all labels") the mean is the mean over labels of the mean over cases, and the quantiles
        are those of the cases' means over their defined labels.

    Raises:
        InputError: no such metric, infinite values without `diagonal_mm`, a case without a subject.
    """
    known = subjects_of(table, subjects)
    chosen = metrics_in(table) if metrics is None else [metric_of(table, name) for name in metrics]
    if not chosen:
        return pd.DataFrame()
    names = dict(zip(table["label"].tolist(), table["name"].astype(str), strict=True))
    values = [by_case_and_label(table, metric) for metric in chosen]
    groups = None if known is None else [known[case] for case in values[0].index]
    intervals = iter(mean_intervals(np.concatenate([each.to_numpy(float) for each in values], axis=1), groups))
    rows: list[dict[str, object]] = []
    for metric, each in zip(chosen, values, strict=True):
        matrix, means = each.to_numpy(float), each.mean(axis=0).tolist()
        infinite = table[metric.column].abs().eq(math.inf).groupby(table["label"]).sum().sort_index().tolist()
        if len(names) > 1:
            interval = mean_of_means_interval(matrix, groups)
            by_case, mean = each.mean(axis=1).to_numpy(float), float(each.mean(axis=0).mean())
            rows.append(_row(metric, 0, "all labels", by_case, mean, interval, sum(infinite)))
        for label, column, mean, count in zip(sorted(names), matrix.T, means, infinite, strict=True):
            rows.append(_row(metric, label, names[label], column, mean, next(intervals), count))
    return pd.DataFrame(rows)


def by_case_and_label(table: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return the comparable values of a metric, one row per case and one column per label, both sorted."""
    values = table.assign(value=comparable(table, metric), case=table["case"].astype(str))
    return values.pivot(index="case", columns="label", values="value").sort_index()


def _row(
    metric: Metric, label: int, name: str, values: np.ndarray, mean: float, interval: Interval, infinite: int
) -> dict[str, object]:
    defined = values[~np.isnan(values)]
    n = len(defined)
    low, first, median, third, high = np.quantile(defined, QUANTILES) if n else [math.nan] * 5
    return {
        "metric": metric.column, "label": label, "name": name,
        "n": n, "n_undefined": len(values) - n, "n_infinite": infinite,
        "mean": mean, "low": interval.low, "high": interval.high, "method": interval.method,
        "std": float(defined.std(ddof=1)) if n > 1 else math.nan,
        "median": float(median), "q05": float(low), "q25": float(first), "q75": float(third), "q95": float(high),
        "min": float(defined.min()) if n else math.nan, "max": float(defined.max()) if n else math.nan,
    }  # fmt: skip
