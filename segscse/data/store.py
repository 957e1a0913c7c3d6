"""CaseStore: every case preprocessed once, kept in memory when all fit and in a folder otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segscse.data.index import Case
from segscse.data.plan import Plan
from segscse.data.transforms import PREPROCESSING_VERSION, preprocess
from segscse.files import atomic_path, digest
from segscse.types import Progress

# Enough places per class to sample from, few enough to keep for every case.
PLACES_PER_CLASS = 2000


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A preprocessed training case.

    Attributes:
        image: `(C, X, Y, Z)` float32; label: `(X, Y, Z)` channel numbers.
        places: per foreground channel number, up to 2000 of its voxels, `(N, 3)`.
    """

    id: str
    image: torch.Tensor
    label: torch.Tensor
    places: dict[int, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of image and label."""
        return self.image.nbytes + self.label.nbytes


class CaseStore:
    """Preprocessed cases by id.

    Args:
        cases: what to prepare.
        plan: how.
        folder: where arrays go when memory does not hold them all; one sub-folder per key, which is a digest of
            the plan, the preprocessing version and each file's path, size and time.
        memory_gb: limit for what is kept in memory.
    """

    def __init__(self, cases: Sequence[Case], plan: Plan, folder: Path, memory_gb: float) -> None:
        self.cases = {case.id: case for case in cases}
        self.plan = plan
        self.folder = folder
        self.limit = memory_gb * 1e9
        self._ready: dict[str, StoredCase] = {}
        self._used = 0.0

    def prepare(self, progress: Progress | None = None) -> None:
        """Preprocess every case that is not ready yet.

        Raises:
            InputError: a case cannot be used.
        """
        for done, case in enumerate(self.cases.values(), start=1):
            if case.id not in self._ready:
                self._ready[case.id] = self._load(case)
            if progress is not None:
                progress(done, len(self.cases))

    def __getitem__(self, case_id: str) -> StoredCase:
        if case_id not in self._ready:
            self._ready[case_id] = self._load(self.cases[case_id])
        return self._ready[case_id]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each prepared case's `(X, Y, Z)`."""
        return {name: tuple(case.label.shape) for name, case in self._ready.items()}

    def _load(self, case: Case) -> StoredCase:
        folder = self.folder / self._key(case)
        if (folder / "label.npy").is_file():
            return _mapped(case.id, folder)
        prepared = preprocess(case.images, case.label, self.plan)
        if prepared.label is None:
            raise ValueError(f"case {case.id} has no label")
        stored = StoredCase(case.id, prepared.image, prepared.label, find_places(prepared.label.numpy(), case.id))
        if self._used + stored.nbytes <= self.limit:
            self._used += stored.nbytes
            return stored
        _save(folder, stored)
        return _mapped(case.id, folder)

    def _key(self, case: Case) -> str:
        files = [(str(path.resolve()), *_stamp(path)) for path in (*case.images, *([case.label] if case.label else []))]
        return f"{digest([self.plan.key, PREPROCESSING_VERSION, files])}"


def find_places(label: np.ndarray, case_id: str) -> dict[int, np.ndarray]:
    """Return up to 2000 voxels of each foreground number in `(X, Y, Z)`, drawn without replacement, seeded by id."""
    generator = np.random.default_rng(list(case_id.encode()))
    flat = label.reshape(-1)
    foreground = np.flatnonzero(flat)
    values = flat[foreground]
    places = {}
    for number in np.unique(values):
        candidates = foreground[values == number]
        chosen = generator.choice(candidates, min(PLACES_PER_CLASS, len(candidates)), replace=False)
        places[int(number)] = np.stack(np.unravel_index(np.sort(chosen), label.shape), axis=1).astype(np.int32)
    return places


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file, or of all files of a DICOM series together."""
    statuses = [item.stat() for item in (path.iterdir() if path.is_dir() else (path,))]
    return sum(status.st_size for status in statuses), max(status.st_mtime_ns for status in statuses)


def _save(folder: Path, case: StoredCase) -> None:
    """Write the arrays; the label comes last, because its presence means that the case is whole."""
    places = np.concatenate(
        [np.column_stack([np.full(len(p), n, np.int32), p]) for n, p in case.places.items()] or [np.empty((0, 4))]
    )
    for name, array in (("image", case.image.numpy()), ("places", places), ("label", case.label.numpy())):
        with atomic_path(folder / f"{name}.npy") as temporary:
            np.save(temporary, array)


def _mapped(case_id: str, folder: Path) -> StoredCase:
    """Open a saved case without reading it: pages come from disk as patches are cut."""
    image, label = (
        torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
        for name in ("image", "label")
    )
    rows = np.load(folder / "places.npy", allow_pickle=False).astype(np.int32)
    return StoredCase(case_id, image, label, {int(n): rows[rows[:, 0] == n, 1:] for n in np.unique(rows[:, 0])})
