"""Scores of segmentations against references: a row per case and label, and their summary."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from segscse.errors import InputError
from segscse.evaluation.cases import (
    CasePair,
    Missing,
    check_labels,
    label_names,
    load_pair,
    pair_cases,
)
from segscse.evaluation.overlap import (
    Counts,
    compact_labels,
    counts_from_histogram,
    joint_histogram,
    labels_in,
    layout_of,
)
from segscse.evaluation.statistics import mean_interval
from segscse.evaluation.surface import hd95_mm

CONVENTION_VERSION = 1
CONVENTION = (
    "Dice, IoU, sensitivity and precision come from exact voxel counts per case and label; background (0) is "
    "not scored. Both masks empty: undefined, left out of means and counted. One mask empty: Dice and IoU "
    "are 0. HD95: voxel-border surfaces, the larger of the two directed 95th percentiles with linear "
    "interpolation, in mm; one mask empty: infinite, left out of the plain mean, counted as the image's "
    "diagonal in the penalised mean. Mean foreground Dice: mean over labels of the mean over cases. Axes one "
    "voxel long take no part in distances."
)
COLUMNS = (
    *("case", "label", "name", "dice", "iou", "sensitivity", "precision", "hd95_mm"),
    *("volume_ref_ml", "volume_pred_ml", "volume_diff_ml", "n_ref", "n_pred", "diagonal_mm"),
)


def evaluate(
    pred: Any,
    ref: Any,
    labels: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    names: Mapping[Any, str] | None = None,
    *,
    missing: Missing = "error",
) -> pd.DataFrame:
    """Score predictions against references, exactly.

    Args:
        pred: prediction: an integer or boolean label map `(X, Y, Z)` or `(X, Y)`, an object with `.array` and
            `.affine`, an image file, or a folder of them, paired with `ref`'s by file name.
        ref: reference, likewise, on the same grid; another grid is refused, never resampled.
        labels: labels to score. Default: every label but 0 that occurs anywhere in `ref` or `pred`.
        spacing_mm: voxel size in mm per array axis, for arrays only; without it they are taken to have 1 mm.
        names: names of labels, for the column `name`.
        missing: about references without a prediction: refuse them ("error"), or score an empty one
            ("empty").

    Returns:
        One row per case and label with `COLUMNS`; `volume_diff_ml` is prediction - reference, `n_ref` and
        `n_pred` are voxels, `diagonal_mm` is the image's. NaN where a score is undefined; `hd95_mm` is
        infinite when one mask is empty; 2D images have NaN volumes.

    Raises:
        InputError: grids differ, files cannot be paired or read, or hold no label; all bad cases in one
            message.

    Example:
        >>> evaluate(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))["dice"].round(3).tolist()
        [0.667]
    """
    known = label_names(names)
    chosen = None if labels is None else check_labels(labels)
    scored = _score_all(pair_cases(pred, ref, missing), chosen, spacing_mm)
    every = chosen or check_labels([label for case in scored for label in case.rows])
    rows = [
        {"case": case.case, "label": label, "name": known.get(label, str(label))} | case.rows.get(label, case.blank)
        for case in scored
        for label in every
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def score_case(
    pred: np.ndarray, ref: np.ndarray, labels: Sequence[int], spacing_mm: Sequence[float]
) -> dict[int, dict[str, float]]:
    """Score one pair of label maps `(*S)` on the same grid: label to its columns from `dice` on."""
    compact = [compact_labels(array, labels) for array in (pred, ref)]
    counts = counts_from_histogram(joint_histogram(compact[0], compact[1], len(labels)), labels)
    thick = [axis for axis, size in enumerate(ref.shape) if size > 1] or [0]
    spread_mm = [spacing_mm[axis] for axis in thick]
    flat = [array.reshape([ref.shape[axis] for axis in thick], order=layout_of(array)) for array in compact]
    boxes = zip(*(ndimage.find_objects(array, max_label=len(labels)) for array in flat), strict=True)
    rows = {}
    for index, (label, (box_pred, box_ref)) in enumerate(zip(labels, boxes, strict=True), start=1):
        box = _union(box_pred, box_ref)
        masks = [array[box] == index for array in flat] if box else None
        distance_mm = hd95_mm(masks[0], masks[1], spread_mm) if masks else math.nan
        rows[label] = _row(counts[label], distance_mm, ref.shape, spacing_mm)
    return rows


def summarise(table: pd.DataFrame) -> dict[str, Any]:
    """Summarise the table of `evaluate` into plain JSON values; null and a count where undefined.

    Every label and the whole carry `n_cases` (scored), `n_missed` (in the reference only),
    `n_false_positive_cases` (in the prediction only) and `n_both_empty`; the whole counts case-label pairs
    there. `overall.mean_dice` is the mean over labels of the mean over cases; `overall.mean_dice_by_case` the
    mean over cases of the mean over their defined labels.
    """
    labels = [_summarise_label(group) for _, group in table.groupby("label", sort=True)]
    by_case = foreground_dice(table)
    overall = {
        "n_cases": int(table["case"].nunique()),
        "n_labels": len(labels),
        "mean_dice": _mean([label["dice"]["mean"] for label in labels]),
        "mean_dice_by_case": _mean(by_case),
        "median_dice_by_case": _finite(by_case.median()),
        "mean_hd95_mm": _mean([label["hd95_mm"]["mean"] for label in labels]),
        "mean_hd95_penalised_mm": _mean([label["hd95_mm"]["mean_penalised"] for label in labels]),
        **_empty_counts(table),
    }
    return {
        "convention": CONVENTION,
        "convention_version": CONVENTION_VERSION,
        "overall": overall,
        "labels": labels,
    }


def foreground_dice(table: pd.DataFrame) -> pd.Series:
    """Return each case's mean Dice over its defined labels (NaN when there is none), indexed by case."""
    return table.groupby("case", sort=True)["dice"].mean()


