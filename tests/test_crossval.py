import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny import dataset, tiny_config, write_dataset  # noqa: F401, fixture

import segscse
from segscse import crossval
from segscse.data.index import open_dataset
from segscse.errors import InputError, Interrupted
from segscse.files import read_json, write_json


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
