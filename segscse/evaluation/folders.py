"""Evaluation of folders: the table, its summary, its convention in words and the report, written together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from segscse.errors import InputError
from segscse.evaluation.cases import CasePair, Missing, cases_of, pair_cases
from segscse.evaluation.columns import in_words
from segscse.evaluation.metrics import Subjects, subject_by_case
from segscse.evaluation.report import render_report
from segscse.evaluation.room import require_room
from segscse.evaluation.scores import at_a_time, evaluate, summarise
from segscse.evaluation.statistics import describe
from segscse.files import only_writer, write_json, write_text
from segscse.limits import require_disk
from segscse.types import Progress


class Evaluation(NamedTuple):
    """What was scored.

    Attributes:
        table: a row per case and label, as `cases.csv` holds it.
        summary: as `summary.json` holds it.
    """

    table: pd.DataFrame
    summary: dict[str, Any]


def evaluate_folders(
    pred_dir: str | Path | Mapping[str, Path],
    ref_dir: str | Path | Mapping[str, Path],
    out_dir: str | Path,
    images_dir: str | Path | Mapping[str, Path] | None = None,
    missing: Missing = "error",
    names: Mapping[Any, str] | None = None,
    labels: Sequence[int] | None = None,
    *,
    nsd_tolerance_mm: float | Mapping[Any, float] = 1.0,
    probabilities_dir: str | Path | Mapping[str, Path] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    subjects: Subjects | None = None,
    provenance: Mapping[str, Any] | None = None,
    viewer: bool = True,
    warn: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score a folder of predictions; write `cases.csv`, `summary.json`, `conventions.txt` and `report.html`.

    Args:
        pred_dir: a folder of predictions, named as the references, or a mapping from case to file.
        ref_dir: references, likewise.
        out_dir: where the four files go; made when absent.
        images_dir: images to show under the overlays of the report, likewise (`_0000` may follow the name).
        missing: as in `evaluate`.
        names: as in `evaluate`.
        labels: as in `evaluate`.
        nsd_tolerance_mm: as in `evaluate`.
        probabilities_dir: probabilities of the predictions, likewise; adds the columns `ece` and `brier`.
        workers: as in `evaluate`.
        progress: as in `evaluate`.
        subjects: the subject of every case, where subjects have several, or a CSV with the columns `case` and
            `subject`; goes into the column `subject`, and intervals are drawn over subjects.
        provenance: how the predictions came about, for the report.
        viewer: embed a viewer and the worst, median and best case in the report.
        warn: called with what may go wrong, before the first case is read; logged if not given.

    Raises:
        InputError: as `evaluate`, and nothing is written then, because a mean over part of the cases misleads; or
            another process writes into `out_dir`.
    """
    _require_folders(pred_dir, ref_dir, probabilities_dir)
    require_disk("the evaluation", Path(out_dir), 0, 0, "")  # whether anything can be written there
    with only_writer(out_dir):
        images = {} if images_dir is None else cases_of(images_dir)
        pairs = pair_cases(pred_dir, ref_dir, missing, probabilities_dir)
        known = None if subjects is None else subject_by_case([str(pair.case) for pair in pairs], subjects)
        if (warning := require_room(pairs, at_a_time(workers))) is not None:
            (warn or logging.getLogger(__name__).warning)(warning)
        table = evaluate(
            pred_dir,
            ref_dir,
            labels,
            nsd_tolerance_mm=nsd_tolerance_mm,
            names=names,
            missing=missing,
            probabilities=probabilities_dir,
            workers=workers,
            progress=progress,
        )
        if known is not None:
            table.insert(1, "subject", table["case"].astype(str).map(known))
        return write_evaluation(
            table,
            out_dir,
            pairs=pairs,
            images=images,
            provenance=provenance,
            viewer=viewer,
        )


def write_evaluation(
    table: pd.DataFrame,
    out_dir: str | Path,
    *,
    pairs: Sequence[CasePair] = (),
    images: Mapping[str, Path] | None = None,
    provenance: Mapping[str, Any] | None = None,
    viewer: bool = True,
) -> Evaluation:
    """Summarise the table of `evaluate`, and write `cases.csv`, `summary.json`, `conventions.txt` and `report.html`.

    Args:
        table: as `evaluate` returns it; may have a column `subject`.
        out_dir: where the four files go; made when absent.
        pairs: as in `render_report`.
        images: as in `render_report`.
        provenance: as in `render_report`.
        viewer: as in `render_report`.
    """
    described = describe(table)
    summary = summarise(table, described)
    report = render_report(
        table,
        summary=summary,
        described=described,
        pairs=pairs,
        images=images,
        provenance=provenance,
        viewer=viewer,
    )
    out = Path(out_dir)
    write_text(out / "cases.csv", table.to_csv(index=False, lineterminator="\n"))
    write_json(out / "summary.json", summary)
    write_text(out / "conventions.txt", in_words(list(table.columns), table.attrs["nsd_tolerance_mm"]))
    write_text(out / "report.html", report)
    return Evaluation(table, summary)


def _require_folders(*sources: str | Path | Mapping[str, Path] | None) -> None:
    """Refuse what is neither a folder nor a mapping from case to file.

    Raises:
        InputError: naming it.
    """
    for source in sources:
        if source is not None and not isinstance(source, Mapping) and not Path(source).is_dir():
            raise InputError("is not a folder", file=source, remedy="Check the path")
