"""ablate: what is trained, in which order, what a stop leaves, and that the tables say what the runs say."""

import os
import shutil
import signal

import pandas as pd
import pytest
import yaml
from tiny import SETTINGS, dataset, tiny_config, write_dataset  # noqa: F401, fixture

import segscse
from segscse import ablation as ablation_module
from segscse.ablation import ablate, step_ms
from segscse.cli import run
from segscse.errors import InputError, Interrupted
from segscse.files import read_json, write_json
from segscse.nets.build import build_unet
from segscse.nets.unet import POSITIONS
from segscse.training.clock import RunClock

STEPS = 4
CONFIG = tiny_config(train={"max_steps": 999, "validations": 1}, data={"folds": 3, "cache_gb": 0.0})
ORDER = ["none/seed0_fold0", "scse/seed0_fold0", "none/seed0_fold1", "scse/seed0_fold1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data set of three subjects with two cases each, so that every fold of three holds one."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "tiny_subjects")
    described = read_json(folder / "dataset.json")
    for place, entry in enumerate(described["training"]):
        entry["subject"] = f"s{place // 2}"
    write_json(folder / "dataset.json", described)
    return folder


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    """Return an ablation stopped by Ctrl-C in its third run and continued, and what was seen of both parts."""
    out = tmp_path_factory.mktemp("study") / "out"
    seen = {"runs": [], "steps": [0, 0]}
    finish_step, finish_fold = RunClock.finish_step, ablation_module.finish_fold

    def counted(clock):
        finish_step(clock)
        part = len(seen["runs"]) > 3
        seen["steps"][part] += 1
        if seen["steps"][0] == 2 * STEPS + 2 and not part:
            os.kill(os.getpid(), signal.SIGINT)

    def noted(source, *, folder, **given):
        seen["runs"].append(folder.relative_to(out).as_posix())
        return finish_fold(source, folder, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunClock, "finish_step", counted)
        patch.setattr(ablation_module, "finish_fold", noted)
        with pytest.raises(Interrupted) as stop:
            ablate(data, out=out, attention=["none", "scse"], folds=[0, 1], steps=STEPS, config=CONFIG)
        seen["stop"] = stop.value
        seen["half"] = read_json(out / "ablation.json")
        seen["model"] = (out / ORDER[0] / "model" / "model.safetensors").stat().st_mtime_ns
        seen["runs"].append("")
        return ablate(data, out=out, resume=True), seen


def test_public_name():
    assert segscse.ablate is ablate


def test_every_variant_gets_its_first_fold_before_any_gets_its_second(study):
    _, seen = study
    assert seen["runs"] == [*ORDER[:3], "", *ORDER[2:]]


def test_a_stop_is_clean_and_what_was_finished_is_balanced(study):
    _, seen = study
    assert seen["stop"].signum == signal.SIGINT
    assert "stopped in run 3 of 4: none, seed 0, fold 1; continue with --resume" in str(seen["stop"])
    assert seen["half"]["rounds"] == [{"seed": 0, "fold": 0}]
    assert "Not finished: 1 of 2 rounds of all variants." in seen["half"]["findings"]
    assert {name: len(seen["half"][name]) for name in ("variants", "rounds")} == {"variants": 2, "rounds": 1}


def test_resuming_goes_on_within_the_run_and_repeats_none(study):
    ablation, seen = study
    assert sum(seen["steps"]) == len(ORDER) * STEPS
    assert seen["steps"][0] >= 2 * STEPS + 2
    assert (ablation.folder / ORDER[0] / "model" / "model.safetensors").stat().st_mtime_ns == seen["model"]


