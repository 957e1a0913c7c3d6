"""Scores of segmentations against references: a row per case and label."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from segscse.data.notes import case_note, same_but_case
from segscse.errors import InputError
from segscse.evaluation.area import framed_area_distances
from segscse.evaluation.calibration import calibration
from segscse.evaluation.cases import (
    CasePair,
    Missing,
    Tolerance,
    check_labels,
    label_names,
    load_pair,
    load_probabilities,
    pair_cases,
)
from segscse.evaluation.columns import CALIBRATION, COLUMNS, CONVENTION, CONVENTION_VERSION, DISTANCES
from segscse.evaluation.lesions import LesionCounts, count_lesions
from segscse.evaluation.nearest import margin
from segscse.evaluation.overlap import Counts, LabelPair, count, label_pair
from segscse.evaluation.summary import foreground_dice as foreground_dice
from segscse.evaluation.summary import summarise as summarise
from segscse.evaluation.surface import SurfaceDistances, framed_distances, with_margin
from segscse.limits import usable_cores
from segscse.types import Progress

Row = dict[str, float]
# What each label scores of a case without a prediction.
WRONG = dict.fromkeys(("dice", "iou", "precision", "specificity", "nsd", "nsd_area", "volume_similarity"), 0.0)
WRONG |= dict.fromkeys(("lesion_precision", "lesion_f1"), 0.0) | dict.fromkeys(DISTANCES, math.inf)
_NONE = SurfaceDistances(np.empty(0), np.empty(0))


def evaluate(
    pred: Any,
    ref: Any,
    labels: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    nsd_tolerance_mm: float | Mapping[Any, float] = 1.0,
    names: Mapping[Any, str] | None = None,
    *,
    missing: Missing = "error",
    probabilities: Any = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Score predictions against references, exactly.

    Args:
        pred: prediction: an integer or boolean label map `(X, Y, Z)` or `(X, Y)`, an object with `.array` and
            `.affine`, an image file, or a folder of them, paired with `ref`'s by file name. A mapping from case
            to any of these stands for a folder.
        ref: reference, likewise, on the same grid; another grid is refused, never resampled.
        labels: labels to score. Default: every label but 0 that occurs anywhere in `ref` or `pred`.
        spacing_mm: voxel size in mm per array axis, for arrays only; without it they are taken to have 1 mm.
        nsd_tolerance_mm: tolerance of the surface Dice, one for all or by label.
        names: names of labels, for the column `name`.
        missing: about references without a prediction: refuse them ("error"), or count each as wrong
            in every label ("empty").
        probabilities: what `predict` writes as such, `(X, Y, Z, K)`: an array, file or folder like `pred`. The
            channels are the background and then `labels` in rising order, so `labels` must be given.
        workers: cases, or labels of a single case, scored at a time. Default: one per core, at most 4.
        progress: called with the number of cases done and their total.

    Returns:
        One row per case and label with `COLUMNS`, and `ece` and `brier` with probabilities; what each means is
        in `segscse.evaluation.columns`. `volume_diff_ml` is prediction - reference; `n_ref` and `n_pred` are
        voxels. NaN where a score is undefined; distances are infinite when one mask is empty; 2D images have
        NaN volumes. `attrs` holds the convention in words, its version, `nsd_tolerance_mm`, and by case `spacing_mm`
        and the image's `diagonal_mm`, the cases with `missing_predictions`, and `notes`, `(file, note)` on what is
        unusual about a file but no obstacle.

    Raises:
        InputError: grids differ, files cannot be paired or read, or hold no label; all bad cases in one
            message.

    Example:
        >>> evaluate(np.array([[0, 1, 1]]), np.array([[0, 0, 1]]))["dice"].round(3).tolist()
        [0.667]
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers must be 1 or more, got {workers}", remedy="Leave it out for one a core")
    known = label_names(names)
    chosen = None if labels is None else check_labels(labels)
    tolerance = Tolerance.of(nsd_tolerance_mm, chosen)
    _require_labels(probabilities, chosen)
    score = partial(
        _score_pair, labels=chosen, spacing_mm=spacing_mm, tolerance=tolerance, calibrate=probabilities is not None
    )
    pairs = pair_cases(pred, ref, missing, probabilities)
    scored = _score_all(pairs, score, at_a_time(workers), progress)
    every = chosen or check_labels([label for case in scored for label in case.rows])
    table = _to_table(scored, {label: known.get(label, str(label)) for label in every})
    table.attrs["nsd_tolerance_mm"] = tolerance.to_json()
    return table if probabilities is not None else table.drop(columns=list(CALIBRATION))


def at_a_time(workers: int | None) -> int:
    """Return how many cases are scored at a time: as asked for, else one per usable core, at most 4."""
    return workers or min(4, usable_cores())


def score_case(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Sequence[int] | None = None,
    nsd_tolerance_mm: Callable[[int], float] = lambda _: 1.0,
    threads: int = 1,
) -> dict[int, Row]:
    """Score one pair of label maps `(*S)` on the same grid: label to its columns from `dice` on.

    Args:
        pred: prediction, integer or boolean.
        ref: reference, same shape.
        spacing_mm: voxel size along each axis.
        labels: labels to score; every label but 0 that occurs if not given.
        nsd_tolerance_mm: gives the tolerance of the surface Dice for a label.
        threads: labels scored at a time.
    """
    pair = label_pair(pred, ref)
    masks = _Masks.of(pair, spacing_mm)
    found = [pair.label_of(value) for value in masks.values()] if labels is None else list(labels)
    voxel_ml = _voxel_ml(spacing_mm)

    def score(label: int) -> Row:
        cut = masks.cut(pair.value_of(label))
        return _row(cut, masks.spacing_mm, ref.size, voxel_ml, nsd_tolerance_mm(label))

    if threads == 1 or len(found) == 1:
        return {label: score(label) for label in found}
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(found, pool.map(score, found), strict=True))


@dataclass(frozen=True, slots=True)
class _ScoredCase:
    """The rows of a case by label, and the row of any label that occurs in neither of its masks."""

    case: str
    rows: dict[int, Row]
    blank: Row
    spacing_mm: tuple[float, ...]
    diagonal_mm: float
    notes: tuple[tuple[str, str], ...]
    missing: bool


@dataclass(frozen=True, slots=True)
class _Masks:
    """Two maps without their axes of one voxel, and the box around each value in each."""

    pred: np.ndarray
    ref: np.ndarray
    boxes: tuple[list[Any], list[Any]]
    spacing_mm: tuple[float, ...]

    @classmethod
    def of(cls, pair: LabelPair, spacing_mm: Sequence[float]) -> _Masks:
        spacing = tuple(spacing_mm)[::-1] if pair.flipped else tuple(spacing_mm)
        thick = [axis for axis, size in enumerate(pair.ref.shape) if size > 1] or [0]
        flat = [array.reshape([array.shape[axis] for axis in thick]) for array in (pair.pred, pair.ref)]
        boxes = ndimage.find_objects(flat[0]), ndimage.find_objects(flat[1])
        return cls(flat[0], flat[1], boxes, tuple(spacing[axis] for axis in thick))

    def values(self) -> list[int]:
        """Return the values above 0 that occur, in rising order."""
        return sorted({value for boxes in self.boxes for value, box in enumerate(boxes, start=1) if box is not None})

    def cut(self, value: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return prediction and reference of a value in the box around both; None where neither is."""
        box = _union(*(boxes[value - 1] if 0 < value <= len(boxes) else None for boxes in self.boxes))
        return None if box is None else (self.pred[box] == value, self.ref[box] == value)


