"""Checkpoints and weights that a stranger made: fourteen attacks, and for each a loader that falls for it."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core import saving

BOMB_BYTES = 2**28


class Runs:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch '{self.canary}'",)


class Grows:
    """Asks for much memory through a function that `weights_only` allows."""

    def __reduce__(self):
        return bytearray, (BOMB_BYTES,)


def write(sound: dict[str, Any], file: Path, *, new: bool = True, **changes: Any) -> None:
    torch.save({**sound, **changes}, file, _use_new_zipfile_serialization=new)


# ── Builders: the sound checkpoint, the file to write, the canary ──


def reduce(sound, file, canary):
    write(sound, file, state_dict=Runs(canary))


def in_optimiser(sound, file, canary):
    states = [{**sound["optimizer_states"][0], "state": {0: {"momentum": Runs(canary)}}}]
    write(sound, file, optimizer_states=states)


def in_hparams(sound, file, canary):
    write(sound, file, hyper_parameters={"lr": Runs(canary)})


def legacy_tar(sound, file, canary):
    content = pickle.dumps(Runs(canary), 2)
    with tarfile.open(file, "w") as tar:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def legacy_file(sound, file, canary):
    write(sound, file, new=False, state_dict=Runs(canary))


def second_pickle(sound, file, canary):
    write(sound, file)
    with zipfile.ZipFile(file, "a") as archive:
        prefix = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{prefix}/constants.pkl", pickle.dumps(Runs(canary), 2))


def instantiator(sound, file, canary):
    make_module(file.parent, canary)
    write(sound, file, hyper_parameters={"_instantiator": "stranger.fire"})


def class_path(sound, file, canary):
    make_module(file.parent, canary)
    write(sound, file, hyper_parameters={"_class_path": "stranger.Model", "width": 3})


def allowed_function(sound, file, canary):
    write(sound, file, callbacks={"note": Grows()})


def zip_bomb(sound, file, canary):
    write(sound, file)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        prefix = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{prefix}/data/99999", bytes(2**26))


def make_module(folder: Path, canary: Path) -> None:
    """Write a module that fires when it is imported, as a package from an index could."""
    (folder / "stranger.py").write_text(f"open({str(canary)!r}, 'w').close()\ndef fire(cls, kwargs): return cls()\n")


def header_too_long(sound, file, canary):
    file.write_bytes(struct.pack("<Q", 2**63) + b"{}")


def offsets_overlap(sound, file, canary):
    _safetensors(file, {"a": _entry(0, 16), "b": _entry(8, 24)}, bytes(24))


def offset_past_end(sound, file, canary):
    _safetensors(file, {"a": _entry(0, 16), "b": _entry(16, 2**40, 2**38 - 4)}, bytes(16))


def names_twice(sound, file, canary):
    first, second = (json.dumps(_entry(start, start + 16)) for start in (0, 16))
    _safetensors(file, f'{{"a": {first}, "a": {second}}}', bytes(16) + b"\1" * 16)


def _entry(start: int, stop: int, size: int | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [size or (stop - start) // 4], "data_offsets": [start, stop]}


def _safetensors(file: Path, header: Any, data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ── Loaders that fall for it: each returns whether the attack worked ──


def by_torch(file, canary):
    with suppress(Exception):  # what happens after the payload has run does not matter
        torch.load(file, weights_only=False)
    return canary.exists()


def by_zip(file, canary):
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("constants.pkl"))
        pickle.loads(archive.read(name))
    return canary.exists()


def by_lightning(file, canary):
    """Lightning before 2.6.6, which had no list of allowed instantiators, with `weights_only=True`."""
    allowed = saving._ALLOWED_INSTANTIATORS
    saving._ALLOWED_INSTANTIATORS = {*allowed, "stranger.fire"}
    try:
        with _on_path(file.parent):
            pl.LightningModule.load_from_checkpoint(file, weights_only=True, strict=False)
    except Exception:  # the module was imported before it fails
        pass
    finally:
        saving._ALLOWED_INSTANTIATORS = allowed
    return canary.exists()


def by_class_path(file, canary):
    """Import what the checkpoint names, as jsonargparse did for Lightning."""
    parameters = torch.load(file, weights_only=True)["hyper_parameters"]
    with _on_path(file.parent):
        importlib.import_module(parameters["_class_path"].partition(".")[0])
    return canary.exists()


def by_weights_only(file, canary):
    return len(torch.load(file, weights_only=True)["callbacks"]["note"]) == BOMB_BYTES > 100 * _pickle_size(file)


def by_unpacking(file, canary):
    with zipfile.ZipFile(file) as archive:
        record = next(item for item in archive.infolist() if item.filename.endswith("99999"))
        return len(archive.read(record)) > 500 * record.compress_size


def by_views(file, canary):
    """A reader that takes offsets as they are: two tensors share bytes."""
    header, data = _parts(file)
    first, second = (np.frombuffer(data, np.uint8)[slice(*header[name]["data_offsets"])] for name in "ab")
    return np.shares_memory(first, second)


def by_allocation(file, canary):
    """A reader that believes the length or the shape asks for more than any machine has."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    sizes = [length] if length > len(content) else [4 * entry["shape"][0] for entry in _parts(file)[0].values()]
    return max(sizes) >= 2**40 - 16


