"""Whether keeping only the largest piece of a label would raise its Dice, over cases that no model has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segscse.evaluation.cases import load_pair, pair_cases
from segscse.evaluation.overlap import count
from segscse.evaluation.paired import PairedDifference, correct, paired_difference
from segscse.inference.postprocess import keep_largest, largest_step

SIDES = ("as predicted", "largest piece")


def compare_largest(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    labels: Mapping[int, str],
    subjects: Mapping[str, str] | None = None,
) -> dict[int, PairedDifference]:
    """Return, for every label, the paired difference in Dice between its largest piece and all of it.

    Holm's correction goes over the labels. A label is worth the step where the difference is `shown` and above 0.

    Args:
        predictions: case to label map, not postprocessed, each by a model that has not seen the case.
        references: likewise.
        labels: foreground ids to names.
        subjects: subject of every case, where subjects have several.

    Raises:
        InputError: a file cannot be read, or the two of a case lie on different grids.
    """
    dice = {side: pd.DataFrame(index=sorted(predictions), columns=list(labels), dtype=float) for side in SIDES}
    for pair in pair_cases(predictions, references):
        prediction, reference, _ = load_pair(pair, None)
        for label in labels:
            of_label = dice_of_both(prediction.array == label, reference.array == label)
            for side, value in zip(SIDES, of_label, strict=True):
                dice[side].loc[pair.case, label] = value
    known = None if subjects is None else dict(subjects)
    before, after = (dice[side] for side in SIDES)
    rows = [
        paired_difference(before[label], after[label], what=name, names=SIDES, subjects=known)
        for label, name in labels.items()
    ]
    return dict(zip(labels, correct(rows), strict=True))


def better_alone(found: Mapping[int, PairedDifference]) -> list[int]:
    """Return the labels whose largest piece is better than all of them, by interval and corrected test."""
    return [label for label, row in found.items() if row.shown and row.difference > 0]


def to_json(found: Mapping[int, PairedDifference]) -> dict[str, Any]:
    """Return the steps that are taken and, for every label, why, as a JSON-ready value."""
    chosen = better_alone(found)
    rows = [
        {
            "label": label,
            "name": row.what,
            "cases": row.n,
            "cases_changed": row.wins + row.losses,
            "dice_as_predicted": _finite(row.mean_a),
            "dice_largest_piece": _finite(row.mean_b),
            "difference": _finite(row.difference),
            "low": _finite(row.low),
            "high": _finite(row.high),
            "p_holm": _finite(row.p_holm),
            "taken": label in chosen,
        }
        for label, row in found.items()
    ]
    return {"steps": [largest_step(label) for label in chosen], "labels": rows}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def dice_of_both(predicted: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the Dice of two masks `(X, Y, Z)`, and with only the largest piece of the first; NaN if both are empty."""
    before = count(predicted, reference, predicted.size).dice
    if math.isnan(before):
        return before, before
    kept = predicted.view(np.uint8).copy(order="K")
    return before, count(kept > 0, reference, kept.size).dice if keep_largest(kept, 1) else before
