"""Twelve ways in which a resume can go wrong. Elsewhere, not repeated here:

another configuration, another data set, another split or fold: tests/training/test_run.py and
test_run_resumed.py; SIGTERM and SIGINT to the command line with a usable checkpoint and exit codes 143 and 130:
tests/test_cli.py.
"""

import json
import shutil
import time
import zipfile
from io import StringIO

import pytest
import torch
from killing import differences, training_state
from rich.console import Console
from tiny import tiny_config, write_dataset

from segscse.config import ExperimentConfig
from segscse.errors import InputError, Interrupted
from segscse.files import is_temporary, keep_as
from segscse.training.checkpoints import damage
from segscse.training.module import SegModule
from segscse.training.random_states import random_states, restore_random_states
from segscse.training.run import train_run

SHORT = {"max_steps": 8, "validations": 2, "checkpoint_every": "0.000001s"}


def _resume(data, folder, **options):
    """Resume a run and return what was said."""
    text = StringIO()
    train_run(data, folder, ExperimentConfig(), resume=True, console=Console(file=text, width=200), **options)
    return " ".join(text.getvalue().split())


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    return train_run(dataset, tmp_path_factory.mktemp("whole") / "run", tiny_config(train=SHORT)).folder


@pytest.fixture
def at_step(monkeypatch):
    """Return a function that does something when a given step of the next run begins, once."""
    step = SegModule.training_step

    def arm(number, act):
        def training_step(self, batch, batch_idx):
            if self.clock.step == number - 1:
                monkeypatch.setattr(SegModule, "training_step", step)
                act()
            return step(self, batch, batch_idx)

        monkeypatch.setattr(SegModule, "training_step", training_step)

    return arm


@pytest.fixture
def stopped(dataset, tmp_path, at_step):
    """Return a run that was interrupted in its fourth step, with checkpoints of steps 3 and 4."""

    def interrupt():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    at_step(4, interrupt)
    with pytest.raises(Interrupted):
        train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
    return tmp_path / "run"


def _within_numbers(checkpoint):
    """Return the place of a byte of the largest tensor of a checkpoint; between tensors there is padding, too."""
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    header = checkpoint.read_bytes()[largest.header_offset :][:30]
    name, extra = (int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
    return largest.header_offset + 30 + name + extra + largest.file_size // 2


class TestTheCheckpoint:
    def test_missing_is_refused_and_nothing_is_changed(self, dataset, trained, tmp_path, fingerprints):
        folder = shutil.copytree(trained.folder, tmp_path / "run")
        shutil.rmtree(folder / "checkpoints")
        before = fingerprints(folder)
        with pytest.raises(InputError, match=r"last.ckpt: cannot be resumed from: it is missing. Start the run in"):
            _resume(dataset, folder)
        assert fingerprints(folder) == before

    @pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "removed"])
    def test_damaged_falls_back_to_the_one_before_with_a_warning(self, how, dataset, stopped, whole):
        last = stopped / "checkpoints" / "last.ckpt"
        content = bytearray(last.read_bytes())
        if how == "removed":
            last.unlink()
        else:
            content[_within_numbers(last)] ^= 1
            last.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "emptied": b""}[how])
        if how == "flipped":
            torch.load(last, weights_only=True)  # torch reads it as if nothing were wrong with it
        said = _resume(dataset, stopped)
        assert "warning:" in said
        assert str(last.name) in said
        assert "the run goes on from previous.ckpt" in said
        assert [damage(stopped / "checkpoints" / name) for name in ("last.ckpt", "previous.ckpt")] == ["", ""]
        assert differences(training_state(whole), training_state(stopped)) == []

    def test_damaged_without_one_before_is_refused(self, dataset, stopped, fingerprints):
        for name in ("last.ckpt", "previous.ckpt"):
            (stopped / "checkpoints" / name).write_bytes(b"PK\3\4")
        before = fingerprints(stopped)
        with pytest.raises(InputError, match=r"last.ckpt: cannot be resumed from: it is damaged"):
            _resume(dataset, stopped)
        assert fingerprints(stopped) == before

    def test_that_is_none_of_a_run_is_refused(self, dataset, stopped):
        class Foreign:
            pass

        globals()["Foreign"] = Foreign
        Foreign.__qualname__ = "Foreign"
        torch.save({"state_dict": Foreign()}, stopped / "checkpoints" / "last.ckpt")
        assert not damage(stopped / "checkpoints" / "last.ckpt")
        with pytest.raises(InputError, match=r"last.ckpt: is no checkpoint that segscse wrote \(it names"):
            _resume(dataset, stopped)

    def test_whose_folder_became_unwritable_stops_the_run_with_its_name(self, dataset, tmp_path, at_step):
        run = tmp_path / "run"

        def block():
            (run / "checkpoints").rename(run / "moved")
            (run / "checkpoints").write_text("in the way, for root, too")

        at_step(4, block)
        with pytest.raises(InputError, match=r"run/checkpoints: cannot create the output folder") as caught:
            train_run(dataset, run, tiny_config(train=SHORT))
        assert "\n" not in str(caught.value)
        assert torch.load(run / "moved" / "last.ckpt", weights_only=True)["clock"]["step"] == 3
        (run / "checkpoints").unlink()
        (run / "moved").rename(run / "checkpoints")
        assert "warning" not in _resume(dataset, run)

    def test_of_a_run_whose_patience_ended_has_nothing_left_to_do(self, dataset, tmp_path):
        config = tiny_config(train={"max_steps": 40, "validations": 20, "patience": 2}, optim={"lr": 1e-12})
        run = train_run(dataset, tmp_path / "run", config)
        assert run.steps < 40
        assert train_run(dataset, tmp_path / "run", ExperimentConfig(), resume=True).steps == run.steps


