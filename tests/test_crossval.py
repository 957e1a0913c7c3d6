import shutil
from contextlib import nullcontext
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny import dataset, tiny_config, write_dataset  # noqa: F401, fixture

import segscse
from segscse import crossval
from segscse.config import save_config
from segscse.data.index import open_dataset
from segscse.data.prepare import plan_dataset
from segscse.data.split import Split
from segscse.errors import InputError, Interrupted
from segscse.files import read_json, write_json
from segscse.training.run import Run


@pytest.fixture
def config():
    return tiny_config(train={"max_steps": 2}, data={"folds": 3})


def test_every_case_is_scored_once_by_a_fold_that_has_not_seen_it(dataset, config, tmp_path):  # noqa: F811
    summary = segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
    folds = [read_json(tmp_path / "cv" / f"fold{fold}" / "run.json") for fold in range(3)]
    every = sorted(case for fold in folds for case in fold["validation_cases"])
    assert len(every) == len(set(every))
    assert all(not set(fold["training_cases"]) & set(fold["validation_cases"]) for fold in folds)
    table = pd.read_csv(tmp_path / "cv" / "evaluation" / "cases.csv")
    assert sorted(table["case"].unique()) == every
    assert summary["overall"]["n_cases"] == len(every)
    for fold in range(3):
        of_fold = pd.read_csv(tmp_path / "cv" / f"fold{fold}" / "validation" / "cases.csv")
        both = of_fold.merge(table, on=["case", "label"], suffixes=("", "_merged"))
        assert len(both) == len(of_fold)
        pd.testing.assert_series_equal(both["dice"], both["dice_merged"], check_names=False)


def test_pieces_are_removed_from_then_on_where_the_scores_show_that_it_helps(config, tmp_path):
    data = write_dataset(tmp_path / "data", cases=8)  # of six cases no test could reject for two labels
    segscse.cross_validate(data, out=tmp_path / "cv", config=config)
    folders = [tmp_path / "cv" / f"fold{fold}" for fold in range(3)]
    decided = read_json(tmp_path / "cv" / "postprocessing.json")
    assert [row["name"] for row in decided["labels"]] == ["block", "ball"]
    assert [segscse.load(folder).postprocessing for folder in folders] == [tuple(decided["steps"])] * 3

    # A speck in each prediction, which is otherwise perfect.
    index = open_dataset(data)
    for case in index.cases:
        (file,) = (tmp_path / "cv").glob(f"fold*/validation/predictions/{case.id}.nii.gz")
        reference = nib.load(case.label)
        voxels = np.asarray(reference.dataobj).copy()
        voxels[tuple(np.argwhere(voxels == 0)[-1])] = 2
        nib.save(nib.Nifti1Image(voxels, reference.affine), file)
    segscse.cross_validate(data, out=tmp_path / "cv", config=config, resume=True)
    decided = read_json(tmp_path / "cv" / "postprocessing.json")
    assert [(row["cases_changed"], row["difference"] > 0) for row in decided["labels"]] == [(8, True), (0, False)]
    assert decided["steps"] == ["largest_component:2"]
    assert [segscse.load(folder).postprocessing for folder in folders] == [("largest_component:2",)] * 3


def test_it_goes_on_where_it_was_stopped(dataset, config, tmp_path, monkeypatch):  # noqa: F811
    train_run, trained = crossval.train_run, []

    def stop_in_the_second_fold(data, folder, *given, **named):
        trained.append(folder.name)
        assert named["cache"] == tmp_path / "cv" / "cache"  # one for all folds
        if folder.name == "fold1" and not named["resume"] and trained.count("fold1") == 1:
            raise Interrupted(2, "stopped")
        return train_run(data, folder, *given, **named)

    monkeypatch.setattr(crossval, "train_run", stop_in_the_second_fold)
    with pytest.raises(Interrupted):
        segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
    first = (tmp_path / "cv" / "fold0" / "validation" / "summary.json").stat().st_mtime_ns
    model = (tmp_path / "cv" / "fold0" / "model" / "model.safetensors").read_bytes()
    segscse.cross_validate(dataset, out=tmp_path / "cv", config=config, resume=True)
    assert trained == ["fold0", "fold1", "fold0", "fold1", "fold2"]
    assert (tmp_path / "cv" / "fold0" / "validation" / "summary.json").stat().st_mtime_ns == first
    assert (tmp_path / "cv" / "fold0" / "model" / "model.safetensors").read_bytes() == model


