"""Settings with which every case of a folder fits into memory and onto the disk, worked out from headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from segscse.data.geometry import canonical_grid, spacing_of
from segscse.data.io import Volume
from segscse.inference.memory import (
    Estimate,
    ScanSize,
    estimate,
    fit,
    require_room,
    scan_size,
)
from segscse.inference.predictor import Segmenter
from segscse.inference.segment import Options
from segscse.limits import resident_bytes

# Maps beyond this size are drawn in a file and not in memory.
MAP_BYTES = 2**28
# Of so many of the largest files the headers are read to know the memory beforehand.
HEADERS = 16


@dataclass(frozen=True, slots=True)
class Room:
    """What decides the memory of a case besides the case.

    Attributes:
        model: its members work one after another.
        options: of the prediction; a batch size of None stands for the plan's.
        limit: bytes; None for none.
        several: whether there is more than one case.
        window: bytes a window takes in the network that takes most; see `window_bytes`.
    """

    model: Segmenter
    options: Options
    limit: int | None
    several: bool
    window: int

    def fitted(self, scan: ScanSize) -> Estimate:
        """Return a case's estimate with the largest settings that stay under the limit.

        Raises:
            InputError: there are none; says what limit would do.
        """
        program = resident_bytes()

        def make(batch_size: int, overlapped: bool) -> Estimate:
            chosen = replace(self.options, batch_size=batch_size)
            return estimate(
                scan, self.model.members, chosen, program=program, a_window=self.window, overlapped=overlapped
            )

        batch = self.options.batch_size or max(member.plan.batch_size for member in self.model.members)
        return fit(make, batch, self.limit, several=self.several)

    def largest(self, scans: Sequence[ScanSize]) -> Estimate | None:
        """Return the estimate of the case that takes most; None of no cases.

        Raises:
            InputError: one does not fit.
        """
        found = map(self.fitted, scans)
        return max(found, key=lambda item: (not item.overlapped, -item.batch_size, item.total), default=None)

    def told(self, scans: Sequence[ScanSize], found: Estimate, out: Path) -> list[str]:
        """Return what to say about memory and disk beforehand.

        Args:
            scans: the cases whose size is known.
            found: the estimate of the one that takes most.
            out: where the files go.

        Raises:
            InputError: what there is of memory or disk cannot hold it.
        """

        def fitting(limit: int) -> Estimate | None:
            return replace(self, limit=limit).largest(scans)

        warnings = require_room(
            found, scans, self.model.members, self.options, out, scratch_from=MAP_BYTES, fitting=fitting
        )
        return [f"memory: at most about {found}", *(f"warning: {text}" for text in warnings)]

    def check(self, source: Volume) -> None:
        """Refuse a scan that does not fit: its header may not have told, or it is not among the largest files.

        Raises:
            InputError: no setting keeps it under the limit.
        """
        if self.limit is None:
            return
        shape, affine = canonical_grid(source.array.shape, source.affine)
        itemsize = 2 * source.array.dtype.itemsize * prod(source.array.shape[3:])
        self.fitted(ScanSize(shape, spacing_of(affine), itemsize))


def sizes(cases: Mapping[str, Sequence[Path]]) -> list[ScanSize]:
    """Return the sizes of the cases with the largest files, as far as their headers tell."""
    by_size = sorted(cases.values(), key=lambda files: -file_bytes(files))
    return [scan for files in by_size[:HEADERS] if (scan := scan_size(files)) is not None]


def file_bytes(files: Sequence[Path]) -> int:
    """Return the bytes of files in all; a file that cannot be looked at counts nothing: reading it will say why."""
    return sum(map(_size, files))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
