"""One training run in two real processes, against the same run in one."""

import csv
import os
import signal
import sys
from time import monotonic, sleep

import numpy as np
import pytest
import torch
from processes import finish, start_two
from rank_jobs import SHORT, levels
from safetensors.torch import load_file
from tiny import SETTINGS, dataset, tiny_config  # noqa: F401, fixture
from yaml import safe_dump

from segscse.config import ExperimentConfig
from segscse.errors import InputError, Interrupted
from segscse.files import read_json
from segscse.ranks import Group, Ranks, deal_by_size
from segscse.training.losses import deep_supervision_loss
from segscse.training.module import SegModule
from segscse.training.run import train_run

# Sums of another order differ in the last digit, and so do the steps after it: about 1e-7 grows tenfold in some steps.
LOSS = 1e-4
DICE = 5e-3


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def _same_curve(folder, other, *, resumed=False):
    rows = [_rows(place) for place in (folder, other)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for name, tolerance in (("train_loss", LOSS), ("val_dice", DICE), ("lr", 0.0)):
        first, second = ([float(row[name] or "nan") for row in table] for table in rows)
        if resumed and name == "train_loss":  # the first row's mean is of the steps after the interruption
            first, second = first[1:], second[1:]
        np.testing.assert_allclose(first, second, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory):  # noqa: F811
    """Return the run of one process."""
    return train_run(dataset, tmp_path_factory.mktemp("alone") / "run", tiny_config(train=SHORT))


@pytest.fixture(scope="module")
def base(dataset, tmp_path_factory):  # noqa: F811
    """Return a folder where two processes have trained; `begun_alone` was begun by one."""
    folder = tmp_path_factory.mktemp("two")
    step = SegModule.training_step

    def stopping(self, batch, index):
        if self.clock.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegModule, "training_step", stopping)
        with pytest.raises(Interrupted):
            train_run(dataset, folder / "begun_alone", tiny_config(train=SHORT))
    ends = finish(start_two(_jobs(), "train", dataset, folder))
    assert [code for code, _ in ends] == [0, 0], ends
    return folder


def _jobs():
    return str(sys.modules["rank_jobs"].__file__)


class TestTheRun:
    def test_has_the_loss_curve_and_the_dice_of_one_process(self, base, alone):
        _same_curve(base / "whole", alone.folder)
        assert read_json(base / "seen0.json")["dice"] == pytest.approx(alone.dice, abs=DICE)

    def test_has_the_weights_of_one_process(self, base, alone):
        weights = [load_file(folder / "model" / "model.safetensors") for folder in (base / "whole", alone.folder)]
        for name, value in weights[1].items():
            torch.testing.assert_close(weights[0][name], value, rtol=0, atol=2e-3)

    def test_has_the_same_average_in_both_processes_after_every_step(self, base):
        digests = [read_json(base / f"seen{rank}.json")["digests"] for rank in range(2)]
        assert digests[0] == digests[1]
        assert len(set(digests[0])) == SHORT["max_steps"]

    def test_validates_every_case_in_one_process(self, base, alone):
        parts = [read_json(base / f"seen{rank}.json")["validated"] for rank in range(2)]
        assert all(parts)
        assert sorted(parts[0] + parts[1]) == sorted([*alone.split.validation] * SHORT["validations"])
        assert not set(parts[0]) & set(parts[1])

    def test_with_fewer_validation_cases_than_processes_validates_them_all_the_same(self, base):
        notes = [read_json(base / f"seen{rank}.json") for rank in range(2)]
        assert [len(note["few_validated"]) for note in notes] == [1, 1]
        assert [note["few_validated"][0] is None for note in notes] == [False, True]  # the second has an empty item
        assert notes[0]["few_dice"] == notes[1]["few_dice"] is not None

    def test_ends_by_time_after_the_same_step_in_both_processes(self, base):
        steps = [read_json(base / f"seen{rank}.json")["timed_steps"] for rank in range(2)]
        assert steps[0] == steps[1] >= 1
        assert float(_rows(base / "timed")[-1]["progress"]) == 1.0

    def test_writes_what_one_process_writes_and_shares_its_cases_by_files(self, base, alone):
        names = [{path.name for path in folder.iterdir()} for folder in (base / "whole", alone.folder)]
        assert names[0] - names[1] == {"cache"}
        assert len(list((base / "whole" / "tensorboard").glob("events.*"))) == 1
        assert read_json(base / "whole" / "run.json")["processes"] == 2
        assert read_json(alone.folder / "run.json")["processes"] == 1


