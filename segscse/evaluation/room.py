"""Memory of an evaluation, looked at before the first case is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from segscse.data.io import UNREADABLE, image_suffix
from segscse.data.nifti_header import peek_header
from segscse.evaluation.cases import CasePair
from segscse.limits import require_memory


def require_room(pairs: Sequence[CasePair], workers: int) -> str | None:
    """Refuse an evaluation whose largest case cannot be held in memory.

    Args:
        pairs: the cases.
        workers: cases scored at a time.

    Returns:
        A warning where the cases that are scored at a time may not fit together.

    Raises:
        InputError: the largest pair does not fit even in bytes.
    """
    sizes = sorted((_bytes(pair) for pair in pairs), reverse=True)
    if not sizes:
        return None
    least, likely = sizes[0][0], sum(size for _, size in sizes[:workers])

    def remedy(room: int) -> str:
        return "Give --workers 1" if sizes[0][1] <= room and workers > 1 else "Free memory"

    return require_memory("the evaluation", least, likely, remedy)


def _bytes(pair: CasePair) -> tuple[int, int]:
    """Return the bytes of a pair of label maps at the very least, and as it is read, cast and compared."""
    least = likely = 0
    for source in (pair.pred, pair.ref, pair.probabilities):
        voxels, itemsize = _header(source)
        least += voxels
        likely += voxels * (2 * itemsize + 8)
    return least, likely


def _header(source: Any) -> tuple[int, int]:
    """Return voxels and bytes a voxel of a NIfTI file whose header can be true; zeros of anything else."""
    if not isinstance(source, (str, Path)) or image_suffix(Path(source)) not in (".nii", ".nii.gz"):
        return 0, 0
    try:
        header = peek_header(Path(source))
    except UNREADABLE:
        return 0, 0  # reading it will say why
    return (0, 0) if header is None else (prod(map(int, header.get_data_shape())), header.get_data_dtype().itemsize)