def by_last_name(file, canary):
    """A reader that takes the last of two names where a scanner has seen the first."""
    return _parts(file)[0]["a"]["data_offsets"] == [16, 32]


def _parts(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _pickle_size(file: Path) -> int:
    with zipfile.ZipFile(file) as archive:
        return len(archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))


class _on_path:  # noqa: N801, reads as a statement
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __enter__(self) -> None:
        import sys

        sys.modules.pop("stranger", None)
        importlib.invalidate_caches()
        sys.path.insert(0, self.folder)

    def __exit__(self, *_: object) -> None:
        import sys

        sys.path.remove(self.folder)
        sys.modules.pop("stranger", None)


@dataclass(frozen=True)
class Attack:
    """One attack: how it is made, what falls for it, and whether a checkpoint carries it or only weights."""

    make: Callable[[dict[str, Any], Path, Path], None]
    falls: Callable[[Path, Path], bool]
    says: str
    checkpoint: bool = True


ATTACKS = {
    "reduce": Attack(reduce, by_torch, "names 'posix system'"),
    "in the optimiser's state": Attack(in_optimiser, by_torch, "names 'posix system'"),
    "in the hyper-parameters": Attack(in_hparams, by_torch, "holds 'hyper_parameters'"),
    "legacy tar": Attack(legacy_tar, by_torch, "not a zip file"),
    "legacy file": Attack(legacy_file, by_torch, "not a zip file"),
    "second pickle": Attack(second_pickle, by_zip, r"a record .*constants\.pkl"),
    "_instantiator": Attack(instantiator, by_lightning, "holds 'hyper_parameters'"),
    "_class_path": Attack(class_path, by_class_path, "holds 'hyper_parameters'"),
    "allowed function": Attack(allowed_function, by_weights_only, "names '__builtin__ bytearray'"),
    "zip bomb": Attack(zip_bomb, by_unpacking, "compressed"),
    "header of 2^63 bytes": Attack(header_too_long, by_allocation, "header would have", checkpoint=False),
    "overlapping offsets": Attack(offsets_overlap, by_views, "cannot be read", checkpoint=False),
    "offset past the end": Attack(offset_past_end, by_allocation, "cannot be read", checkpoint=False),
    "a name twice": Attack(names_twice, by_last_name, "'a' occurs twice", checkpoint=False),
}


def names_in(file: Path) -> set[str]:
    """Return the functions that a checkpoint's pickle names."""
    with zipfile.ZipFile(file) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    return {str(argument) for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"}
