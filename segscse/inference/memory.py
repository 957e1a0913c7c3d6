"""How much memory a prediction takes: worked out from shapes before anything is read, and kept under a limit.

The estimate is a sum of what is alive at once, not a measurement: the program as it stands, the scan while it is read
and resampled, the image on the network's grid, the open slab of logits, the network's activations and the label map.
`tests/benchmarks/bench_predict_memory.py` holds it against the peak that the system reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch

from segscse.data.geometry import affine_problem, canonical_grid, spacing_of
from segscse.data.io import as_labels
from segscse.data.network_grid import network_shape
from segscse.data.peek import peek_scan
from segscse.errors import InputError
from segscse.inference.engines import TorchEngine
from segscse.inference.postprocess import BYTES_TO_FIND_PIECES
from segscse.inference.segment import Member, Options, counts_written, plan_sweeps
from segscse.limits import require_disk, require_memory, size_text
from segscse.tensor_bytes import TensorBytes

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Feature maps at the window's full size that are assumed of a network whose tensors cannot be seen.
OPAQUE_MAPS = 96
# What allocators and convolutions take beyond the tensors that they return.
OVERHEAD = 1.25
# Measured peaks beyond the program's lie above this share of the estimate.
LEAST = 0.5
# Maps beyond this size are drawn in a file and not in memory.
MAP_BYTES = 2**28
# Best compression of a label map in which hardly anything lies, and a usual one.
LEAST_PACKED, USUALLY_PACKED = 1000, 20
DISK_REMEDY = "Free disk space, choose another --out, or predict without --probabilities and --uncertainty"


@dataclass(frozen=True, slots=True)
class ScanSize:
    """What the memory of a case depends on.

    Attributes:
        shape: canonical `(X, Y, Z)`.
        spacing_mm: voxel size in the same order.
        itemsize: bytes a voxel takes as it is read, over all channels.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    itemsize: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by what holds them, with the settings that they are worked out for.

    Attributes:
        program: what the process holds before the first case.
        reading: the scan while it is read, cropped and resampled.
        image: on the network's grid.
        slab: logits of the rows that are open.
        activations: of the network, for one batch of windows.
        labels: label map, class numbers, and the maps beside them that are not drawn in a file.
        batch_size: windows a network call.
        overlapped: whether the next case is read, and the last one written, while the network runs.
    """

    program: int
    reading: int
    image: int
    slab: int
    activations: int
    labels: int
    batch_size: int
    overlapped: bool

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        running = self.image + self.slab + self.activations + self.labels
        if self.overlapped:
            return self.program + running + self.reading + self.image + self.labels
        return self.program + max(self.reading + self.image, running)

    def __str__(self) -> str:
        parts = ("program", "reading", "image", "slab", "activations", "labels")
        shown = ", ".join(f"{name} {size_text(getattr(self, name))}" for name in parts)
        return f"{size_text(self.total)} ({shown}; {self.batch_size} windows a batch)"


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `4GB`, `512 MB` or `2GiB`.

    Raises:
        InputError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in UNITS or not float(match[1]):
        raise InputError(f"--memory must be a size such as 4GB or 512MB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def scan_size(files: Sequence[Path]) -> ScanSize | None:
    """Return the size of a case from the headers of its files; None where a header does not tell."""
    itemsize, shape, affine = 0, None, np.eye(4)
    for file in files:
        header = peek_scan(file)
        if header is None:
            return None  # reading it will say why
        shape, affine = (*header.shape, 1, 1, 1)[:3], header.affine
        # Read, unpacked and as an array at once; scaled voxels come in 64 bits.
        itemsize += (2 * header.itemsize + (8 if header.scaled else 0)) * prod(header.shape[3:])
    if shape is None or min(shape) < 1 or affine_problem(affine):
        return None
    canonical, turned = canonical_grid(shape, affine)
    return ScanSize(canonical, spacing_of(turned), itemsize)


def estimate(
    scan: ScanSize,
    members: Sequence[Member],
    options: Options,
    *,
    program: int,
    a_window: int,
    overlapped: bool,
) -> Estimate:
    """Return the memory that a case takes with the given options.

    Args:
        scan: the case.
        members: the networks.
        options: of the prediction; `batch_size` decides.
        program: bytes of the process before the first case.
        a_window: bytes of activations for one window; see `window_bytes`.
        overlapped: whether cases are read and written beside the network.
    """
    voxels = prod(scan.shape)
    shapes = [network_shape(scan.shape, scan.spacing_mm, member.plan) for member in members]
    sweeps = plan_sweeps(members, shapes, options.batch_size)
    label_bytes = as_labels(np.array(members[0].plan.label_ids)).itemsize
    n_classes, n_channels = len(members[0].plan.labels), len(members[0].plan.channels)
    grids = {member.plan.key: shape for member, shape in zip(members, shapes, strict=True)}
    # Resampling begins along Z: its result is in 32 bits and the other two axes are still the scan's.
    resampled = max(4 * prod(scan.shape[:2]) * shape[2] for shape in grids.values())
    # Normalising before it holds the channel and the result in 32 bits, which in 64 for the spread.
    early = any(scheme.before_resampling for member in members for scheme in member.plan.normalisation)
    steps = max(3 * voxels, 2 * resampled + 4 * early * voxels, 17 * early * voxels)
    reading = max(scan.itemsize * voxels, scan.itemsize * voxels // 2 + steps)
    pieces = BYTES_TO_FIND_PIECES if counts_written(members) else 0
    batch = options.batch_size or max(member.plan.batch_size for member in members)
    maps = sum(size for size in _map_bytes(options, members, voxels) if size <= MAP_BYTES)
    return Estimate(
        program=program,
        reading=reading,
        image=sum(4 * (n_channels + 2) * prod(shape) for shape in grids.values()),
        slab=sum(int(1.3 * sweep.slab_voxels * (n_classes + 1) * 4) for sweep in sweeps),
        activations=max(sweep.batch_size for sweep in sweeps) * a_window,
        labels=(label_bytes + pieces) * voxels + maps + sum(2 * prod(shape) for shape in shapes),
        batch_size=batch,
        overlapped=overlapped,
    )


def fit(make: Callable[[int, bool], Estimate], batch_size: int, limit: int | None, *, several: bool) -> Estimate:
    """Return the largest settings that stay under a limit: first smaller batches, then one case at a time.

    A batch decides how many layers of windows, and with them how many rows, are open together.

    Args:
        make: estimates for a batch size, and for reading and writing beside the network or not.
        batch_size: to begin with.
        limit: bytes; None for none.
        several: whether there is more than one case.

    Raises:
        InputError: nothing fits; says what would.
    """
    batches = [batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    for overlapped in [True, False] if several else [False]:
        for batch in batches:
            found = make(batch, overlapped)
            if limit is None or found.total <= limit:
                return found
    raise InputError(
        f"--memory {size_text(limit or 0)} is too little: the smallest that works is {found}",
        remedy=f"Give at least --memory {-(-found.total // 10**8) / 10:.1f}GB",
    )


def require_room(
    found: Estimate,
    scans: Sequence[ScanSize],
    members: Sequence[Member],
    options: Options,
    out: Path,
    *,
    fitting: Callable[[int], Estimate | None],
) -> list[str]:
    """Refuse a prediction that cannot fit into memory, or its files onto the disk, before anything is written.

    Args:
        found: what the largest case takes.
        scans: the cases whose size is known.
        members: the networks.
        options: of the prediction.
        out: where the files go.
        fitting: the estimate with the settings that stay under a limit; raises `InputError` where none do.

    Returns:
        Warnings about what may not fit.

    Raises:
        InputError: it cannot fit; the remedy is a setting that makes it fit.
    """

    def remedy(room: int) -> str:
        try:
            fitting(found.program + room)
        except InputError as error:
            return f"Free memory: {error.problem.partition(': ')[2]} in all"
        return f"Give --memory {(found.program + room) // 10**6}MB"

    if all(member.device.type == "cuda" for member in members):  # windows and logits are in the GPU's memory
        found = replace(found, slab=0, activations=0)
    likely = found.total - found.program
    least = LEAST * likely
    label = as_labels(np.array(members[0].plan.label_ids)).itemsize
    voxels = [prod(scan.shape) for scan in scans]
    maps = _map_bytes(options, members, max(voxels, default=0))
    scratch = sum(size for size in maps if size > MAP_BYTES)
    packed = label * sum(voxels) + sum(sum(_map_bytes(options, members, one)) for one in voxels)
    warnings = (
        require_memory("the largest case", least, likely, remedy),
        require_disk(
            "the prediction", out, scratch + packed / LEAST_PACKED, 2 * scratch + packed / USUALLY_PACKED, DISK_REMEDY
        ),
    )
    return [warning for warning in warnings if warning is not None]


def _map_bytes(options: Options, members: Sequence[Member], voxels: int) -> list[int]:
    """Return the bytes of each map that is asked for beside the labels, drawn in bytes."""
    wanted = [voxels * len(members[0].plan.labels)] if options.probabilities else []
    return wanted + [voxels] * (options.uncertainty * (1 + (len(members) > 1)))


def window_bytes(member: Member) -> int:
    """Return the peak of the tensors that a network makes for one window, by running it once and counting them.

    Of an engine other than torch nothing is seen, and 96 feature maps of the window's size are assumed.
    """
    plan = member.plan
    voxels = prod(plan.patch_size)
    logits = 3 * 4 * len(plan.labels) * voxels  # in 32 bits, mirrored and summed
    if not isinstance(member.engine, TorchEngine):
        return 4 * OPAQUE_MAPS * voxels + logits
    with TensorBytes() as counter:
        member.engine(torch.zeros((1, len(plan.channels), *plan.patch_size)))
    return int(OVERHEAD * counter.peak) + logits