@dataclass(frozen=True, slots=True)
class _ScoredCase:
    """The rows of a case by label, and the row of any label that occurs in neither of its masks."""

    case: str
    rows: dict[int, dict[str, float]]
    blank: dict[str, float]


def _score_all(
    pairs: list[CasePair], labels: list[int] | None, spacing_mm: Sequence[float] | None
) -> list[_ScoredCase]:
    """Score every pair, some at a time: scipy and gzip release the interpreter lock where it counts."""

    def score(pair: CasePair) -> _ScoredCase | InputError:
        try:
            return _score_pair(pair, labels, spacing_mm)
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(score, pairs))
    errors = [result for result in results if isinstance(result, InputError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError(f"{len(errors)} of {len(pairs)} cases cannot be scored: {' | '.join(map(str, errors))}")
    return [result for result in results if isinstance(result, _ScoredCase)]


def _score_pair(pair: CasePair, labels: list[int] | None, spacing_mm: Sequence[float] | None) -> _ScoredCase:
    pred, ref, spacing = load_pair(pair, spacing_mm)
    found = labels or sorted((labels_in(pred.array) | labels_in(ref.array)) - {0})
    rows = score_case(pred.array, ref.array, found, spacing)
    return _ScoredCase(pair.case, rows, _row(Counts(0, 0, 0), math.nan, ref.array.shape, spacing))


def _row(counts: Counts, distance_mm: float, shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, float]:
    voxel_ml = math.prod(spacing_mm) / 1000 if len(spacing_mm) == 3 else math.nan
    return {
        "dice": counts.dice,
        "iou": counts.iou,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "hd95_mm": distance_mm,
        "volume_ref_ml": counts.n_ref * voxel_ml,
        "volume_pred_ml": counts.n_pred * voxel_ml,
        "volume_diff_ml": (counts.n_pred - counts.n_ref) * voxel_ml,
        "n_ref": counts.n_ref,
        "n_pred": counts.n_pred,
        "diagonal_mm": math.hypot(*(size * step for size, step in zip(shape, spacing_mm, strict=True))),
    }


def _union(first: tuple[slice, ...] | None, second: tuple[slice, ...] | None) -> tuple[slice, ...] | None:
    """Return the box around two boxes, either of which may be absent."""
    if first is None or second is None:
        return first or second
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _summarise_label(rows: pd.DataFrame) -> dict[str, Any]:
    dice = rows["dice"].dropna()
    distance = rows["hd95_mm"].dropna()
    finite = distance[np.isfinite(distance)]
    interval = mean_interval(dice.to_numpy())
    return {
        "label": int(rows["label"].iloc[0]),
        "name": str(rows["name"].iloc[0]),
        "n_cases": len(rows),
        "dice": {
            "n": len(dice),
            "mean": _finite(dice.mean()),
            "median": _finite(dice.median()),
            "std": _finite(dice.std(ddof=1)),
            "mean_interval_95": [_finite(interval.low), _finite(interval.high)],
            "mean_interval_method": interval.method,
        },
        "hd95_mm": {
            "n": len(finite),
            "mean": _finite(finite.mean()),
            "median": _finite(finite.median()),
            "n_penalised": len(distance),
            "mean_penalised": _finite(distance.where(np.isfinite(distance), rows["diagonal_mm"]).mean()),
        },
        **_empty_counts(rows),
    }


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