def test_runs_share_all_but_the_attention(study):
    ablation, _ = study
    for first, second in (ORDER[:2], ORDER[2:]):
        runs = [ablation.folder / name for name in (first, second)]
        plans, splits = ([read_json(run / name) for run in runs] for name in ("plan.json", "run.json"))
        assert plans[0] == plans[1]
        for name in ("training_cases", "validation_cases", "fingerprint"):
            assert splits[0][name] == splits[1][name]
        configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
        places = [config["model"].pop("attention") for config in configs]
        assert configs[0] == configs[1]
        assert configs[0]["train"]["max_steps"] == STEPS
        blocks = [{key: value for key, value in place.items() if key != "reduction"} for place in places]
        assert blocks[0] == dict.fromkeys(POSITIONS, "none")
        assert blocks[1] == dict.fromkeys(POSITIONS, "none") | {"encoder": "scse", "decoder": "scse"}


def test_runs_share_the_cases_that_lie_on_disk(study):
    ablation, _ = study
    assert len(list((ablation.folder / "cache").glob("*/label.npy"))) == 6
    assert list(ablation.folder.glob("*/cache")) == []


def test_the_table_says_what_the_runs_say(study):
    ablation, _ = study
    dice = {}
    for variant in ("none", "scse"):
        tables = [pd.read_csv(ablation.folder / variant / f"seed0_fold{fold}/validation/cases.csv") for fold in (0, 1)]
        dice[variant] = pd.concat(tables).groupby("case")["dice"].mean()
    none, scse = ablation.variants
    assert none.mean == pytest.approx(dice["none"].mean())
    assert scse.mean == pytest.approx(dice["scse"].mean())
    assert scse.by_seed == (pytest.approx(scse.mean),)
    assert ablation.comparison.difference == pytest.approx((dice["scse"] - dice["none"]).mean(), abs=1e-9)
    assert ablation.n_cases == len(dice["none"]) == 4
    written = read_json(ablation.folder / "ablation.json")
    assert written["variants"][1]["mean"] == scse.mean
    assert written["comparison"]["differences"][0]["p_holm"] == ablation.comparison.overall.p_holm
    assert written["made_with"]["precision"] == ["fp32"]
    assert (ablation.folder / "ablation.md").read_text() == ablation.to_markdown()


def test_costs_are_those_of_the_network_and_its_runs(study):
    ablation, _ = study
    for variant in ablation.variants:
        folder = ablation.folder / variant.name / "seed0_fold0"
        network = build_unet(read_json(folder / "model" / "model.json")["network"])
        assert variant.cost.parameters == sum(parameter.numel() for parameter in network.parameters())
        assert variant.cost.steps == STEPS
        assert variant.cost.step_ms != variant.cost.step_ms  # too short a run to know
        assert variant.cost.memory_bytes > 16 * variant.cost.parameters  # fp32 weight, gradient, Muon's or Adam's state
        seconds = read_json(folder / "validation" / "seconds.json")
        assert len(seconds) == 2
        assert min(seconds.values()) > 0
    assert ablation.variants[1].cost.parameters > ablation.variants[0].cost.parameters


def test_subjects_are_the_units_of_intervals_and_tests(study):
    ablation, _ = study
    assert (ablation.comparison.overall.n, ablation.comparison.overall.n_units) == (4, 2)
    table = pd.read_csv(ablation.folder / "scse" / "cases.csv").drop_duplicates("case")
    assert dict(zip(table["case"], table["subject"], strict=True)).keys() == set(table["case"])
    assert table.groupby("subject")["case"].count().tolist() == [2, 2]


def test_compare_takes_the_variants_tables(study):
    ablation, _ = study
    found = segscse.compare(ablation.folder / "none", ablation.folder / "scse", metric="nsd")
    assert found.overall.n == 4


def test_the_command_resumes_a_finished_one_without_training(study, data, tmp_path, capsys, monkeypatch):
    ablation, _ = study
    shutil.copytree(ablation.folder, tmp_path / "out")
    monkeypatch.setattr(ablation_module, "finish_fold", lambda *given, **named: pytest.fail("trained"))
    assert run(["ablate", str(data), "--out", str(tmp_path / "out"), "--resume"]) == 0
    shown = capsys.readouterr()
    assert str(ablation).splitlines()[1:] == shown.out.splitlines()[1 : len(str(ablation).splitlines())]
    assert "run 4 of 4: scse, seed 0, fold 1, finished before" in shown.err
    assert run(["ablate", str(data), "--out", str(tmp_path / "out"), "--resume", "--steps", "4"]) == 0
    for flags, message in (
        (["--steps", "5"], "was started with another configuration or length"),
        (["--model.base-features", "8"], "was started with another configuration or length"),
    ):
        assert run(["ablate", str(data), "--out", str(tmp_path / "out"), "--resume", *flags]) == 2
        assert message in capsys.readouterr().err


