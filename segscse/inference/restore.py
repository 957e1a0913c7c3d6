"""From finished rows of logits on the network's grid to labels on the scan's own grid, tile by tile.

Logits are interpolated linearly, axis by axis, and the largest wins. An interpolated value is a mean of voxels of the
network's grid, so within a tile no class can win whose largest logit there is below the largest of the other classes'
smallest ones. Such classes are not interpolated: in most tiles one class is left and nothing has to be computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import log, prod
from typing import Any

import numpy as np
import torch

from segscse.data.geometry import axis_map, canonical_grid, orthogonal
from segscse.data.network_grid import Lerp, Prepared, lerp_places
from segscse.inference.sliding_window import Rows

# Output voxels that are interpolated together, per axis: small enough for the cache, large enough for torch's calls.
TILE = {"cpu": 32, "cuda": 128, "mps": 128}


@dataclass(frozen=True, slots=True)
class OutputGrid:
    """The scan's voxels, in canonical order, as places on the network's grid.

    Attributes:
        shape: canonical `(X, Y, Z)`.
        axes: per canonical axis, between which voxels of the network's grid the scan's voxels lie.
    """

    shape: tuple[int, ...]
    axes: tuple[Lerp, ...]

    def determined(self, axis: int, stop: int) -> int:
        """Return how many output rows along `axis` need no row of the network's grid from `stop` on."""
        return int(np.searchsorted(self.axes[axis].high, stop))


def output_grid(prepared: Prepared) -> OutputGrid:
    """Return how the scan's grid lies on the network's."""
    shape, affine = canonical_grid(prepared.source.array.shape, orthogonal(prepared.source.affine))
    scale, offset = axis_map(prepared.affine, affine)
    extents = prepared.image.shape[1:]
    return OutputGrid(
        shape, tuple(lerp_places(scale[a] * np.arange(shape[a]) + offset[a], extents[a]) for a in range(3))
    )


@dataclass(slots=True)
class Canvas:
    """What is drawn: arrays in the scan's own order and memory layout, addressed in canonical order.

    Attributes:
        labels: `(X, Y, Z)`, in the integer type of the ids.
        counts: voxels per class.
        probabilities: `(X, Y, Z, K)`, or None when not asked for.
        uncertainty: `(X, Y, Z)`, entropy of the (mean) probabilities over log K, in [0, 1]; or None.
        disagreement: `(X, Y, Z)`, how much of the entropy is the members' disagreement: entropy of the mean minus mean
            of the entropies, over log K (Houlsby et al. 2011, arXiv:1112.5745); or None.
        disputed: voxels whose label not every member gives.

    Floating-point arrays get values as they are, `uint8` ones the nearest multiple of 1/255.
    """

    labels: np.ndarray
    counts: np.ndarray
    probabilities: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    disagreement: np.ndarray | None = None
    disputed: int = 0

    @property
    def dense(self) -> bool:
        """Whether the probabilities of all classes are needed at every voxel."""
        return any(item is not None for item in (self.probabilities, self.uncertainty, self.disagreement))


def draw(
    members: Sequence[Iterator[Rows]], grids: Sequence[OutputGrid], axis: int, ids: np.ndarray, canvas: Canvas
) -> None:
    """Take the members' rows as they finish and draw each output row once all of them determine it.

    Args:
        members: streams of logits, all swept along `axis`.
        grids: the scan's grid on each member's.
        axis: the canonical axis that is swept along.
        ids: label id of each class, in the type of the label map.
        canvas: what to draw on, as views in canonical order.
    """
    rows: list[Rows | None] = [None] * len(members)
    ready = [0] * len(members)
    done, total = 0, grids[0].shape[axis]
    while done < total:
        for number, stream in enumerate(members):
            while ready[number] <= done:
                rows[number] = found = next(stream)
                ready[number] = grids[number].determined(axis, found.stop)
        stop = min(ready)
        current = [found for found in rows if found is not None]
        for box in _tiles(grids[0].shape, axis, done, stop, TILE[current[0].values.device.type]):
            blocks = [_Block(found, grid, axis, box) for found, grid in zip(current, grids, strict=True)]
            _draw_tile(blocks, box, ids, canvas)
        done = stop


def largest_class(values: torch.Tensor) -> torch.Tensor:
    """Return the number of the largest of K values `(K, ...)`, the first of equal ones.

    On a CPU `max` takes a tenth of the time of `argmax` along the first axis when classes are few.
    """
    return values.max(dim=0).indices


class _Block:
    """The logits of one member that a tile of the output is interpolated from."""

    def __init__(self, rows: Rows, grid: OutputGrid, axis: int, box: tuple[slice, ...]) -> None:
        self.lerps = []
        places, inside = [], []
        for number, (part, along) in enumerate(zip(box, grid.axes, strict=True)):
            low, share = along.low[part], along.share[part]
            start, stop = int(low[0]), int(along.high[part][-1]) + 1
            first = rows.first if number == axis else 0
            places.append(slice(start - first, stop - first))
            inside.append(along.inside[part])
            self.lerps.append((low - start, share))
        self.values = rows.values[:, *places]
        self.inside = None if all(item.all() for item in inside) else np.ix_(*inside)

    def candidates(self) -> list[int]:
        """Return the classes that can be the largest somewhere in the tile, in ascending order."""
        low, high = torch.aminmax(self.values.flatten(1), dim=1)
        return (high >= low.max()).nonzero().flatten().tolist()

    def interpolated(self, classes: Sequence[int] | None = None) -> torch.Tensor:
        """Return the logits `(K, *tile)` of some or all classes."""
        values = self.values if classes is None else self.values[list(classes)]
        for number, (low, share) in enumerate(self.lerps):
            values = _interpolate(values, number, low, share)
        return values


