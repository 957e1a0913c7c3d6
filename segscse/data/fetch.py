"""Fetch: download a public data set, verify its checksum, unpack it safely and move it into place.

The data are the Medical Segmentation Decathlon (MSD, Antonelli et al., Nature Communications 2022,
doi:10.1038/s41467-022-30695-9); the addresses and MD5 sums are those that MONAI publishes. MD5 tells a
damaged download from a whole one; it is no defence against forgery, so an archive is untrusted input.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from segscse.errors import InputError, choose
from segscse.files import only_one, read_json
from segscse.limits import disk_at, require_disk, size_text

Progress = Callable[[int, "int | None"], None]

MAX_BYTES = 64 * 2**30  # twice the largest MSD task, for an archive and for what it unpacks to
MAX_MEMBERS = 100_000
CHUNK_BYTES = 2**18
RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
UNPACKED_SUFFIX = ".unpacking"


@dataclass(frozen=True)
class Connection:
    """How patiently to download: `retries` counts attempts in a row that brought nothing new."""

    timeout_s: float = 30.0
    retries: int = 4
    pause_s: float = 1.0  # before the first retry; doubles each time, up to half a minute


@dataclass(frozen=True)
class _Reply:
    """The server's answer to a request for the bytes from `offset` on; `total` is the whole file's size."""

    offset: int
    total: int | None
    stream: http.client.HTTPResponse


class _TransferError(Exception):
    """The network failed in a way that may pass."""


def fetch(name: str, out: Path, *, source: str | None = None, progress: Progress | None = None) -> Path:
    """Download the MSD data set `name` into `out` and return its folder.

    A download that was cut is resumed; a data set that is there already is left as it is.

    Args:
        name: for example `hippocampus` or `Task04_Hippocampus`, in any case.
        out: the folder that will hold the data set's folder.
        source: address of the folder of a mirror, to use instead of MONAI's.
        progress: called with the bytes received so far and the total, or None where the server does not say.

    Raises:
        InputError: the name is unknown, the network or the disk failed, or the archive is damaged or unsafe.
    """
    from monai.apps import DecathlonDataset  # seconds of import, and torch

    tasks = {task.partition("_")[2].lower(): task for task in DecathlonDataset.resource}
    full_names = {task.lower(): task for task in DecathlonDataset.resource}
    task = (tasks | full_names).get(name.lower())
    if task is None:
        raise choose("data set", name, tasks)
    url = DecathlonDataset.resource[task]
    if source is not None:
        url = f"{source.rstrip('/')}/{task}.tar"
    return fetch_archive(url, DecathlonDataset.md5[task], out, progress=progress)


def fetch_archive(
    url: str,
    md5: str,
    out: Path,
    *,
    progress: Progress | None = None,
    max_bytes: int = MAX_BYTES,
    connection: Connection = Connection(),
) -> Path:
    """Download the tar archive at `url`, verify it, and unpack it to the folder of the same name in `out`.

    The download lies in `NAME.tar.part` until it is complete, then in `NAME.tar.whole`, which is removed at
    the end; a `NAME.tar` that is there (brought by hand) is verified, used and kept. The folder `NAME` appears last, by
    a rename.

    Args:
        url: address of an uncompressed tar archive that holds one folder, `NAME`, in the MSD layout.
        md5: the published checksum, in hex.
        out: the folder to work in; made when missing.
        progress: as for `fetch`.
        max_bytes: limit for the archive and for the sum of the files in it.
        connection: time limits and retries.

    Raises:
        InputError: as for `fetch`.
    """
    out = Path(out)
    name = _archive_name(url)
    folder, archive, part, whole = out / name, *(out / f"{name}.tar{end}" for end in ("", ".part", ".whole"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with only_one(out / f".{name}.lock", "another process is fetching this"):
            if folder.exists():
                _require_complete(folder)
            elif archive.exists():
                _verify(archive, md5, remedy="Delete or replace it")
                _install(archive, folder, max_bytes=max_bytes)
            else:
                if not whole.exists():
                    _download(url, part, max_bytes=max_bytes, connection=connection, progress=progress)
                    os.replace(part, whole)
                _install_download(whole, md5, folder, max_bytes=max_bytes)
    except OSError as error:
        raise InputError(
            f"cannot be written ({error.strerror or error})",
            file=error.filename or out,
            remedy="Check permissions and free disk space, then run it again to resume",
        ) from error
    return folder


# ── Download ──


def _download(url: str, part: Path, *, max_bytes: int, connection: Connection, progress: Progress | None) -> None:
    """Bring `part` to its full size, from where it stands; failures that may pass are retried."""
    failures = 0
    furthest = _size(part)
    while True:
        try:
            _attempt(url, part, max_bytes=max_bytes, timeout_s=connection.timeout_s, progress=progress)
            return
        except _TransferError as error:
            # Only new ground is progress: a server without Range that always cuts at the same byte must end.
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures > connection.retries:
                raise InputError(
                    f"the download failed ({error}); {_size(part)} bytes are kept",
                    file=url,
                    remedy="Check the network and run it again to resume, "
                    f"or bring the archive to {part.with_suffix('')} by hand",
                ) from error
            time.sleep(min(connection.pause_s * 2 ** max(failures - 1, 0), 30.0))


def _attempt(url: str, part: Path, *, max_bytes: int, timeout_s: float, progress: Progress | None) -> None:
    """Make one request and append what it brings to `part`; return when the file is whole."""
    have = _size(part)
    reply = _request(url, have, timeout_s=timeout_s)
    if reply is None:  # nothing to send from there: whole already, which the checksum decides
        return
    with reply.stream:
        if max(reply.total or 0, reply.offset) > max_bytes:
            raise InputError(f"the archive has {reply.total} bytes; the limit is {max_bytes}", file=url)
        # The archive lies beside what it unpacks to until all of that is there.
        ahead = (reply.total or 0) - reply.offset
        needed = ahead + (reply.total or 0)
        remedy = "Free disk space, or choose another --out"
        require_disk("the archive with its content", part.parent, 0.95 * needed, needed, remedy)
        with part.open("ab") as file:
            file.truncate(reply.offset)
            done = reply.offset
            while chunk := _read(reply.stream):
                done += len(chunk)
                if done > max_bytes:
                    raise InputError(f"the archive has more than {max_bytes} bytes, the limit", file=url)
                file.write(chunk)
                if progress is not None:
                    progress(done, reply.total)
    if reply.total is not None and done < reply.total:
        raise _TransferError(f"the connection was cut after {done} of {reply.total} bytes")


def _request(url: str, offset: int, *, timeout_s: float) -> _Reply | None:
    """Ask for the bytes from `offset` on; None when the server says that the file ends there.

    A server may ignore the range (200: it sends the whole file) or answer with another one: the reply says
    where the bytes belong, and after a useless range the file is asked for from the start.
    """
    headers = {"User-Agent": "segscse", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        stream: http.client.HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout_s)
    except HTTPError as error:
        with error:
            if error.code == 416 and offset:
                ends = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                return None if ends and int(ends[1]) == offset else _request(url, 0, timeout_s=timeout_s)
            if error.code in RETRIED_STATUS:
                raise _TransferError(f"HTTP {error.code} {error.reason}") from error
            raise InputError(
                f"the server answered HTTP {error.code} {error.reason}", file=url, remedy="Check the address"
            ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise _TransferError(str(reason) or type(reason).__name__) from error
    if stream.status != 206:
        length = stream.headers.get("Content-Length", "")
        return _Reply(0, int(length) if length.isdigit() else None, stream)
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stream.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != offset:
        stream.close()
        return _request(url, 0, timeout_s=timeout_s)
    return _Reply(offset, None if span[2] == "*" else int(span[2]), stream)


def _read(stream: http.client.HTTPResponse) -> bytes:
    try:
        return stream.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _archive_name(url: str) -> str:
    """Return the archive's name without `.tar`; it becomes a folder, so it must be a plain file name."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InputError(f"the address must start with http:// or https://, got {url!r}")
    name = unquote(PurePosixPath(parts.path).name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.tar", name):
        raise InputError(f"the address must end in NAME.tar, got {url!r}")
    return name.removesuffix(".tar")


# ── Verify ──


def _install_download(whole: Path, md5: str, folder: Path, *, max_bytes: int) -> None:
    """Install a finished download; only a failing disk or a stop leaves it, to go on from."""
    try:
        _verify(whole, md5, remedy="The download was removed; run it again")
        _install(whole, folder, max_bytes=max_bytes)
    except InputError:
        whole.unlink(missing_ok=True)
        raise
    whole.unlink()


def _verify(path: Path, md5: str, *, remedy: str) -> None:
    hasher = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            hasher.update(chunk)
    if hasher.hexdigest() != md5.lower():
        raise InputError(f"wrong checksum: MD5 {hasher.hexdigest()}, expected {md5}", file=path, remedy=remedy)


def _require_complete(folder: Path) -> None:
    """Raise unless every file that `dataset.json` lists for training is there."""
    content = read_json(folder / "dataset.json")
    try:
        listed = [str(entry[key]) for entry in content["training"] for key in ("image", "label")]
    except (TypeError, KeyError) as error:
        raise InputError(
            "has no training list of images and labels",
            file=folder / "dataset.json",
            remedy="Delete the folder",
        ) from error
    missing = [path for path in listed if not (folder / path).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(listed)} files in dataset.json are missing, first {missing[0]!r}",
            file=folder,
            remedy="Move the folder away and fetch again",
        )


