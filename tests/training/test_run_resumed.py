"""Runs that a signal stops, and runs that go on."""

import os
import signal

import pytest
import torch
from short_runs import SHORT, STEPS, equal_weights, log_rows, scores
from tiny import tiny_config

from segscse.config import ExperimentConfig, TrainConfig, load_config
from segscse.data.index import open_dataset
from segscse.errors import InputError, Interrupted
from segscse.files import read_json, write_json
from segscse.inference.predictor import load
from segscse.training.module import SegModule
from segscse.training.run import train_run


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that makes a real signal arrive within a given step of the next run."""
    whole = SegModule.training_step

    def arm(step, signum=signal.SIGINT, times=1):
        def training_step(self, batch, batch_idx):
            if self.clock.step == step - 1:
                for _ in range(times):
                    os.kill(os.getpid(), signum)
            return whole(self, batch, batch_idx)

        monkeypatch.setattr(SegModule, "training_step", training_step)
        return lambda: monkeypatch.setattr(SegModule, "training_step", whole)

    return arm


class TestInterruptAndResume:
    @pytest.fixture(scope="class")
    def whole(self, dataset, tmp_path_factory):
        run = train_run(dataset, tmp_path_factory.mktemp("whole") / "run", tiny_config(train=SHORT))
        assert [step for step, *_ in scores(run.folder)] == ["5", "8"]  # step 5 closes the round, step 8 the run
        return run

    @pytest.mark.parametrize("step", range(1, STEPS))
    def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(self, step, dataset, whole, tmp_path, interrupt):
        folder = tmp_path / "run"
        disarm = interrupt(step)
        with pytest.raises(Interrupted, match=f"stopped at step {step}; continue with --resume") as caught:
            train_run(dataset, folder, tiny_config(train=SHORT))
        disarm()
        assert caught.value.signum == signal.SIGINT
        assert load(folder, device="cpu").plan == whole.planned.plan  # there is a usable model already
        run = train_run(dataset, folder, ExperimentConfig(), resume=True)
        assert (run.steps, run.dice) == (STEPS, whole.dice)
        assert equal_weights(folder, whole.folder)
        assert scores(folder) == scores(whole.folder)
        states = [torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (folder, whole.folder)]
        for key in ("state_dict", "current_model_state"):  # the average, and the weights that it averages
            assert all(torch.equal(states[0][key][name], value) for name, value in states[1][key].items())

    def test_a_signal_in_the_last_step_lets_the_last_validation_finish(self, dataset, whole, tmp_path, interrupt):
        folder = tmp_path / "run"
        disarm = interrupt(STEPS, signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            train_run(dataset, folder, tiny_config(train=SHORT))
        disarm()
        assert caught.value.signum == signal.SIGTERM
        assert equal_weights(folder, whole.folder)
        assert train_run(dataset, folder, ExperimentConfig(), resume=True).dice == whole.dice

    def test_a_second_sigint_ends_the_run_at_once(self, dataset, tmp_path, interrupt):
        interrupt(3, times=2)
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped at once, at step 2") as caught:
            train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
        assert caught.value.signum == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is handler

    def test_resuming_a_finished_run_changes_nothing(self, dataset, whole, tmp_path):
        before = (whole.folder / "model" / "model.safetensors").read_bytes()
        run = train_run(dataset, whole.folder, ExperimentConfig(), resume=True)
        assert (run.steps, run.dice) == (STEPS, whole.dice)
        assert (whole.folder / "model" / "model.safetensors").read_bytes() == before

    def test_a_finished_run_goes_on_when_it_is_given_more_steps(self, dataset, tmp_path):
        train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
        longer = tiny_config(train={**SHORT, "max_steps": 12})
        assert train_run(dataset, tmp_path / "run", longer, resume=True).steps == 12
        assert load_config(tmp_path / "run" / "config.yaml").train.max_steps == 12
        assert log_rows(tmp_path / "run")[-1]["step"] == "12"

    def test_a_length_alone_may_be_given_whatever_else_the_run_was_set_to(self, dataset, tmp_path, interrupt):
        disarm = interrupt(2)
        with pytest.raises(Interrupted):
            train_run(dataset, tmp_path / "run", tiny_config(train={**SHORT, "seed": 3}))
        disarm()
        longer = ExperimentConfig(train=TrainConfig(max_steps=4))
        assert train_run(dataset, tmp_path / "run", longer, resume=True).steps == 4
        assert load_config(tmp_path / "run" / "config.yaml").train.seed == 3

    def test_the_clock_of_a_resumed_run_goes_on(self, dataset, tmp_path, interrupt):
        budget = {"max_steps": None, "budget": "4s", "validations": 2}
        disarm = interrupt(2)
        with pytest.raises(Interrupted):
            train_run(dataset, tmp_path / "run", tiny_config(train=budget))
        disarm()
        run = train_run(dataset, tmp_path / "run", ExperimentConfig(), resume=True)
        assert run.steps > 2
        assert float(log_rows(tmp_path / "run")[-1]["seconds"]) > 2


@pytest.mark.parametrize(("old", "options"), [(False, {"axis": 2}), (True, {})], ids=["new", "old"])
def test_a_slice_wise_gate_keeps_the_axis_that_it_was_trained_with(dataset, tmp_path, old, options):
    attention = {"encoder": "slice_se", "decoder": "none"}
    config = tiny_config(model={"attention": attention}, train={"max_steps": 1, "validations": 1})
    train_run(dataset, tmp_path / "run", config)
    record = read_json(tmp_path / "run" / "run.json")
    if old:  # earlier versions did not record it, and had no axis but the last
        del record["attention"]
        write_json(tmp_path / "run" / "run.json", record)
    train_run(dataset, tmp_path / "run", ExperimentConfig(train=TrainConfig(max_steps=2)), resume=True)
    model = read_json(tmp_path / "run" / "model" / "model.json")
    assert model["provenance"]["step"] == 2
    for said in (model["network"], model["provenance"]):
        assert said["attention"]["encoder"] == ["slice_se", options]


class TestLengthOnResume:
    def test_another_budget_in_the_settings_is_refused_unless_the_length_is_given(self, dataset, tmp_path):
        short = {"max_steps": 1, "validations": 1, "budget": "40s"}
        train_run(dataset, tmp_path / "run", tiny_config(train=short))
        same, other = (ExperimentConfig(train=TrainConfig(budget=budget)) for budget in ("40s", "10s"))
        with pytest.raises(InputError, match="started with a budget of 40s, the configuration says 10s"):
            train_run(dataset, tmp_path / "run", other, resume=True)
        for config, budget, expected in ((same, None, ("40s", 1)), (other, "0.5s", ("0.5s", None))):
            train_run(dataset, tmp_path / "run", config, budget=budget, resume=True)
            saved = load_config(tmp_path / "run" / "config.yaml").train
            assert (saved.budget, saved.max_steps) == expected

    def test_a_budget_that_is_given_counts_even_when_it_is_the_default(self, dataset, tmp_path, interrupt):
        config, default = tiny_config(train=SHORT), ExperimentConfig().train.budget
        for step, budget in ((2, None), (4, default)):
            disarm = interrupt(step)
            with pytest.raises(Interrupted):
                train_run(dataset, tmp_path / "run", config, budget=budget, resume=step > 2)
            disarm()
        saved = load_config(tmp_path / "run" / "config.yaml").train
        assert (saved.budget, saved.max_steps) == (default, None)

    def test_other_subjects_and_so_another_split_are_refused(self, dataset, tmp_path):
        index = open_dataset(dataset)
        lines = ["case,image,label,subject"]
        lines += [f"{c.id},{c.images[0]},{c.label},{c.id}" for c in index.cases]
        table = tmp_path / "cases.csv"
        table.write_text("\n".join(lines) + "\n")
        train_run(table, tmp_path / "run", tiny_config(train=SHORT))
        table.write_text(
            "\n".join([lines[0], *(line.rsplit(",", 1)[0] + f",{i // 3}" for i, line in enumerate(lines[1:]))]) + "\n"
        )
        with pytest.raises(InputError, match="was started with another training cases"):
            train_run(table, tmp_path / "run", tiny_config(train=SHORT), resume=True)