class TestResuming:
    def test_two_processes_go_on_with_what_one_has_begun(self, base, alone):
        _same_curve(base / "begun_alone", alone.folder, resumed=True)

    def test_a_signal_to_one_process_stops_both_at_the_same_step(self, base):
        stops = [read_json(base / f"stopped{rank}.json") for rank in range(2)]
        assert [stop["signum"] for stop in stops] == [signal.SIGTERM] * 2
        assert all("stopped at step 3; continue with --resume" in stop["message"] for stop in stops)

    def test_one_process_goes_on_with_what_two_have_begun(self, base, dataset, alone):  # noqa: F811
        run = train_run(dataset, base / "stopped", ExperimentConfig(), resume=True)
        assert run.steps == SHORT["max_steps"]
        _same_curve(base / "stopped", alone.folder, resumed=True)


class TestTheLoss:
    def test_of_a_shared_batch_is_that_of_the_whole_and_so_is_its_gradient(self, base):
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(4, 2, 6, 6, generator=generator)
        target = torch.randint(0, 3, (4, 6, 6), generator=generator)
        weights = torch.randn(3, 2, generator=generator, requires_grad=True)
        loss = deep_supervision_loss(levels(weights, inputs), target)
        loss.backward()
        for rank in range(2):
            found = torch.load(base / f"loss{rank}.pt", weights_only=True)
            torch.testing.assert_close(found["loss"], loss.detach(), rtol=1e-6, atol=0)
            torch.testing.assert_close(found["gradient"], weights.grad, rtol=1e-5, atol=1e-7)


class TestADeath:
    def test_of_one_process_ends_the_other_with_its_name_and_the_job_goes_on(self, dataset, tmp_path):  # noqa: F811
        config, folder = tmp_path / "config.yaml", tmp_path / "run"
        long = {"max_steps": 100_000, "checkpoint_every": "0.2s", "validations": 1}
        config.write_text(safe_dump({**SETTINGS, "train": {**SETTINGS["train"], **long}}))
        started = start_two("-m", "segscse", "train", dataset, "--out", folder, "--config", config)
        try:
            while not (folder / "checkpoints" / "last.ckpt").exists():
                assert [process.poll() for process, _ in started] == [None, None]
                sleep(0.1)
            started[1][0].kill()
            killed = monotonic()
        finally:
            (code, said), _ = finish(started)
        assert monotonic() - killed < 60
        assert code == 2
        assert said.splitlines()[-1].startswith("segscse: process 1 of 2 has vanished: it was killed")
        begun = int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["clock"]["step"])
        run = train_run(dataset, folder, tiny_config(train={**long, "max_steps": begun + 2}), resume=True)
        assert run.steps == begun + 2


def test_a_process_that_fails_says_why_and_ends_the_other(dataset, tmp_path):  # noqa: F811
    bad = tmp_path / "data"
    processes = start_two("-m", "segscse", "train", bad, "--out", tmp_path / "run")
    (code, error), (other, silent) = finish(processes)
    assert (code, other) == (2, 2)
    assert error.strip() == f"segscse: {bad}: no such data set. Check the path."
    assert silent.strip() == ""
    assert not (tmp_path / "run").exists()


class TestParts:
    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    def test_every_case_is_in_one_part_and_no_part_has_much_more_than_another(self, world):
        sizes = {f"case{n}": int(size) for n, size in enumerate(np.random.default_rng(0).integers(1, 50, 40))}
        parts = deal_by_size(sizes, world)
        assert sorted(name for part in parts for name in part) == sorted(sizes)
        totals = [sum(part.values()) for part in parts]
        assert max(totals) - min(totals) <= max(sizes.values())

    def test_more_processes_than_cases_leave_some_without(self):
        assert deal_by_size({"a": 3}, 2) == [{"a": 3}, {}]

    @pytest.mark.parametrize(("batch", "allowed"), [(3, "2 or 4"), (1, "2")])
    def test_a_batch_that_two_processes_cannot_halve_is_refused(self, dataset, tmp_path, batch, allowed):  # noqa: F811
        config = tiny_config(data={"batch_size": batch})
        group = Group(Ranks(0, 2, 0, 2))
        with pytest.raises(InputError, match=rf"a batch of {batch} patches.*data.batch_size to {allowed},"):
            train_run(dataset, tmp_path / "run", config, group=group)
        assert not (tmp_path / "run").exists()
