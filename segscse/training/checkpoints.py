"""Checkpoints on disk: written whole or not at all, checked before they are used, the one before kept."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from segscse.errors import InputError
from segscse.files import atomic_path, keep_as
from segscse.training.untrusted import BROKEN_ARCHIVE

FOLDER = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes through `atomic_path`; what is written in place of `last.ckpt` leaves the old one as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            InputError: it cannot be written; the file that was there is still there.
        """
        path = Path(path)
        buffer = io.BytesIO()  # torch's own writer turns a full disk into an error without a reason
        torch.save(checkpoint, buffer)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
            if path.name == LAST:
                keep_as(path, PREVIOUS)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing but plain values and tensors can come out of it, whatever is asked for.

        Raises:
            InputError: it is no checkpoint, or holds anything else.
        """
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise _no_checkpoint(Path(path), error) from error


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run folder holds a checkpoint, sound or not."""
    return any((folder / FOLDER / name).exists() for name in (LAST, PREVIOUS))


def sound_checkpoint(folder: Path) -> tuple[Path, str]:
    """Return the newest sound checkpoint of a run folder, and a warning, which is empty if that is the last one.

    Raises:
        InputError: there is none.
    """
    last, previous = (folder / FOLDER / name for name in (LAST, PREVIOUS))
    problem = damage(last)
    if not problem:
        return last, ""
    if damage(previous):
        raise InputError(f"cannot be resumed from: it {problem}", file=last, remedy="Start the run in another folder")
    return previous, f"{last}: it {problem}; the run goes on from {PREVIOUS}, some steps earlier"


def take_for_last(checkpoint: Path) -> None:
    """Let the checkpoint that a run goes on from be its last one, lest the next save keeps a damaged one beside it."""
    if checkpoint.name == PREVIOUS:
        keep_as(checkpoint, LAST)


def damage(path: Path) -> str:
    """Return what is wrong with a checkpoint file, or nothing: torch itself reads over a flipped bit."""
    if not path.is_file():
        return "is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except BROKEN_ARCHIVE as error:
        return f"is damaged ({error})"
    return f"is damaged (wrong checksum of {bad})" if bad else ""


def step_of(path: Path) -> int:
    """Return the number of optimiser steps that a checkpoint was made after; its tensors are not read.

    Raises:
        InputError: it does not say.
    """
    try:
        return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"])
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        pickle.UnpicklingError,
    ) as error:
        raise _no_checkpoint(path, error) from error


def _no_checkpoint(path: Path, error: Exception) -> InputError:
    return InputError(
        f"is no checkpoint of a run ({' '.join(str(error).split())[:120]})",
        file=path,
        remedy="Start the run again in another folder",
    )
