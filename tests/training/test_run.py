import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import get_args, get_type_hints

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_runs import SHORT, STEPS, equal_weights, log_rows, scores
from tiny import LABELS, tiny_case, tiny_config, write_dataset
from volumes import write_volume

from segscse.config import ExperimentConfig, OptimConfig, load_config
from segscse.data.index import open_dataset
from segscse.data.plan import load_plan
from segscse.data.split import make_split
from segscse.errors import InputError, Interrupted, SegscseError
from segscse.files import read_json
from segscse.inference.model_folder import load_model
from segscse.inference.predictor import load
from segscse.training.module import SegModule
from segscse.training.run import train_run
from segscse.training.schedule import lr_factor, peak_rate


class TestTheRunFolder:
    def test_holds_everything_that_made_the_model(self, trained):
        names = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()}
        assert names >= {
            *("config.yaml", "plan.json", "run.json", "metrics.csv"),
            *("checkpoints/last.ckpt", "checkpoints/previous.ckpt", "model/model.json", "model/model.safetensors"),
        }
        assert not [name for name in names if ".tmp" in name]

    def test_config_and_plan_read_back_equal(self, trained):
        assert load_config(trained.folder / "config.yaml") == tiny_config()
        assert load_plan(trained.folder / "plan.json") == trained.planned.plan

    def test_the_model_says_where_it_comes_from(self, trained):
        provenance = load_model(trained.folder).provenance
        assert provenance["config"]["train"]["seed"] == 0
        assert load_config(provenance["config"]) == tiny_config()
        assert provenance["versions"]["torch"] == torch.__version__
        assert set(provenance["versions"]) >= {"segscse", "python", "monai", "numpy"}
        assert provenance["fingerprint"] == trained.planned.fingerprint.content
        volumes = provenance["label_volumes_ml"]
        assert set(volumes) == {"2", "5"}
        assert all(0 < low <= high < 1 for low, high in volumes.values())
        assert provenance["label_pieces"] == {"2": 1, "5": 1}
        assert set(provenance["training_cases"]) | set(provenance["validation_cases"]) == {
            f"case_{n}" for n in range(6)
        }
        assert provenance["validation"]["val_dice"] == pytest.approx(trained.dice, abs=1e-6)
        assert 0 < provenance["step"] <= 30

    def test_no_path_of_the_machine_is_in_what_is_shared(self, trained):
        for name in ("model/model.json", "run.json", "plan.json", "config.yaml"):
            text = (trained.folder / name).read_text()
            assert str(trained.folder.parent) not in text
            assert str(Path.home()) not in text
            assert "/tmp" not in text

    def test_metrics_have_a_row_for_every_validation_and_every_20_steps(self, trained):
        rows = log_rows(trained.folder)
        assert list(rows[0]) == [
            *("step", "seconds", "progress", "lr", "train_loss", "val_dice", "val_dice_2", "val_dice_5")
        ]
        assert [row["step"] for row in rows if row["val_dice"]][-1] == "30"
        assert len([row for row in rows if row["val_dice"]]) == 2
        assert "20" in [row["step"] for row in rows]
        assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])

    def test_the_rate_follows_the_schedule(self, trained):
        optim = tiny_config().optim
        for row in log_rows(trained.folder):
            before = (int(row["step"]) - 1) / 30  # the rate was set before the step
            assert float(row["lr"]) == pytest.approx(peak_rate(optim) * lr_factor(optim, before), abs=1e-6)

    def test_the_run_reports_the_dice_of_its_last_validation(self, trained):
        assert trained.steps == 30
        last = [float(row["val_dice"]) for row in log_rows(trained.folder) if row["val_dice"]][-1]
        assert trained.dice == pytest.approx(last, abs=1e-4)

    def test_the_model_segments_what_it_has_not_seen(self, learned):
        assert learned.dice > 0.9
        image, label = tiny_case(50)
        found = load(learned.folder, device="cpu").predict((image, np.diag([-1.0, -1.0, 1.0, 1.0]))).array
        assert found.shape == label.shape
        assert set(np.unique(found)) == set(LABELS)
        for number in (2, 5):
            both = ((found == number) & (label == number)).sum()
            assert 2 * both / ((found == number).sum() + (label == number).sum()) > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(dataset, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_run(dataset, tmp_path / name, tiny_config(train={**SHORT, "max_steps": 4, "seed": seed}))
    assert equal_weights(tmp_path / "a", tmp_path / "b")
    assert not equal_weights(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimConfig)["name"]))