def _draw_tile(blocks: Sequence[_Block], box: tuple[slice, ...], ids: np.ndarray, canvas: Canvas) -> None:
    shape = tuple(part.stop - part.start for part in box)
    candidates = [block.candidates() for block in blocks]
    if not canvas.dense and all(found == candidates[0][:1] for found in candidates):
        numbers = np.full(shape, candidates[0][0], np.int64)
    elif not canvas.dense and len(blocks) == 1:
        chosen = largest_class(blocks[0].interpolated(candidates[0])).cpu().numpy()
        numbers = np.array(candidates[0])[chosen]
    else:
        numbers = _draw_dense(blocks, box, canvas)
    numbers = _within(numbers, blocks, 0)
    canvas.labels[box] = ids[numbers]
    canvas.counts += np.bincount(numbers.ravel(), minlength=len(ids))


def _draw_dense(blocks: Sequence[_Block], box: tuple[slice, ...], canvas: Canvas) -> np.ndarray:
    """Draw what needs the probabilities of all classes; return the class numbers `(*tile)`."""
    device = blocks[0].values.device  # each member's engine may have its own
    members = [block.interpolated().to(device) for block in blocks]
    probabilities = [values.softmax(dim=0) for values in members]
    mean = reduce(torch.add, probabilities) / len(members) if len(members) > 1 else probabilities[0]
    # Of a single member the logits decide, as where probabilities are not needed: they have fewer ties.
    numbers = largest_class(members[0] if len(members) == 1 else mean)
    if len(members) > 1:
        agree = torch.stack([largest_class(values) == numbers for values in members]).all(dim=0)
        canvas.disputed += int((_within(~agree.cpu().numpy(), blocks, False)).sum())
    scale = 1 / log(mean.shape[0])
    if canvas.uncertainty is not None or canvas.disagreement is not None:
        total = torch.special.entr(mean).sum(dim=0) * scale
        _put(canvas.uncertainty, box, _within(total.cpu().numpy(), blocks, 0.0))
        if canvas.disagreement is not None:
            own = torch.stack([torch.special.entr(item).sum(dim=0) for item in probabilities]).mean(dim=0) * scale
            _put(canvas.disagreement, box, _within((total - own).clamp(min=0).cpu().numpy(), blocks, 0.0))
    background = np.eye(1, len(mean), dtype=np.float32)[0]
    _put(canvas.probabilities, box, _within(mean.movedim(0, -1).cpu().numpy(), blocks, background))
    return numbers.cpu().numpy()


def _put(target: np.ndarray | None, box: tuple[slice, ...], values: np.ndarray) -> None:
    if target is not None:
        target[box] = np.rint(values * 255) if target.dtype == np.uint8 else values


def _within(values: np.ndarray, blocks: Sequence[_Block], outside: Any) -> np.ndarray:
    """Return `(*tile)` or `(*tile, K)` values with those that lie outside of a network's grid replaced.

    There the image was cropped as empty, so it is background.
    """
    if all(block.inside is None for block in blocks):
        return values
    within = np.ones(values.shape[:3], bool)
    for block in blocks:
        if block.inside is not None:
            mask = np.zeros(values.shape[:3], bool)
            mask[block.inside] = True
            within &= mask
    return np.where(within.reshape(within.shape + (1,) * (values.ndim - 3)), values, outside)


def _tiles(shape: Sequence[int], axis: int, start: int, stop: int, edge: int) -> Iterator[tuple[slice, ...]]:
    """Yield boxes that cover rows `start` to `stop` of the output."""
    spans = []
    for number, size in enumerate(shape):
        low, high = (start, stop) if number == axis else (0, size)
        step = max(1, edge // 2) if number == axis else edge
        spans.append([slice(at, min(at + step, high)) for at in range(low, high, step)])
    yield from product(*spans)


def _interpolate(values: torch.Tensor, number: int, low: np.ndarray, share: np.ndarray) -> torch.Tensor:
    """Interpolate `(K, X, Y, Z)` linearly along one axis between voxels `low` and `low + 1`.

    As a product with the matrix of weights: within a tile it is small, and gathering voxels one by one takes several
    times as long.
    """
    extent = values.shape[number + 1]
    samples = np.arange(len(low))
    if len(low) == extent and not share.any() and (low == samples).all():
        return values
    weights = np.zeros((len(low), extent), np.float32)
    weights[samples, low] = 1 - share
    weights[samples[share > 0], low[share > 0] + 1] = share[share > 0]
    matrix = torch.from_numpy(weights).to(values.device)
    shape = list(values.shape)
    shape[number + 1] = len(low)
    # (rows before the axis, the axis, columns behind it)
    flat = values.reshape(prod(shape[: number + 1]), extent, prod(shape[number + 2 :]))
    found = flat[..., 0] @ matrix.T if flat.shape[2] == 1 else matrix @ flat
    return found.reshape(shape)
