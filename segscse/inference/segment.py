"""One case through one or several networks: slabs of logits in, labels and what was asked for beside them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from segscse.data.geometry import orthogonal, to_canonical
from segscse.data.io import Volume, as_labels
from segscse.data.network_grid import Prepared, normalise
from segscse.data.output import write_labels
from segscse.data.plan import Plan
from segscse.inference.engines import Engine
from segscse.inference.postprocess import apply_steps
from segscse.inference.quality import Confidence, case_quality
from segscse.inference.restore import Canvas, draw, output_grid
from segscse.inference.sliding_window import Network, Rows, Sweep, plan_sweep, stream_logits

Allocate = Callable[[str, tuple[int, ...]], np.ndarray]
"""Makes the array of a map by its name and shape: float32, or uint8 for multiples of 1/255."""


class Member(Protocol):
    """A network with its plan, as `segment` uses it: a `Predictor`."""

    plan: Plan
    postprocessing: tuple[str, ...]
    engine: Engine
    device: torch.device
    provenance: Mapping[str, Any]

    @property
    def identity(self) -> Any:
        """What decides the member's logits, as a JSON-ready value."""
        ...

    def network_call(self, batch_size: int) -> Network:
        """Return what maps windows `(B, C, *window)` to logits `(B, K, *window)` on the member's device."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What to make of a case.

    Attributes:
        probabilities: keep the probabilities of all classes.
        uncertainty: keep the entropy of every voxel and, of an ensemble, the part that is disagreement.
        foreground_only: leave out windows that hold nothing but background air; see `wanted_voxels`.
        batch_size: windows a network call, of an ensemble no more than a member's plan says; the plan's if not given.
    """

    probabilities: bool = False
    uncertainty: bool = False
    foreground_only: bool = False
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A label map on the scan's own grid.

    Attributes:
        array: label ids `(X, Y, Z)` in the smallest integer type that holds them.
        affine: `(4, 4)`, RAS mm, as the scan's.
        labels: id to name.
        probabilities: `(X, Y, Z, K)` in the order of `labels`, when asked for.
        source: the scan.
        uncertainty: `(X, Y, Z)`, entropy of the probabilities over log K, in [0, 1], when asked for.
        disagreement: `(X, Y, Z)`, the part of it that the members of an ensemble disagree about, likewise.
        windows: numbers of windows evaluated and left out.
        measure: works out `quality`.
    """

    array: np.ndarray
    affine: np.ndarray
    labels: Mapping[int, str]
    probabilities: np.ndarray | None
    source: Volume
    uncertainty: np.ndarray | None = None
    disagreement: np.ndarray | None = None
    windows: tuple[int, int] = (0, 0)
    measure: Callable[[], dict[str, Any]] = dict

    def quality(self) -> dict[str, Any]:
        """Return the case's row of `quality.csv`; see `segscse.inference.quality`."""
        return self.measure()

    def save(self, path: str | Path) -> None:
        """Write the label map on the scan's grid, atomically: NIfTI, or another format by the suffix of `path`.

        See `segscse.data.output.write_labels`.
        """
        write_labels(path, self.array, self.source, self.labels)


def plan_sweeps(members: Sequence[Member], shapes: Sequence[tuple[int, ...]], batch_size: int | None) -> list[Sweep]:
    """Return one sweep per member, all along the axis whose open slabs take the least memory together.

    Args:
        members: the networks.
        shapes: `(X, Y, Z)` of the image on each member's grid.
        batch_size: windows a call, of an ensemble no more than a member's plan says; the plan's if not given.
    """
    owns = [member.plan.batch_size for member in members]
    batches = [min(batch_size or own, own) if len(members) > 1 else batch_size or own for own in owns]

    def along(axis: int) -> list[Sweep]:
        return [
            plan_sweep(
                shape,
                member.plan.patch_size,
                slice_axis=member.plan.slice_axis,
                batch_size=batch,
                axis=axis,
            )
            for member, shape, batch in zip(members, shapes, batches, strict=True)
        ]

    return min((along(axis) for axis in range(3)), key=lambda sweeps: sum(sweep.slab_voxels for sweep in sweeps))


