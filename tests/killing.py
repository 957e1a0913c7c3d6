"""Work in processes that get killed: a warm server forks them, so that the imports are paid once."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from segscse.data.store import CaseStore
from segscse.errors import Interrupted, SegscseError
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.inference.segment import Options
from segscse.training import callbacks, checkpoints
from segscse.training.module import SegModule
from segscse.training.run import train_run

KILLED = -signal.SIGKILL
ROOT = Path(__file__).resolve().parents[1]


def start(target: Callable[..., object], log: Path, *arguments: object) -> BaseProcess:
    """Start `target(*arguments)` in a process of its own; what it prints goes to the end of `log`.

    Its exit code is the command line's: 0, 2 for an error with a name, 1 for any other, 130, 143.
    """
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ.update(PYTHONPATH=paths, OMP_NUM_THREADS="1")  # a thread of the server's would be missing after a fork
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["killing"])
        process = context.Process(target=_work, args=(target, log, arguments))
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return process


def finish(process: BaseProcess, seconds: float = 300.0) -> int:
    """Wait for a process and return its exit code; minus nine after SIGKILL."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the process hung for {seconds} s")
    return process.exitcode


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """Send SIGKILL after a while; return whether that came before its end."""
    process.join(seconds)
    process.kill()
    return finish(process) == KILLED


def _work(target: Callable[..., object], log: Path, arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    with log.open("a") as stream:
        for standard in (1, 2):
            os.dup2(stream.fileno(), standard)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    torch.set_num_threads(1)
    code = 0
    try:
        target(*arguments)
    except Interrupted as error:
        code = 128 + error.signum
    except SegscseError as error:
        sys.stderr.write(f"segscse: {error}\n")
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the server's exit handlers are not this process's


def die() -> None:
    """End this process as SIGKILL from outside would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


# ── Training ──


def train(
    dataset: Path, folder: Path, config: Any, resume: bool, samples: Path, moment: tuple[str, int, int] | None
) -> None:
    """Train, write down what every step was trained on, and die at a moment if one is given.

    Args:
        dataset: the data set.
        folder: the run.
        config: the experiment.
        resume: as for `train_run`.
        samples: a file that gets a line a step: its number and a digest of its augmented batch.
        moment: `checkpoint` or `validation`, the number of which that is, from 0, and the place in it: before (0) or
            after (1) the first half; of a checkpoint, in the middle of the bytes (0), before the old one gets its
            second name (1) or after that (2).
    """
    torch.use_deterministic_algorithms(True)
    callbacks.LOG_EVERY = 2
    step = SegModule.training_step

    def training_step(self: SegModule, batch: Any, batch_idx: int) -> torch.Tensor:
        digest = hashlib.sha256(b"".join(batch[name].numpy().tobytes() for name in ("image", "label"))).hexdigest()
        with samples.open("a") as stream:
            stream.write(f"{self.clock.step} {digest} {' '.join(batch['cases'])}\n")
        torch.rand(1)  # as dropout would: the random states move with the steps
        return step(self, batch, batch_idx)

    SegModule.training_step = training_step
    if moment is not None:
        {"checkpoint": _die_in_checkpoint, "validation": _die_in_validation}[moment[0]](*moment[1:])
    train_run(dataset, folder, config, resume=resume)


def _die_in_validation(number: int, place: int) -> None:
    whole, seen = SegModule.validation_step, [0]

    def validation_step(self: SegModule, batch: Any, batch_idx: int) -> None:
        seen[0] += 1
        if seen[0] == number + 1 and place == 0:
            die()
        whole(self, batch, batch_idx)
        if seen[0] == number + 1:
            die()

    SegModule.validation_step = validation_step


def _die_in_checkpoint(number: int, place: int) -> None:
    whole, seen = checkpoints.keep_as, [-1]

    write = Path.write_bytes

    def write_bytes(self: Path, data: Any) -> int:
        if self.suffix != ".ckpt":
            return write(self, data)
        seen[0] += 1
        if seen[0] == number and place == 0:
            write(self, data[: len(data) // 2])
            die()
        return write(self, data)

    def keep_as(path: Path, name: str) -> None:
        if seen[0] >= number and place == 1:
            die()
        whole(path, name)
        if seen[0] >= number and place == 2:
            die()

    Path.write_bytes = write_bytes
    checkpoints.keep_as = keep_as


def prepare(dataset: Path, folder: Path, config: Any, started: Path) -> None:
    """Train, whose cases go to a folder first; make a file `started` just before."""
    whole = CaseStore.prepare

    def begin(self: CaseStore, progress: Any = None) -> None:
        started.touch()
        whole(self, progress)
        started.unlink()  # what comes after is another test's

    CaseStore.prepare = begin
    train_run(dataset, folder, config)


# ── Prediction ──


def predict(model: Path, scans: Path, out: Path, resume: bool, started: Path | None) -> None:
    """Segment a folder, with all maps; make a file `started` when the model is loaded."""
    predictor = load(model, device="cpu")
    if started is not None:
        started.touch()
    outcome = predict_files(
        predictor, [scans], out, options=Options(probabilities=True, uncertainty=True), resume=resume
    )
    sys.stdout.write(f"{len(outcome.written)} written, {len(outcome.verified)} verified, {outcome.failures}\n")


# ── Comparing ──


def require_whole_gzip(path: Path) -> None:
    """Read a gzip file to its very end, where its checksum and length are."""
    with gzip.open(path) as stream:
        while stream.read(2**20):
            pass


def training_state(folder: Path) -> dict[str, Any]:
    """Return all that a finished run's checkpoint says but for the seconds that it took."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state["clock"] = {k: v for k, v in state["clock"].items() if k not in ("elapsed_s", "validation_s")}
    # Lightning's counters, which nothing of ours reads: a kill beside a validation moves the epoch by one.
    for name in ("loops", "epoch"):
        state.pop(name)
    return state


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places at which two nested values are not equal bit for bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return [f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            found
            for i, (one, other) in enumerate(zip(a, b, strict=True))
            for found in differences(one, other, f"{where}/{i}")
        ]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    else:
        same = type(a) is type(b) and (a == b or (a != a and b != b))
    return [] if same else [where]