class TestConfigurationOnResume:
    """Trainings are only noted: as a fold's `config.yaml`, with a checkpoint of no content."""

    @pytest.fixture
    def trained(self, monkeypatch):
        """Return the configurations that folds were trained with, by name, in order; the second is stopped once."""
        seen = []

        def noted(data, folder, config, *given, **named):
            seen.append((folder.name, config, named["resume"]))
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            save_config(folder / "config.yaml", config)
            write_json(folder / "run.json", {"fingerprint": plan_dataset(data, config).fingerprint.content})
            if len(seen) == 2:
                raise Interrupted(2, "stopped")
            split = Split(0, (), ())
            return Run(folder, None, 1, split, plan_dataset(data, config))

        monkeypatch.setattr(crossval, "train_run", noted)
        monkeypatch.setattr(crossval, "validate_run", lambda *given, **named: None)
        monkeypatch.setattr(crossval, "_score", lambda *given: {})
        return seen

    @pytest.fixture
    def stopped(self, dataset, config, trained, tmp_path):  # noqa: F811
        """Return a cross-validation with a budget of its own, stopped in its second fold, and its configuration."""
        with pytest.raises(Interrupted):
            segscse.cross_validate(dataset, out=tmp_path / "cv", config=config, budget="90s")
        return tmp_path / "cv", replace(config, train=replace(config.train, budget="90s", max_steps=None))

    @pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
    def test_folds_that_were_not_started_get_that_of_the_first_call(self, dataset, stopped, trained, old):  # noqa: F811
        folder, first = stopped
        if old:
            (folder / "settings.json").unlink()
        segscse.cross_validate(dataset, out=folder, resume=True)
        folds = [("fold0", False), ("fold1", False), ("fold0", True), ("fold1", True), ("fold2", False)]
        assert [(name, resumed) for name, _, resumed in trained] == folds
        assert all(config == first for _, config, _ in trained)

    @pytest.mark.parametrize(("budget", "same"), [("90s", True), ("91s", False)])
    def test_a_length_alone_must_be_the_same(self, dataset, stopped, trained, budget, same):  # noqa: F811
        with nullcontext() if same else pytest.raises(InputError, match="another configuration or length"):
            segscse.cross_validate(dataset, out=stopped[0], budget=budget, resume=True)
        assert len(trained) == (5 if same else 2)

    def test_a_configuration_without_the_length_is_another(self, dataset, config, stopped, trained):  # noqa: F811
        with pytest.raises(InputError, match="another configuration or length"):
            segscse.cross_validate(dataset, out=stopped[0], config=config, resume=True)
        segscse.cross_validate(dataset, out=stopped[0], config=config, budget="90s", resume=True)
        assert len(trained) == 5

    def test_folds_that_differ_are_refused(self, dataset, stopped, trained):  # noqa: F811
        folder, first = stopped
        save_config(folder / "fold1" / "config.yaml", replace(first, train=replace(first.train, seed=1)))
        for _ in range(2):
            with pytest.raises(InputError, match=r"fold1/config\.yaml: is another configuration.*Remove fold1"):
                segscse.cross_validate(dataset, out=folder, resume=True)
            (folder / "settings.json").unlink(missing_ok=True)  # as one of an earlier version, where the folds decide
        assert len(trained) == 2

    def test_another_data_set_is_refused_though_no_fold_was_started(self, stopped, trained, tmp_path):
        folder, _ = stopped
        for fold in ("fold0", "fold1"):
            shutil.rmtree(folder / fold)
        with pytest.raises(InputError, match="was started with another data set"):
            segscse.cross_validate(write_dataset(tmp_path / "other", cases=7), out=folder, resume=True)

    def test_what_is_no_cross_validation_is_not_resumed(self, dataset, tmp_path):  # noqa: F811
        with pytest.raises(InputError, match="holds no cross-validation to resume"):
            segscse.cross_validate(dataset, out=tmp_path / "none", resume=True)
        settings = {"attention": [], "folds": [], "seeds": 1, "fingerprint": "", "config": {}}
        write_json(tmp_path / "ablation" / "settings.json", settings)
        with pytest.raises(InputError, match="holds no cross-validation to resume"):
            segscse.cross_validate(dataset, out=tmp_path / "ablation", resume=True)

    def test_one_that_was_refused_before_its_first_fold_starts_again(self, dataset, config, trained, tmp_path):  # noqa: F811
        write_json(tmp_path / "cv" / "settings.json", {"fingerprint": "", "config": {}})
        with pytest.raises(Interrupted):
            segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
        assert trained[0][1] == config


def test_a_lost_prediction_is_made_again(dataset, config, tmp_path):  # noqa: F811
    whole = segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
    next((tmp_path / "cv" / "fold1" / "validation" / "predictions").iterdir()).unlink()
    again = segscse.cross_validate(dataset, out=tmp_path / "cv", config=config, resume=True)
    assert again["overall"]["mean_dice"] == whole["overall"]["mean_dice"]


@pytest.mark.parametrize("content", [[], {}, {"provenance": 3}, {"provenance": {}}])
def test_a_model_that_does_not_say_its_steps_is_named(dataset, config, tmp_path, content):  # noqa: F811
    segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
    write_json(tmp_path / "cv" / "fold1" / "model" / "model.json", content)
    with pytest.raises(InputError, match=r"fold1/model/model\.json: does not say its model's steps"):
        segscse.cross_validate(dataset, out=tmp_path / "cv", config=config, resume=True)


def test_intervals_are_drawn_over_subjects_where_cases_share_them(config, tmp_path):
    data = write_dataset(tmp_path / "data")
    described = read_json(data / "dataset.json")
    for place, entry in enumerate(described["training"]):
        entry["subject"] = f"s{place // 2}"
    write_json(data / "dataset.json", described)
    segscse.cross_validate(data, out=tmp_path / "cv", config=config)
    table = pd.read_csv(tmp_path / "cv" / "evaluation" / "cases.csv")
    assert table.groupby("subject")["case"].nunique().tolist() == [2, 2, 2]


def test_a_used_folder_is_left_alone(dataset, config, tmp_path):  # noqa: F811
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists and is not empty"):
        segscse.cross_validate(dataset, out=tmp_path / "cv", config=config)
    assert [item.name for item in (tmp_path / "cv").iterdir()] == ["note.txt"]
