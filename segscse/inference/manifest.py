"""`predictions.json`: what was predicted from what, by digests, so that `--resume` verifies instead of trusting."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from segscse.data.inputs import RECORD as NAME
from segscse.data.io import SITK_SUFFIXES, image_suffix
from segscse.data.text_header import detached_voxels
from segscse.errors import InputError
from segscse.files import move_into, read_json, sha256_of, write_json

# Folder for label maps that somebody has changed and that are predicted again.
CHANGED = "changed"
_PART = "predictions.{}.json"
_PART_NAME = re.compile(r"predictions\.\d+\.json", re.ASCII)
FORMAT = "segscse-predictions"
VERSION = 2
# A folder of thousands of cases would spend its time writing the manifest after each; a kill loses this much work.
SECONDS_BETWEEN_WRITES = 2.0
MAX_BYTES = 2**30  # a million cases; one that is too large would mean that all are predicted again


class Manifest:
    """The cases of an output folder: digests of inputs and outputs, and a key of model and settings.

    Cases of earlier runs into the same folder stay; a case that is predicted again replaces its entry, one that fails
    loses it unless it is kept. `failures` are those of the last run: why each case could not be predicted. Processes
    that share a folder's cases write a file each, with their own cases, which `merge_parts` brings together.

    Args:
        folder: the output folder.
        key: digest of what decides the output besides the scan: models and settings.
        part: number of the process, where several write into the folder.
    """

    def __init__(self, folder: Path, key: str, part: int | None = None) -> None:
        self.folder = folder
        self.key = key
        self.path = folder / (NAME if part is None else _PART.format(part))
        self.cases = _read(folder / NAME)[0]
        self.own: dict[str, Any] = self.cases if part is None else {}
        self.failures: dict[str, str] = {}
        self._written = time.monotonic()

    def verified(self, case: str, inputs: Sequence[Sequence[str]]) -> bool:
        """Return whether a case was predicted from these inputs by this model and its outputs are as they were.

        Args:
            case: its name.
            inputs: names and digests of its files; see `digests`.
        """
        entry = self.cases.get(case)
        if entry is None or entry.get("key") != self.key or entry.get("inputs") != [list(pair) for pair in inputs]:
            return False
        try:
            return all(sha256_of(self.folder / name) == known for name, known in entry["outputs"].items())
        except InputError:  # one is not there, or cannot be read
            return False

    def keep(self, case: str, inputs: Sequence[Sequence[str]]) -> bool:
        """Keep what this model has made of a case, although it failed now.

        Args:
            case: its name.
            inputs: names and digests of its files; empty where they could not be read.

        Returns:
            False where there is nothing of this model, or it is of other inputs.
        """
        entry = self.cases.get(case)
        if entry is None or entry.get("key") != self.key:
            return False
        if inputs and entry["inputs"] != [list(pair) for pair in inputs]:
            return False
        self.own[case] = entry
        return True

    def label_map(self, case: str) -> Path:
        """Return the label map of a case that is in the manifest; other outputs lie in folders of their own."""
        return next(self.folder / name for name in self.cases[case]["outputs"] if "/" not in name)

    def add(
        self, case: str, inputs: Sequence[Sequence[str]], outputs: Sequence[Path], quality: Mapping[str, Any]
    ) -> None:
        """Enter a case whose files are written; what an earlier run has made of it besides is removed."""
        names = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in outputs}
        pairs = [list(pair) for pair in inputs]
        entry = {"key": self.key, "inputs": pairs, "outputs": names, "quality": dict(quality)}
        known = self.cases.get(case, {"outputs": {}})["outputs"]
        self._remove({name: digest for name, digest in known.items() if name not in names})
        self.cases[case] = self.own[case] = entry
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    def drop(self, case: str) -> list[str]:
        """Take a case out and remove its outputs, but for those that are no longer as they were written.

        Returns:
            Names of the files that were removed.
        """
        entry = self.cases.pop(case, None)
        self.own.pop(case, None)
        return [] if entry is None else self._remove(entry["outputs"])

    def _remove(self, outputs: Mapping[str, str]) -> list[str]:
        """Remove the files that are still as they were written, and return their names."""
        removed = []
        for name, known in outputs.items():
            path = self.folder / name
            with suppress(InputError, OSError):  # it is not there, or no file, or cannot be removed
                if sha256_of(path) == known:
                    path.unlink()
                    removed.append(name)
        return removed

    def put_aside(self, case: str, path: Path) -> Path | None:
        """Move a label map that is no longer as it was written out of the way of a new one; return its new place."""
        known = self.cases.get(case, {"outputs": {}})["outputs"].get(path.name)
        if known is None or not path.is_file() or sha256_of(path) == known:
            return None
        return move_into(self.folder / CHANGED, path)

    def begin(self) -> None:
        """Leave a mark that a prediction writes into the folder, before the first label map."""
        if not is_output(self.folder):
            self.save()

    def save(self) -> None:
        """Write the file."""
        # Copies: one thread enters cases that are written while another enters failures.
        _write(self.path, dict(self.own), dict(self.failures))
        self._written = time.monotonic()


def is_output(folder: Path) -> bool:
    """Return whether a prediction has written into a folder, or has begun to."""
    return (folder / NAME).is_file() or any(_PART_NAME.fullmatch(path.name) for path in folder.glob(_PART.format("*")))


def merge_parts(folder: Path) -> dict[str, Any]:
    """Bring what several processes have entered, now or before one of them was killed, into one manifest.

    The parts are removed when the whole is written, so that a kill in between loses nothing.

    Returns:
        The entries of all cases.
    """
    cases, failures = _read(folder / NAME)
    parts = sorted(path for path in folder.glob(_PART.format("*")) if _PART_NAME.fullmatch(path.name))
    if parts:
        failures = {}
    for part in parts:
        made, failed = _read(part)
        cases = {name: entry for name, entry in cases.items() if name not in failed} | made
        failures |= failed
    if parts:
        _write(folder / NAME, cases, failures)
    for part in parts:
        part.unlink()
    return cases


def _write(path: Path, cases: Mapping[str, Any], failures: Mapping[str, str]) -> None:
    write_json(path, {"format": FORMAT, "version": VERSION, "cases": cases, "failures": failures})


def digests(files: Sequence[Path]) -> list[list[str]]:
    """Return the names of a case's files, in the order of its channels, each with its SHA-256.

    Of a DICOM series it is that of the names and contents of the folder's own files. The voxels' file follows a header
    that lies apart from it.
    """
    pairs = []
    for file in files:
        pairs.append([file.name, folder_digest(file, deep=False) if file.is_dir() else sha256_of(file)])
        voxels = detached_voxels(file) if image_suffix(file) in SITK_SUFFIXES and file.is_file() else None
        if voxels is not None:
            pairs.append([voxels.name, sha256_of(voxels)])
    return pairs


def folder_digest(folder: Path, *, deep: bool = True) -> str:
    """Return a SHA-256 over the names and contents of all files of a folder; `deep`: and of the folders in it."""
    total = hashlib.sha256()
    for path in sorted(item for item in (folder.rglob("*") if deep else folder.iterdir()) if item.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return cases and failures of a manifest; none of a missing, damaged or foreign one: all is predicted again."""
    try:
        content = read_json(path, max_bytes=MAX_BYTES)
    except InputError:
        return {}, {}
    if not isinstance(content, Mapping) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        return {}, {}
    parts = [content.get(name) for name in ("cases", "failures")]
    cases, failures = (part if isinstance(part, Mapping) else {} for part in parts)
    return (
        {name: entry for name, entry in cases.items() if _sound(entry)},
        {name: reason for name, reason in failures.items() if isinstance(reason, str)},
    )


def _sound(entry: Any) -> bool:
    """Return whether an entry has what `add` writes, with names that stay in the folder."""
    parts = (("inputs", list), ("outputs", Mapping), ("quality", Mapping))
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(part), kind) for part, kind in parts):
        return False
    paths = [PurePosixPath(name) for name in entry["outputs"]]
    inside = all(not path.is_absolute() and ".." not in path.parts for path in paths)
    return inside and sum(len(path.parts) == 1 for path in paths) == 1 and "look" in entry["quality"]
