"""The test stand: healthy inputs of a verb, one fault in them, the verb, and whether it ended as it should."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import broken_files as broken
import numpy as np
import yaml
from broken_files import Builder, healthy
from fault_table import Fault
from surroundings import captured
from volumes import TINY_AFFINE, tiny_case

from segscse.cli import run

CASES = ("case_0", "case_1", "case_2", "case_3")
DECLARED = {0: "background", 1: "front", 2: "back"}
SETTINGS = {
    "model": {"base_features": 4, "max_features": 8},
    "data": {"max_patch_voxels": 4096, "batch_size": 2},
    "train": {"max_steps": 1, "validations": 1, "device": "cpu", "precision": "fp32"},
}
ROLES = {"check": ("image", "label"), "train": ("image", "label"), "predict": ("image",), "evaluate": ("pred", "ref")}
# What each verb's command leaves when all went well.
RESULTS = {"check": "found.json", "train": "model/model.safetensors", "evaluate": "summary.json"}
WARNING = ("segscse: warning: ", "warning: ")
TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp")


@dataclass
class Stand:
    """A folder with the healthy inputs of a verb, which faults then change.

    Attributes:
        root: holds `in/` and, once the verb has run, `out/`.
        verb: the verb.
        models: folders of trained models by name.
        seed: of everything that is drawn.
    """

    root: Path
    verb: str
    models: dict[str, Path]
    seed: int = 0
    cases: tuple[str, ...] = CASES
    declared: dict[int, str] = field(default_factory=lambda: dict(DECLARED))
    model: str = "plain"
    environment: dict[str, str] = field(default_factory=dict)
    closed_stdout: bool = False
    out: Path | None = None
    listed: list[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.rng = np.random.default_rng([20, self.seed])
        self.roles = ROLES[self.verb]
        self.files: dict[tuple[str, str], Path] = {}
        self.channels: dict[str, Path | None] = {}
        for case in self.cases:
            for role in self.roles:
                self.put(role, case, healthy)

    @property
    def data(self) -> Path:
        """The folder of everything that goes in."""
        return self.root / "in"

    def folder(self, role: str) -> Path:
        """Return the folder of a role's files."""
        if self.verb == "predict":
            return self.data
        return self.data / {"image": "imagesTr", "label": "labelsTr"}.get(role, role)

    def arrays(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image and label map of a case."""
        return _tiny(number)

    def put(self, role: str, case: str, builder: Builder) -> Path:
        """Write a case's file of a role by a builder, in place of the one that is there."""
        number = CASES.index(case) if case in CASES else 7
        image, label = self.arrays(number)
        return self.write(role, case, builder, image if role == "image" else label, TINY_AFFINE)

    def write(self, role: str, case: str, builder: Builder, array: np.ndarray, affine: np.ndarray) -> Path:
        """Write voxels by a builder."""
        self.remove(role, case)
        folder = self.folder(role)
        folder.mkdir(parents=True, exist_ok=True)
        path = builder(folder / case, array, affine, self.rng)
        self.files[role, case] = path
        return path

    def remove(self, role: str, case: str) -> None:
        """Remove a case's file of a role; a list of files keeps naming it."""
        if (role, case) in self.files:
            self.files[role, case].unlink(missing_ok=True)

    def twin(self, role: str, case: str, suffix: str) -> None:
        """Write a second file of the same stem."""
        number = CASES.index(case)
        image, label = self.arrays(number)
        content = broken.nifti(image if role == "image" else label, TINY_AFFINE)
        path = broken.write(self.folder(role) / case, suffix, content)
        if self.verb in ("check", "train"):
            self.listed = [*((name, name) for name in self.cases), (case, case)]
            self.files["image", f"{case} "] = path

    def copy_case(self, case: str, name: str, *, fresh: bool = False) -> None:
        """Add a case under another name: a copy, or with `fresh` one of its own voxels."""
        self.cases = (*self.cases, name)
        for role in self.roles:
            if fresh:
                self.put(role, name, healthy)
            else:
                path = self.files[role, case]
                self.files[role, name] = path.with_name(path.name.replace(case, name))
                shutil.copy(path, self.files[role, name])

    def rename(self, case: str, name: str) -> None:
        """Give a case another name."""
        self.cases = tuple(name if item == case else item for item in self.cases)
        for role in self.roles:
            path = self.files.pop((role, case))
            self.files[role, name] = path.rename(path.with_name(path.name.replace(case, name)))

    def rename_root(self, name: str) -> None:
        """Let everything lie in a folder of that name."""
        new = self.root / name
        new.mkdir()
        (self.root / "in").rename(new / "in")
        self.files = {key: new / path.relative_to(self.root) for key, path in self.files.items()}
        self.root = new

    def add_channel(self, case: str, builder: Builder) -> None:
        """Give a case a second channel."""
        folder = self.folder("image")
        image, _ = self.arrays(CASES.index(case))
        self.channels[case] = builder(folder / f"{case}_0001", image * 2 + 1, TINY_AFFINE, self.rng)

    def remove_channel(self, case: str) -> None:
        """Remove the second channel of a case."""
        path = self.channels[case]
        assert path is not None
        path.unlink()

    def as_csv(self, listed: list[tuple[str, str]]) -> None:
        """List ids and the case whose files each has in a CSV."""
        self.listed = listed

    def use_model(self, name: str) -> None:
        """Predict by another of the models."""
        self.model = name

    def input_folder(self) -> Path:
        """Return a folder of inputs."""
        return self.folder(self.roles[0])

    def fill_output(self) -> None:
        """Leave results of an earlier run at the output's place."""
        folder = self.root / "out"
        folder.mkdir()
        (folder / "summary.json").write_text("{}")
        (folder / "case_1.nii.gz").write_bytes(b"of an earlier run")

    def command(self) -> list[str]:
        """Write the description of the data set and return the verb's command."""
        out = self.out or self.root / "out"
        if self.verb == "predict":
            source = self._predict_source()
            return ["predict", str(self.models[self.model]), str(source), "--out", str(out), "--device", "cpu"]
        if self.verb == "evaluate":
            folders = ["--pred", str(self.folder("pred")), "--ref", str(self.folder("ref"))]
            return ["evaluate", *folders, "--out", str(out), "--no-viewer", "--workers", "1"]
        source = self._describe()
        if self.verb == "check":
            return ["check", str(source), "--json", str(out / "found.json")]
        config = self.root / "settings.yaml"
        config.write_text(yaml.safe_dump(SETTINGS))
        return ["train", str(source), "--out", str(out), "--fold", "all", "--config", str(config)]

    def _describe(self) -> Path:
        """Write the description that suits: dataset.json, or a CSV for several channels or a list of files."""
        if self.channels or self.listed is not None:
            return self._csv(self.listed or [(case, case) for case in self.cases])
        where = {key: f"./{path.relative_to(self.data)}" for key, path in self.files.items()}
        description = {
            "modality": {"0": "MRI"},
            "labels": {str(number): name for number, name in self.declared.items()},
            "training": [{"image": where["image", case], "label": where["label", case]} for case in self.cases],
        }
        (self.data / "dataset.json").write_text(json.dumps(description))
        return self.data

    def _predict_source(self) -> Path:
        if not self.channels:
            return self.data
        for case in self.cases:
            path = self.files["image", case]
            self.files["image", case] = path.rename(path.with_name(path.name.replace(case, f"{case}_0000")))
        return self.data

    def _csv(self, listed: list[tuple[str, str]]) -> Path:
        columns = ["case", "image", *(["image2"] if self.channels else []), "label"]
        with (self.data / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            for name, case in listed:
                second = [self.channels[case]] if self.channels else []
                files = [self.files["image", case], *second, self.files["label", case]]
                writer.writerow([name, *(path.relative_to(self.data) for path in files if path is not None)])
        return self.data / "cases.csv"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    out: Path
    changed: tuple[str, ...]

    @property
    def errors(self) -> list[str]:
        """The lines of standard error that are no warnings."""
        return [line for line in self.stderr.splitlines() if not line.startswith(WARNING)]

    @property
    def warnings(self) -> list[str]:
        """The warnings, wherever they are said."""
        lines = [*self.stderr.splitlines(), *self.stdout.splitlines()]
        return [line for line in lines if line.startswith(WARNING)]


def attempt(
    fault: Fault, verb: str, root: Path, models: dict[str, Path], run_verb: Callable[[list[str]], int] = run
) -> tuple[Ended, Stand]:
    """Prepare a stand with one fault and run the verb on it."""
    stand = Stand(root, verb, models, seed=int.from_bytes(fault.id.encode(), "big"))
    if fault.make is not None:
        fault.make(stand)
    if fault.builder is not None:
        for role in _targets(fault.scope, verb):
            stand.put(role, "case_1", fault.builder)
    command = stand.command()
    before = _sums(stand.data)
    with captured(stand) as streams:
        code = run_verb(command)
    after = _sums(stand.data)
    changed = tuple(str(path) for path in before if after.get(path) != before[path])
    out = stand.out or stand.root / "out"
    return Ended(code, streams["stdout"], streams["stderr"], out, changed), stand


def _targets(scope: str, verb: str) -> tuple[str, ...]:
    if verb == "predict":
        return ("image",)
    if verb == "evaluate":
        return ("pred", "ref") if scope == "case" else ("pred",)
    return {"image": ("image",), "label": ("label",), "case": ("image", "label")}[scope]


def complaints(fault: Fault, verb: str, ended: Ended, stand: Stand) -> list[str]:
    """Return in what a command did not end as it should; nothing when it did."""
    outcome = fault.expected[verb]
    found = [f"changed {path}" for path in ended.changed]
    if "Traceback" in ended.stderr + ended.stdout:
        found.append("a traceback was shown")
    left = [path.name for path in stand.root.rglob("*") if TEMPORARY.match(path.name)]
    if left:
        found.append(f"temporary files are left: {left}")
    if outcome == "R":
        return found + _refusal(fault, verb, ended, stand)
    if ended.code != 0:
        found.append(f"exit code {ended.code}")
    if ended.errors:
        found.append(f"said on standard error: {ended.errors}")
    found += _whole(verb, ended.out, stand.cases)
    if outcome == "A" and ended.warnings:
        found.append(f"warned: {ended.warnings}")
    if outcome == "W" and not any(fault.names in line and re.search(fault.says, line) for line in ended.warnings):
        found.append(f"no warning names {fault.names!r} and says {fault.says!r}: {ended.warnings}")
    return found


def _refusal(fault: Fault, verb: str, ended: Ended, stand: Stand) -> list[str]:
    """Return what is wrong with a refusal."""
    found = [] if ended.code == 2 else [f"exit code {ended.code}"]
    lines = ended.errors
    if verb == "check":  # its findings are its result, so they stand on standard output
        lines = lines + [line for line in ended.stdout.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        return [*found, f"{len(lines)} lines: {lines} {ended.stdout[:300]}"]
    if fault.names not in lines[0]:
        found.append(f"does not name {fault.names!r}: {lines[0]}")
    if not re.search(fault.says, lines[0]):
        found.append(f"does not say {fault.says!r}: {lines[0]}")
    if not re.search(r"\S[.?] [A-Z][^.]*.*[.?]$", lines[0]):
        found.append(f"no remedy: {lines[0]}")
    if verb == "check" and not ended.errors:
        found += _check_report(ended)
    elif verb == "predict" and verb not in fault.whole:
        others = [case for case in stand.cases if case != "case_1"]
        found += _whole(verb, ended.out, others)
        if list(ended.out.glob("case_1*")):
            found.append("something stands under the output's name")
    elif fault.id not in ("E05", "E06") and ended.out.exists():
        found.append(f"left {[item.name for item in ended.out.iterdir()]}")
    return found


def _check_report(ended: Ended) -> list[str]:
    """Return in what the report of `check` is wrong: one error, and every other case read."""
    report = json.loads((ended.out / "found.json").read_text())
    found = [] if report["n_errors"] == 1 else [f"{report['n_errors']} errors: {report['findings']}"]
    error = next(item for item in report["findings"] if item["level"] == "error")
    if not error["remedy"] or not error["problem"]:
        found.append(f"no remedy: {error}")
    return found


def _whole(verb: str, out: Path, cases: list[str] | tuple[str, ...]) -> list[str]:
    """Return what is missing of a verb's results."""
    if verb == "predict":
        missing = [case for case in cases if not (out / f"{case}.nii.gz").is_file()]
        return [f"no label map of {missing}"] if missing else []
    return [] if (out / RESULTS[verb]).is_file() else [f"no {RESULTS[verb]}"]


@cache
def _tiny(number: int) -> tuple[np.ndarray, np.ndarray]:
    return tiny_case(number)


def _sums(folder: Path) -> dict[Path, str]:
    """Return the digest of every file that can be read, and that there is one otherwise."""
    found = {}
    for path in sorted(folder.rglob("*")):
        try:
            found[path] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        except OSError:
            found[path] = "unreadable"
    return found


def train_models(root: Path) -> dict[str, Path]:
    """Train the models that the stands predict by, one step each; return their folders by name."""
    models = {}
    for name in ("plain", "gaps", "huge", "two"):
        stand = Stand(root / name, "train", {})
        if name != "plain":
            _TASKS[name](stand)
        with captured(stand) as streams:
            code = run(stand.command())
        if code:
            raise RuntimeError(f"the healthy data set {name} did not train: {streams['stderr']}")
        models[name] = stand.root / "out"
    return models


def _two(stand: Stand) -> None:
    for case in stand.cases:
        stand.add_channel(case, healthy)


def _tasks() -> dict[str, object]:
    import set_faults

    return {"gaps": set_faults.ids_with_gaps, "huge": set_faults.huge_ids, "two": _two}


_TASKS = _tasks()
