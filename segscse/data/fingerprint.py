"""Fingerprint: what a data set is, in numbers small enough to keep with every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from segscse.data.directions import find_directed
from segscse.data.examine import CaseFacts
from segscse.data.index import DatasetIndex
from segscse.data.sides import find_sided
from segscse.files import digest

# At most this many foreground intensities per channel enter the data set's percentiles.
POOLED_SAMPLES = 500_000


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Intensities of one channel: of the foreground, over the cases that have one; of whole scans where none has."""

    name: str
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    minimum: float
    maximum: float
    whole_numbers: bool


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A data set's cases, voxel sizes, labels and intensities.

    Attributes:
        cases: case ids, sorted; `shapes`, `content_shapes` and `spacings_mm` follow their order, axes as in RAS.
        content_shapes: without the empty surroundings, which preprocessing cuts off; see `segscse.data.content`.
        labels: id to name, background first, as they stand in the files.
        label_voxels: voxels per label id over the data set.
        label_volumes_ml: smallest and largest volume of each foreground label among the cases that have it.
        label_pieces: the most connected parts that each foreground label has in a case.
        channels: one entry per image channel.
        content: two digests: over the voxels of all images and the label counts, and over where images and labels lie.
        sided: axes along which two labels of like size lie always the same way around, with such a pair; see
            `find_sided`.
        directed: axes along which all scans show the anatomy the same way around; see `find_directed`.
    """

    cases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    content_shapes: tuple[tuple[int, ...], ...]
    spacings_mm: tuple[tuple[float, ...], ...]
    labels: Mapping[int, str]
    label_voxels: Mapping[int, int]
    channels: tuple[ChannelStats, ...]
    content: str
    label_volumes_ml: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    label_pieces: Mapping[int, int] = field(default_factory=dict)
    sided: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    directed: Mapping[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready value."""
        return asdict(self)


def make_fingerprint(index: DatasetIndex, facts: Sequence[CaseFacts]) -> Fingerprint:
    """Sum up the facts of all cases; `facts` must not be empty."""
    facts = sorted(facts, key=lambda fact: fact.case)
    voxels: dict[int, int] = {}
    volumes: dict[int, list[float]] = {}
    pieces: dict[int, int] = {}
    volumes_ml = [
        {label: count * float(np.prod(fact.spacing_mm)) / 1000 for label, count in fact.label_counts.items()}
        for fact in facts
    ]
    for fact in facts:
        for label, count in fact.label_counts.items():
            voxels[label] = voxels.get(label, 0) + count
        for label, count in fact.label_pieces.items():
            pieces[label] = max(pieces.get(label, 0), count)
    for of_case in volumes_ml:
        for label, volume_ml in of_case.items():
            if label and volume_ml:
                volumes.setdefault(label, []).append(volume_ml)
    labels = dict(index.labels)
    if not labels:
        labels = {label: f"label_{label}" for label in voxels} | {0: "background"}
    labels.setdefault(0, "background")
    names = index.channels or tuple(f"channel_{number}" for number in range(facts[0].n_channels))
    content = digest([(fact.case, fact.content, sorted(fact.label_counts.items())) for fact in facts])
    placed = digest([(fact.case, fact.placed) for fact in facts])
    return Fingerprint(
        cases=tuple(fact.case for fact in facts),
        shapes=tuple(fact.shape for fact in facts),
        content_shapes=tuple(fact.content_shape for fact in facts),
        spacings_mm=tuple(fact.spacing_mm for fact in facts),
        labels=dict(sorted(labels.items())),
        label_voxels=dict(sorted(voxels.items())),
        channels=tuple(_channel_stats(number, name, facts) for number, name in enumerate(names)),
        content=f"{content}-{placed}",
        label_volumes_ml={label: (min(found), max(found)) for label, found in sorted(volumes.items())},
        label_pieces=dict(sorted(pieces.items())),
        sided=find_sided([fact.label_centres_mm for fact in facts], volumes_ml),
        directed=find_directed([fact.coarse for fact in facts]),
    )


def same_content(saved: object, content: str) -> bool:
    """Return whether a record is of data with this `content`; records of earlier versions have its first part only."""
    return saved in (content, content.partition("-")[0])


def _channel_stats(number: int, name: str, facts: Sequence[CaseFacts]) -> ChannelStats:
    labelled = [fact for fact in facts if any(count for label, count in fact.label_counts.items() if label)]
    pooled = np.concatenate([fact.samples[number] for fact in labelled or facts])
    pooled = pooled[:: max(1, len(pooled) // POOLED_SAMPLES)]
    low, high = np.percentile(pooled, [0.5, 99.5])
    return ChannelStats(
        name=name,
        mean=float(pooled.mean()),
        std=float(pooled.std()),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
        minimum=min(fact.extremes[number][0] for fact in facts),
        maximum=max(fact.extremes[number][1] for fact in facts),
        whole_numbers=all(fact.whole_numbers[number] for fact in facts),
    )
