"""NRRD and MetaImage: their text headers, checks of the voxels behind them, and writing with the geometry as it came.

ITK reads the voxels (`segscse.data.io`), but takes a damaged compressed MetaImage for whole and rounds the axes of an
NRRD each time that it writes them; so both are seen to here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segscse.errors import InputError
from segscse.files import atomic_path

MAX_BYTES = 64 * 2**30
MAX_HEADER = 2**20
MAX_DIGITS = 10  # of a size
META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    **{"float": "f4", "double": "f8"},
}
NRRD_SPACES = {"left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las"}
NRRD_GEOMETRY = ("space", "space dimension", "space directions", "space origin", "space units")
NRRD_AXES = ("spacings", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings")
META_GEOMETRY = (
    *("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"),
    *("CenterOfRotation", "AnatomicalOrientation", "ElementSpacing"),
)


@dataclass(frozen=True, slots=True)
class TextHeader:
    """The header of an NRRD or a MetaImage.

    Attributes:
        format: `nrrd` or `meta`.
        fields: name to text, as in the file; names of NRRD in lower case.
        expected: bytes that the voxels take unpacked.
        compression: None, `gzip` or `zlib`.
        data: the file with the voxels, and where in it they start.
        notes: what was unusual but harmless.
    """

    format: str
    fields: Mapping[str, str]
    expected: int
    compression: str | None
    data: tuple[Path, int]
    notes: tuple[str, ...] = ()


def read_text_header(path: Path) -> TextHeader:
    """Read a header and check that the voxels behind it are all there; compressed ones are unpacked for that.

    Raises:
        InputError: the header cannot be understood, or the voxels are cut short, damaged or elsewhere.
    """
    try:
        header = _parsed(path)
        _check_voxels(header, path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, remedy="Check permissions") from error
    return header


def peek_text_header(path: Path) -> TextHeader | None:
    """Return a header whose voxels are not looked at; None of one that cannot be understood: reading it says why."""
    try:
        return _parsed(path)
    except (InputError, OSError):
        return None


def detached_voxels(path: Path) -> Path | None:
    """Return the second file, with the voxels, of an NRRD or a MetaImage; None of one in a single file."""
    header = peek_text_header(path)
    return None if header is None or header.data[0] == path else header.data[0]


def write_nrrd(path: str | Path, array: np.ndarray, geometry: Mapping[str, str]) -> None:
    """Write `(X, Y, Z)` voxels as a gzip-compressed NRRD; `geometry` are another NRRD's fields, kept as they are."""
    fields = {name: geometry[name] for name in NRRD_GEOMETRY if name in geometry}
    if "space directions" in fields:
        axes = re.findall(r"\([^)]*\)", fields["space directions"])  # without the `none` of a channel axis
        fields["space directions"] = " ".join(axes)
    else:
        for name in (name for name in NRRD_AXES if name in geometry):
            items = geometry[name].split()
            if len(items) == 4:
                del items[_channel_axis(geometry)]
            fields[name] = " ".join(items)
    kind = next(name for name, code in NRRD_TYPES.items() if code == array.dtype.str[1:])
    lines = ["NRRD0004", f"type: {kind}", "dimension: 3", f"sizes: {' '.join(map(str, array.shape))}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    lines += ["kinds: domain domain domain", "endian: little", "encoding: gzip"]
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: with gzip's header and checksum
    voxels = packer.compress(_little(array)) + packer.flush()
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(lines).encode() + b"\n\n" + voxels)


def _channel_axis(geometry: Mapping[str, str]) -> int:
    """Return which of the four axes of an NRRD its channels are: the one that is no axis of space, or has no size."""
    kinds, spacings = (geometry.get(name, "").lower().split() for name in ("kinds", "spacings"))
    found = [axis for axis, kind in enumerate(kinds) if kind not in ("domain", "space")]
    return (found or [axis for axis, size in enumerate(spacings) if size == "nan"] or [0])[0]


def write_meta(path: str | Path, array: np.ndarray, geometry: Mapping[str, str]) -> None:
    """Write `(X, Y, Z)` voxels as a compressed MetaImage in one file; `geometry` are another's fields, kept."""
    voxels = zlib.compress(_little(array), 6)
    kind = next(name for name, code in META_TYPES.items() if code == array.dtype.str[1:])
    fields = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False"}
    fields |= {"CompressedData": "True", "CompressedDataSize": str(len(voxels))}
    fields |= {name: geometry[name] for name in META_GEOMETRY if name in geometry}
    if "ElementSize" in geometry:  # which ITK takes for the spacing where no other is given
        fields.setdefault("ElementSpacing", geometry["ElementSize"])
    fields |= {"DimSize": " ".join(map(str, array.shape)), "ElementType": kind, "ElementDataFile": "LOCAL"}
    text = "".join(f"{name} = {value}\n" for name, value in fields.items())
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode() + voxels)


def _little(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")


def _parsed(path: Path) -> TextHeader:
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER)
    return _nrrd(path, start) if start.startswith(b"NRRD") else _meta(path, start)


