"""What a checkpoint may hold, looked at without loading it: the tensors and plain values that a run writes.

`weights_only=True` is what keeps a checkpoint from running code. It still calls functions of a list of its own, some of
which take any amount of memory, and reads forms of archive that a run never writes; this refuses those as well.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

from segscse.errors import InputError
from segscse.files import require_plain

# What zipfile raises of a file that is no archive, is cut short or damaged, or is packed in a way unknown to it.
BROKEN_ARCHIVE = (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
# Ours is tens of kilobytes for the largest network: tensors lie in records of their own.
MAX_PICKLE_BYTES = 2**22
RECORDS = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
GLOBALS = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch [A-Za-z0-9]+Storage")
# Lightning makes objects of these when it rebuilds a module from a checkpoint (GHSA-qqmf-gpg7-g8gw); a run has none.
BUILDERS = frozenset({"hyper_parameters", "datamodule_hyper_parameters", "_instantiator", "_class_path"})
# Codes by which a pickle names something else than by `GLOBAL`, which torch.save never writes.
OTHER_CALLS = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"})


def refuse_foreign(path: Path) -> None:
    """Refuse a checkpoint that holds anything but what a run of segscse writes; nothing in it is executed.

    Raises:
        InputError: it is no archive as torch writes them, or names anything that needs more than tensors, numbers,
            texts, lists and dictionaries.
    """
    try:
        require_plain(path)
        with zipfile.ZipFile(path) as archive:
            problem = _records_problem(archive, path) or _pickle_problem(archive)
    except (*BROKEN_ARCHIVE, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = " ".join(str(error).split()) or type(error).__name__
    if problem:
        raise InputError(
            f"is no checkpoint that segscse wrote ({problem})",
            file=path,
            remedy="Do not use it, and start the run again in another folder",
        )


def _records_problem(archive: zipfile.ZipFile, path: Path) -> str:
    """Return what is wrong with the list of records: a torch archive holds each once, as it is, under known names."""
    records = archive.infolist()
    names = [record.filename for record in records]
    if foreign := next((name for name in names if RECORDS.fullmatch(name) is None), None):
        return f"it holds a record {foreign[:80]!r}"
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) != 1:
        return "it holds a record twice"
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return "a record of it is compressed"
    if sum(record.file_size for record in records) > path.stat().st_size:
        return "its records are larger than the file"
    return ""


def _pickle_problem(archive: zipfile.ZipFile) -> str:
    """Return what the pickle in an archive asks for beyond tensors and plain values."""
    record = next((item for item in archive.infolist() if item.filename.endswith("/data.pkl")), None)
    if record is None or record.file_size > MAX_PICKLE_BYTES:
        return "it has no data.pkl" if record is None else "its data.pkl is too large"
    for code, argument, _ in pickletools.genops(archive.read(record)):
        if code.name in OTHER_CALLS:
            return f"it uses the code {code.name}"
        if code.name == "GLOBAL" and GLOBALS.fullmatch(str(argument)) is None:
            return f"it names {str(argument)[:80]!r}"
        if isinstance(argument, str) and argument in BUILDERS:
            return f"it holds {argument!r}"
    return ""
