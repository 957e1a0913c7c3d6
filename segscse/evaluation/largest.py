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


def compare_largest(
    table: pd.DataFrame,
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    subjects: Mapping[str, str] | None = None,
) -> dict[int, PairedDifference]:
    """Return, for every label, the paired difference in Dice between its largest piece and all of it.

    Holm's correction goes over the labels. A label is worth the step where the difference is `shown` and above 0.

    Args:
        table: scores of the predictions, as `evaluate` returns them.
        predictions: case to label map, not postprocessed, each by a model that has not seen the case.
        references: likewise.
        subjects: subject of every case, where subjects have several.

    Raises:
        InputError: a file cannot be read, or the two of a case lie on different grids.
    """
    rows = table.set_index(["case", "label"])
    before = rows["dice"]
    several = rows[(rows["n_components_pred"] > 1) & before.notna()]
    changed: dict[tuple[str, int], float] = {}
    for case in sorted({str(case) for case, _ in several.index}):
        (pair,) = pair_cases({case: predictions[case]}, {case: references[case]})
        prediction, reference, _ = load_pair(pair, None)
        for label in several.loc[case].index:
            changed[case, label] = dice_of_largest(prediction.array == label, reference.array == label)
    after = before.copy()
    after.update(pd.Series(changed, dtype=float))
    known = None if subjects is None else dict(subjects)
    names = rows["name"].groupby(level="label").first()
    found = [
        paired_difference(
            before.xs(label, level="label"),
            after.xs(label, level="label"),
            what=name,
            names=("as predicted", "largest piece"),
            subjects=known,
        )
        for label, name in names.items()
    ]
    return dict(zip(names.index.tolist(), correct(found), strict=True))


def better_alone(found: Mapping[int, PairedDifference]) -> list[int]:
    """Return the labels whose largest piece is better than all of them, by interval and corrected test."""
    return [label for label, row in found.items() if row.shown and row.difference > 0]


def decision(found: Mapping[int, PairedDifference]) -> dict[str, Any]:
    """Return the steps that are taken and, for every label, why, as a JSON-ready value."""
    chosen = better_alone(found)
    rows = [
        {
            "label": label,
            "name": row.what,
            "cases": row.n,
            "cases_changed" if row.n == row.n_units else "subjects_changed": row.wins + row.losses,
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


def dice_of_largest(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice of the largest piece of a mask `(X, Y, Z)`, which has several, with another mask."""
    kept = predicted.view(np.uint8).copy(order="K")
    keep_largest(kept, 1)
    return count(kept > 0, reference, kept.size).dice
