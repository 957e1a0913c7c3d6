"""The tables of the report: labels, cases, their details and the provenance, as plain values for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from segscse.evaluation.metrics import METRICS
from segscse.evaluation.scores import foreground_dice

MAX_LABEL_COLUMNS = 8  # the table of cases shows each label's Dice up to this many labels
MAX_DETAILS = 20_000  # rows of the per-case table that the page holds; beyond, only cases.csv does
_MEANS = ("nsd", "hd95_mm", "assd_mm", "lesion_f1")
_HIDDEN = ("case", "name", "subject", "diagonal_mm")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table: a dash when undefined."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def label_rows(described: pd.DataFrame, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per label: Dice in detail, the mean of other scores, and how often it was empty."""
    columns = [column for column in ("nsd", "hd95_mm") if column in set(described["metric"])]
    rows = []
    for label in summary["labels"]:
        found = described[described["label"] == label["label"]].set_index("metric")
        means = [(METRICS[column], found.loc[column].to_dict()) for column in columns]
        dice = found.loc["dice"].to_dict() if "dice" in found.index else {}
        rows.append({"label": label, "dice": dice, "means": means})
    return rows


def case_rows(table: pd.DataFrame, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Return one row per case, the worst first and those without any defined Dice last."""
    order = foreground_dice(table).sort_values(kind="stable", na_position="last")
    groups: dict[Any, pd.DataFrame] = dict(iter(table.groupby("case")))
    few = len(names) <= MAX_LABEL_COLUMNS and len(names) > 1
    return [_case_row(case, mean, groups[case].sort_values("label"), few=few) for case, mean in order.items()]


def case_details(table: pd.DataFrame, cases: Sequence[str]) -> str:
    """Return every row of every case, in the order of `cases`, as JSON for the page; "" when there are too many."""
    if len(table) > MAX_DETAILS:
        return ""
    columns = [column for column in table.columns if column not in _HIDDEN]
    groups: dict[Any, pd.DataFrame] = dict(iter(table.assign(case=table["case"].astype(str)).groupby("case")))
    rows = [
        [[str(row["name"]), *(_json_number(row[column]) for column in columns)] for _, row in groups[case].iterrows()]
        for case in cases
    ]
    # In HTML, "<" could end the script element that holds this.
    return json.dumps({"columns": ["name", *columns], "rows": rows}, allow_nan=False).replace("<", "\\u003c")


def provenance_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return `(name, short, long)` of every entry: a value in one line, or a count and all of it below."""
    rows = []
    for name, value in record.items():
        title = str(name).replace("_", " ")
        if isinstance(value, Mapping):
            flat = all(not isinstance(item, Mapping | list | tuple) for item in value.values())
            if flat and len(value) <= 12:
                rows.append((title, ", ".join(f"{key} {_short(item)}" for key, item in value.items()), ""))
            else:
                rows.append((title, f"{len(value)} entries", json.dumps(value, indent=1, default=str)))
        elif isinstance(value, list | tuple):
            text = ", ".join(map(_short, value))
            rows.append((title, text, "") if len(text) <= 80 else (title, f"{len(value)} entries", text))
        else:
            rows.append((title, _short(value), ""))
    return rows


def _case_row(case: Any, mean: float, rows: pd.DataFrame, *, few: bool) -> dict[str, Any]:
    notes, kinds = [], []
    for word, kind, chosen in (
        ("missed", "missed", rows[(rows["n_ref"] > 0) & (rows["n_pred"] == 0)]),
        ("false positive", "extra", rows[(rows["n_ref"] == 0) & (rows["n_pred"] > 0)]),
    ):
        if len(chosen):
            shown = ", ".join(map(str, chosen["name"].iloc[:5])) + (", ..." if len(chosen) > 5 else "")
            notes.append(f"{word}: {shown}")
            kinds.append(kind)
    scores = [(column, float(rows[column].mean()), METRICS[column].digits) for column in _MEANS if column in rows]
    return {
        "case": str(case),
        "subject": str(rows["subject"].iloc[0]) if "subject" in rows else None,
        "mean": float(mean),
        "dice": rows["dice"].tolist() if few else [],
        "names": rows["name"].astype(str).tolist() if few else [],
        # A label that is missed or made up makes the mean distance infinite.
        "scores": [(METRICS[column].title, METRICS[column].unit, value, digits) for column, value, digits in scores],
        "notes": "; ".join(notes),
        "kinds": " ".join(kinds),
    }


def _json_number(value: Any) -> Any:
    """Return a whole number as it is, another in six significant digits; undefined as null, infinite as text."""
    value = float(value)
    if math.isnan(value):
        return None
    if value.is_integer():
        return int(value)
    return float(f"{value:.6g}") if math.isfinite(value) else "∞"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "–" if value is None else str(value)  # noqa: RUF001
