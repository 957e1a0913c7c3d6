"""What a person sees: lines, bars and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segscse.config import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from segscse.inference.pipeline import Outcome
    from segscse.types import Progress


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_scores(summary: dict[str, Any], folder: Path) -> None:
    """Say the Dice of every label, their mean and where the report lies."""
    for label in summary["labels"]:
        mean = label["dice"]["mean"]
        say(f"  {label['name']}: Dice {'undefined' if mean is None else f'{mean:.4f}'}")
    mean = summary["overall"]["mean_dice"]
    say(f"mean foreground Dice {'undefined' if mean is None else f'{mean:.4f}'}, {summary['overall']['n_cases']} cases")
    say(f"report: {(folder / 'report.html').resolve()}")


def say_outcome(outcome: Outcome, folder: Path, *, foreground_only: bool, resumed: bool) -> None:
    """Say what became of the cases of a prediction; failures go to standard error."""
    for failure in outcome.failures:
        sys.stderr.write(f"segscse: {failure.case}: {one_line(failure.reason)}\n")
    if foreground_only:
        say(f"left out {outcome.windows[1]} of {sum(outcome.windows)} windows as background")
    parts = [f"{len(outcome.written)} label maps in {folder}"]
    parts += [f"{len(outcome.verified)} more verified"] if resumed else []
    parts += [f"{len(outcome.failures)} cases failed"] if outcome.failures else []
    say(", ".join(parts))


def make_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """Return a console on standard error, or on standard output; a quiet one shows nothing."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet)


@contextmanager
def show_bar(console: Console, what: str) -> Iterator[Progress]:
    """Show a bar with the time left on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=console.quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total or None, visible=True)


def findings_table(findings: Any) -> Any:
    """Return a table of a data set's problems."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("level", "case", "file", "problem", "remedy")
    for finding in findings:
        cells = (finding.level, finding.case, finding.file, finding.problem, finding.remedy)
        table.add_row(*(escape(cell) for cell in cells), style="red" if finding.level == "error" else "yellow")
    return table