def test_every_optimiser_takes_a_step_in_mixed_precision_with_clipped_gradients(dataset, tmp_path, name):
    short = {"max_steps": 1, "validations": 1, "precision": "bf16"}
    run = train_run(dataset, tmp_path / "run", tiny_config(train=short, optim={"name": name}), fold=None)
    assert run.steps == 1


class TestRefusals:
    def test_a_folder_that_is_not_empty(self, dataset, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"already exists and is not empty.*--resume"):
            train_run(dataset, tmp_path, tiny_config())
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_folder_without_a_run_cannot_be_resumed(self, dataset, tmp_path):
        with pytest.raises(InputError, match=r"cannot be resumed: it has no config.yaml"):
            train_run(dataset, tmp_path / "none", tiny_config(), resume=True)
        assert not (tmp_path / "none").exists()

    def test_other_data_on_resume(self, trained, tmp_path):
        other = write_dataset(tmp_path / "other", cases=5)
        with pytest.raises(InputError, match="was started with another data set"):
            train_run(other, trained.folder, ExperimentConfig(), resume=True)

    def test_labels_in_other_places_on_resume(self, dataset, trained, tmp_path):
        other = shutil.copytree(dataset, tmp_path / "other")
        path = other / "labelsTr" / "case_0.nii.gz"
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[::-1], label.affine), path)
        with pytest.raises(InputError, match="was started with another data set"):
            train_run(other, trained.folder, ExperimentConfig(), resume=True)

    def test_a_record_of_a_version_that_noted_no_places_is_of_the_same_data(self, dataset, trained, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "run")
        record = read_json(folder / "run.json")
        earlier = {"fingerprint": record["fingerprint"].split("-")[0]}
        (folder / "run.json").write_text(json.dumps(record | earlier))
        assert train_run(dataset, folder, ExperimentConfig(), resume=True).steps == trained.steps

    def test_another_fold_on_resume(self, dataset, trained):
        with pytest.raises(InputError, match="was started with another fold"):
            train_run(dataset, trained.folder, ExperimentConfig(), fold=1, resume=True)

    def test_a_run_that_an_earlier_version_planned_on_resume(self, dataset, trained, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "run")
        (folder / "plan.json").write_text(json.dumps(read_json(folder / "plan.json") | {"version": 1}))
        with pytest.raises(InputError, match=r"planned by an earlier segscse.*Go on with the segscse that it was"):
            train_run(dataset, folder, ExperimentConfig(), resume=True)

    def test_reasons_in_other_words_are_no_other_plan(self, dataset, trained, tmp_path):
        folder = shutil.copytree(trained.folder, tmp_path / "run")
        (folder / "plan.json").write_text(json.dumps(read_json(folder / "plan.json") | {"reasons": ["because"]}))
        assert train_run(dataset, folder, ExperimentConfig(), resume=True).steps == trained.steps

    def test_another_configuration_on_resume(self, dataset, trained):
        with pytest.raises(InputError, match="was started with another configuration"):
            train_run(dataset, trained.folder, tiny_config(optim={"lr": 0.1}), resume=True)

    def test_a_fold_that_does_not_exist_leaves_no_folder(self, dataset, tmp_path):
        with pytest.raises(InputError, match="fold must be between 0 and 4, got 7"):
            train_run(dataset, tmp_path / "run", tiny_config(), fold=7)
        assert not (tmp_path / "run").exists()

    def test_an_unknown_attention_block_leaves_no_folder(self, dataset, tmp_path):
        config = tiny_config(model={"attention": {"encoder": "scsee"}})
        with pytest.raises(InputError, match="unknown attention block 'scsee'"):
            train_run(dataset, tmp_path / "run", config)
        assert not (tmp_path / "run").exists()