def _nrrd(path: Path, start: bytes) -> TextHeader:
    end = re.search(rb"\r?\n\r?\n", start)
    text = (start if end is None else start[: end.start()]).decode("utf-8", errors="replace")
    fields = {}
    for line in text.splitlines()[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(f"NRRD encoding {encoding!r} is not supported", file=path, remedy="Save it as gzip or raw")
    if any(fields.get(name, "0") != "0" for name in ("line skip", "byte skip", "lineskip", "byteskip")):
        raise InputError("NRRD with a line or byte skip is not supported", file=path, remedy="Save it again")
    shape = _whole(path, fields, "sizes")
    item = NRRD_TYPES.get(fields.get("type", "").lower())
    notes: tuple[str, ...] = ()
    if fields.get("space", "").lower() not in NRRD_SPACES or "space directions" not in fields:
        notes = ("the header names no anatomical space, so the orientation is a guess",)
    detached_name = fields.get("data file", fields.get("datafile"))
    if detached_name is not None:
        data = (_beside(path, detached_name), 0)
    elif end is not None:
        data = (path, end.end())
    else:
        raise _damaged(path, "its header has no end")
    compression = None if encoding == "raw" else "gzip"
    return TextHeader("nrrd", fields, _bytes(path, shape, item, 1), compression, data, notes)


def _meta(path: Path, start: bytes) -> TextHeader:
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields:
        end = start.find(b"\n", position)
        name, equals, value = start[position:end].decode("utf-8", errors="replace").partition("=")
        if end < 0 or not equals:
            raise _damaged(path, "it is no MetaImage")
        fields[name.strip()] = value.strip()
        position = end + 1
    shape = _whole(path, fields, "DimSize")
    item = META_TYPES.get(fields.get("ElementType", ""))
    channels = fields.get("ElementNumberOfChannels", "1")
    if (
        not (channels.isascii() and channels.isdecimal() and len(channels) < MAX_DIGITS)
        or fields.get("BinaryData", "True").lower() != "true"
    ):
        raise InputError("a MetaImage of text is not supported", file=path, remedy="Save it as binary")
    name = fields["ElementDataFile"]
    data = (path, position) if name.upper() == "LOCAL" else (_beside(path, name), 0)
    if fields.get("HeaderSize", "0") != "0":
        raise InputError("a MetaImage with a HeaderSize is not supported", file=path, remedy="Save it again")
    compression = "zlib" if fields.get("CompressedData", "False").lower() == "true" else None
    return TextHeader("meta", fields, _bytes(path, shape, item, int(channels)), compression, data)


def _whole(path: Path, fields: Mapping[str, str], name: str) -> list[int]:
    values = fields.get(name, "").split()
    plain = all(value.isascii() and value.isdecimal() and len(value) < MAX_DIGITS for value in values)
    if not values or not plain or not all(int(value) > 0 for value in values):
        raise _damaged(path, f"{name} is {fields.get(name)!r}")
    return [int(value) for value in values]


def _bytes(path: Path, shape: list[int], item: str | None, channels: int) -> int:
    if item is None:
        raise InputError("voxels must be real numbers of a known type", file=path, remedy="Convert it to grey values")
    if len(shape) not in (3, 4):  # ITK ends the whole process on some files of five axes
        raise InputError(f"must be 3D, got {len(shape)}D", file=path, remedy="Split or squeeze it")
    needed = int(np.prod(shape, dtype=object)) * channels * np.dtype(item).itemsize
    if needed > MAX_BYTES:
        raise InputError(f"unpacks to more than {MAX_BYTES >> 30} GiB", file=path, remedy="Check the file")
    return needed


def _beside(path: Path, name: str) -> Path:
    """Return a detached data file; only one in the header's own folder is opened."""
    if Path(name).name != name or name.upper().startswith("LIST") or "%" in name or not name:
        raise InputError(
            f"names its voxels {name!r}; only one file in the same folder is supported",
            file=path,
            remedy="Save header and voxels as one file",
        )
    if not (path.parent / name).is_file():
        raise InputError(f"its voxels' file {name} is missing", file=path, remedy="Copy both files")
    return path.parent / name


def _check_voxels(header: TextHeader, path: Path) -> None:
    file, offset = header.data
    held = file.stat().st_size - offset
    if header.compression is None:
        if held < header.expected:
            problem = f"its header announces {header.expected} bytes of voxels, the file holds {held}"
            raise InputError(f"is cut short: {problem}", file=path, remedy="Copy or export it again")
        return
    unpacker = zlib.decompressobj({"gzip": 31, "zlib": 15}[header.compression])
    found = 0
    with file.open("rb") as stream:
        stream.seek(offset)
        try:
            while not unpacker.eof and found <= header.expected and (chunk := stream.read(2**22)):
                while chunk and found <= header.expected:
                    found += len(unpacker.decompress(chunk, 2**24))
                    chunk = unpacker.unconsumed_tail
            if not unpacker.eof and found <= header.expected:
                found += len(unpacker.flush())
        except zlib.error as error:
            raise _damaged(path, f"the compressed stream: {error}") from error
    if not unpacker.eof or found != header.expected:  # at the end of the stream its checksum is verified
        problem = f"the stream holds {found} bytes{'' if unpacker.eof else ' or more'}, {header.expected} are announced"
        raise _damaged(path, problem)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"cannot be read ({reason})", file=path, remedy="Copy or export it again")