def test_another_version_of_torch_is_a_warning(dataset, stopped, whole):
    record = json.loads((stopped / "run.json").read_text())
    record["versions"]["torch"] = "1.13.1"
    (stopped / "run.json").write_text(json.dumps(record))
    assert f"was run with torch 1.13.1, now {torch.__version__}: results may differ" in _resume(dataset, stopped)
    assert differences(training_state(whole), training_state(stopped)) == []


def test_another_device_and_precision_are_a_warning_and_on_record(dataset, stopped, whole):
    now = json.loads((stopped / "run.json").read_text())
    record = {**now, "device": "cuda", "precision": "bf16"}
    (stopped / "run.json").write_text(json.dumps(record))
    assert "was run with device cuda, now cpu; precision bf16, now fp32: results may" in _resume(dataset, stopped)
    for place in (stopped / "run.json", stopped / "model" / "model.json"):
        found = json.loads(place.read_text())
        (resumed,) = (found if place.name == "run.json" else found["provenance"])["resumed_with"]
        assert {name: resumed[name] for name in ("device", "precision", "versions")} == {
            name: now[name] for name in ("device", "precision", "versions")
        }
    assert json.loads((stopped / "run.json").read_text())["precision"] == "bf16"  # that it was started with
    assert "was run with" not in _resume(dataset, stopped)
    assert "resumed_with" not in json.loads((whole / "run.json").read_text())


def test_a_clock_that_is_set_back_changes_nothing(dataset, tmp_path, whole, at_step, monkeypatch):
    now = time.time
    at_step(3, lambda: monkeypatch.setattr(time, "time", lambda: now() - 1e6))
    train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
    monkeypatch.undo()
    assert differences(training_state(whole), training_state(tmp_path / "run")) == []
    seconds = [float(line.split(",")[1]) for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("resume", [False, True])
def test_the_folder_of_another_experiment_is_refused_and_left_as_it_is(resume, tmp_path, trained, fingerprints):
    other = write_dataset(tmp_path / "other", cases=5)
    before = fingerprints(trained.folder)
    with pytest.raises(InputError, match=r"another data set|already exists and is not empty"):
        train_run(other, trained.folder, ExperimentConfig(), resume=resume)
    assert fingerprints(trained.folder) == before


class TestFilesOfAKilledRun:
    def test_are_removed_when_it_goes_on(self, dataset, stopped):
        left = [stopped / name / ".0123456789ab.tmp.ckpt" for name in ("", "checkpoints", "model")]
        for path in left:
            path.write_bytes(b"half")
        mine = stopped / "checkpoints" / ".mine.tmp"
        mine.write_text("no name that is ever given")
        _resume(dataset, stopped)
        assert not any(path.exists() for path in left)
        assert mine.read_text()

    def test_are_no_obstacle_to_a_new_start(self, dataset, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".0123456789ab.tmp.yaml").write_text("half")
        train_run(dataset, tmp_path / "run", tiny_config(train={"max_steps": 2}))
        assert not [path for path in (tmp_path / "run").rglob("*") if is_temporary(path)]


def test_random_states_come_back():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), np.random.normal()  # noqa: NPY002

    states = random_states()
    first = draw()
    assert draw() != first
    restore_random_states(states)
    assert draw() == first


class TestTheSecondName:
    def test_goes_to_the_file_of_before(self, tmp_path):
        (tmp_path / "a").write_text("new")
        (tmp_path / "b").write_text("old")
        keep_as(tmp_path / "a", "b")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
        assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "new"

    def test_of_nothing_is_nothing(self, tmp_path):
        keep_as(tmp_path / "a", "b")
        assert list(tmp_path.iterdir()) == []

    def test_is_a_copy_where_there_are_no_links(self, tmp_path, monkeypatch):
        def refuse(*paths):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr("os.link", refuse)
        (tmp_path / "a").write_text("new")
        keep_as(tmp_path / "a", "b")
        assert (tmp_path / "b").read_text() == "new"
