"""Training that is killed and resumed ends bit for bit where an uninterrupted one does.

A few kills by default; `SEGSCSE_KILLS=50` makes that many at random moments, and with it ten within a checkpoint write,
ten within a validation and five double kills (about four minutes on one core).
"""

import csv
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from killing import KILLED, differences, finish, kill_after, start, train, training_state
from tiny import tiny_config, write_dataset

from segscse.config import ExperimentConfig
from segscse.errors import InputError
from segscse.files import is_temporary
from segscse.inference.model_folder import load_model
from segscse.training.checkpoints import damage
from segscse.training.run import train_run

KILLS = int(os.environ.get("SEGSCSE_KILLS", "4"))
INSIDE = max(1, KILLS // 5)
DOUBLE = max(1, KILLS // 10)
STEPS = 9
EVERY = ("0.000001s", "0.03s", "5m")  # a checkpoint after every step, after some, and with validations only


def _config(every="5m"):
    return tiny_config(
        model={"base_features": 4, "max_features": 4},
        train={"max_steps": STEPS, "validations": 3, "checkpoint_every": every},
    )


def _samples(path):
    """Return the digest of every step's batch; a step that was made again must have had the same one."""
    found = {}
    for line in path.read_text().splitlines():
        step, digest, _ = line.split(" ", 2)
        assert found.setdefault(int(step), digest) == digest
    return found


def _log(folder):
    """Return the log without the columns that a clock decides."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(stream)]


@dataclass
class Place:
    """Where a run goes and how long it took uninterrupted."""

    dataset: Path
    folder: Path
    base: Path
    seconds: float = 0.0

    def begin(self, every="5m", *, resume=False, moment=None):
        config = ExperimentConfig() if resume else _config(every)
        return start(
            train,
            self.base / f"{self.folder.name}.log",
            *(self.dataset, self.folder, config, resume, self.base / f"{self.folder.name}.txt", moment),
        )

    def go_on(self):
        """Resume, or start again where the kill came before there was anything to resume."""
        started = (self.folder / "config.yaml").is_file()
        return self.begin(resume=started)

    def require_whole(self):
        """Check what a kill may never leave: a checkpoint, a log or a model that is not whole."""
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.folder / "checkpoints" / name
            assert not path.exists() or not damage(path)
            assert not path.exists() or torch.load(path, weights_only=True)["clock"]["step"] <= STEPS
        if (self.folder / "metrics.csv").is_file():
            _log(self.folder)
        if (self.folder / "model" / "model.json").is_file():
            load_model(self.folder)

    def require_equal(self, whole):
        """Check that the finished run is the uninterrupted one."""
        text = (self.base / f"{self.folder.name}.log").read_text()
        assert "Traceback" not in text, text
        assert differences(training_state(whole.folder), training_state(self.folder)) == []
        weights = [place.folder / "model" / "model.safetensors" for place in (whole, self)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert _log(self.folder) == _log(whole.folder)
        samples = [_samples(place.base / f"{place.folder.name}.txt") for place in (whole, self)]
        assert samples[0] == samples[1]
        assert sorted(samples[1]) == list(range(STEPS))
        assert not [path for path in self.folder.rglob("*") if is_temporary(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    place = Place(write_dataset(base / "data", cases=5), base / "whole", base)
    assert finish(place.begin()) == 0  # starts the server, too
    again = Place(place.dataset, base / "timed", base)
    began = time.monotonic()
    assert finish(again.begin()) == 0
    again.require_equal(place)
    place.seconds = time.monotonic() - began
    return place


@pytest.fixture
def place(whole, tmp_path):
    return Place(whole.dataset, tmp_path / "run", tmp_path)


def _kill_at_random(place, whole, rng, begin):
    """Begin until a kill at a random moment comes before the end; the end of a run is no kill."""
    while not kill_after(begin(), rng.uniform(0.0, whole.seconds)):
        if begin == place.go_on:
            return False
        place.folder.rename(place.folder.with_name(f"ended{rng.random()}"))
        (place.base / "run.txt").unlink()
    place.require_whole()
    return True


@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_any_moment_costs_nothing_but_time(number, place, whole):
    rng = random.Random(number)
    _kill_at_random(place, whole, rng, lambda: place.begin(EVERY[number % 3]))
    assert finish(place.go_on()) == 0
    place.require_equal(whole)


@pytest.mark.parametrize("number", range(INSIDE))
def test_a_kill_within_a_checkpoint_write_leaves_the_one_before(number, place, whole):
    rng = random.Random(1000 + number)
    moment = ("checkpoint", rng.randrange(11), number % 3)
    assert finish(place.begin(EVERY[0], moment=moment)) == KILLED
    place.require_whole()
    assert any(is_temporary(path) for path in (place.folder / "checkpoints").iterdir())  # it was within a write
    assert finish(place.go_on()) == 0
    place.require_equal(whole)


@pytest.mark.parametrize("number", range(INSIDE))
def test_a_kill_within_a_validation_repeats_it(number, place, whole):
    moment = ("validation", number % 3, number // 3 % 2)  # one case, three validations
    assert finish(place.begin(EVERY[number % 2], moment=moment)) == KILLED
    place.require_whole()
    assert finish(place.go_on()) == 0
    place.require_equal(whole)


@pytest.mark.parametrize("number", range(DOUBLE))
def test_a_run_that_is_killed_again_while_it_resumes_goes_on_too(number, place, whole):
    rng = random.Random(2000 + number)
    _kill_at_random(place, whole, rng, lambda: place.begin(EVERY[number % 2]))
    _kill_at_random(place, whole, rng, place.go_on)
    assert finish(place.go_on()) == 0
    place.require_equal(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_its_own_configuration(place, whole):
    assert finish(place.begin(moment=("checkpoint", 0, 0))) == KILLED
    assert not (place.folder / "checkpoints" / "last.ckpt").exists()
    assert finish(place.begin(resume=True)) == 0  # the defaults are given, and what the run was started with counts
    log = (place.base / "run.log").read_text()
    assert "Traceback" not in log
    place.require_equal(whole)


def test_a_folder_of_beginnings_without_a_configuration_is_not_resumed_but_may_be_started(dataset, tmp_path):
    (tmp_path / "run" / "cache").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot be resumed: it has no config.yaml. Start it without --resume"):
        train_run(dataset, tmp_path / "run", _config(), resume=True)
    assert train_run(dataset, tmp_path / "run", _config()).steps == STEPS
