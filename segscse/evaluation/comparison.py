"""Paired comparison of two or more evaluations of the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import pandas as pd

from segscse.errors import InputError, choose
from segscse.evaluation.bootstrap import units_in_words
from segscse.evaluation.columns import CONVENTION, CONVENTION_VERSION, DISTANCES
from segscse.evaluation.metrics import Metric, Subjects, comparable, metric_of, named_metric, subjects_of
from segscse.evaluation.paired import PairedDifference, correct, paired_difference
from segscse.evaluation.ranking import Ranking, rank_stability
from segscse.evaluation.rendering import (
    bracketed,
    escape_markdown,
    html_list,
    html_method,
    html_table,
    markdown_table,
    plain,
    text_table,
)
from segscse.evaluation.tables import check_same_cases, load_table, same_conventions

FEW_CASES = 10
# Metrics that are undefined where both masks are empty and there is a prediction, and nowhere else.
_UNDEFINED_WHERE_EMPTY = (*DISTANCES, "dice", "iou", "nsd", "nsd_area", "volume_similarity", "lesion_f1")
METHOD = (
    "Differences are paired by case. Intervals: 95 % BCa bootstrap of the mean difference over cases, or over "
    "subjects where they are known, widened for few of them (Efron 1987; Hesterberg 2015). p: Wilcoxon signed-rank, "
    "two-sided, after Holm's correction over the foreground's rows, and apart from these over the labels'. Effect: "
    "matched-pairs rank-biserial correlation. A difference counts as shown when the interval leaves out 0 and the "
    "corrected p is below 0.05. An infinite distance (one mask is empty) counts as the image's diagonal; a score that"
    " one side lacks leaves the row of its label, and the findings say so. Ranks: by the mean, with the cases redrawn"
    " 9999 times (Wiesenfarth et al. 2021)."
)
Pairs = Literal["first", "all"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two or more evaluations of the same cases.

    Attributes:
        metric: the column compared.
        names: the sides, in the order given.
        foreground: one difference per pair of sides, of each case's mean over its labels; corrected by Holm together.
        by_label: one per pair and label; corrected by Holm together.
        ranking: the sides by their mean foreground value, and how stable that order is; None when neither direction
            of the metric is better.
        counted_apart: for each of `foreground`, how many scores of a label only its first and only its second side
            lacks in cases that count there.
        convention_version: of the scores; None where the tables do not say.
        nsd_tolerance_mm: of NSD, one for all labels or by label, likewise.
    """

    metric: str
    names: tuple[str, ...]
    foreground: tuple[PairedDifference, ...]
    by_label: tuple[PairedDifference, ...]
    ranking: Ranking | None
    counted_apart: tuple[tuple[int, int], ...]
    convention_version: int | None = None
    nsd_tolerance_mm: float | dict[str, float] | None = None

    @property
    def overall(self) -> PairedDifference:
        """The foreground difference of the first pair: the second side against the first."""
        return self.foreground[0]

    @property
    def labels(self) -> tuple[PairedDifference, ...]:
        """The differences per label of the first pair."""
        return self._labels_of(self.overall)

    @property
    def difference(self) -> float:
        """Mean paired difference of the first pair's foreground, b - a."""
        return self.overall.difference

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of `difference`."""
        return self.overall.low, self.overall.high

    @property
    def p_value(self) -> float:
        """Wilcoxon signed-rank p of the first pair's foreground, uncorrected."""
        return self.overall.p_value

    @property
    def verdict(self) -> str:
        """The finding of the first pair in plain words, with its reservations."""
        return self._verdict_of(self.overall)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The finding of every pair, as `verdict`."""
        return tuple(self._verdict_of(row) for row in self.foreground)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per difference, the foreground first, with the fields of `PairedDifference` and the verdict."""
        return pd.DataFrame([{**asdict(row), "verdict": row.verdict} for row in (*self.foreground, *self.by_label)])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; null where undefined."""
        return plain({
            "metric": self.metric,
            "names": list(self.names),
            "method": METHOD,
            "convention": self._convention,
            "convention_version": self.convention_version,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "verdicts": list(self.verdicts),
            "differences": self.to_frame().to_dict("records"),
            "ranking": None if self.ranking is None else asdict(self.ranking),
        })  # fmt: skip

    def to_markdown(self) -> str:
        """Return tables, verdicts and method as Markdown."""
        lines = [f"# Comparison by {escape_markdown(self._metric.title)}", ""]
        lines += [f"- {escape_markdown(line)}" for line in self.findings]
        for heading, rows in (("Foreground", self.foreground), ("By label", self.by_label)):
            lines += ["", f"## {heading}", "", *markdown_table(_HEADINGS, _cells(rows, self._metric))]
        tolerance = [] if self.nsd_tolerance_mm is None else ["", f"NSD tolerance in mm: {self.nsd_tolerance_mm}."]
        convention = [] if self._convention is None else ["", self._convention]
        return "\n".join([*lines, "", METHOD, *convention, *tolerance, ""])

    def label_table(self) -> tuple[Sequence[str], list[list[str]]]:
        """Return headings and cells of the differences per label, as they are shown."""
        return _HEADINGS, _cells(self.by_label, self._metric)

    def __str__(self) -> str:
        table = text_table(_HEADINGS, _cells((*self.foreground, *self.by_label), self._metric), left=2)
        return "\n".join([f"{self._metric.title}", *table, *self.findings])

    def _repr_html_(self) -> str:
        """Show tables and verdicts in a notebook."""
        table = html_table(_HEADINGS, _cells((*self.foreground, *self.by_label), self._metric))
        return f"<b>{escape(self._metric.title)}</b>{table}{html_list(self.findings)}{html_method(METHOD)}"

    @property
    def _metric(self) -> Metric:
        return named_metric(self.metric)

    @property
    def _convention(self) -> str | None:
        """The convention of the scores in words, where it is the one of this version."""
        return CONVENTION if self.convention_version == CONVENTION_VERSION else None

    def _labels_of(self, pair: PairedDifference) -> tuple[PairedDifference, ...]:
        return tuple(row for row in self.by_label if (row.a, row.b) == (pair.a, pair.b))

    def _verdict_of(self, pair: PairedDifference) -> str:
        notes = []
        if 2 <= pair.n_units < FEW_CASES:
            notes.append(f"only {units_in_words(pair.n, pair.n_units)}: the interval is likely too narrow")
        apart = self.counted_apart[self.foreground.index(pair)]
        for side, other, lost, by_label in (
            (pair.a, pair.b, pair.n_only_a_undefined, apart[0]),
            (pair.b, pair.a, pair.n_only_b_undefined, apart[1]),
        ):
            # A score that one side lacks leaves the row of its label, and the foreground only where it is the case's
            # only one: the other side's mean has it.
            kinds = (("not counted", lost), ("counted here, not by label", by_label))
            notes += [f"{how}: {self._lacking(side, other, count)}" for how, count in kinds if count]
        return "; ".join([pair.verdict, *notes])

    def _lacking(self, side: str, other: str, count: int) -> str:
        """Say that a side has no score where the other has one."""
        if self.metric not in _UNDEFINED_WHERE_EMPTY:
            return f"{count} of the scores, where {side} is undefined"
        times = "once" if count == 1 else f"{count} times"
        return f"{times} {side} rightly finds nothing where {other} marks something or has no prediction"

    @property
    def findings(self) -> list[str]:
        """The verdict of every pair and the ranking, a sentence each."""
        several = len(self.foreground) > 1
        lines = [
            f"{f'{row.b} against {row.a}' if several else 'Foreground'}: {verdict}."
            for row, verdict in zip(self.foreground, self.verdicts, strict=True)
        ]
        return [*lines, *([f"Ranking: {self.ranking.text}."] if self.ranking is not None else [])]


def compare(
    a: pd.DataFrame | str | Path,
    b: pd.DataFrame | str | Path,
    *more: pd.DataFrame | str | Path,
    metric: str = "dice",
    names: Sequence[str] | None = None,
    subjects: Subjects | None = None,
    pairs: Pairs = "first",
) -> Comparison:
    """Compare evaluations case by case.

    Each case counts once: the foreground value of a case is the mean over its defined labels. How intervals, tests
    and ranks are made is in `METHOD`. Infinite distances count as the image's diagonal.

    Args:
        a: the baseline: the table of `evaluate`, a `cases.csv`, or the folder that holds one.
        b: the contender, over the same cases and labels.
        more: further contenders.
        metric: the column to compare.
        names: what to call the sides. Default: a, b, c, ...
        subjects: the subject of every case, where subjects have several, or a CSV with the columns `case` and
            `subject`. Default: the first table's column `subject`.
        pairs: compare every side with the first, or "all" pairs.

    Raises:
        InputError: the cases, labels, references or conventions differ, a table cannot be read, there is no such
            metric.
    """
    if pairs not in ("first", "all"):
        raise choose("value of pairs", pairs, ("first", "all"))
    sides = _names(names, 2 + len(more))
    tables = [load_table(source, side) for source, side in zip((a, b, *more), sides, strict=True)]
    check_same_cases(tables, sides)
    conventions = same_conventions(tables, metric)
    chosen, *_ = [metric_of(table, metric) for table in tables]  # every table must have it
    known = subjects_of(tables[0], subjects)
    labels = tables[0].drop_duplicates("label").set_index("label")["name"].sort_index()
    values = [table.assign(value=comparable(table, chosen)) for table in tables]
    cases = [table.groupby("case")["value"].mean() for table in values]
    by_label = [table.pivot(index="case", columns="label", values="value") for table in values]
    compared = [pair for pair in combinations(range(len(sides)), 2) if pairs == "all" or pair[0] == 0]

    def difference(values: Sequence[pd.Series], i: int, j: int, what: str) -> PairedDifference:
        names = sides[i], sides[j]
        return paired_difference(values[i], values[j], what=what, names=names, metric=metric, subjects=known)

    foreground = [difference(cases, i, j, "foreground") for i, j in compared]
    per_label = [
        difference([table[label] for table in by_label], i, j, str(name))
        for i, j in compared
        for label, name in labels.items()
    ]
    ranking = _rank(pd.concat(cases, axis=1, keys=range(len(sides))).sort_index(), sides, chosen, known)
    apart = tuple(_counted_apart(by_label[i], by_label[j]) for i, j in compared)
    return Comparison(metric, sides, correct(foreground), correct(per_label), ranking, apart, **conventions)


def _counted_apart(a: pd.DataFrame, b: pd.DataFrame) -> tuple[int, int]:
    """Return how many scores only a, and only b, lacks in the cases of which both sides have some score."""
    counted = a.notna().any(axis=1) & b.notna().any(axis=1)
    lacking = a[counted].isna(), b[counted].isna()
    return int((lacking[0] & ~lacking[1]).to_numpy().sum()), int((lacking[1] & ~lacking[0]).to_numpy().sum())


def _names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(ascii_lowercase[:count]) if count <= 26 else tuple(f"s{side}" for side in range(1, count + 1))
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"there must be {count} different names, got {list(names)}")
    return tuple(map(str, names))


def _rank(
    values: pd.DataFrame, names: Sequence[str], metric: Metric, subjects: Mapping[str, str] | None
) -> Ranking | None:
    if metric.better == "neither":
        return None
    better: Literal["higher", "lower"] = "higher" if metric.better == "higher" else "lower"
    groups = None if subjects is None else [subjects[str(case)] for case in values.index]
    return rank_stability(values.to_numpy(float), names, better=better, groups=groups)


_HEADINGS = ("what", "b - a", "mean a", "mean b", "difference [95 % interval]", "p", "effect", "win/tie/loss", "n")


def _cells(rows: Sequence[PairedDifference], metric: Metric) -> list[list[str]]:
    digits = metric.digits + 1
    return [
        [
            row.what,
            f"{row.b} - {row.a}",
            metric.text(row.mean_a, digits),
            metric.text(row.mean_b, digits),
            f"{metric.text(row.difference, digits, sign=True)} {bracketed(row.low, row.high, f'+.{digits}f')}".rstrip(),
            f"{row.p_holm:.3g}",
            f"{row.effect_size:+.2f}",
            f"{row.wins}/{row.ties}/{row.losses}",
            str(row.n) if row.n == row.n_units else f"{row.n} ({row.n_units} subjects)",
        ]
        for row in rows
    ]
