"""Figures for notebooks: scores by label, and the curves of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from segscse.data.plan import load_plan
from segscse.errors import InputError
from segscse.evaluation.metrics import Metric, metric_of
from segscse.evaluation.scene import label_colour
from segscse.evaluation.statistics import describe
from segscse.evaluation.tables import load_table
from segscse.figures import NotebookFigure, as_text
from segscse.training.log import FILE, read_log

if TYPE_CHECKING:
    from segscse.training.run import Run

_INK, _MUTED, _RULE = "#1F2933", "#616E7C", "#E4E7EB"
_DEFAULT = ("dice", "nsd", "hd95_mm")
_VIOLIN_FROM = 5  # values; fewer are shown as points alone
_CURVES = 12  # labels with a curve of their own


def plot_metrics(
    table: pd.DataFrame | str | Path,
    metrics: Sequence[str] | None = None,
    *,
    title: str = "",
) -> NotebookFigure:
    """Draw the distribution of scores by label: every case as a point, a violin, and the mean with its interval.

    The intervals are those of `segscse.evaluation.statistics.describe`, over subjects where the table has the column
    `subject`. Infinite distances stand at the right edge; in the mean they count as the image's diagonal, and a mean
    that lies beyond the edge is not drawn.

    Args:
        table: the table of `evaluate`, a `cases.csv`, or the folder that holds one.
        metrics: columns to draw, a panel each. Default: Dice, NSD and HD95, as far as the table holds them.
        title: heading of the figure.

    Raises:
        InputError: the table cannot be read, or has no such metric.
    """
    table = load_table(table)
    names = [name for name in _DEFAULT if name in table] if metrics is None else list(metrics)
    if not names:
        raise InputError("there is no metric to draw", remedy="Give for example metrics=['dice']")
    chosen = [metric_of(table, name) for name in names]
    described = describe(table, names)
    groups = sorted(table.groupby("label"))
    figure = NotebookFigure(figsize=(4.4 * len(chosen) + 0.8, 1.1 + 0.5 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, chosen, strict=True):
        means = described[described["metric"] == metric.column].set_index("label")
        _draw_metric(ax, metric, groups, means)
    axes[0].set_yticks(range(len(groups)), [as_text(rows["name"].iloc[0]) for _, rows in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def plot_training(run: Run | str | Path) -> NotebookFigure:
    """Draw the curves of a training run: loss and learning rate, and validation Dice by label, against the steps.

    Args:
        run: what `train` returns, or the run folder.

    Raises:
        InputError: the folder holds no log of a run.
    """
    folder = Path(run) if isinstance(run, str | Path) else run.folder
    log = _read_log(folder)
    figure = NotebookFigure(figsize=(10.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss = log.dropna(subset=["train_loss"])
    left.plot(loss["step"], loss["train_loss"], color=label_colour(5), linewidth=1.3)
    left.set(xlabel="step", ylabel="training loss")
    rate = left.twinx()
    rate.plot(log["step"], log["lr"], color=_MUTED, linewidth=0.9, linestyle="--")
    rate.set_ylabel("learning rate (dashed)", color=_MUTED)
    rate.set_ylim(bottom=0)
    rate.spines[:].set_visible(False)
    _draw_scores(right, log, _label_names(folder))
    for ax in (left, right):
        _tidy(ax)
    return figure


def _draw_metric(ax: Axes, metric: Metric, groups: Sequence[tuple[Any, pd.DataFrame]], means: pd.DataFrame) -> None:
    drawn = [(label, _drawn(rows[metric.column], metric)) for label, rows in groups]
    every = pd.concat([values for _, values in drawn])
    finite = every[np.isfinite(every)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.05
    edge = high + 3 * margin
    jitter = np.random.default_rng(0)
    for row, (label, of_label) in enumerate(drawn):
        values = of_label.dropna().to_numpy()
        known = values[np.isfinite(values)]
        if not len(values):
            ax.text(0.5, row, "no case", transform=ax.get_yaxis_transform(), ha="center", va="center", color=_MUTED)
            continue
        colour = label_colour(int(label))
        if len(known) >= _VIOLIN_FROM and np.ptp(known) > 0:
            parts: Any = ax.violinplot(known, [row], orientation="horizontal", widths=0.8, showextrema=False)
            parts["bodies"][0].set(facecolor=colour, alpha=0.3)
        heights = row + jitter.uniform(-0.2, 0.2, len(values))
        ax.scatter(np.where(np.isfinite(values), values, edge), heights, s=14, color=colour, ec=_INK, lw=0.3, zorder=3)
        mean = means.loc[label]
        if mean["mean"] <= edge:
            ax.plot([mean["low"], min(mean["high"], edge)], [row, row], color=_INK, linewidth=2, zorder=4)
            ax.plot(mean["mean"], row, "o", color="white", mec=_INK, mew=1.4, markersize=5.5, zorder=5)
    infinite = bool(np.isinf(every).any())
    if infinite:
        ax.axvline(edge, color=_RULE, zorder=0)
        ax.text(edge, -0.52, "∞", ha="center", va="bottom", color=_MUTED)
    ax.set_xlim(low - margin, edge + margin if infinite else high + margin)
    ax.set_xlabel(metric.title + (f" in {metric.unit}" if metric.unit else ""))
    _tidy(ax)


def _drawn(values: pd.Series, metric: Metric) -> pd.Series:
    """Return a metric's values as its mean takes them: without their sign where 0 is best."""
    values = values.astype(float)
    return values.abs() if metric.better == "near 0" else values


def _draw_scores(ax: Axes, log: pd.DataFrame, names: dict[str, str]) -> None:
    scored = log.dropna(subset=["val_dice"]) if "val_dice" in log else log[:0]
    if scored.empty:
        ax.text(0.5, 0.5, "no validation", transform=ax.transAxes, ha="center", va="center", color=_MUTED)
    columns = [name for name in map(str, log) if name.startswith("val_dice_")][:_CURVES]
    for column in columns if len(scored) else []:
        label = column.removeprefix("val_dice_")
        colour = label_colour(int(label)) if label.isdigit() else _MUTED
        ax.plot(
            scored["step"],
            scored[column],
            marker=".",
            linewidth=1,
            color=colour,
            label=as_text(names.get(label, label)),
        )
    if len(scored):
        ax.plot(scored["step"], scored["val_dice"], marker="o", markersize=4, linewidth=1.8, color=_INK, label="mean")
        ax.legend(frameon=False, fontsize=8)
    ax.set(xlabel="step", ylabel="validation Dice", ylim=(0, 1))


def _read_log(folder: Path) -> pd.DataFrame:
    needed = ("step", "lr", "train_loss")
    rows = read_log(folder / FILE, needed)
    columns = list(rows[0]) if rows else needed
    return pd.DataFrame({name: [float(row[name] or "nan") for row in rows] for name in columns})


def _label_names(folder: Path) -> dict[str, str]:
    """Return names by label id as text; none where the plan is absent."""
    file = folder / "plan.json"
    if not file.is_file():
        return {}
    return {str(label): name for label, name in load_plan(file).labels}


def _tidy(ax: Axes) -> None:
    ax.grid(color=_RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_INK, length=0)
    ax.spines[:].set_visible(False)
