"""Sliding window in slabs: overlapping windows, Gaussian weights, mirroring; one implementation for 2D and 3D.

The volume is swept along one axis. Only the rows that windows still reach are open: a row that no later window reaches
is finished, handed on and forgotten, so memory does not grow with the number of classes times the volume. The usual
way (nnU-Net, Isensee et al. 2021, doi:10.1038/s41592-020-01008-z; MONAI's `sliding_window_inference`) accumulates the
whole volume and divides by the sum of weights at the end. Here the weights of every axis are normalised beforehand to
sum to one at each voxel, so there is nothing to divide by; and they have no floor, which 32-bit sums do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, product
from math import prod

import torch
import torch.nn.functional as F

from segscse.errors import InputError

# Share of a window that its neighbour covers, unless told; nnU-Net's.
OVERLAP = 0.5
# Logit of background where no window was evaluated: a probability of one in 32 bits for up to thousands of classes.
SURE = 30.0
Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sweep:
    """How windows cover an image `(C, X, Y, Z)` and in which order.

    Attributes:
        shape: `(X, Y, Z)` of the image.
        window: window size per axis; 1 along `slice_axis`.
        starts: first voxels of the windows per axis.
        axis: the axis that is swept along.
        layers: positions along `axis` that are open together, so that their windows fill a batch.
        batch_size: windows a network call.
        slice_axis: the axis that a 2D network does not see, or None.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    axis: int
    layers: int
    batch_size: int
    slice_axis: int | None

    @property
    def depth(self) -> int:
        """Rows that the open slab has at most, with one finished row that the next step interpolates from."""
        return max(self._end(layer) - self.starts[self.axis][layer] for layer in self.groups) + 1

    @property
    def groups(self) -> range:
        """First layer of every step."""
        return range(0, len(self.starts[self.axis]), self.layers)

    @property
    def slab_voxels(self) -> int:
        """Voxels of the open slab."""
        return self.depth * prod(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def n_windows(self) -> int:
        """Windows in all."""
        return prod(len(starts) for starts in self.starts)

    def corners(self, layer: int) -> list[tuple[int, ...]]:
        """Return the first voxels of the windows of the step that begins at `layer`, in sweep order."""
        starts = list(self.starts)
        starts[self.axis] = starts[self.axis][layer : layer + self.layers]
        return sorted(product(*starts), key=lambda corner: corner[self.axis])

    def rows(self, layer: int) -> tuple[int, int, int]:
        """Return the first row of a step, the first that stays open after it, and the end of its windows."""
        along = self.starts[self.axis]
        following = layer + self.layers
        return along[layer], along[following] if following < len(along) else self.shape[self.axis], self._end(layer)

    def _end(self, layer: int) -> int:
        last = self.starts[self.axis][min(layer + self.layers, len(self.starts[self.axis])) - 1]
        return min(last + self.window[self.axis], self.shape[self.axis])


@dataclass(frozen=True, slots=True)
class Rows:
    """Finished logits: `values` `(K, X, Y, Z)` from row `first` of the swept axis on, in place until the next step.

    The last row of the step before comes again as the first, for interpolation across the two.
    """

    values: torch.Tensor
    first: int
    stop: int


def plan_sweep(
    shape: Sequence[int],
    window: Sequence[int],
    *,
    slice_axis: int | None = None,
    overlap: float = OVERLAP,
    batch_size: int = 2,
    axis: int | None = None,
) -> Sweep:
    """Return the order of windows over `(X, Y, Z)`, swept along the axis with the smallest open slab unless told.

    Args:
        shape: of the image.
        window: window size in voxels; one entry less than `shape` with `slice_axis`.
        slice_axis: axis that 2D windows are stacked along.
        overlap: share of a window that its neighbour covers, in [0, 1).
        batch_size: windows a network call.
        axis: axis to sweep along.
    """
    full = list(window)
    if slice_axis is not None:
        full.insert(slice_axis, 1)
    starts = tuple(tuple(window_starts(extent, size, overlap)) for extent, size in zip(shape, full, strict=True))
    sweeps = []
    for candidate in range(len(shape)) if axis is None else [axis]:
        a_layer = prod(len(item) for number, item in enumerate(starts) if number != candidate)
        layers = max(1, batch_size // a_layer)
        sweeps.append(Sweep(tuple(shape), tuple(full), starts, candidate, layers, batch_size, slice_axis))
    return min(sweeps, key=lambda sweep: (sweep.slab_voxels, sweep.layers))


def stream_logits(
    image: torch.Tensor,
    network: Network,
    sweep: Sweep,
    *,
    n_classes: int,
    device: torch.device | None = None,
    wanted: torch.Tensor | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Iterator[Rows]:
    """Yield the logits of an image `(C, X, Y, Z)` row by row along the swept axis, float32.

    Images smaller than the window are padded with zero (the mean of a normalised image) and cut back.

    Args:
        image: preprocessed, of the sweep's shape.
        network: maps `(B, C, *window)` to logits `(B, K, *window)`, without the slice axis in 2D.
        sweep: the order of the windows.
        n_classes: K.
        device: where windows go and logits are summed; the image's if not given.
        wanted: `(X, Y, Z)`, True where logits are needed. A window without such a voxel is left out; voxels that no
            window covers are background. All windows over a wanted voxel are evaluated, so its logits stay the same.
        advance: called with the numbers of windows evaluated and left out since the last call.

    Raises:
        InputError: the network returned NaN or infinity.
    """
    device = image.device if device is None else device
    weights = [axis_weights(*arguments) for arguments in zip(sweep.shape, sweep.window, sweep.starts, strict=True)]
    weights = [{start: weight.to(device) for start, weight in along.items()} for along in weights]
    slab = _Slab(sweep, n_classes, device, counted=wanted is not None)
    for layer in sweep.groups:
        first, stop, end = sweep.rows(layer)
        slab.open(first, end)
        corners = sweep.corners(layer)
        chosen = corners if wanted is None else [c for c in corners if bool(wanted[_box(c, sweep)].any())]
        totals = []
        for start in range(0, len(chosen), sweep.batch_size):
            batch = chosen[start : start + sweep.batch_size]
            logits, total = _evaluate(image, network, batch, sweep, device)
            totals.append(total)
            for corner, part in zip(batch, logits, strict=True):
                slab.add(corner, part, [weights[axis][at] for axis, at in enumerate(corner)])
            if advance is not None:
                advance(len(batch), 0)
        _require_finite(totals)  # once a step, because a GPU's work is waited for here
        if advance is not None and len(chosen) < len(corners):
            advance(0, len(corners) - len(chosen))
        yield slab.finish(stop)


class _Slab:
    """The sums of weighted logits of the rows that are open, and the last finished row before them.

    The buffer is `(depth, K, *others)`: a row is contiguous, and moving rows to the front copies whole blocks. With
    `counted` one more channel sums the weights, which need not reach one where windows are left out.
    """

    def __init__(self, sweep: Sweep, n_classes: int, device: torch.device, *, counted: bool) -> None:
        others = [size for axis, size in enumerate(sweep.shape) if axis != sweep.axis]
        self.buffer = torch.zeros((sweep.depth, n_classes + counted, *others), device=device)
        self.view = self.buffer.movedim(0, sweep.axis + 1)  # (K, X, Y, Z), the swept axis cut to the depth
        self.sweep = sweep
        self.n_classes = n_classes
        self.counted = counted
        self.base = 0  # row that the buffer begins with
        self.done = 0  # rows before this one are finished
        self.filled = 0  # end of the rows that hold sums

    def open(self, first: int, end: int) -> None:
        """Drop what is finished, but for the row before `first`, and make room for rows up to `end`."""
        base = max(0, first - 1)
        kept = self.filled - base
        if base > self.base:
            for row in range(kept):  # upwards, because the two ranges overlap
                self.buffer[row].copy_(self.buffer[row + base - self.base])
            self.base = base
        self.buffer[kept : end - base].zero_()
        self.filled = end

    def add(self, corner: Sequence[int], logits: torch.Tensor, weights: Sequence[torch.Tensor]) -> None:
        """Add the logits `(K, *cut window)` of one window."""
        low = list(corner)
        low[self.sweep.axis] -= self.base
        box = tuple(slice(at, at + size) for at, size in zip(low, logits.shape[1:], strict=True))
        x, y, z = weights
        weight = x[:, None, None] * y[None, :, None] * z[None, None]
        self.view[: self.n_classes][:, *box].addcmul_(logits, weight)
        if self.counted:
            self.view[self.n_classes][box] += weight

    def finish(self, stop: int) -> Rows:
        """Return the rows up to `stop`, which no further window reaches."""
        if self.counted:
            self._divide(self.done, stop)
        self.done = stop
        along = self.sweep.axis + 1
        return Rows(self.view[: self.n_classes].narrow(along, 0, stop - self.base), self.base, stop)

    def _divide(self, start: int, stop: int) -> None:
        rows = self.buffer[start - self.base : stop - self.base]
        values, weight = rows[:, : self.n_classes], rows[:, self.n_classes :]
        uncovered = weight == 0
        values /= weight.masked_fill(uncovered, 1.0)
        values[:, :1].masked_fill_(uncovered, SURE)


def predict_volume(
    volume: torch.Tensor,
    network: Network,
    *,
    window: Sequence[int],
    n_classes: int,
    slice_axis: int | None = None,
    overlap: float = OVERLAP,
    mirror_axes: Sequence[int] = (),
    batch_size: int = 2,
) -> torch.Tensor:
    """Return all logits `(K, X, Y, Z)` of a volume `(C, X, Y, Z)`, for volumes whose logits fit in memory.

    Args:
        volume: preprocessed image.
        network: maps `(B, C, *window)` to logits `(B, K, *window)`.
        window: window size in voxels; two entries with `slice_axis`, else three.
        n_classes: K.
        slice_axis: spatial axis that 2D windows are stacked along.
        overlap: share of a window that its neighbour covers, in [0, 1).
        mirror_axes: spatial axes of the volume to mirror along; logits are averaged over all combinations.
        batch_size: windows a network call.
    """
    sweep = plan_sweep(volume.shape[1:], window, slice_axis=slice_axis, overlap=overlap, batch_size=batch_size)
    averaged = mirrored(network, tensor_axes(mirror_axes, slice_axis), batch_size)
    logits = volume.new_empty((n_classes, *sweep.shape), dtype=torch.float32)
    along = sweep.axis + 1
    for start, values in _rows_once(stream_logits(volume, averaged, sweep, n_classes=n_classes), along):
        logits.narrow(along, start, values.shape[along]).copy_(values)
    return logits


def classify_volume(
    volume: torch.Tensor,
    network: Network,
    *,
    window: Sequence[int],
    n_classes: int,
    slice_axis: int | None = None,
    batch_size: int = 2,
) -> torch.Tensor:
    """Return the most likely class `(X, Y, Z)`, int64, of each voxel of a volume `(C, X, Y, Z)`.

    It is the argmax of `predict_volume`'s logits, of which only those of the open slab are held. Arguments are its.
    """
    sweep = plan_sweep(volume.shape[1:], window, slice_axis=slice_axis, batch_size=batch_size)
    classes = volume.new_empty(sweep.shape, dtype=torch.int64)
    for start, values in _rows_once(stream_logits(volume, network, sweep, n_classes=n_classes), sweep.axis + 1):
        torch.argmax(values, dim=0, out=classes.narrow(sweep.axis, start, values.shape[sweep.axis + 1]))
    return classes


def _rows_once(stream: Iterator[Rows], along: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the first row and the logits of each step without the row of the step before."""
    done = 0
    for rows in stream:
        yield done, rows.values.narrow(along, done - rows.first, rows.stop - done)
        done = rows.stop


def tensor_axes(axes: Sequence[int], slice_axis: int | None) -> list[int]:
    """Return the axes of a batch of windows `(B, C, *window)` that are these spatial axes of the volume."""
    seen = [axis for axis in range(3) if axis != slice_axis]
    return [seen.index(axis) + 2 for axis in axes if axis != slice_axis]


def mirrored(network: Network, axes: Sequence[int], batch_size: int) -> Network:
    """Return the network averaged over mirroring its input along every subset of the tensor axes `axes`.

    Mirrored copies of few windows share a call, of `batch_size` windows at most: a small volume has one window, and
    two copies in a call take less time than one by one.
    """
    subsets = [subset for n in range(len(axes) + 1) for subset in combinations(axes, n)]
    if len(subsets) == 1:
        return network

    def copies(x: torch.Tensor) -> Iterator[torch.Tensor]:
        together = max(1, batch_size // len(x))
        for start in range(0, len(subsets), together):
            sharing = subsets[start : start + together]
            logits = network(torch.cat([x.flip(subset) for subset in sharing]))
            for subset, part in zip(sharing, logits.split(len(x)), strict=True):
                yield part.float().flip(subset)  # eight roundings to bf16 would be seen

    return lambda x: reduce(torch.add, copies(x)) / len(subsets)


def window_starts(extent: int, window: int, overlap: float) -> list[int]:
    """Return evenly spread window starts that cover `extent`; neighbours overlap by at least `overlap`."""
    if extent <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(extent - window) // step) + 1
    return [round(index * (extent - window) / (count - 1)) for index in range(count)]


def axis_weights(extent: int, size: int, starts: Sequence[int]) -> dict[int, torch.Tensor]:
    """Return, by window start, the weights of a window's voxels along one axis; at every voxel they sum to one.

    A Gaussian with sigma = window / 8 as nnU-Net's, divided by the sum over the windows that share the voxel. Windows
    larger than the image give weights for the image's voxels alone.
    """
    position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    gauss = torch.exp(-0.5 * (position / (size / 8)) ** 2)
    cut = gauss[_before(extent, size) :][:extent]
    total = torch.zeros(extent, dtype=torch.float64)
    for start in starts:
        total[start : start + len(cut)] += cut
    return {start: (cut / total[start : start + len(cut)]).float() for start in starts}


def _evaluate(
    image: torch.Tensor, network: Network, corners: Sequence[tuple[int, ...]], sweep: Sweep, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits `(B, K, *window cut to the image)` of a batch of windows, and their sum over all windows."""
    before = [_before(extent, size) for extent, size in zip(sweep.shape, sweep.window, strict=True)]
    after = [max(0, w - e) - low for e, w, low in zip(sweep.shape, sweep.window, before, strict=True)]
    crops = torch.stack([image[:, *_box(corner, sweep)] for corner in corners]).to(device)
    if any(before) or any(after):
        crops = F.pad(crops, [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair])
    if sweep.slice_axis is None:
        logits = network(crops)
    else:
        logits = network(crops.squeeze(sweep.slice_axis + 2)).unsqueeze(sweep.slice_axis + 2)
    cut = (slice(low, low + min(e, w)) for e, w, low in zip(sweep.shape, sweep.window, before, strict=True))
    return logits.float()[:, :, *cut], logits.sum()


def _require_finite(totals: Sequence[torch.Tensor]) -> None:
    if totals and not bool(torch.isfinite(torch.stack(list(totals))).all()):
        raise InputError("the network returned NaN or infinity", remedy="Check the scan's intensities and the model")


def _box(corner: Sequence[int], sweep: Sweep) -> tuple[slice, ...]:
    return tuple(slice(low, low + size) for low, size in zip(corner, sweep.window, strict=True))


def _before(extent: int, size: int) -> int:
    """Return how many voxels of padding a window has before an image that is smaller than it."""
    return max(0, size - extent) // 2