# ── Unpack ──


def _install(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Check every member of `archive`, unpack it beside `folder`, and move the finished folder into place."""
    temporary = folder.with_name(f".{folder.name}{UNPACKED_SUFFIX}")
    _remove_tree(temporary)  # of a run that was killed
    try:
        with tarfile.open(archive, "r:") as tar:
            members = _safe_members(tar, folder.name, max_bytes=max_bytes)
            unpacked, free = sum(member.size for member in members), disk_at(folder.parent).free
            if unpacked > free:  # what the system would say in the middle of it; the archive stays
                raise OSError(errno.ENOSPC, f"{size_text(unpacked)} to unpack, {size_text(free)} free", str(folder))
            temporary.mkdir()
            for member in members:
                tar.extract(member, temporary, filter="data")
        _require_complete(temporary / folder.name)
        os.replace(temporary / folder.name, folder)
    except tarfile.TarError as error:
        raise InputError(f"is not a sound tar archive ({error})", file=archive) from error
    finally:
        _remove_tree(temporary)


def _safe_members(tar: tarfile.TarFile, top: str, *, max_bytes: int) -> list[tarfile.TarInfo]:
    """Return the members to unpack: plain files and folders below `top`, each once, within the size limit."""
    seen: set[str] = set()
    total = 0
    chosen = []
    for count, member in enumerate(tar, start=1):
        path = _safe_path(member.name, tar)
        if any(part.startswith("._") for part in path.parts) or not path.parts:
            continue  # macOS's resource forks, and "./" itself
        total += max(member.size, 0)
        key = unicodedata.normalize("NFC", str(path)).casefold()  # some file systems take such names for one
        refused = _refusal(member, path, top) or (key in seen and not member.isdir() and "appears twice")
        if refused:
            raise _unsafe(tar, member.name, refused)
        if total > max_bytes or count > MAX_MEMBERS:
            raise _unsafe(tar, member.name, f"exceeds the limit of {max_bytes} bytes or {MAX_MEMBERS} members")
        seen.add(key)
        chosen.append(member)
    return chosen


def _refusal(member: tarfile.TarInfo, path: PurePosixPath, top: str) -> str:
    if member.issym() or member.islnk():
        return "is a link"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    if path.parts[0] != top or (len(path.parts) == 1 and not member.isdir()):
        return f"lies outside the folder {top}"
    return ""


def _safe_path(name: str, tar: tarfile.TarFile) -> PurePosixPath:
    """Return the member's relative path; names that mean something else on some system are refused."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise _unsafe(tar, name, "is an absolute path or climbs out of its folder")
    if re.search(r"[\\:\x00-\x1f\x7f]", name):
        raise _unsafe(tar, name, "contains a back-slash, a colon or a control character")
    return path


def _unsafe(tar: tarfile.TarFile, member: str, why: str) -> InputError:
    return InputError(f"the archive is unsafe: member {member!r} {why}; nothing was unpacked", file=str(tar.name))


def _remove_tree(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