def _require_labels(probabilities: Any, labels: Sequence[int] | None) -> None:
    """Refuse probabilities without the labels that their channels stand for."""
    if probabilities is not None and labels is None:
        raise InputError(
            "probabilities need labels: which label each channel after the background stands for",
            remedy="Give for example --labels 1,2 (in Python labels=[1, 2])",
        )


def _to_table(scored: Sequence[_ScoredCase], names: Mapping[int, str]) -> pd.DataFrame:
    """Return a row per case and label, with what holds for the whole in `attrs`."""
    rows = [
        {"case": case.case, "label": label, "name": name} | case.rows.get(label, case.blank)
        for case in scored
        for label, name in names.items()
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *CALIBRATION])
    table.attrs = {
        "convention": CONVENTION,
        "convention_version": CONVENTION_VERSION,
        "spacing_mm": {case.case: case.spacing_mm for case in scored},
        "diagonal_mm": {case.case: case.diagonal_mm for case in scored},
        "missing_predictions": [case.case for case in scored if case.missing],
        "notes": [(name, case_note(other)) for name, other in same_but_case([case.case for case in scored])]
        + [note for case in scored for note in case.notes],
    }
    return table


def _score_all(
    pairs: list[CasePair],
    score: Callable[..., _ScoredCase],
    workers: int,
    progress: Progress | None,
) -> list[_ScoredCase]:
    """Score every pair, some at a time: numpy, scipy and gzip release the interpreter lock where it counts."""

    def attempt(pair: CasePair) -> _ScoredCase | InputError:
        try:
            return score(pair, threads=workers if len(pairs) == 1 else 1)
        except InputError as error:
            return error if error.file is not None or len(pairs) == 1 else _of_case(pair, error)

    results = []
    pool = ThreadPoolExecutor(workers)
    try:
        for done, result in enumerate(pool.map(attempt, pairs), start=1):
            results.append(result)
            if progress is not None:
                progress(done, len(pairs))
    finally:
        pool.shutdown(cancel_futures=True)  # a stop waits for the cases under way, not for those in the queue
    errors = [result for result in results if isinstance(result, InputError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        messages = dict.fromkeys(map(str, errors))
        raise InputError(f"{len(errors)} of {len(pairs)} cases cannot be scored: {' | '.join(messages)}")
    return [result for result in results if isinstance(result, _ScoredCase)]


def _of_case(pair: CasePair, error: InputError) -> InputError:
    """Return an error that says which case it is about; the messages of files name them."""
    if isinstance(pair.ref, str | Path):
        return error
    return InputError(f"case {pair.case}: {error.problem}", remedy=error.remedy)


def _score_pair(
    pair: CasePair,
    labels: list[int] | None,
    spacing_mm: Sequence[float] | None,
    tolerance: Tolerance,
    calibrate: bool,
    threads: int,
) -> _ScoredCase:
    pred, ref, spacing = load_pair(pair, spacing_mm)
    rows = score_case(pred.array, ref.array, spacing, labels, tolerance.of_label, threads)
    if labels is None and pred.array.dtype == ref.array.dtype == bool and not rows:
        rows = score_case(pred.array, ref.array, spacing, [1], tolerance.of_label)  # a mask has its label, if empty
    if calibrate and labels is not None and pair.pred is not None:
        channels = load_probabilities(pair, ref, len(labels) + 1)
        file = pair.probabilities if isinstance(pair.probabilities, str | Path) else None
        for channel, label in enumerate(labels, start=1):
            measured = calibration(channels[..., channel], ref.array == label, file)
            rows[label] |= {"ece": measured.ece, "brier": measured.brier}
    blank = _row(None, spacing, ref.array.size, _voxel_ml(spacing), 0.0)
    diagonal = math.hypot(*(size * step for size, step in zip(ref.array.shape, spacing, strict=True)))
    notes = tuple((item.source, note) for item in (ref, pred) for note in item.notes)
    if pair.pred is None:
        # Wrong even where there was nothing to find: else a mean would rise with every error that is left out.
        rows, blank = {label: row | WRONG for label, row in rows.items()}, blank | WRONG
        notes += ((pair.case, "has no prediction and counts as wrong in every label"),)
    return _ScoredCase(pair.case, rows, blank, spacing, diagonal, notes, pair.pred is None)


def _voxel_ml(spacing_mm: Sequence[float]) -> float:
    return math.prod(spacing_mm) / 1000 if len(spacing_mm) == 3 else math.nan


def _row(
    masks: tuple[np.ndarray, np.ndarray] | None,
    spacing_mm: Sequence[float],
    n_voxels: int,
    voxel_ml: float,
    tolerance_mm: float,
) -> Row:
    """Score prediction and reference of one label, cut out of images of `n_voxels`; None where both are empty."""
    if masks is None:
        counts, lesions, distances, nsd_area = Counts(0, 0, 0, n_voxels), LesionCounts(0, 0, 0, 0), _NONE, math.nan
    else:
        counts, lesions = count(*masks, n_voxels), count_lesions(*masks)
        widths = np.maximum(margin(spacing_mm), margin(spacing_mm, tolerance_mm)).tolist()
        frames = with_margin(masks[0], widths), with_margin(masks[1], widths)
        distances = framed_distances(*frames, spacing_mm)
        nsd_area = framed_area_distances(*frames, spacing_mm, tolerance_mm).nsd(tolerance_mm)
    return {
        "dice": counts.dice,
        "iou": counts.iou,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "specificity": counts.specificity,
        "hd_mm": distances.hd_mm,
        "hd95_mm": distances.hd95_mm,
        "assd_mm": distances.assd_mm,
        "masd_mm": distances.masd_mm,
        "nsd": distances.nsd(tolerance_mm),
        "nsd_area": nsd_area,
        "volume_ref_ml": counts.n_ref * voxel_ml,
        "volume_pred_ml": counts.n_pred * voxel_ml,
        "volume_diff_ml": (counts.n_pred - counts.n_ref) * voxel_ml,
        "volume_similarity": counts.volume_similarity,
        "n_ref": counts.n_ref,
        "n_pred": counts.n_pred,
        "n_components_ref": lesions.n_ref,
        "n_components_pred": lesions.n_pred,
        "lesion_sensitivity": lesions.sensitivity,
        "lesion_precision": lesions.precision,
        "lesion_f1": lesions.f1,
    }


def _union(first: tuple[slice, ...] | None, second: tuple[slice, ...] | None) -> tuple[slice, ...] | None:
    """Return the box around two boxes, either of which may be absent."""
    if first is None or second is None:
        return first or second
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
