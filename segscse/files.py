"""Writing files: everything that segscse leaves on disk goes through `atomic_path`, so no file is half-written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from segscse.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".segscse.lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp(\..+)?")


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside `path` with its suffixes, by which writers choose their format."""
    return path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{''.join(path.suffixes[-2:])}")


def is_temporary(path: Path) -> bool:
    """Return whether a name is one that `temporary_path` and `atomic_folder` give."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(*folders: Path) -> int:
    """Remove what killed writers left in these folders, known by its name, and return how many there were.

    Only for a folder that no other process writes to, see `only_writer`: the files of one at work look the same.
    """
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if is_temporary(path)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


@contextmanager
def only_one(lock: Path, problem: str) -> Iterator[None]:
    """Keep two processes from doing the same thing, where the file system has locks; a killed one holds none.

    Args:
        lock: a file that is there as long as the work goes on, and after a kill.
        problem: what to say to the second process.

    Raises:
        InputError: another process holds the lock.
    """
    with lock.open("ab") as file:
        if fcntl is not None:
            refused = InputError(problem, file=lock.parent, remedy="Wait for it to end")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise refused from error
            except OSError:
                pass  # some network file systems have none
            if os.fstat(file.fileno()).st_nlink == 0:  # the one before removed it while this one opened it
                raise refused
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Make a folder and keep other runs of segscse from writing into it; without a file in it, it is removed again.

    Raises:
        InputError: the folder cannot be made or written to, or another process writes into it.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_one(folder / LOCK, "another process is writing into it"))
            except OSError as error:
                raise InputError(
                    f"cannot be written to ({error.strerror or error})",
                    file=folder,
                    remedy="Check permissions and free disk space, or choose another folder",
                ) from error
            yield
    finally:
        with suppress(OSError):  # of folders that have files by now
            for path in made:
                path.rmdir()


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
    temporary = temporary_path(path)
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


def keep_as(path: Path, name: str) -> None:
    """Give the file at `path`, if there is one, a second name in its folder, in place of the file that has it.

    At no time is the file missing under its first name. Where the file system has no links it is copied.
    """
    temporary = temporary_path(path)
    try:
        try:
            os.link(path, temporary)
        except FileNotFoundError:
            return
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, path.with_name(name))
    finally:
        with suppress(OSError):
            temporary.unlink()


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