@torch.inference_mode()
def segment(
    members: Sequence[Member],
    prepared: Sequence[Prepared],
    options: Options,
    *,
    allocate: Allocate | None = None,
    advance: Callable[[float], None] | None = None,
) -> Segmentation:
    """Segment one case; probabilities of several members are averaged.

    Args:
        members: networks with the same labels and channels.
        prepared: the case on each member's grid.
        options: what to keep.
        allocate: makes the arrays of `probabilities`, `uncertainty` and `disagreement`; float32 in memory if not
            given.
        advance: called with the share of all windows that is done.
    """
    source, plan = prepared[0].source, members[0].plan
    sweeps = plan_sweeps(members, [tuple(item.image.shape[1:]) for item in prepared], options.batch_size)
    counter = _Counter(sum(sweep.n_windows for sweep in sweeps), advance)
    ids = as_labels(np.array(plan.label_ids))
    labels = np.zeros(tuple(source.array.shape[:3]), ids.dtype, order="F")
    maps = _maps(labels.shape, len(ids), options, len(members), allocate or _in_memory)
    affine = orthogonal(source.affine)  # as the image was turned by it: at 45 degrees rounding decides between two axes
    views = {name: None if array is None else to_canonical(array, affine)[0] for name, array in maps.items()}
    canvas = Canvas(
        to_canonical(labels, affine)[0],
        np.zeros(len(ids), np.int64),
        views["probabilities"],
        views["uncertainty"],
        views["disagreement"],
    )
    confidences = [Confidence(sweep.axis, np.zeros(sweep.shape, _number_type(len(ids)))) for sweep in sweeps]
    streams = [
        _stream(member, case, sweep, confidence, options, counter)
        for member, case, sweep, confidence in zip(members, prepared, sweeps, confidences, strict=True)
    ]
    draw(streams, [output_grid(case) for case in prepared], sweeps[0].axis, ids, canvas)
    lost = apply_steps(labels, shared_steps(members))
    canvas.counts -= np.array([lost.get(label, 0) for label in plan.label_ids])
    canvas.counts[0] += sum(lost.values())
    disputed = canvas.disputed if len(members) > 1 else None
    written = labels if counts_written(members) else None
    known = members[0].provenance
    return Segmentation(
        labels,
        source.affine,
        dict(plan.labels),
        **maps,
        source=source,
        windows=(counter.evaluated, counter.left_out),
        measure=partial(case_quality, confidences, canvas.counts, disputed, plan, source.affine, known, written),
    )


def shared_steps(members: Sequence[Member]) -> tuple[str, ...]:
    """Return the steps after the arg max that all members ask for."""
    return tuple(step for step in members[0].postprocessing if all(step in member.postprocessing for member in members))


def counts_written(members: Sequence[Member]) -> bool:
    """Return whether pieces are counted in the label map, and not on the network's grid, which takes less."""
    return len(members) > 1 or bool(shared_steps(members))


def wanted_voxels(image: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return `(X, Y, Z)`, False where every channel holds nothing but background air.

    Of a CT channel that is at or below the lower bound that intensities are clipped to, of a channel normalised
    within its voxels that are not zero the others, of another the smallest value of the image, which the empty
    surroundings of a scan have. Windows without a wanted voxel are left out as background; all windows over a
    wanted voxel are evaluated, so nothing changes there.
    """
    wanted = torch.zeros(image.shape[1:], dtype=torch.bool, device=image.device)
    for channel, scheme in zip(image, plan.normalisation, strict=True):
        if scheme.scheme == "zscore_nonzero":
            wanted |= channel != 0
        else:
            bound = normalise(torch.tensor([scheme.low]), scheme)[0] if scheme.scheme == "ct" else channel.min()
            wanted |= channel > bound
    return wanted


class _Counter:
    """Windows done, and who wants to know."""

    def __init__(self, total: int, advance: Callable[[float], None] | None) -> None:
        self.total = total
        self.evaluated = 0
        self.left_out = 0
        self.advance = advance

    def add(self, evaluated: int, left_out: int) -> None:
        self.evaluated += evaluated
        self.left_out += left_out
        if self.advance is not None:
            self.advance((self.evaluated + self.left_out) / self.total)


def _stream(
    member: Member, case: Prepared, sweep: Sweep, confidence: Confidence, options: Options, counter: _Counter
) -> Iterator[Rows]:
    rows = stream_logits(
        case.image,
        member.network_call(sweep.batch_size),
        sweep,
        n_classes=len(member.plan.labels),
        device=member.device,
        wanted=wanted_voxels(case.image, member.plan) if options.foreground_only else None,
        advance=counter.add,
    )
    for step in rows:
        confidence.add(step)
        yield step


def _maps(
    shape: tuple[int, ...], n_classes: int, options: Options, n_members: int, allocate: Allocate
) -> dict[str, np.ndarray | None]:
    """Return the maps asked for, to be filled, in the scan's own order."""
    wanted = {
        "probabilities": options.probabilities,
        "uncertainty": options.uncertainty,
        "disagreement": options.uncertainty and n_members > 1,
    }
    full = {name: (*shape, n_classes) if name == "probabilities" else shape for name in wanted}
    return {name: allocate(name, full[name]) if asked else None for name, asked in wanted.items()}


def _in_memory(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32, order="F")


def _number_type(n_classes: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if n_classes <= 256 else np.uint16
