"""Files: what segscse leaves on disk goes through `atomic_path`, so none is half-written; what it reads has limits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from math import inf
from pathlib import Path
from time import time
from typing import Any

from segscse.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".segscse.lock"
# Descriptions are kilobytes; parsing can take forty times the text's size in memory.
MAX_TEXT_BYTES = 2**24
MAX_JSON_DEPTH = 64
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp(\..+)?")


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside `path` with its suffixes, by which writers choose their format."""
    return path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{''.join(path.suffixes[-2:])}")


def reserve(path: Path, size: int) -> None:
    """Make a file of `size` zeros that has its room on the disk, as far as the system can reserve it.

    A sparse file that is mapped into memory would end the process when the disk is full.

    Raises:
        InputError: the disk has no room, or the file cannot be made.
    """
    try:
        with path.open("wb") as file:
            file.truncate(size)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except (AttributeError, OSError) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(
            f"cannot make a file of {size / 1e9:.1f} GB ({error.strerror or error})",
            file=path.parent,
            remedy="Free disk space, or choose another folder",
        ) from error


def is_temporary(path: Path) -> bool:
    """Return whether a name is one that `temporary_path` and `atomic_folder` give."""
    return _TEMPORARY.fullmatch(path.name) is not None


def real_path(path: Path) -> Path:
    """Return a path without links; one that is in a loop of them stays, where `Path.resolve` would fail."""
    return Path(os.path.realpath(path))


def remove_leftovers(*folders: Path, unchanged_s: float = 0.0) -> int:
    """Remove what killed writers left in these folders, known by its name, and return how many there were.

    The files of a process at work look the same: for a folder that others may write to (see `only_writer`),
    `unchanged_s` is for how long nobody can have written to them.
    """
    before = time() - unchanged_s
    found = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if is_temporary(path)]
    found = [path for path in found if unchanged_s == 0 or _changed(path) < before]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(found)


def _changed(path: Path) -> float:
    """Return when a file was last written, in seconds; one that has gone meanwhile is no leftover."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return inf


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
    path = Path(path).absolute()  # "." has no name
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


def move_into(folder: Path, path: Path) -> Path:
    """Move a file into a folder beside it, which is made, under a name that is free there; return its new place.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        folder.mkdir(exist_ok=True)
        free = (folder / f"{f'{number}_' if number else ''}{path.name}" for number in count())
        place = next(place for place in free if not place.exists())
        os.rename(path, place)
    except OSError as error:
        raise InputError(
            f"cannot be written to ({error.strerror or error})", file=folder, remedy="Choose another folder"
        ) from error
    return place


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON; NaN is refused because JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_limited(path: str | Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Read a file whole, if it is a plain file of at most `max_bytes`; pipes and devices may never end.

    Raises:
        InputError: it cannot be read, is no plain file, or is larger.
    """
    try:
        require_plain(Path(path))
        with Path(path).open("rb") as stream:
            content = stream.read(min(os.fstat(stream.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Check the path") from error
    if len(content) > max_bytes:
        raise InputError(f"is larger than {max_bytes} bytes, the limit", file=path, remedy="Check what the file holds")
    return content


def read_json(path: str | Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Read a JSON file strictly: a repeated name, NaN, or a number or nesting beyond every use of it is an error.

    Raises:
        InputError: the file is missing, too large or not JSON.
    """
    content = read_limited(path, max_bytes)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error})", file=path, remedy="Repair or replace the file") from error


def parse_json(content: bytes) -> Any:
    """Return the value of JSON text, as `read_json` does.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply for the parser.
    """
    value = json.loads(
        content.decode("utf-8-sig"),
        object_pairs_hook=_unique_names,
        parse_constant=_finite,
        parse_float=_finite,
        parse_int=_bounded,
    )
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
        level = [item for node in level for item in _items(node)]
    return value


def _items(node: Any) -> Any:
    """Return what a JSON value holds; of texts nothing, but a half of a surrogate pair is refused: it is no text."""
    if isinstance(node, str):
        node.encode()
    return (*node, *node.values()) if isinstance(node, Mapping) else node if isinstance(node, list) else ()


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r} occurs twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not -float("inf") < value < float("inf"):
        raise ValueError(f"{text} is no number of JSON")
    return value


def _bounded(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the number {text[:20]}... does not fit in 64 bits")
    return int(text)


def require_plain(path: Path) -> None:
    """Refuse what is there but no file of bytes, such as a pipe or a device, before it is opened.

    Raises:
        InputError: it is something else than a file.
        OSError: it cannot be looked at.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        problem = "is a folder" if stat.S_ISDIR(mode) else "is no plain file"
        raise InputError(f"cannot be read ({problem})", file=path, remedy="Check the path")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits.

    Raises:
        InputError: it cannot be read.
    """
    try:
        require_plain(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        remedy = "Check its permissions, or copy it again"
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy=remedy) from error


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `value`'s canonical JSON: the key of caches and plans."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
