"""`metrics.csv`, the log of a run: written whole, read with suspicion."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segscse.errors import InputError
from segscse.files import require_plain, write_text

FILE = "metrics.csv"


class MetricsTable:
    """`metrics.csv`: one row per logged step or validation; rewritten whole, so it is never half a row.

    Args:
        path: the file.
        columns: names, in order; values not given stay empty.
        writes: whether this process writes the file.
    """

    def __init__(self, path: Path, columns: list[str], *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes
        self.columns = columns
        self.rows: list[dict[str, Any]] = []

    def continue_from(self, rows: int) -> None:
        """Read the rows of an interrupted run that were there when the checkpoint was made that it continues from.

        Raises:
            InputError: the file is not the log of such a run.
        """
        if self.path.is_file():
            found = read_log(self.path, self.columns)
            if found and list(found[0]) != self.columns:
                raise _no_log(self.path, f"it has the columns {', '.join(found[0])[:200]}")
            self.rows = list(found)[:rows]

    def add(self, **values: Any) -> None:
        """Add a row and write the file."""
        self.rows.append(values)
        if not self.writes:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())


def read_log(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Return the rows of a run's log; every value in them is a number or empty.

    Args:
        path: `metrics.csv`.
        columns: that it must have.

    Raises:
        InputError: it cannot be read, or is not the log of a run.
    """
    try:
        require_plain(path)
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = list(reader)
            named = reader.fieldnames or ()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Give the folder of a run") from error
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise _no_log(path, " ".join(str(error).split())) from error
    missing = [name for name in columns if name not in named]
    if missing:
        raise _no_log(path, f"it has no column {missing[0]!r}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise _no_log(path, f"line {number} has another number of values than columns")
        for value in filter(None, row.values()):
            try:
                float(value)
            except ValueError as error:
                raise _no_log(path, f"line {number} has {value[:40]!r} where a number belongs") from error
    return rows


def _no_log(path: Path, reason: str) -> InputError:
    remedy = "Give the folder of a run as it was left"
    return InputError(f"is not the log of a run ({reason})", file=path, remedy=remedy)
