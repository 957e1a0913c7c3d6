"""Writing files: everything that segscse leaves on disk goes through `atomic_path`, so no file is half-written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segscse.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is moved into place, on failure it is removed.

    The temporary name keeps the suffixes (`.nii.gz`) because writers choose their format by them.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the output folder ({error.strerror})",
            file=path.parent,
            remedy="Choose another folder",
        ) from error
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{''.join(path.suffixes[-2:])}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})",
            file=path,
            remedy="Check permissions and free disk space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes the name `path`, on failure it is removed with its files.

    Raises:
        InputError: the folder cannot be made, or `path` exists and is not an empty folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)  # onto nothing, or an empty folder
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})", file=path, remedy="Choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error})", file=path, remedy="Repair or replace the file") from error


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        remedy = "Check its permissions, or copy it again"
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from error


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value`'s canonical JSON: the key of caches and plans."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
