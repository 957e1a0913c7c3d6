"""What a person sees: lines, bars and tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segscse.data.notes import fold_notes
from segscse.errors import InputError, one_line, visible

if TYPE_CHECKING:
    from rich.console import Console

    from segscse.data.examine import Finding
    from segscse.inference.pipeline import Outcome
    from segscse.types import Progress


def say(text: str) -> None:
    """Write a line at once; when nobody reads any more, go on without saying more."""
    if sys.stdout is None:  # closed by the shell
        return
    try:
        sys.stdout.write(visible(text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The Python manual, "Note on SIGPIPE": what is in the buffer must go somewhere at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_warnings(notes: Iterable[tuple[str, str]]) -> None:
    """Write notes on files to standard error, one line each; one that many files share is said once."""
    for file, note in fold_notes(notes):
        sys.stderr.write(f"segscse: warning: {one_line(f'{file}: {note}')}\n")


def say_scores(summary: dict[str, Any], folder: Path) -> None:
    """Say the Dice of every label, their mean and where the report lies."""
    for label in summary["labels"]:
        mean = label["dice"]["mean"]
        say(f"  {label['name']}: Dice {'undefined' if mean is None else f'{mean:.4f}'}")
    mean = summary["overall"]["mean_dice"]
    say(f"mean foreground Dice {'undefined' if mean is None else f'{mean:.4f}'}, {summary['overall']['n_cases']} cases")
    say(f"report: {(folder / 'report.html').resolve()}")


def say_outcome(outcome: Outcome, folder: Path, *, foreground_only: bool, resumed: bool) -> None:
    """Say what became of the cases of a prediction; warnings and failures go to standard error."""
    say_warnings(outcome.warnings)
    for failure in outcome.failures:
        sys.stderr.write(f"segscse: {one_line(failure.case)}: {one_line(failure.reason)}\n")
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


def say_findings(findings: Sequence[Finding]) -> None:
    """Show a data set's problems: as a table on a terminal, elsewhere a line each, which other programs can read."""
    console = make_console(stderr=False)
    if console.is_terminal:
        console.print(findings_table(findings))
        return
    for finding in findings:
        place = finding.file or finding.case
        error = InputError(finding.problem, file=place or None, remedy=finding.remedy)
        whose = f"{finding.case}: " if finding.case and finding.case not in place else ""
        say(f"{finding.level}: {whose}{one_line(error)}")


def findings_table(findings: Sequence[Finding]) -> Any:
    """Return a table of a data set's problems."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("level", "case", "file", "problem", "remedy")
    for finding in findings:
        cells = (finding.level, finding.case, finding.file, finding.problem, finding.remedy)
        style = {"error": "red", "warning": "yellow"}.get(finding.level)
        table.add_row(*(escape(visible(cell)) for cell in cells), style=style)
    return table