def test_another_data_set_is_not_taken_for_the_same(study, tmp_path):
    ablation, _ = study
    other = write_dataset(tmp_path / "other", cases=7)
    with pytest.raises(InputError, match="was started with another data set"):
        ablate(other, out=ablation.folder, resume=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention": ["none", "scsee"]}, r"unknown attention block 'scsee'.*Did you mean 'scse'"),
        ({"attention": ["none"]}, "takes two different variants or more, got none"),
        ({"attention": ["none", "cbam", "CBAM"]}, "two different variants"),
        ({"attention": ["none", "cse", "SELayer"]}, "cse and SELayer are one"),
        ({"attention": ["scse", "scse:aggregation=add"]}, "scse and scse:aggregation=add are one"),
        ({"seeds": 2, "config": tiny_config(train={"seed": 2**31 - 1})}, "train.seed must be between 0 and"),
        ({"folds": [0, 3]}, "fold must be between 0 and 2, got 3"),
        ({"folds": [1, 1]}, "folds must be different numbers, got 1, 1"),
        ({"folds": []}, "folds must be different numbers, got none"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"budget": "soon"}, "duration such as 90s"),
        ({"steps": 0}, "train.max_steps must be >= 1, got 0"),
        ({"budget": "9s", "steps": 9}, "a budget or a number of steps, got both"),
        ({"resume": True}, "holds no ablation to resume"),
        ({"config": tiny_config(model={"attention": {"encoder": "none", "decoder": "none"}})}, "no attention at any"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(given, message, dataset, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=message):
        ablate(dataset, out=tmp_path / "out", **{"config": CONFIG, **given})
    assert not (tmp_path / "out").exists()


def test_a_used_folder_is_left_alone(dataset, tmp_path):  # noqa: F811
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists and is not empty"):
        ablate(dataset, out=tmp_path, config=CONFIG)
    assert [item.name for item in tmp_path.iterdir()] == ["note.txt"]


def test_a_data_set_that_changes_meanwhile_stops_it(make_dataset, tmp_path, monkeypatch):
    data = make_dataset()
    finish_fold = ablation_module.finish_fold

    def tampered(source, **given):
        shutil.copy(data / "imagesTr" / "case_0.nii.gz", data / "imagesTr" / "case_1.nii.gz")
        return finish_fold(source, **given)

    monkeypatch.setattr(ablation_module, "finish_fold", tampered)
    with pytest.raises(InputError, match="the data set has changed"):
        ablate(data, out=tmp_path / "out", attention=["none", "cse"], folds=[0], steps=1, config=CONFIG)
    assert not list((tmp_path / "out").rglob("outcome.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "0,x"], "--folds must be numbers separated by commas, got '0,x'"),
        (["--attention", "none,,se"], "--attention must be names separated by commas, got 'none,,se'"),
    ],
)
def test_bad_flags_are_one_line(flags, message, dataset, tmp_path, capsys):  # noqa: F811
    assert run(["ablate", str(dataset), "--out", str(tmp_path / "out"), *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_step_time_leaves_out_validations(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,seconds,val_dice\n20,4.0,\n40,6.0,\n50,60.0,0.5\n60,61.0,\n60,90.0,0.6\n80,94.0,\n"
    )
    assert step_ms(tmp_path / "metrics.csv") == pytest.approx(150)  # of 200, 100, 100 and 200
    (tmp_path / "metrics.csv").write_text("step,seconds,val_dice\n10,4.0,0.5\n")
    assert step_ms(tmp_path / "metrics.csv") is None
