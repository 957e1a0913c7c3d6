"""The outcome of an ablation: scores of every variant against the first, beside what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.comparison import METHOD as COMPARISON_METHOD
from segscse.evaluation.comparison import Comparison, compare
from segscse.evaluation.metrics import METRICS, comparable
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
from segscse.evaluation.summary import foreground_dice
from segscse.evaluation.tables import same_conventions

METHOD = (
    "Every variant is trained with the same plan, split, seeds and length, and every case is scored by runs that have "
    "not seen it. A case's score is its mean over the seeds; its Dice is the mean over its labels. The intervals hold "
    "for the chance of the cases, not for that of the training, which the Dice by seed shows. "
    + COMPARISON_METHOD
    + " Step: median over stretches of 20 steps without validations, then over the runs. Memory: the most that "
    "weights, gradients, optimiser, patches and feature maps take together in a training step. Case: median time from "
    "the file to the label map on the scan's own grid."
)
_SCORES = ("variant", "Dice [95 % interval]", "difference [95 % interval]", "p", "win/tie/loss", "Dice by seed")
_COSTS = ("variant", "parameters", "step ms", "steps", "memory MB", "case s")


@dataclass(frozen=True, slots=True)
class VariantCost:
    """What a variant takes; NaN where it was not measured.

    Attributes:
        parameters: learned numbers of the network.
        step_ms: median time of a training step.
        steps: mean number of optimiser steps of a run.
        memory_bytes: what a training step takes at its peak, beyond the program itself.
        inference_s: median time to segment a case.
    """

    parameters: int
    step_ms: float
    steps: float
    memory_bytes: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant's scores and costs.

    Attributes:
        name: of its attention.
        mean: Dice, the mean over cases of the mean over their labels.
        low: lower end of its 95 % interval; NaN for fewer than two cases or subjects.
        high: upper end.
        by_seed: the mean Dice of the runs of each seed.
        cost: what it takes.
    """

    name: str
    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    cost: VariantCost


