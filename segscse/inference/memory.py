"""How much memory a prediction takes: worked out from shapes before anything is read, and kept under a limit.

The estimate is a sum of what is alive at once, not a measurement: the program as it stands, the scan while it is read
and resampled, the image on the network's grid, the open slab of logits, the network's activations and the label map.
`tests/benchmarks/bench_predict_memory.py` holds it against the peak that the system reports.
"""

from __future__ import annotations

import re
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from segscse.data.geometry import canonical_grid, spacing_of
from segscse.data.io import NIBABEL_SUFFIXES, as_labels, image_suffix
from segscse.data.network_grid import network_shape
from segscse.errors import InputError
from segscse.inference.segment import Member, Options, plan_sweeps

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# Feature maps at the window's full size that are assumed of a network whose tensors cannot be seen.
OPAQUE_MAPS = 96
# What allocators and convolutions take beyond the tensors that they return.
OVERHEAD = 1.25


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
        labels: label map and class numbers.
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
        shown = ", ".join(f"{name} {_gigabytes(getattr(self, name))}" for name in parts)
        return f"{_gigabytes(self.total)} ({shown}; {self.batch_size} windows a batch)"


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
    """Return the size of a case from the headers of its NIfTI or MGH files; None where a header does not tell."""
    itemsize, shape, affine = 0, None, np.eye(4)
    for file in files:
        if image_suffix(file) not in NIBABEL_SUFFIXES:
            return None
        try:
            image: Any = nib.load(file)
        except (OSError, EOFError, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError):
            return None  # reading it will say why
        shape, affine = (*image.shape, 1, 1)[:3], image.affine
        scaled = getattr(image.dataobj, "slope", 1.0) != 1.0 or getattr(image.dataobj, "inter", 0.0) != 0.0
        size = image.get_data_dtype().itemsize
        # Read, unpacked and as an array at once; scaled voxels come in 64 bits.
        itemsize += (2 * size + (8 if scaled else 0)) * prod(image.shape[3:])
    if shape is None or min(shape) < 1 or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
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
    reading = max(scan.itemsize * voxels, scan.itemsize * voxels // 2 + max(2 * voxels, 2 * resampled))
    batch = options.batch_size or max(member.plan.batch_size for member in members)
    return Estimate(
        program=program,
        reading=reading,
        image=sum(4 * (n_channels + 2) * prod(shape) for shape in grids.values()),
        slab=sum(int(1.3 * sweep.slab_voxels * (n_classes + 1) * 4) for sweep in sweeps),
        activations=batch * a_window,
        labels=label_bytes * voxels + sum(2 * prod(shape) for shape in shapes),
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
        f"--memory {_gigabytes(limit or 0)} is too little: the smallest that works is {found}",
        remedy=f"Give at least --memory {-(-found.total // 10**8) / 10:.1f}GB",
    )


def with_estimate(options: Options, found: Estimate) -> Options:
    """Return the options with the batch size of an estimate."""
    return replace(options, batch_size=found.batch_size)


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds now; where the system does not say, at its peak so far."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def window_bytes(member: Member) -> int:
    """Return the peak of the tensors that a network makes for one window, by running it once and counting them.

    What goes in and out of every module is counted while it lives. Of an engine other than torch nothing is seen, and
    96 feature maps of the window's size are assumed.
    """
    plan = member.plan
    window = torch.zeros((1, len(plan.channels), *plan.patch_size), device=member.device)
    network = getattr(member, "network", None)
    live = LiveBytes()
    modules = list(network.modules()) if isinstance(network, torch.nn.Module) else []
    hooks = [module.register_forward_hook(live.count) for module in modules]
    try:
        with torch.inference_mode():
            logits = member.evaluate(window)
    finally:
        for hook in hooks:
            hook.remove()
    seen = int(OVERHEAD * live.peak) if modules else 4 * OPAQUE_MAPS * prod(plan.patch_size)
    return seen + 3 * 4 * logits.numel()  # in 32 bits, mirrored and summed


class LiveBytes:
    """Counts the bytes of tensors that it has been shown and that are still referenced."""

    def __init__(self) -> None:
        self.peak = 0
        self._now = 0
        self._seen: set[int] = set()

    def count(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """Take in what a module was given and what it returned."""
        for item in (*inputs, output):
            if isinstance(item, torch.Tensor):
                self.hold(item.untyped_storage())

    def hold(self, storage: torch.UntypedStorage) -> None:
        """Count a storage while it lives, once."""
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.0f} MB"
