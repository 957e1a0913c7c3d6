"""The columns of the per-case table that are scores: their titles, units and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from segscse.errors import InputError, choose
from segscse.evaluation.columns import diagonal_mm_of
from segscse.evaluation.tables import load_subjects

Better = Literal["higher", "lower", "near 0", "neither"]
Subjects = Mapping[str, str] | str | Path
"""The subject of every case, or a CSV file with the columns `case` and `subject`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the table of `evaluate`.

    Attributes:
        column: its name there.
        title: its name in words.
        unit: "mm", "ml" or nothing.
        better: which values are better.
        bounded: whether it lies in 0..1.
        digits: decimal places that a table shows.
    """

    column: str
    title: str
    unit: str = ""
    better: Better = "higher"
    bounded: bool = True
    digits: int = 3

    def text(self, value: float, digits: int | None = None, *, sign: bool = False) -> str:
        """Return a value with its unit: a dash when undefined."""
        if math.isnan(value):
            return "–"  # noqa: RUF001
        if math.isinf(value):
            return "∞"
        places = self.digits if digits is None else digits
        return f"{value:{'+' if sign else ''}.{places}f}{' ' + self.unit if self.unit else ''}"


def _distance(column: str, title: str) -> Metric:
    return Metric(column, title, "mm", "lower", bounded=False, digits=2)


METRICS: dict[str, Metric] = {
    metric.column: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("iou", "IoU"),
        Metric("sensitivity", "Sensitivity"),
        Metric("precision", "Precision"),
        Metric("specificity", "Specificity"),
        Metric("nsd", "NSD"),
        Metric("nsd_area", "NSD by area"),
        _distance("hd95_mm", "HD95"),
        _distance("hd_mm", "Hausdorff distance"),
        _distance("assd_mm", "ASSD"),
        _distance("masd_mm", "MASD"),
        Metric("volume_similarity", "Volume similarity"),
        Metric("volume_diff_ml", "Absolute volume difference", "ml", "near 0", bounded=False, digits=2),
        Metric("lesion_sensitivity", "Lesion sensitivity"),
        Metric("lesion_precision", "Lesion precision"),
        Metric("lesion_f1", "Lesion F1"),
        # Small over all voxels of a scan, most of which are background and easy.
        Metric("ece", "Calibration error", "", "lower", digits=4),
        Metric("brier", "Brier score", "", "lower", bounded=False, digits=5),
    )
}


def metric_of(table: pd.DataFrame, column: str) -> Metric:
    """Return the metric of a column of a table, as `named_metric`.

    Raises:
        InputError: the table has no such column of numbers.
    """
    numbers = [
        name
        for name in table.columns
        if name not in ("case", "label", "name", "subject") and pd.api.types.is_numeric_dtype(table[name])
    ]
    if column not in numbers:
        raise choose("metric", column, numbers)
    return named_metric(column)


def named_metric(column: str) -> Metric:
    """Return the metric of a column's name; one without an entry in `METRICS` has no better direction."""
    return METRICS.get(column, Metric(column, column, better="neither", bounded=False, digits=2))


def metrics_in(table: pd.DataFrame) -> list[Metric]:
    """Return the metrics that a table holds any defined value of, in the order of `METRICS`."""
    return [metric for column, metric in METRICS.items() if column in table and table[column].notna().any()]


def comparable(table: pd.DataFrame, metric: Metric) -> pd.Series:
    """Return a metric's column with every value finite or NaN, so that means over cases can be compared.

    An infinite distance (one mask is empty) counts as the image's diagonal: leaving it out would make
    a miss improve the mean. A difference counts by its size.

    Raises:
        InputError: infinite values in a table that does not know the diagonals.
    """
    if not is_comparable(table, metric):
        raise InputError(
            f"{metric.column} holds infinite values, and the diagonal of their images is not known",
            remedy="Evaluate again, keep summary.json beside cases.csv, or compare another metric",
        )
    values = table[metric.column].astype(float)
    if metric.better == "near 0":
        values = values.abs()
    infinite = np.isinf(values)
    return values.where(~infinite, diagonal_mm_of(table)) if infinite.any() else values


def is_comparable(table: pd.DataFrame, metric: Metric) -> bool:
    """Return whether the diagonal of every image is known where a metric's column is infinite."""
    infinite = np.isinf(table[metric.column].astype(float))
    return not infinite.any() or bool(diagonal_mm_of(table)[infinite].notna().all())


def subjects_of(table: pd.DataFrame, subjects: Subjects | None) -> dict[str, str] | None:
    """Return each case's subject, from `subjects` or the table's column `subject`; None when neither is there.

    Raises:
        InputError: a case without a subject, or the file of subjects cannot be read.
    """
    cases = table["case"].astype(str)
    if subjects is None:
        if "subject" not in table:
            return None
        subjects = dict(zip(cases, table["subject"].astype(str), strict=True))
    return subject_by_case(cases, subjects)


def subject_by_case(cases: Iterable[str], subjects: Subjects) -> dict[str, str]:
    """Return the subject of each case, from a mapping or a CSV file.

    Raises:
        InputError: a case without a subject, or the file cannot be read.
    """
    if isinstance(subjects, Mapping):
        file, known = None, {str(case): of for case, of in subjects.items()}
    else:
        file, known = Path(subjects), load_subjects(subjects)
    cases = list(cases)
    lacking = sorted(set(cases) - {case for case, subject in known.items() if subject not in ("", "nan")})
    if lacking:
        raise InputError(
            f"{len(lacking)} of {len(set(cases))} cases have no subject, such as {lacking[0]!r}",
            file=file,
            remedy="Name one for each",
        )
    return {case: str(known[case]) for case in cases}
