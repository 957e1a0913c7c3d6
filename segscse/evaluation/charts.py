"""Geometry of the report's charts: positions in percent, so that a page of any width can draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from segscse.evaluation.bootstrap import mean_interval
from segscse.evaluation.metrics import Metric
from segscse.evaluation.scene import label_colour

MAX_POINTS = 6000  # of one chart; more are thinned out by rank
_VIOLIN_FROM = 5  # values; fewer are shown as points alone
_GUTTER = 94.0  # percent of the width for finite values where there are infinite ones, drawn at the right edge
_INFINITE = 98.0


@dataclass(frozen=True, slots=True)
class Point:
    """A case in a chart, `x` and `y` in percent; `case` is its place in the table of cases."""

    x: float
    y: float
    case: int
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of an axis, in percent."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Strip:
    """The distribution of one label: an SVG path in a 100 x 100 box, marks and points.

    `low`, `mean`, `high` (the mean and its interval) and `median` are positions in percent; None where undefined or
    beyond the axis.
    """

    name: str
    colour: str
    path: str
    low: float | None
    mean: float | None
    high: float | None
    median: float | None
    summary: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A metric's strips on one axis."""

    column: str
    title: str
    ticks: tuple[Tick, ...]
    strips: tuple[Strip, ...]
    thinned: bool


@dataclass(frozen=True, slots=True)
class BlandAltman:
    """Differences of volumes against their means for one label, positions in percent of the plot."""

    name: str
    colour: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    zero: float
    bias: float
    limits: tuple[float, float]
    summary: str
    points: tuple[Point, ...]


def distribution(
    table: pd.DataFrame, metric: Metric, described: pd.DataFrame, cases: Mapping[str, int]
) -> Distribution:
    """Return the distribution of a metric per label.

    Args:
        table: as `evaluate` returns it.
        metric: what to show.
        described: the rows of `describe` for this metric.
        cases: place of every case in the table of cases.
    """
    values = table[metric.column].astype(float)
    finite = values[np.isfinite(values)]
    infinite = bool(np.isinf(values).any())
    ticks = nice_ticks(*_range(finite, metric))
    scale = _Scale(ticks[0], ticks[-1], _GUTTER if infinite else 100.0)
    per_label = MAX_POINTS // max(1, table["label"].nunique())
    strips = []
    for label, rows in table.groupby("label", sort=True):
        row = described[described["label"] == label].iloc[0]
        strips.append(_strip(rows, metric, row, cases, scale, per_label))
    texts = [Tick(scale.at(tick), f"{tick:g}") for tick in ticks] + ([Tick(_INFINITE, "∞")] if infinite else [])
    thinned = bool((table.groupby("label").size() > per_label).any())
    unit = f" in {metric.unit}" if metric.unit else ""
    return Distribution(metric.column, metric.title + unit, tuple(texts), tuple(strips), thinned)


