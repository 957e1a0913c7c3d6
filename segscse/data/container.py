"""Files to bytes: stand-ins for files, and gzip streams read to their end but not past what their header announces."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path

from segscse.data.text_header import MAX_BYTES
from segscse.errors import InputError

POINTERS = {b"version https://git-lfs": "a git-lfs pointer", b"/annex/": "a git-annex pointer"}
# What a stream may hold beyond its voxels.
SLACK_BYTES = 2**20
# Deflate packs at most 1032 bytes into one.
MOST_PACKED = 1032
# The name and the comment in a gzip header end with a zero byte; none is longer than this.
MAX_GZIP_HEADER = 2**16

Announced = Callable[[bytes], int | None]


def read_content(path: Path, *, compressed: bool, announced: Announced) -> bytes:
    """Return the bytes of an image file, unpacked to the end of the stream, where its checksum is verified.

    Args:
        path: the file.
        compressed: whether its name says that it may be a gzip stream.
        announced: tells from the first bytes how long the image's header says that it is; None where it does not.

    Raises:
        InputError: the file cannot be read, is empty, is a pointer, or its stream is damaged or too long.
    """
    refuse_stand_in(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Copy it again") from error
    packed = raw.startswith(b"\x1f\x8b")
    if packed and not compressed:
        raise InputError("is a gzip stream without .gz in its name", file=path, remedy=f"Rename it to {path.name}.gz")
    if not packed:
        return raw
    try:
        _check_gzip_header(raw)
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            return _read_limited(stream, path, announced, len(raw))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"the compressed stream is damaged or cut short ({error})",
            file=path,
            remedy="Copy or download it again",
        ) from error


def first_bytes(path: Path, size: int = 1024) -> bytes:
    """Return the first bytes of a file, unpacked; none where it cannot be read, or is a pipe, which would wait."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as stream:
            start = stream.read(size + MAX_GZIP_HEADER)
        return zlib.decompressobj(31).decompress(start, size) if start.startswith(b"\x1f\x8b") else start[:size]
    except (OSError, zlib.error):
        return b""


def refuse_stand_in(path: Path) -> None:
    """Refuse a file that is empty, or that only points to the content.

    Raises:
        InputError: it is one of these, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(1024)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Check permissions") from error
    if not start:
        raise InputError("is empty", file=path, remedy="Copy or download it again")
    for mark, name in POINTERS.items():
        if len(start) < 1024 and mark in start:
            raise InputError(f"is {name}, not an image", file=path, remedy="Fetch the file's content first")


def _check_gzip_header(raw: bytes) -> None:
    """Refuse a member's name or comment without end, which Python's gzip would look for byte by byte."""
    flags, place = raw[3] if len(raw) > 3 else 0, 10
    if flags & 4:  # an extra field, whose length of two bytes comes first
        place += 2 + int.from_bytes(raw[place : place + 2], "little")
    for flag in (8, 16):
        if flags & flag:
            end = raw.find(b"\0", place, place + MAX_GZIP_HEADER)
            if end < 0:
                raise EOFError("a name in the stream's header has no end")
            place = end + 1


def _read_limited(stream: gzip.GzipFile, path: Path, announced: Announced, n_packed: int) -> bytes:
    content = bytearray(stream.read(2**10))
    told = announced(bytes(content))
    if told is not None and told > MOST_PACKED * n_packed:
        raise InputError(
            f"is cut short: its header announces {told} bytes, more than its {n_packed} can unpack to",
            file=path,
            remedy="Copy or export it again",
        )
    limit = MAX_BYTES if told is None else min(MAX_BYTES, told + SLACK_BYTES)
    while chunk := stream.read(min(2**22, limit + 1)):
        content += chunk
        if len(content) > limit:
            what = f"{MAX_BYTES >> 30} GiB" if told is None or limit == MAX_BYTES else f"the {told} bytes of its header"
            raise InputError(f"unpacks to more than {what}", file=path, remedy="Copy or export it again")
    return bytes(content)
