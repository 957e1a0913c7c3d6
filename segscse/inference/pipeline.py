"""Folders in, folders out: the next case is read, and the last one written, while the network works on this one."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from segscse import __version__
from segscse.data.inputs import Found, list_inputs
from segscse.data.io import SUFFIXES
from segscse.data.maps import write_map
from segscse.data.network_grid import Prepared
from segscse.data.notes import case_note, same_but_case
from segscse.data.output import OutputFormat, output_suffix
from segscse.errors import OUT_OF_REACH, InputError, Interrupted, SegscseError, of_system, one_line
from segscse.files import digest, only_writer, real_path, remove_leftovers, reserve, temporary_path
from segscse.inference.ahead import ahead
from segscse.inference.manifest import Manifest, digests, is_output, merge_parts
from segscse.inference.memory import MAP_BYTES, window_bytes
from segscse.inference.outcome import Failure, Outcome, together
from segscse.inference.predictor import Segmenter
from segscse.inference.quality import write_quality
from segscse.inference.room import Room, file_bytes, sizes
from segscse.inference.segment import Options, Segmentation, segment
from segscse.limits import require_disk
from segscse.ranks import ALONE, Group
from segscse.types import Progress

# Progress is counted in thousandths of a case, so that a single large scan moves the bar, too.
PARTS = 1000
# What there may be of a case beside its label map, each in a folder of its own.
MAPS = ("probabilities", "uncertainty", "disagreement")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Case:
    """A case on its way: read and prepared, found complete, partly written, or failed."""

    name: str
    inputs: Sequence[Sequence[str]] = ()
    prepared: Sequence[Prepared] = ()
    verified: bool = False
    written: bool = False
    error: Exception | None = None


def predict_files(
    model: Segmenter,
    inputs: Sequence[Path],
    out: Path,
    *,
    options: Options | None = None,
    form: OutputFormat = "nifti",
    resume: bool = False,
    memory: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    group: Group = ALONE,
) -> Outcome:
    """Segment files and folders into `out/<case>.nii.gz`; a bad case does not stop the others.

    What another model, or this one of another scan, has made of a case that fails now is removed.

    With `form="input"` each label map has its scan's format; see `segscse.data.output.output_suffix`.

    Beside the label maps go `predictions.json` (what was made from what, by digests) and `quality.csv`; on request
    `probabilities/<case>.nii.gz` `(X, Y, Z, K)`, `uncertainty/<case>.nii.gz` and, of an ensemble,
    `disagreement/<case>.nii.gz`, in bytes with a slope of 1/255, so each value is off by at most 0.002.

    Args:
        model: a predictor or an ensemble.
        inputs: images, folders of images, CSV files.
        out: where the files go.
        options: what to make of each case.
        form: the label maps' format.
        resume: leave cases alone whose inputs, model, settings and outputs are those that `predictions.json` says.
        memory: limit in bytes.
        say: told the memory estimate, and what may not fit, before the first case.
        progress: called with thousandths of cases done, and in all.
        group: processes among which the cases are dealt out; `memory` is of each, and the outcome that of all.

    Raises:
        InputError: no inputs, none with all its channels, `out` is where the inputs lie, or the largest case cannot
            fit in `memory`, or in what memory and disk there are.
        Interrupted: a signal stopped the work; whole files are there, `resume` continues.
    """
    options = options or Options()
    with ExitStack() as held:

        def begin() -> Found:
            found, faults = list_inputs(list(inputs), len(model.plan.channels))
            _refuse_overwriting(found, out)
            require_disk("the prediction", out, 0, 0, "")  # whether anything can be written there
            held.enter_context(only_writer(out))
            _refuse_strangers(found, out)
            remove_leftovers(out, *(out / name for name in MAPS))
            merge_parts(out)  # of an earlier job of several processes that was ended
            return found, faults

        cases, faults = group.on_first(begin)
        window = max(window_bytes(member) for member in model.members)
        room = Room(model, options, memory, several=len(cases) > 1, window=window)
        scans = sizes({name: files for name, files in cases.items() if name not in faults})
        warnings = [(name, case_note(other)) for name, other in same_but_case(list(cases))]
        outcome = Outcome(memory=room.largest(scans), warnings=warnings)
        if outcome.memory is not None:
            for line in room.told(scans, outcome.memory, out):
                if say is not None:
                    say(line)
        room = room.begin(outcome.memory)
        part = group.rank if group.world > 1 else None
        run = _Run(model, _dealt(cases, group), faults, out, form, resume, room, outcome, progress, part)
        with _stoppable(outcome, out):
            run.all()
        outcomes = group.gather(outcome)
        group.on_first(lambda: _write_quality(out, merge_parts(out)))
    return outcome if group.world == 1 else together(outcomes)


def _dealt(cases: Mapping[str, Sequence[Path]], group: Group) -> Mapping[str, Sequence[Path]]:
    """Return the cases of this process: of large and small files about as many as any other has."""
    # In the first one's order: sizes may change meanwhile, and another order would leave cases to nobody.
    by_size = group.on_first(lambda: sorted(cases, key=lambda name: (-file_bytes(cases[name]), name)))
    mine = set(group.share(by_size))
    return {name: files for name, files in cases.items() if name in mine}


def _write_quality(out: Path, cases: Mapping[str, Any]) -> None:
    if cases or (out / "quality.csv").exists():
        write_quality(out / "quality.csv", {name: entry.get("quality", {}) for name, entry in cases.items()})


class _Run:
    """The stages of a folder's prediction and what they share."""

    def __init__(
        self,
        model: Segmenter,
        cases: Mapping[str, Sequence[Path]],
        faults: Mapping[str, InputError],
        out: Path,
        form: OutputFormat,
        resume: bool,
        room: Room,
        outcome: Outcome,
        progress: Progress | None,
        part: int | None,
    ) -> None:
        self.model = model
        self.cases = cases
        self.faults = faults
        self.out = out
        self.form = form
        self.resume = resume
        self.room = room
        self.outcome = outcome
        self.progress = progress
        self.manifest = Manifest(out, _key(model, room.options, form), part)
        self.alone = part is None
        self.done = 0

    def all(self) -> None:
        """Take every case through reading, network and writing; leave a manifest of what is whole in any event."""
        self.manifest.begin()
        overlapped = self.room.several
        cases = ahead(self.read_all()) if overlapped else self.read_all()
        writing: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer, closing(cases):
            try:
                for case in cases:
                    made = self.network(case)
                    self._finish(writing)
                    if made is not None:
                        writing = writer.submit(self.write, replace(case, prepared=()), *made)
                    if not overlapped:
                        self._finish(writing)
                    self._moved(1.0)
                    self.done += 1
            finally:
                try:
                    self._finish(writing)
                finally:
                    if self.manifest.own or self.manifest.failures:
                        self.manifest.save()
                if self.alone:
                    _write_quality(self.out, self.manifest.cases)

    def read_all(self) -> Generator[_Case, None, None]:
        """Yield every case prepared, or that it is verified, or why it cannot be used."""
        for name, files in self.cases.items():
            inputs: Sequence[Sequence[str]] = ()
            try:
                if name in self.faults:
                    raise self.faults[name]
                inputs = digests(files)
                if self.resume and self.manifest.verified(name, inputs):
                    yield _Case(name, inputs, verified=True)
                else:
                    yield _Case(name, inputs, [_light(item) for item in self.model.prepare(list(files))])
            except Exception as error:
                yield _Case(name, inputs, error=error)

    def network(self, case: _Case) -> tuple[Segmentation, list[Path]] | None:
        """Return a case's segmentation and the files that its larger maps lie in; None if there is none to write."""
        if case.verified:
            self.outcome.verified.append(self.manifest.label_map(case.name))
            return None
        scratch: list[Path] = []
        try:
            if case.error is not None:
                raise case.error
            source = case.prepared[0].source
            self.outcome.warnings += [(str(source.path or case.name), note) for note in source.notes]
            made = segment(
                self.model.members,
                case.prepared,
                replace(self.room.options, batch_size=self.room.batch_size(source)),
                allocate=partial(_map_of_bytes, self.out, scratch),
                advance=self._moved,
            )
        except BaseException as error:
            _remove(scratch)
            if not isinstance(error, Exception):  # a stop
                raise
            self._failed(case, error)
            return None
        for number in (0, 1):
            self.outcome.windows[number] += made.windows[number]
        return made, scratch

    def write(self, case: _Case, made: Segmentation, scratch: Sequence[Path]) -> None:
        """Write a case's files, the label map last, and enter it into the manifest."""
        outputs: list[Path] = []
        try:
            for name in MAPS:
                if (values := getattr(made, name)) is not None:
                    path = self.out / name / f"{case.name}.nii.gz"
                    write_map(path, values, made.source)
                    outputs.append(path)
            path = self.out / f"{case.name}{output_suffix(made.source, self.form)}"
            if (kept := self.manifest.put_aside(case.name, path)) is not None:
                note = f"somebody had changed it since it was predicted; that file is now {kept}"
                self.outcome.warnings.append((str(path), note))
            made.save(path)
            outputs.append(path)
            self.manifest.add(case.name, case.inputs, outputs, made.quality())
            self.outcome.written.append(path)
        except Exception as error:
            _remove(outputs)
            self._failed(replace(case, written=True), error)
        finally:
            _remove(scratch)

    def _failed(self, case: _Case, error: Exception) -> None:
        """Enter a failure, whatever it is of.

        What an earlier run made of the case goes, unless it is this model's of what is, as far as known, the same scan.
        """
        if isinstance(error, SegscseError) and not isinstance(error, InputError):
            raise error  # a stop, or another process's failure
        _LOG.debug("%s failed", case.name, exc_info=error)
        if isinstance(error, OSError) and error.errno in OUT_OF_REACH and error.filename is not None:
            error = of_system(error)
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        if not case.written and self.manifest.keep(case.name, case.inputs):
            reason += " What an earlier run of this model had made of it is kept."
        elif removed := self.manifest.drop(case.name):
            reason += f" Removed what an earlier run had made of it: {', '.join(removed)}."
        self.outcome.failures.append(Failure(case.name, reason))
        self.manifest.failures[case.name] = one_line(reason)

    def _moved(self, share: float) -> None:
        if self.progress is not None:
            self.progress(self.done * PARTS + int(share * PARTS), len(self.cases) * PARTS)

    @staticmethod
    def _finish(writing: Future[None] | None) -> None:
        if writing is not None:
            writing.result()


