"""Reading tables of cases and lists of subjects, with refusals that name the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from segscse.errors import InputError
from segscse.evaluation.columns import recorded_beside
from segscse.files import read_json

_TEXT = ("case", "name", "subject")


def load_table(source: pd.DataFrame | str | Path, side: str = "table") -> pd.DataFrame:
    """Return the table of `evaluate` from itself, a `cases.csv` or the folder that holds one.

    Raises:
        InputError: no such file, or not such a table.
    """
    if isinstance(source, pd.DataFrame):
        table, file = source, None
    else:
        file = Path(source) / "cases.csv" if Path(source).is_dir() else Path(source)
        table = _read_cases(file)
        table.attrs.update(recorded_beside(file))
    lacking = [column for column in ("case", "label", "name", "dice") if column not in table]
    if lacking:
        raise InputError(
            f"{side} has no column {', '.join(lacking)}",
            file=file,
            remedy="Give the table that evaluate returns or writes",
        )
    table = table.assign(case=table["case"].astype(str))
    repeated = table.duplicated(["case", "label"])
    if table.empty or repeated.any():
        problem = "is empty" if table.empty else f"repeats case {table['case'][repeated].iloc[0]!r}"
        raise InputError(f"{side} {problem}", file=file, remedy="Evaluate again")
    return table


def load_subjects(file: str | Path) -> dict[str, str]:
    """Return each case's subject from a CSV with the columns `case` and `subject`; others are ignored.

    Raises:
        InputError: the file cannot be read, lacks a column, or gives a case two subjects.
    """
    table = _read_text(Path(file), "is not a CSV of subjects", "Give a CSV with the columns case,subject")
    lacking = [column for column in ("case", "subject") if column not in table]
    if lacking:
        raise InputError(f"has no column {lacking[0]}", file=file, remedy="Give a CSV with the columns case,subject")
    pairs = table[["case", "subject"]].drop_duplicates()
    repeated = pairs.duplicated("case")
    if repeated.any():
        raise InputError(
            f"gives case {pairs['case'][repeated].iloc[0]!r} two subjects", file=file, remedy="Keep one of its lines"
        )
    return dict(zip(pairs["case"], pairs["subject"], strict=True))


def load_provenance(folder: str | Path) -> dict[str, Any]:
    """Return the record of how a model came about, from its run folder or its model folder.

    Raises:
        InputError: the folder holds no model, or its record cannot be read.
    """
    folder = Path(folder)
    file = next((file for file in (folder / "model" / "model.json", folder / "model.json") if file.is_file()), None)
    if file is None:
        raise InputError("holds no model.json", file=folder, remedy="Give a run folder or a model folder")
    record = read_json(file)
    provenance = record.get("provenance") if isinstance(record, dict) else None
    if not isinstance(provenance, dict):
        raise InputError("has no record of its provenance", file=file, remedy="Give the folder of a model of segscse")
    return provenance


def check_same_cases(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> None:
    """Refuse tables that cover different cases or labels, or were scored on different references.

    Raises:
        InputError: naming the first of them that are absent, and from where, or the first that differs.
    """
    keys = [set(zip(table["case"].astype(str), table["label"], strict=True)) for table in tables]
    every = set().union(*keys)
    for name, known in zip(names, keys, strict=True):
        absent = every - known
        if absent:
            shown = [f"{case} (label {label})" for case, label in sorted(absent)[:5]]
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise InputError(
                f"the evaluations cover different cases: {name} lacks {', '.join(shown)}{more}",
                remedy="Evaluate all on the same references with the same labels",
            )
    sizes = [table.set_index(["case", "label"])["n_ref"].sort_index() for table in tables if "n_ref" in table]
    for size in sizes[1:]:
        if (other := size != sizes[0]).any():
            case, label = size.index[other][0]
            raise InputError(
                f"the evaluations have different references: of case {case}, label {label} has "
                f"{sizes[0][other].iloc[0]:.0f} voxels in one and {size[other].iloc[0]:.0f} in another",
                remedy="Evaluate all on the same references",
            )


def same_conventions(tables: Sequence[pd.DataFrame], metric: str) -> dict[str, Any]:
    """Return the convention and the NSD tolerance that tables were scored with; None where no table says.

    Raises:
        InputError: two of them say different things, and the metric depends on it.
    """
    known: dict[str, Any] = {}
    for name in ("convention_version", "nsd_tolerance_mm"):
        values = [value for value in (_scored_with(table, name) for table in tables) if value is not None]
        known[name] = values[0] if values else None
        matters = name == "convention_version" or metric in ("nsd", "nsd_area")
        if different := [value for value in values if value != values[0]]:
            if matters:
                raise InputError(
                    f"the evaluations were scored with different values of {name}: {values[0]} and {different[0]}",
                    remedy="Evaluate all with the same",
                )
            known[name] = None
    return known


def _scored_with(table: pd.DataFrame, name: str) -> Any:
    """Return what a table says that it was scored with.

    The third convention is the second but for cases without a prediction, which had no voxels in any label.
    """
    value = table.attrs.get(name)
    if (name, value) == ("convention_version", 2) and "n_pred" in table:
        return 2 if (table.groupby("case")["n_pred"].max() == 0).any() else 3
    return value


def _read_cases(file: Path) -> pd.DataFrame:
    """Read `cases.csv` exactly as written: a case called "NA" is a name, an empty number is NaN."""
    table = _read_text(file, "is not a table of cases", "Give the folder that evaluate wrote, or its cases.csv")
    try:
        for column in [name for name in table.columns if name not in _TEXT]:
            table[column] = [float(text) if text else math.nan for text in table[column]]
        return table.astype({"label": int}) if "label" in table else table
    except ValueError as error:
        raise InputError(f"is not a table of cases ({error})", file=file, remedy="Evaluate again") from error


def _read_text(file: Path, problem: str, remedy: str) -> pd.DataFrame:
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file, remedy=remedy) from error
    except ValueError as error:  # includes pandas' errors of parsing
        raise InputError(f"{problem} ({' '.join(str(error).split())})", file=file, remedy=remedy) from error
