"""`predictions.json`: what was predicted from what, by digests, so that `--resume` verifies instead of trusting."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segscse.errors import InputError
from segscse.files import read_json, sha256_of, write_json

NAME = "predictions.json"
FORMAT = "segscse-predictions"
VERSION = 1
# A folder of thousands of cases would spend its time writing the manifest after each; a kill loses this much work.
SECONDS_BETWEEN_WRITES = 2.0
MAX_BYTES = 2**30  # a million cases; one that is too large would mean that all are predicted again


class Manifest:
    """The cases of an output folder: digests of inputs and outputs, and a key of model and settings.

    Cases of earlier runs into the same folder stay; a case that is predicted again replaces its entry.

    Args:
        folder: the output folder.
        key: digest of what decides the output besides the scan: models and settings.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.cases = _cases_of(folder / NAME)
        self._written = time.monotonic()

    def verified(self, case: str, inputs: Mapping[str, str]) -> bool:
        """Return whether a case was predicted from these inputs by this model and its outputs are as they were.

        Args:
            case: its name.
            inputs: digest by file name; see `digests`.
        """
        entry = self.cases.get(case)
        if entry is None or entry.get("key") != self.key or entry.get("inputs") != dict(inputs):
            return False
        outputs = entry.get("outputs")
        if not isinstance(outputs, Mapping) or not outputs:
            return False
        return all((self.folder / name).is_file() for name in outputs) and dict(outputs) == {
            name: sha256_of(self.folder / name) for name in outputs
        }

    def label_map(self, case: str) -> Path:
        """Return the label map of a case that is in the manifest; other outputs lie in folders of their own."""
        return next(self.folder / name for name in self.cases[case]["outputs"] if "/" not in name)

    def add(self, case: str, inputs: Mapping[str, str], outputs: Sequence[Path], quality: Mapping[str, Any]) -> None:
        """Enter a case whose files are written."""
        names = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in outputs}
        self.cases[case] = {"key": self.key, "inputs": dict(inputs), "outputs": names, "quality": dict(quality)}
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.folder / NAME, {"format": FORMAT, "version": VERSION, "cases": self.cases})
        self._written = time.monotonic()


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of a case's files by name; of a folder, that of its files' names and contents."""
    return {file.name: folder_digest(file) if file.is_dir() else sha256_of(file) for file in files}


def folder_digest(folder: Path) -> str:
    """Return a SHA-256 over the names and contents of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def _cases_of(path: Path) -> dict[str, Any]:
    """Return the entries of a manifest; none of a missing, damaged or foreign one, so that all is predicted again."""
    try:
        content = read_json(path, max_bytes=MAX_BYTES)
    except InputError:
        return {}
    known = isinstance(content, Mapping) and (content.get("format"), content.get("version")) == (FORMAT, VERSION)
    cases = content.get("cases") if known else None
    return {name: entry for name, entry in cases.items() if _sound(entry)} if isinstance(cases, Mapping) else {}


def _sound(entry: Any) -> bool:
    """Return whether an entry has what `add` writes, with names that stay in the folder."""
    parts = ("inputs", "outputs", "quality")
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(part), Mapping) for part in parts):
        return False
    paths = [PurePosixPath(name) for name in entry["outputs"]]
    inside = all(not path.is_absolute() and ".." not in path.parts for path in paths)
    return inside and sum(len(path.parts) == 1 for path in paths) == 1 and "look" in entry["quality"]
