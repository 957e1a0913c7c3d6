"""The report of an evaluation: one HTML page with its tables and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from segscse import __version__
from segscse.errors import InputError
from segscse.evaluation.cases import CasePair
from segscse.evaluation.overlays import label_colour, plot_overlay
from segscse.evaluation.scores import foreground_dice, summarise

_MAX_LABEL_COLUMNS = 8  # the table of cases shows each label's Dice up to this many labels
_INK, _MUTED, _RULE = "#1F2933", "#616E7C", "#E4E7EB"


def render_report(
    table: pd.DataFrame,
    *,
    summary: Mapping[str, Any] | None = None,
    pairs: Sequence[CasePair] = (),
    images: Mapping[str, Path] | None = None,
) -> str:
    """Return the report of the table of `evaluate` as HTML.

    Args:
        table: as `evaluate` returns it.
        summary: what `summarise` says of the table, when it is known already.
        pairs: where predictions and references lie; without them there are no overlays.
        images: images by case, to show under the overlays; a case without one is drawn over black.
    """
    names: dict[int, str] = dict(zip(table["label"].tolist(), table["name"].astype(str), strict=True))
    context = {
        "version": __version__,
        "summary": summary or summarise(table),
        "colours": {label: label_colour(label) for label in names},
        "dice_plot": _png(plot_dice(table)),
        "columns": list(names.values()) if len(names) <= _MAX_LABEL_COLUMNS else [],
        "cases": _case_rows(table),
        "overlays": _overlays(table, pairs, images or {}, names),
    }
    source = resources.files("segscse.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["number"] = _number
    return environment.from_string(source).render(context)


def plot_dice(table: pd.DataFrame) -> Figure:
    """Draw the Dice of every case as a point, by label, with the box of the quartiles."""
    groups = [(label, table[table["label"] == label]) for label in sorted(table["label"].unique().tolist())]
    figure = Figure(figsize=(8.4, 0.9 + 0.5 * len(groups)), layout="constrained")
    ax = figure.add_subplot()
    jitter = np.random.default_rng(0)
    for row, (label, rows) in enumerate(groups):
        dice = rows["dice"].dropna().to_numpy()
        if not len(dice):
            ax.text(0.5, row, "no case holds this label", ha="center", va="center", color=_MUTED, fontsize=9)
            continue
        line = {"color": _INK, "linewidth": 1.0}
        ax.boxplot(
            dice, positions=[row], orientation="horizontal", widths=0.5, showfliers=False, patch_artist=True,
            boxprops={"facecolor": "#F5F7FA", "edgecolor": _INK, "linewidth": 0.8},
            medianprops={"color": _INK, "linewidth": 1.8}, whiskerprops=line, capprops=line,
        )  # fmt: skip
        heights = row + jitter.uniform(-0.17, 0.17, len(dice))
        ax.scatter(
            dice,
            heights,
            s=18,
            color=label_colour(label),
            edgecolor=_INK,
            linewidth=0.3,
            alpha=0.85,
            zorder=3,
        )
    ax.set_yticks(range(len(groups)), [_plain(rows["name"].iloc[0]) for _, rows in groups])
    ax.set_ylim(len(groups) - 0.5, -0.5)
    low = float(table["dice"].min())
    ax.set_xlim(-0.02 if math.isnan(low) or low < 0.5 else 0.1 * math.floor(10 * low) - 0.02, 1.02)
    ax.set_xlabel("Dice", color=_MUTED)
    ax.grid(axis="x", color=_RULE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=_INK, length=0)
    ax.spines[:].set_visible(False)
    return figure


def _case_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per case, the worst first and those without any defined Dice last."""
    order = foreground_dice(table).sort_values(kind="stable", na_position="last")
    groups: dict[Any, pd.DataFrame] = dict(iter(table.groupby("case")))
    return [_case_row(case, mean, groups[case].sort_values("label")) for case, mean in order.items()]


def _case_row(case: Any, mean: float, rows: pd.DataFrame) -> dict[str, Any]:
    notes = []
    for word, chosen in (
        ("missed", rows[(rows["n_ref"] > 0) & (rows["n_pred"] == 0)]),
        ("false positive", rows[(rows["n_ref"] == 0) & (rows["n_pred"] > 0)]),
    ):
        if len(chosen):
            shown = ", ".join(map(str, chosen["name"].iloc[:5])) + (", ..." if len(chosen) > 5 else "")
            notes.append(f"{word}: {shown}")
    return {
        "case": case,
        "mean": mean,
        "dice": rows["dice"].tolist(),
        "hd95_mm": rows["hd95_mm"].max(),  # infinite when a label is missed or made up
        "notes": "; ".join(notes),
    }


def _overlays(
    table: pd.DataFrame, pairs: Sequence[CasePair], images: Mapping[str, Path], names: Mapping[Any, str]
) -> list[dict[str, str]]:
    """Draw the worst, the median and the best case."""
    ranked = foreground_dice(table).dropna().sort_values(kind="stable")
    if ranked.empty:
        return []
    chosen: dict[Any, str] = {}
    for role, place in (("Worst", 0), ("Best", len(ranked) - 1), ("Median", (len(ranked) - 1) // 2)):
        chosen.setdefault(ranked.index[place], role)
    by_case = {pair.case: pair for pair in pairs}
    order = [case for case in ranked.index if case in chosen and case in by_case]
    return [_overlay(by_case[case], chosen[case], float(ranked[case]), images, names) for case in order]


def _overlay(
    pair: CasePair, role: str, dice: float, images: Mapping[str, Path], names: Mapping[Any, str]
) -> dict[str, str]:
    image = images.get(pair.case, images.get(f"{pair.case}_0000"))
    segmentation = pair.pred if pair.pred is not None else _nothing_like(pair.ref)
    note = "" if image is not None else "Labels only: no image was given for this case."
    try:
        figure = plot_overlay(image, segmentation, pair.ref, names=names)
    except InputError as error:  # a picture must not cost the report
        figure, note = plot_overlay(None, segmentation, pair.ref, names=names), f"Labels only: {error}"
    return {"role": role, "case": pair.case, "dice": _number(dice), "png": _png(figure), "note": note}


def _nothing_like(reference: Path) -> Any:
    """Return a segmentation without any label on the grid of a reference file."""
    from dataclasses import replace

    from segscse.data.io import read_labels

    volume = read_labels(reference)
    return replace(volume, array=np.zeros_like(volume.array))


def _png(figure: Figure) -> str:
    """Return a figure as base64 PNG, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor=figure.get_facecolor(), metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table: a dash when undefined."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def _plain(text: Any) -> str:
    """Return text in which matplotlib sees no formula."""
    return str(text).replace("$", r"\$")