def _key(model: Segmenter, options: Options, form: OutputFormat) -> str:
    """Return a digest of what decides the outputs besides the scans: models and settings."""
    settings = {name: value for name, value in asdict(options).items() if name != "batch_size"}
    return digest([[member.identity for member in model.members], settings, form, __version__])


def _light(prepared: Prepared) -> Prepared:
    """Return a prepared case without the scan's voxels, of which nothing but the grid is needed any more."""
    source = prepared.source
    empty = np.broadcast_to(np.zeros((), source.array.dtype), source.array.shape)
    return replace(prepared, source=replace(source, array=empty))


def _map_of_bytes(out: Path, scratch: list[Path], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of bytes for a map: in memory when it is small, else in a file beside the outputs."""
    if prod(shape) <= MAP_BYTES:
        return np.zeros(shape, np.uint8, order="F")
    path = temporary_path(out / name)
    reserve(path, prod(shape))
    scratch.append(path)
    return np.memmap(path, np.uint8, "r+", shape=shape, order="F")


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def _stoppable(outcome: Outcome, out: Path) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted`, with what is whole and how to go on."""
    caught = [signal.SIGINT]

    def stop(signum: int, frame: FrameType | None) -> None:
        caught[0] = signal.Signals(signum)
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        whole = len(outcome.written) + len(outcome.verified)
        raise Interrupted(caught[0], f"stopped; {whole} label maps are whole in {out}; go on with --resume") from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, previous)


def _refuse_overwriting(cases: Mapping[str, Sequence[Path]], out: Path) -> None:
    for files in cases.values():
        for file in files:
            # A file that is a link: the label map would take the link's place.
            itself = real_path(file)
            if real_path(out) in (itself, itself.parent, real_path(file.absolute().parent)):
                raise InputError(
                    "the output folder holds the inputs", file=out, remedy="Give another folder with --out"
                )


def _refuse_strangers(cases: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Refuse a folder that holds a file of a case's name and no record that a prediction has written there."""
    if is_output(out):
        return
    for name in cases:
        for suffix in SUFFIXES:
            if (out / f"{name}{suffix}").is_file():
                raise InputError(
                    "is there already, in a folder that no prediction has written to",
                    file=out / f"{name}{suffix}",
                    remedy="Give another folder with --out",
                )