def test_a_run_ends_with_its_budget(dataset, tmp_path):
    config = tiny_config(train={"max_steps": None, "budget": "1s", "validations": 2})
    run = train_run(dataset, tmp_path / "run", config)
    last = log_rows(run.folder)[-1]
    assert float(last["progress"]) == 1.0
    assert float(last["seconds"]) >= 0.9
    assert 1 <= len(scores(run.folder)) <= 2  # fewer where a busy machine makes them dear


def test_a_run_whose_validation_takes_long_validates_on_some_cases_and_spends_its_budget_on_steps(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("segscse.training.clock.VALIDATION_SHARE", 1e-9)
    taken, whole = [], SegModule.validation_step

    def validation_step(self, batch, batch_idx):
        taken.append(batch.get("case"))
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(SegModule, "validation_step", validation_step)
    config = tiny_config(train={"max_steps": None, "budget": "1s", "validations": 2}, data={"folds": 2})
    run = train_run(dataset, tmp_path / "run", config)
    chosen = load_model(run.folder).provenance["validated_cases"]
    assert len(chosen) == 1
    assert [name for name in taken if name] == chosen
    assert len(taken) == len(run.split.validation) == 3
    assert len(scores(run.folder)) == 1
    assert run.dice is not None
    assert float(log_rows(run.folder)[-1]["seconds"]) >= 0.9


def test_patience_stops_a_run_that_does_not_improve(dataset, tmp_path):
    config = tiny_config(train={"max_steps": 40, "validations": 20, "patience": 2}, optim={"lr": 1e-12})
    run = train_run(dataset, tmp_path / "run", config)
    assert run.steps < 40
    assert len(scores(run.folder)) <= 6


def test_fold_all_trains_on_every_case_and_exports_the_last_weights(dataset, tmp_path):
    run = train_run(dataset, tmp_path / "run", tiny_config(train={"max_steps": 6}), fold=None)
    assert (run.steps, run.dice, run.split.validation) == (6, None, ())
    assert len(run.split.training) == 6
    model = load_model(run.folder)
    assert model.provenance["step"] == 6
    assert model.provenance["fold"] is None
    assert load(run.folder, device="cpu").predict((tiny_case(0)[0], np.eye(4))).array.shape == (16, 20, 12)


def test_a_label_that_no_validation_case_has_does_not_stop_the_run(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    for case in make_split(open_dataset(dataset).cases, 0).validation:
        _, label = tiny_case(int(case[-1]))
        write_volume(dataset / "labelsTr" / f"{case}.nii.gz", np.where(label == 5, 0, label), np.eye(4))
        write_volume(dataset / "imagesTr" / f"{case}.nii.gz", tiny_case(int(case[-1]))[0], np.eye(4))
    run = train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
    scores = load_model(run.folder).provenance["validation"]
    assert scores["val_dice_5"] is None or scores["val_dice_5"] == 0  # none predicted, or false positives
    assert run.dice is not None


def test_validation_cases_without_any_foreground_have_no_dice_or_none_to_be_proud_of(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    for case in make_split(open_dataset(dataset).cases, 0).validation:
        _, label = tiny_case(int(case[-1]))
        write_volume(dataset / "labelsTr" / f"{case}.nii.gz", np.zeros_like(label), np.diag([-1.0, -1.0, 1.0, 1.0]))
    run = train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
    assert run.dice in (None, 0.0)  # undefined where nothing is predicted, 0 where something is made up
    assert load_model(run.folder).plan == run.planned.plan  # there is a model all the same


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(dataset, tmp_path):
    config = tiny_config(train={"max_steps": 30}, optim={"lr": 1e30, "warmup": 0.0, "name": "sgd"})
    problem = r"the loss became (nan|inf) at step \d+, on patches of case_\d.*; .* lower optim.lr"
    with pytest.raises(SegscseError, match=problem) as caught:
        train_run(dataset, tmp_path / "run", config)
    assert "\n" not in str(caught.value)


def test_a_2d_run_works(dataset, tmp_path):
    run = train_run(dataset, tmp_path / "run", tiny_config(model={"spatial_dims": 2}, train=SHORT))
    assert run.planned.plan.spatial_dims == 2
    found = load(run.folder, device="cpu").predict(dataset / "imagesTr" / "case_0.nii.gz")
    assert found.array.shape == (16, 20, 12)


def test_without_an_average_the_current_weights_are_exported(dataset, tmp_path):
    run = train_run(
        dataset, tmp_path / "run", tiny_config(train={"max_steps": 4}, optim={"average": "none"}), fold=None
    )
    state = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(run.folder / "model" / "model.safetensors")
    assert all(torch.equal(state[f"network.{name}"], value) for name, value in exported.items())


def test_cases_on_disk_train_as_cases_in_memory_do(dataset, tmp_path):
    for name, cache_gb in (("memory", 4.0), ("disk", 0.0)):
        train_run(dataset, tmp_path / name, tiny_config(train=SHORT, data={"cache_gb": cache_gb}))
    assert equal_weights(tmp_path / "memory", tmp_path / "disk")
    assert list((tmp_path / "disk" / "cache").rglob("image.npy"))
    assert not (tmp_path / "memory" / "cache").exists()


def test_runs_on_the_same_data_share_a_cache(dataset, tmp_path):
    stamps = []
    for fold in (0, 1):
        config = tiny_config(train={"max_steps": 1, "validations": 1}, data={"cache_gb": 0.0})
        train_run(dataset, tmp_path / f"fold{fold}", config, fold=fold, cache=tmp_path / "cache")
        assert not (tmp_path / f"fold{fold}" / "cache").exists()
        stamps.append({path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")})
    assert stamps[0] == stamps[1]
    assert len(stamps[0]) == 3 * 6


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_on_disk_train_as_slices_in_memory_do(dataset, tmp_path, axis):
    spacing = {"spacing_mm": [3.0 if number == axis else 1.0 for number in range(3)]}
    for name, cache_gb in (("memory", 4.0), ("disk", 0.0)):
        config = tiny_config(train=SHORT, model={"spatial_dims": 2}, data={"cache_gb": cache_gb, **spacing})
        run = train_run(dataset, tmp_path / name, config)
        assert run.planned.plan.slice_axis == axis
    assert equal_weights(tmp_path / "memory", tmp_path / "disk")


def test_a_checkpoint_is_written_at_least_as_often_as_asked(dataset, tmp_path, monkeypatch):
    seen = []
    whole = SegModule.training_step

    def training_step(self, batch, batch_idx):
        checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
        seen.append(torch.load(checkpoint, weights_only=True)["clock"]["step"])
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(SegModule, "training_step", training_step)
    config = tiny_config(train={"max_steps": 4, "validations": 1, "checkpoint_every": "0.000001s"})
    train_run(dataset, tmp_path / "run", config)
    assert seen == [0, 1, 2, 3]  # the first one comes before the first step


def test_a_run_is_a_frozen_value(trained):
    with pytest.raises(dataclasses.FrozenInstanceError):
        trained.steps = 0


def test_run_json_is_strict_json(trained):
    record = read_json(trained.folder / "run.json")
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["precision"] == "fp32"
    assert record["device"] == "cpu"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_validation_stops_the_run_after_it(signum, dataset, tmp_path, monkeypatch):
    whole = SegModule.validation_step

    def validation_step(self, batch, batch_idx):
        if not self.clock.validations_done and batch_idx == 0:
            os.kill(os.getpid(), signum)
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(SegModule, "validation_step", validation_step)
    with pytest.raises(Interrupted, match="stopped at step 5") as caught:
        train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
    assert caught.value.signum == signum
    assert len(scores(tmp_path / "run")) == 1


def test_what_a_run_left_before_its_first_checkpoint_is_no_obstacle(dataset, tmp_path):
    folder = tmp_path / "run"
    (folder / "cache").mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    assert train_run(dataset, folder, tiny_config(train=SHORT)).steps == STEPS