def bland_altman(rows: pd.DataFrame, cases: Mapping[str, int], groups: Sequence[str] | None) -> BlandAltman | None:
    """Return the Bland-Altman plot (Lancet 1986, doi:10.1016/S0140-6736(86)90837-8) of one label's volumes in ml.

    Cases where both masks are empty are left out. None below two cases.
    """
    used = (rows["volume_ref_ml"] > 0) | (rows["volume_pred_ml"] > 0)
    if int(used.sum()) < 2:
        return None
    kept = rows[used]
    mean = ((kept["volume_ref_ml"] + kept["volume_pred_ml"]) / 2).to_numpy(float)
    difference = (kept["volume_pred_ml"] - kept["volume_ref_ml"]).to_numpy(float)
    bias, spread = float(difference.mean()), float(difference.std(ddof=1))
    limits = bias - 1.96 * spread, bias + 1.96 * spread
    ends = mean_interval(difference, None if groups is None else np.asarray(groups, object)[used].tolist())
    interval = "" if ends.method == "none" else f" (95 % interval {ends.low:+.3g} to {ends.high:+.3g})"
    x_ticks = nice_ticks(float(mean.min()), float(mean.max()))
    y_ticks = nice_ticks(min(float(difference.min()), limits[0], 0.0), max(float(difference.max()), limits[1], 0.0))
    x, y = _Scale(x_ticks[0], x_ticks[-1], 100.0), _Scale(y_ticks[0], y_ticks[-1], 100.0)
    inside = (difference >= limits[0]) & (difference <= limits[1])
    by_rank = [place for place in np.argsort(difference, kind="stable") if inside[place]]
    chosen = sorted([*_thinned(by_rank, MAX_POINTS // 4), *np.flatnonzero(~inside)])  # those outside are all read
    points = [
        Point(x.at(at), 100 - y.at(gap), cases[str(case)], f"{case}: mean {at:.3g} ml, difference {gap:+.3g} ml")
        for case, at, gap in zip(kept["case"].iloc[chosen], mean[chosen], difference[chosen], strict=True)
    ]
    drawn = "" if len(points) == len(kept) else f" {len(points)} of them have a point: of those within, evenly by rank."
    return BlandAltman(
        name=str(rows["name"].iloc[0]),
        colour=label_colour(int(rows["label"].iloc[0])),
        x_ticks=tuple(Tick(x.at(tick), f"{tick:g}") for tick in x_ticks),
        y_ticks=tuple(Tick(100 - y.at(tick), f"{tick:g}") for tick in y_ticks),
        zero=100 - y.at(0.0),
        bias=100 - y.at(bias),
        limits=(100 - y.at(limits[1]), 100 - y.at(limits[0])),
        summary=(
            f"{len(kept)} cases. Bias {bias:+.3g} ml{interval}, limits of agreement {limits[0]:+.3g} to "
            f"{limits[1]:+.3g} ml (bias ± 1.96 SD).{drawn}"
        ),
        points=tuple(points),
    )


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that enclose `low` to `high`, evenly spaced."""
    size = max(abs(low), abs(high))
    if not high - low > 1e-9 * size:  # one value, as far as rounding goes
        half = max(min(0.5, 0.5 * size), 1e-6 * size) or 0.5
        low, high = low - half, high + half
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda factor: abs(factor * power - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 12 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    width: float

    def at(self, value: float) -> float:
        """Return a value's place in percent; infinity at the right edge."""
        if math.isinf(value):
            return _INFINITE
        return round(self.width * (value - self.low) / (self.high - self.low), 3)

    def within(self, value: float) -> float | None:
        return self.at(value) if self.low <= value <= self.high else None


def _range(finite: pd.Series, metric: Metric) -> tuple[float, float]:
    if finite.empty:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if metric.bounded:
        return (0.0, 1.0) if low < 0.5 else (math.floor(10 * low - 1e-9) / 10, 1.0)
    return min(0.0, low), max(high, 0.0) or 1.0


def _strip(
    rows: pd.DataFrame, metric: Metric, row: pd.Series, cases: Mapping[str, int], scale: _Scale, limit: int
) -> Strip:
    known = rows[["case", metric.column]].dropna()
    values = known[metric.column].to_numpy(float)
    finite = values[np.isfinite(values)]
    pairs = sorted(zip(values.tolist(), known["case"].astype(str), strict=True))
    jitter = np.random.default_rng(0).uniform(30, 70, len(pairs))
    placed = [(value, case, y) for (value, case), y in zip(pairs, jitter.tolist(), strict=True)]
    points = [
        Point(scale.at(value), round(y, 1), cases[case], f"{case}: {metric.title} {metric.text(value)}")
        for value, case, y in _thinned(placed, limit)
    ]
    low, high = (float(row["low"]), float(row["high"]))
    interval = "" if math.isnan(low) else f" ({metric.text(low)} to {metric.text(high)})"
    return Strip(
        name=str(row["name"]),
        colour=label_colour(int(row["label"])),
        path=_violin(finite, scale, bounds=(0.0, 1.0 if metric.bounded else math.inf)),
        low=scale.within(low), mean=scale.within(float(row["mean"])), high=scale.within(high),
        median=scale.within(float(row["median"])),
        summary=f"{metric.text(float(row['mean']))}{interval}" if row["n"] else "no case holds this label",
        points=tuple(points),
    )  # fmt: skip


def _violin(values: np.ndarray, scale: _Scale, bounds: tuple[float, float]) -> str:
    """Return the outline of a Gaussian kernel density within the bounds, reflected at them, as an SVG path."""
    from scipy import stats

    if len(values) < _VIOLIN_FROM or np.ptp(values) < 1e-9:
        return ""
    kernel = stats.gaussian_kde(values)
    reach = 2.5 * float(np.sqrt(kernel.covariance[0, 0]))
    low, high = max(bounds[0], float(values.min()) - reach), min(bounds[1], float(values.max()) + reach)
    low, high = max(low, scale.low), min(high, scale.high)
    grid = np.linspace(low, high, 60)
    density = kernel(grid) + kernel(2 * bounds[0] - grid)
    if math.isfinite(bounds[1]):
        density += kernel(2 * bounds[1] - grid)
    half = 46 * density / density.max()
    x = [scale.at(float(value)) for value in grid]
    upper = [f"{at:.2f},{50 - h:.2f}" for at, h in zip(x, half, strict=True)]
    lower = [f"{at:.2f},{50 + h:.2f}" for at, h in zip(x, half, strict=True)]
    return "M" + " L".join([*upper, *reversed(lower)]) + " Z"


def _thinned(items: list[Any], limit: int) -> list[Any]:
    """Return at most about `limit` items, evenly over their order, the first and the last among them."""
    if len(items) <= limit:
        return items
    return [items[place] for place in np.unique(np.linspace(0, len(items) - 1, max(2, limit)).astype(int))]
