import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from tiny import SETTINGS, dataset, tiny_config, trained  # noqa: F401, fixtures

import segscse
from segscse.api import validate_run
from segscse.config import save_config
from segscse.errors import InputError
from segscse.files import only_writer, read_json
from segscse.training.run import train_run


def test_plan_takes_a_configuration_its_file_or_none(dataset, tmp_path):  # noqa: F811
    save_config(tmp_path / "x.yaml", tiny_config())
    first = segscse.plan(dataset, config=tiny_config())
    assert segscse.plan(str(dataset), config=tmp_path / "x.yaml") == first
    assert segscse.plan(dataset).labels == first.labels == ((0, "background"), (2, "block"), (5, "ball"))


def test_plan_takes_a_folder_of_labels(dataset):  # noqa: F811
    found = segscse.plan(dataset / "imagesTr", labels=dataset / "labelsTr")
    assert found.label_ids == (0, 2, 5)


def test_train_load_predict_and_evaluate_fit_together(dataset, tmp_path):  # noqa: F811
    run = segscse.train(dataset, out=tmp_path / "run", config=tiny_config(train={"max_steps": 3}))
    assert run.steps == 3
    found = segscse.load(tmp_path / "run").predict(dataset / "imagesTr" / "case_0.nii.gz")
    reference = nib.load(dataset / "labelsTr" / "case_0.nii.gz")
    table = segscse.evaluate(found, reference, labels=[2, 5])
    for label, dice in zip(table["label"], table["dice"], strict=True):
        pred, truth = found.array == label, np.asarray(reference.dataobj) == label
        assert dice == pytest.approx(2 * (pred & truth).sum() / (pred.sum() + truth.sum()))


@pytest.mark.parametrize("as_file", [False, True])
def test_a_budget_wins_over_the_configurations_steps(dataset, tmp_path, as_file):  # noqa: F811
    config = tiny_config(train={"max_steps": 100_000})
    if as_file:
        save_config(tmp_path / "x.yaml", config)
    run = segscse.train(dataset, out=tmp_path / "run", config=tmp_path / "x.yaml" if as_file else config, budget="0.5s")
    assert run.steps < 100_000


def test_train_can_take_every_case_and_resume(dataset, tmp_path):  # noqa: F811
    config = tiny_config(train={"max_steps": 2})
    segscse.train(dataset, out=tmp_path / "run", config=config, fold=None)
    longer = tiny_config(train={"max_steps": 4})
    assert segscse.train(dataset, out=tmp_path / "run", config=longer, fold=None, resume=True).steps == 4


def test_validation_scores_the_held_out_cases_on_their_own_grids(dataset, tmp_path):  # noqa: F811
    run = train_run(dataset, tmp_path / "run", tiny_config())
    seen = []
    summary = validate_run(run, device="cpu", progress=lambda done, total: seen.append((done, total)))
    folder = run.folder / "validation"
    assert read_json(folder / "summary.json")["overall"] == summary["overall"]
    table = pd.read_csv(folder / "cases.csv")
    assert sorted(table["case"].unique()) == sorted(run.split.validation)
    assert seen[-1] == (len(run.split.validation),) * 2
    # the training's own Dice was taken on the same grid here, so the two must agree
    assert summary["overall"]["mean_dice"] == pytest.approx(run.dice, abs=0.02)
    assert (folder / "report.html").is_file()


def test_scoring_a_run_that_another_process_goes_on_with_is_refused(dataset, trained):  # noqa: F811
    with only_writer(trained.folder), pytest.raises(InputError, match="another process is writing into it"):
        validate_run(trained, device="cpu")
    assert not (trained.folder / "validation").exists()


def test_a_configuration_with_an_unknown_key_is_refused_with_its_file(dataset, tmp_path):  # noqa: F811
    (tmp_path / "x.yaml").write_text("optim:\n  learning_rate: 1\n")
    with pytest.raises(InputError, match=r"x\.yaml"):
        segscse.plan(dataset, config=tmp_path / "x.yaml")


def test_attention_that_no_network_can_have_is_refused_before_data_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("model: {attention: {encoder: 'scse:aggregation=mx'}}\n")
    with pytest.raises(InputError, match=r"unknown aggregation 'mx'; .* Did you mean 'max'"):
        segscse.plan(tmp_path / "no data", config=tmp_path / "x.yaml")


def test_a_segmentation_can_be_drawn_over_its_image(dataset, trained):  # noqa: F811
    path = dataset / "imagesTr" / "case_1.nii.gz"
    figure = segscse.plot_overlay(path, segscse.load(trained.folder, device="cpu").predict(path))
    said = {text.get_text().split()[0] for axes in figure.axes for text in axes.texts}
    assert said >= {"axial", "coronal", "sagittal"}
