"""Settings with which every case of a folder fits into memory and onto the disk, worked out from headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from segscse.data.geometry import canonical_grid, spacing_of
from segscse.data.io import Volume, image_suffix
from segscse.data.text_header import detached_voxels
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

# Of so many of the largest files the headers are read to know the memory beforehand.
HEADERS = 16


@dataclass(frozen=True, slots=True)
class Room:
    """What decides the memory of a case besides the case.

    Attributes:
        model: its members work one after another.
        options: of the prediction; a batch size of None stands for the plan's.
        limit: bytes; None for none.
        several: whether cases may be read and written beside the network: there is more than one, and room for it.
        window: bytes a window takes in the network that takes most; see `window_bytes`.
        program: bytes that the process holds before the first case.
    """

    model: Segmenter
    options: Options
    limit: int | None
    several: bool
    window: int
    program: int = field(default_factory=lambda: resident_bytes())

    def fitted(self, scan: ScanSize) -> Estimate:
        """Return a case's estimate with the largest settings that stay under the limit.

        Raises:
            InputError: there are none; says what limit would do.
        """

        def make(batch_size: int, overlapped: bool) -> Estimate:
            chosen = replace(self.options, batch_size=batch_size)
            return estimate(
                scan, self.model.members, chosen, program=self.program, a_window=self.window, overlapped=overlapped
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

        warnings = require_room(found, scans, self.model.members, self.options, out, fitting=fitting)
        return [f"memory: at most about {found}", *(f"warning: {text}" for text in warnings)]

    def begin(self, found: Estimate | None) -> Room:
        """Return the room with the settings of the largest case; with a limit and none known, one case at a time."""
        if found is None:
            return replace(self, several=self.several and self.limit is None)
        return replace(self, several=found.overlapped, options=replace(self.options, batch_size=found.batch_size))

    def batch_size(self, source: Volume) -> int | None:
        """Return how many windows a network call may have for a scan that has been read; None for the plan's number.

        Its header may not have told, or it is not among the largest files.

        Raises:
            InputError: no setting keeps it under the limit.
        """
        if self.limit is None:
            return self.options.batch_size
        shape, affine = canonical_grid(source.array.shape, source.affine)
        itemsize = 2 * source.array.dtype.itemsize * prod(source.array.shape[3:])
        found = self.fitted(ScanSize(shape, spacing_of(affine), itemsize))
        # The next scan is being read already, although this one has no room beside it: nothing but a window is left.
        return found.batch_size if found.overlapped == self.several else 1


def sizes(cases: Mapping[str, Sequence[Path]]) -> list[ScanSize]:
    """Return the sizes of the cases with the largest files, as far as their headers tell."""
    by_size = sorted(cases.values(), key=lambda files: -file_bytes(files))
    return [scan for files in by_size[:HEADERS] if (scan := scan_size(files)) is not None]


def file_bytes(files: Sequence[Path]) -> int:
    """Return the bytes of files in all; a file that cannot be looked at counts nothing: reading it will say why."""
    return sum(map(_size, files))


def _size(file: Path) -> int:
    try:
        if file.is_dir():
            return sum(part.stat().st_size for part in file.iterdir())
        voxels = detached_voxels(file) if image_suffix(file) in (".nhdr", ".mhd") else None
        return (file if voxels is None else voxels).stat().st_size
    except OSError:
        return 0
