"""What a prediction tells about itself: numbers per case, and which cases a person should look at first.

None of this measures whether a segmentation is right: a network can be confidently wrong. The numbers rank cases, and
the limits below are chosen by hand, not fitted to outcomes. Where every case is to be trusted, look at every case.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segscse.data.geometry import spacing_of
from segscse.data.pieces import count_pieces
from segscse.data.plan import Plan
from segscse.files import write_text
from segscse.inference.restore import largest_class
from segscse.inference.sliding_window import Rows

# A case is worth a look below this mean probability of its own labels,
LOW_CONFIDENCE = 0.8
# above this mean entropy, in bits, at the labels' borders,
HIGH_BORDER_ENTROPY = 0.6
# above this share of foreground on whose label the members of an ensemble differ,
HIGH_DISAGREEMENT = 0.2
# when a label has more separate pieces than this and than the training cases' most,
MANY_COMPONENTS = 5
# or when a volume or a number of pieces lies this many times outside of the training cases' range.
MARGIN = 1.25
# Logits whose probabilities are worked out together.
TOGETHER = 1 << 18


@dataclass(slots=True)
class Confidence:
    """Sums over the finished rows on the network's grid, from which the quality of a case is read.

    Attributes:
        numbers: class of every voxel `(X, Y, Z)` on the network's grid.
        foreground: voxels of foreground and their summed probability.
        border: voxels beside another class and their summed entropy, in bits.
        done: rows taken in.
        held: where the last of them is at a border, as far as its neighbours are known; the next step has the others.
    """

    axis: int
    numbers: np.ndarray
    foreground: list[float] = field(default_factory=lambda: [0.0, 0.0])
    border: list[float] = field(default_factory=lambda: [0.0, 0.0])
    done: int = 0
    held: torch.Tensor | None = None

    def add(self, rows: Rows) -> None:
        """Take in rows that have just been finished; call it once a step."""
        count, carried = rows.stop - rows.first, self.done - rows.first
        classes = largest_class(rows.values)
        beside = _beside_another(classes)
        if self.held is not None:
            beside.select(self.axis, 0).logical_or_(self.held)
        complete = count if rows.stop == self.numbers.shape[self.axis] else count - 1
        self.held = beside.select(self.axis, count - 1).clone()
        place = [slice(None)] * 3
        place[self.axis] = slice(self.done, rows.stop)
        self.numbers[tuple(place)] = classes.narrow(self.axis, carried, count - carried).cpu().numpy()
        labelled = classes > 0
        for values, chosen in self._blocks(rows, labelled, carried, count):
            _count(self.foreground, values, chosen, _largest)
        for values, chosen in self._blocks(rows, beside, 0, complete):
            _count(self.border, values, chosen, _entropy)
        self.done = rows.stop

    def _blocks(
        self, rows: Rows, chosen: torch.Tensor, start: int, stop: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield a few rows of logits at a time, and what is chosen there, so that no copy of the slab is made."""
        a_row = rows.values.numel() // rows.values.shape[self.axis + 1]
        step = max(1, TOGETHER // a_row)
        for low in range(start, stop, step):
            count = min(step, stop - low)
            yield rows.values.narrow(self.axis + 1, low, count), chosen.narrow(self.axis, low, count)


def case_quality(
    confidences: Sequence[Confidence],
    counts: np.ndarray,
    disputed: int | None,
    plan: Plan,
    affine: np.ndarray,
    provenance: Mapping[str, Any],
    written: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return one case's row of `quality.csv`.

    `mean_confidence` is the mean probability of the label over the foreground, `border_entropy` the mean entropy of the
    voxels beside another label, in bits, of which two equally likely labels make one; both are on the network's grid
    and averaged over an ensemble's members. `disagreement` is the share of foreground voxels whose label not all
    members give; `volume_ml_*` and `components_*` (pieces, corners touching) are per label. `look` is yes when
    `reasons` is not empty.

    Args:
        confidences: one per member.
        counts: voxels per class on the scan's grid.
        disputed: voxels on which members differ; None without an ensemble.
        plan: labels.
        affine: the scan's.
        provenance: the model's record, of which the data set's `label_volumes_ml` and `label_pieces` are compared with.
        written: label map in which pieces are counted, where it is not just what the first member says.
    """
    voxel_ml = float(np.prod(spacing_of(affine))) / 1000
    foreground = int(counts[1:].sum())
    row: dict[str, Any] = {
        "mean_confidence": _mean([c.foreground for c in confidences]),
        "border_entropy": _mean([c.border for c in confidences]),
        "disagreement": None if disputed is None or not foreground else min(1.0, disputed / foreground),
    }
    reasons = []
    if written is None:
        pieces = list(count_pieces(confidences[0].numbers, range(1, len(plan.labels))).values())
    else:
        pieces = list(count_pieces(written, plan.label_ids[1:]).values())
    volumes_ml, most = provenance.get("label_volumes_ml", {}), provenance.get("label_pieces", {})
    for (label, name), count, piece_count in zip(plan.labels[1:], counts[1:], pieces, strict=True):
        volume = float(count) * voxel_ml
        row[f"volume_ml_{label}"], row[f"components_{label}"] = volume, piece_count
        reasons += _label_reasons(name, volume, piece_count, volumes_ml.get(str(label)), most.get(str(label), 0))
    reasons = _case_reasons(row, foreground) + reasons
    return {"look": "yes" if reasons else "no", "reasons": "; ".join(reasons), **row}


def write_quality(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `quality.csv`, one row per case, those to look at first."""
    ordered = sorted(rows, key=lambda case: (rows[case]["look"] != "yes", case))
    columns = list(dict.fromkeys(key for case in ordered for key in rows[case]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *columns])
    for case in ordered:
        writer.writerow([case, *(_cell(rows[case].get(column)) for column in columns)])
    write_text(path, text.getvalue())


def _case_reasons(row: Mapping[str, Any], foreground: int) -> list[str]:
    if not foreground:
        return ["nothing was found"]
    limits = (
        ("mean_confidence", "the network is unsure of its labels", lambda value: value < LOW_CONFIDENCE),
        ("border_entropy", "the borders are uncertain", lambda value: value > HIGH_BORDER_ENTROPY),
        ("disagreement", "the members disagree", lambda value: value > HIGH_DISAGREEMENT),
    )
    found = [(row[name], text, beyond) for name, text, beyond in limits if row[name] is not None]
    return [f"{text} ({value:.2f})" for value, text, beyond in found if beyond(value)]


def _label_reasons(name: str, volume: float, pieces: int, known: Sequence[float] | None, most: int) -> list[str]:
    reasons = []
    if pieces > max(MANY_COMPONENTS, most * MARGIN):
        reasons.append(f"{name} is in {pieces} pieces" + (f", training cases in up to {most}" if most else ""))
    if known is not None and not known[0] / MARGIN <= volume <= known[1] * MARGIN:
        reasons.append(f"{name} has {volume:.3g} ml, training cases {known[0]:.3g} to {known[1]:.3g}")
    return reasons


def _beside_another(classes: torch.Tensor) -> torch.Tensor:
    """Return where one of the six neighbours has another class."""
    found = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(classes.ndim):
        length = classes.shape[axis]
        low, high = classes.narrow(axis, 0, length - 1), classes.narrow(axis, 1, length - 1)
        differs = low != high
        found.narrow(axis, 0, length - 1).logical_or_(differs)
        found.narrow(axis, 1, length - 1).logical_or_(differs)
    return found


def _count(
    counter: list[float], values: torch.Tensor, chosen: torch.Tensor, measure: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Add the number of chosen voxels of logits `(K, X, Y, Z)`, and the sum of a measure of their probabilities."""
    places = chosen.flatten().nonzero()[:, 0]
    if len(places):
        counter[0] += len(places)
        # On a CPU several times as fast as values[:, chosen].
        counter[1] += _sum(measure(values.flatten(1).index_select(1, places).softmax(dim=0)))


def _sum(values: torch.Tensor) -> float:
    """Return a sum in 64 bits, which MPS does not have."""
    return float((values.cpu() if values.device.type == "mps" else values).sum(dtype=torch.float64))


def _largest(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.amax(dim=0)


def _entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probabilities).sum(dim=0) / log(2)


def _mean(sums: Sequence[Sequence[float]]) -> float | None:
    values = [total / count for count, total in sums if count]
    return float(np.mean(values)) if values else None


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else value
