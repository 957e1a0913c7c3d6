"""CaseStore: every case preprocessed once, kept in memory as far as it holds them and on disk beyond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from segscse.data.index import Case
from segscse.data.io import SITK_SUFFIXES, image_suffix
from segscse.data.places import find_places
from segscse.data.plan import Plan
from segscse.data.text_header import detached_voxels
from segscse.data.transforms import PREPROCESSING_VERSION, preprocess
from segscse.errors import InputError
from segscse.files import atomic_path, digest, remove_leftovers
from segscse.types import Progress

# Goes into the key of saved cases: raise it when the files in a case's folder change.
STORE_VERSION = 2
DAY_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A preprocessed training case.

    Attributes:
        image: `(C, X, Y, Z)` float32; label: `(X, Y, Z)` channel numbers.
        places: per foreground channel number, up to 2000 of its voxels, `(N, 3)`.
        mapped: whether the arrays are parts of files, read from disk where they are used.
    """

    id: str
    image: torch.Tensor
    label: torch.Tensor
    places: Mapping[int, np.ndarray]
    mapped: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of image and label."""
        return self.image.nbytes + self.label.nbytes


class CaseStore:
    """Preprocessed cases by id.

    A case that memory does not hold lies in three files, uncompressed, and is mapped anew whenever it is asked for:
    only what is read of it comes from disk, and nothing of it stays open or counts as this process's memory afterwards.
    The store itself keeps a few hundred bytes of it.

    Args:
        cases: what to prepare.
        plan: how.
        folder: where arrays go when memory does not hold them all; one sub-folder per key, which is a digest of
            the plan, the versions of preprocessing and store, and each file's path, size and time.
        memory_gb: limit for what is kept in memory.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, folder: Path, memory_gb: float) -> None:
        self.cases = {case.id: case for case in cases}
        self.plan = plan
        self.folder = folder
        self.limit = memory_gb * 1e9
        self._ready: dict[str, StoredCase | _Saved] = {}
        self._used = 0.0

    def prepare(self, progress: Progress | None = None) -> None:
        """Preprocess every case that is not ready yet, one after the other; those on disk are taken as they are.

        Raises:
            InputError: a case cannot be used.
        """
        for done, case in enumerate(self.cases.values(), start=1):
            self._entry(case.id)
            if progress is not None:
                progress(done, len(self.cases))

    def __getitem__(self, case_id: str) -> StoredCase:
        """Return a case.

        Raises:
            InputError: it cannot be used, or its files in the store are gone or damaged.
        """
        entry = self._entry(case_id)
        return entry.open(self.plan.slice_axis) if isinstance(entry, _Saved) else entry

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each prepared case's `(X, Y, Z)`."""
        return {
            name: entry.shape if isinstance(entry, _Saved) else tuple(entry.label.shape)
            for name, entry in self._ready.items()
        }

    def with_foreground(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return those of these cases that have a foreground voxel."""
        entries = ((name, self._entry(name)) for name in names)
        return tuple(name for name, item in entries if (item.numbers if isinstance(item, _Saved) else item.places))

    def _entry(self, case_id: str) -> StoredCase | _Saved:
        if case_id not in self._ready:
            self._ready[case_id] = self._load(self.cases[case_id])
        return self._ready[case_id]

    def _load(self, case: Case) -> StoredCase | _Saved:
        folder = self.folder / self.key(case)
        remove_leftovers(folder, unchanged_s=DAY_S)  # several processes may share a cache, so only old ones
        if (folder / "label.npy").is_file():
            try:
                return _found(case.id, folder, self.plan.slice_axis)
            except InputError:  # damaged: it is made again
                pass
        prepared = preprocess(case.images, case.label, self.plan)
        if prepared.label is None:
            raise ValueError(f"case {case.id} has no label")
        stored = StoredCase(case.id, prepared.image, prepared.label, find_places(prepared.label.numpy(), case.id))
        if self._used + stored.nbytes <= self.limit:
            self._used += stored.nbytes
            return stored
        _save(folder, stored, self.plan.slice_axis)
        return _found(case.id, folder, self.plan.slice_axis)

    def key(self, case: Case) -> str:
        """Return the name of the sub-folder that a case has when it lies on disk."""
        files = [(str(path.resolve()), _stamp(path)) for path in (*case.images, *([case.label] if case.label else []))]
        return digest([self.plan.key, PREPROCESSING_VERSION, STORE_VERSION, files])


@dataclass(frozen=True, slots=True)
class _Saved:
    """A case on disk, and what is needed of it without opening it.

    Attributes:
        shape: `(X, Y, Z)`.
        starts: first row in `places.npy` of each foreground channel number that the case has, and the end.
    """

    id: str
    folder: Path
    shape: tuple[int, ...]
    numbers: tuple[int, ...]
    starts: tuple[int, ...]

    def open(self, slice_axis: int | None) -> StoredCase:
        """Map the case's files."""
        image, label, rows = (_mapped(self.folder / f"{name}.npy") for name in ("image", "label", "places"))
        pieces = zip(self.numbers, self.starts[:-1], self.starts[1:], strict=True)
        places = {number: rows[first:end, 1:] for number, first, end in pieces}
        first, second = (
            torch.from_numpy(np.moveaxis(array, array.ndim - 3, _axis(array, slice_axis))) for array in (image, label)
        )
        return StoredCase(self.id, first, second, places, mapped=True)


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a file and of the one that its voxels lie in, or of all files of a DICOM series."""
    if path.is_dir():
        files = sorted(path.iterdir())
    else:
        voxels = detached_voxels(path) if image_suffix(path) in SITK_SUFFIXES else None
        files = [path] if voxels is None else [path, voxels]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _save(folder: Path, case: StoredCase, slice_axis: int | None) -> None:
    """Write the arrays; the label comes last, because its presence means that the case is whole.

    Slices of a 2D network each lie in one piece, so that a slice is read without the rest of the volume.
    """
    places = np.concatenate(
        [np.column_stack([np.full(len(p), n, np.int32), p]) for n, p in case.places.items()]
        or [np.empty((0, 4), np.int32)]
    )
    volumes = {"image": case.image.numpy(), "label": case.label.numpy()}
    turned = {name: np.moveaxis(item, _axis(item, slice_axis), item.ndim - 3) for name, item in volumes.items()}
    for name, array in (("image", turned["image"]), ("places", places), ("label", turned["label"])):
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, np.ascontiguousarray(array))


def _axis(array: np.ndarray, slice_axis: int | None) -> int:
    """Return which axis of `(X, Y, Z)` or `(C, X, Y, Z)` stands first of the three on disk."""
    return array.ndim - 3 + (slice_axis or 0)


def _found(case_id: str, folder: Path, slice_axis: int | None) -> _Saved:
    """Describe a case on disk.

    Raises:
        InputError: its files are not whole.
    """
    rows = _mapped(folder / "places.npy")
    numbers, starts = np.unique(rows[:, 0], return_index=True)
    saved = _Saved(case_id, folder, (), tuple(numbers.tolist()), (*starts.tolist(), len(rows)))
    return replace(saved, shape=tuple(saved.open(slice_axis).label.shape))


def _mapped(path: Path) -> np.ndarray:
    """Open an array without reading it: pages come from disk as they are touched, and a change stays in memory."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot be read ({error})", file=path, remedy="Delete its folder and continue the run with --resume"
        ) from error