@dataclass(frozen=True, slots=True)
class Ablation:
    """Variants trained alike and compared case by case.

    Attributes:
        folder: holds `ablation.json`, `ablation.md`, and a folder per variant with its runs and its `cases.csv`.
        dataset: its name.
        length: of a run, in words.
        rounds: the pairs of seed and fold that every variant has finished.
        n_rounds: how many there will be.
        n_cases: cases scored.
        variants: the first is the baseline.
        comparison: of the Dice of every variant with the first's.
    """

    folder: Path
    dataset: str
    length: str
    rounds: tuple[tuple[int, int], ...]
    n_rounds: int
    n_cases: int
    variants: tuple[Variant, ...]
    comparison: Comparison

    @property
    def findings(self) -> list[str]:
        """What scores and costs allow one to say, a sentence per variant and one of the ranking."""
        lines = list(self.comparison.findings)
        for place, variant in enumerate(self.variants[1:]):
            pair = f"{variant.name} against {self.variants[0].name}"
            verdict = self.comparison.verdicts[place]
            chance = _chance(self.variants[0].by_seed, variant.by_seed)
            lines[place] = f"{pair}: {verdict}; {chance}{_added(self.variants[0].cost, variant.cost)}."
        if len(self.rounds) < self.n_rounds:
            lines.append(f"Not finished: {len(self.rounds)} of {self.n_rounds} rounds of all variants.")
        return lines

    @property
    def caption(self) -> str:
        """What was trained, in one line."""
        seeds, folds = ({round_[place] for round_ in self.rounds} for place in (0, 1))
        named = ", ".join(map(str, sorted(folds)))
        return (
            f"{self.dataset}: {self.length} a run, {'fold' if len(folds) == 1 else 'folds'} {named}, "
            f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, {self.n_cases} cases"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the folder as plain JSON values; null where undefined."""
        return plain({
            "dataset": self.dataset,
            "length": self.length,
            "rounds": [{"seed": seed, "fold": fold} for seed, fold in self.rounds],
            "n_rounds": self.n_rounds,
            "n_cases": self.n_cases,
            "method": METHOD,
            "findings": self.findings,
            "variants": [asdict(variant) for variant in self.variants],
            "comparison": self.comparison.to_json(),
        })  # fmt: skip

    def to_markdown(self) -> str:
        """Return scores, costs, findings and method as Markdown."""
        lines = [f"# Ablation: {escape_markdown(self.caption)}", ""]
        lines += [f"- {escape_markdown(line)}" for line in self.findings]
        lines += ["", "## Scores", "", *markdown_table(_SCORES, self._scores())]
        lines += ["", "## Costs", "", *markdown_table(_COSTS, self._costs())]
        lines += ["", "## By label", "", *markdown_table(*self.comparison.label_table())]
        return "\n".join([*lines, "", METHOD, ""])

    def __str__(self) -> str:
        scores, costs = text_table(_SCORES, self._scores()), text_table(_COSTS, self._costs())
        return "\n".join([self.caption, *scores, "", *costs, "", *self.findings])

    def _repr_html_(self) -> str:
        """Show the tables and findings in a notebook."""
        tables = html_table(_SCORES, self._scores()) + html_table(_COSTS, self._costs())
        return f"<b>{escape(self.caption)}</b>{tables}{html_list(self.findings)}{html_method(METHOD)}"

    def _scores(self) -> list[list[str]]:
        rows = []
        for place, variant in enumerate(self.variants):
            if place:
                pair = self.comparison.foreground[place - 1]
                difference = f"{pair.difference:+.4f} {bracketed(pair.low, pair.high, '+.4f')}".rstrip()
                against = [difference, f"{pair.p_holm:.3g}", f"{pair.wins}/{pair.ties}/{pair.losses}"]
            else:
                against = ["baseline", _DASH, _DASH]
            mean = f"{variant.mean:.4f} {bracketed(variant.low, variant.high, '.4f')}".rstrip()
            rows.append([variant.name, mean, *against, ", ".join(f"{value:.4f}" for value in variant.by_seed)])
        return rows

    def _costs(self) -> list[list[str]]:
        first = self.variants[0].cost
        return [
            [
                variant.name,
                f"{variant.cost.parameters:,}",
                _number(variant.cost.step_ms, first.step_ms, ".1f"),
                _number(variant.cost.steps, math.nan, ".0f"),
                _number(variant.cost.memory_bytes / 1e6, first.memory_bytes / 1e6, ".1f"),
                _number(variant.cost.inference_s, first.inference_s, ".3f"),
            ]
            for variant in self.variants
        ]


_DASH = "–"  # noqa: RUF001


def merge_runs(tables: Sequence[pd.DataFrame], subjects: Mapping[str, str] | None) -> pd.DataFrame:
    """Return one table of a variant's runs: every case once, its scores the means over the runs that scored it.

    Args:
        tables: what `evaluate` returns of the held-out cases of each run. A score that is undefined in a run counts
            for nothing; an infinite distance counts as the image's diagonal, a volume difference by its size.
        subjects: the subject of every case, where subjects have several; becomes the column `subject`.

    Returns:
        Columns `case, label, name` and those of `METRICS` that the tables hold; in `attrs` how they were scored.

    Raises:
        InputError: infinite distances without the image's diagonal, or tables that were scored differently.
    """
    columns = [metric for name, metric in METRICS.items() if all(name in table for table in tables)]
    finite = [
        pd.DataFrame(
            {"case": table["case"].astype(str), "label": table["label"], "name": table["name"].astype(str)}
            | {metric.column: comparable(table, metric) for metric in columns}
        )
        for table in tables
    ]
    merged = pd.concat(finite).groupby(["case", "label", "name"], sort=True, as_index=False).mean()
    if subjects is not None:
        merged.insert(1, "subject", merged["case"].map(dict(subjects)))
    merged.attrs.update(same_conventions(tables, "nsd"))
    return merged


def score_variants(
    runs: Mapping[str, Sequence[tuple[int, pd.DataFrame]]],
    costs: Mapping[str, VariantCost],
    subjects: Mapping[str, str] | None = None,
) -> tuple[tuple[Variant, ...], Comparison, dict[str, pd.DataFrame]]:
    """Return the variants' scores, their comparison with the first, and each one's table as `merge_runs` makes it.

    Args:
        runs: for every variant the seed of each of its runs and the table of its held-out cases.
        costs: of every variant.
        subjects: the subject of every case, where subjects have several.

    Raises:
        InputError: the variants were scored on different cases.
    """
    merged = {name: merge_runs([table for _, table in of], subjects) for name, of in runs.items()}
    variants = []
    for name, of in runs.items():
        dice = foreground_dice(merged[name])
        groups = None if subjects is None else [subjects[case] for case in dice.index]
        interval = mean_interval(dice.to_numpy(float), groups)
        variants.append(Variant(name, float(dice.mean()), interval.low, interval.high, _by_seed(of), costs[name]))
    return tuple(variants), compare(*merged.values(), names=list(merged)), merged


def _by_seed(runs: Sequence[tuple[int, pd.DataFrame]]) -> tuple[float, ...]:
    """Return the mean Dice of every seed over the cases that all have scored: under way, a later seed has fewer."""
    seeds = dict.fromkeys(seed for seed, _ in runs)
    scores = [foreground_dice(merge_runs([table for of, table in runs if of == seed], None)) for seed in seeds]
    common = set.intersection(*(set(dice.index) for dice in scores))
    return tuple(float(dice[dice.index.isin(common)].mean()) for dice in scores)


def _chance(baseline: Sequence[float], by_seed: Sequence[float]) -> str:
    """Say how far the chance of the training may make the difference between two variants; nothing where it is less."""
    if len(by_seed) < 2:
        return "one seed only, so how far another training would differ is not known; "
    spread = max(max(values) - min(values) for values in (baseline, by_seed))
    differences = [one - other for one, other in zip(by_seed, baseline, strict=True)]
    if min(differences) < 0 < max(differences):
        return f"the seeds disagree about which is better (by {min(differences):+.4f} to {max(differences):+.4f}); "
    if spread > abs(sum(differences)) / len(differences):
        return f"trainings of one variant differ by up to {spread:.4f}, more than the variants; "
    return ""


def _number(value: float, baseline: float, form: str) -> str:
    """Return a number, with what it adds to the baseline's where that is known."""
    if math.isnan(value):
        return _DASH
    return f"{value:{form}}" + (f" ({_percent(value, baseline)})" if baseline > 0 and value != baseline else "")


def _percent(value: float, baseline: float) -> str:
    return f"{100 * (value / baseline - 1):+.0f} %"


def _added(baseline: VariantCost, cost: VariantCost) -> str:
    """Say what a variant costs beside the baseline."""
    kinds: dict[str, Callable[[VariantCost], float]] = {
        "parameters": lambda of: of.parameters,
        "step time": lambda of: of.step_ms,
        "memory": lambda of: of.memory_bytes,
        "time a case": lambda of: of.inference_s,
    }
    known = {what: (get(cost), get(baseline)) for what, get in kinds.items() if get(baseline) > 0}
    parts = [f"{what} {_percent(*pair)}" for what, pair in known.items() if not math.isnan(pair[0])]
    return ", ".join(parts)
