import json
import re
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from command import refused
from tiny import SETTINGS, dataset, tiny_case, tiny_config, trained, write_dataset  # noqa: F401, fixtures
from volumes import write_volume

from segscse.attention import BLOCKS
from segscse.cli import run
from segscse.config import load_config, save_config
from segscse.errors import InputError
from segscse.inference.predictor import load

# The fixtures come by import, so every test that takes one looks like a redefinition.
# ruff: noqa: F811

VERBS = (
    "ablate",
    "blocks",
    "check",
    "compare",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "fetch",
    "plan",
    "predict",
    "train",
)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**SETTINGS, "train": {**SETTINGS["train"], "max_steps": 20}}))
    return path


class TestHelp:
    def test_names_every_verb(self, capsys):
        assert run(["--help"]) == 0
        out = capsys.readouterr().out
        assert sorted(set(re.findall(r"^│ ([a-z]+) {2,}", out, re.MULTILINE))) == list(VERBS)

    @pytest.mark.parametrize("verb", VERBS)
    def test_of_every_verb_says_what_it_does(self, verb, capsys):
        assert run([verb, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out

    def test_of_train_explains_the_settings(self, capsys):
        run(["train", "--help"])
        out = capsys.readouterr().out
        assert "--model.attention.encoder" in out
        assert "--optim.lr" in out


def test_the_whole_chain_from_plan_to_comparison(dataset, config, tmp_path, capsys):
    out = tmp_path
    assert run(["check", str(dataset), "--json", str(out / "check.json")]) == 0
    assert json.loads((out / "check.json").read_text())["n_errors"] == 0
    assert run(["plan", str(dataset), "--out", str(out / "plan.json"), "--config", str(config)]) == 0
    assert json.loads((out / "plan.json").read_text())["labels"] == [[0, "background"], [2, "block"], [5, "ball"]]
    assert run(["train", str(dataset), "--out", str(out / "run"), "--config", str(config), "--fold", "1"]) == 0
    said = capsys.readouterr().out
    assert "trained 20 steps" in said
    assert "mean foreground Dice" in said
    assert (out / "run" / "validation" / "report.html").is_file()
    images = dataset / "imagesTr"
    assert run(["predict", str(out / "run"), str(images), "--out", str(out / "pred"), "--device", "cpu"]) == 0
    assert "6 label maps" in capsys.readouterr().out
    one = str(images / "case_0.nii.gz")
    assert run(["predict", str(out / "run" / "model"), one, "--out", str(out / "tta"), "--tta", "--probabilities"]) == 0
    assert (out / "tta" / "probabilities" / "case_0.nii.gz").is_file()
    labels = str(dataset / "labelsTr")
    arguments = ["evaluate", "--pred", str(out / "pred"), "--ref", labels, "--out", str(out / "eval")]
    assert run([*arguments, "--images", str(images)]) == 0
    assert {path.name for path in (out / "eval").iterdir()} >= {"cases.csv", "summary.json", "report.html"}
    capsys.readouterr()
    assert run(["compare", str(out / "eval"), str(out / "eval" / "cases.csv")]) == 0
    assert "Foreground: no difference shown; only 6 cases" in capsys.readouterr().out
    (out / "subjects.csv").write_text("case,subject\n" + "".join(f"case_{i},s{i // 2}\n" for i in range(6)))
    arguments += ["--subjects", str(out / "subjects.csv"), "--model", str(out / "run"), "--no-viewer"]
    assert run(arguments) == 0
    report = (out / "eval" / "report.html").read_text()
    assert "6 cases of 3 subjects" in report
    assert "fingerprint" in report
    assert 'id="niivue"' not in report


class TestCompare:
    @pytest.fixture
    def scores(self, tmp_path):
        """Return three files of scores; the second is better, the third like the first."""
        rng = np.random.default_rng(0)
        base = rng.uniform(0.6, 0.8, 20)
        paths = []
        for name, shift in (("plain", 0.0), ("better", 0.1), ("same", 0.0)):
            lines = [f"c{i},1,liver,{value + shift + rng.normal(0, 0.01):.6f}\n" for i, value in enumerate(base)]
            paths.append(tmp_path / name / "cases.csv")
            paths[-1].parent.mkdir()
            paths[-1].write_text("case,label,name,dice\n" + "".join(lines))
        return [str(path) for path in paths]

    def test_says_what_is_shown_and_writes_it(self, scores, tmp_path, capsys):
        assert run(["compare", *scores, "--pairs", "all", "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert f"b: {scores[1]}" in said
        assert "b against a: b is better by 0.1" in said
        assert "c against a: no difference shown" in said
        assert "Ranking: 1. b" in said
        written = json.loads((tmp_path / "out" / "comparison.json").read_text())
        assert len(written["differences"]) == 6
        assert written["evaluations"] == scores
        assert "| foreground | b - a |" in (tmp_path / "out" / "comparison.md").read_text()

    def test_subjects_and_metric(self, scores, tmp_path, capsys):
        (tmp_path / "s.csv").write_text("case,subject\n" + "".join(f"c{i},s{i // 2}\n" for i in range(20)))
        assert run(["compare", *scores[:2], "--subjects", str(tmp_path / "s.csv")]) == 0
        assert "20 (10 subjects)" in capsys.readouterr().out
        assert "unknown metric 'hd95_mm'; allowed: dice" in refused(capsys, "compare", *scores, "--metric", "hd95_mm")

    def test_one_evaluation_isrefused(self, scores, capsys):
        assert "two evaluations or more" in refused(capsys, "compare", scores[0])


class TestTrain:
    def test_the_last_file_wins_over_the_first_and_a_flag_over_both(self, dataset, config, tmp_path):
        (tmp_path / "b.yaml").write_text("optim: {lr: 0.02}\ntrain: {max_steps: 2, seed: 7}\n")
        arguments = ["train", str(dataset), "--out", str(tmp_path / "run"), "--fold", "all"]
        arguments += ["--config", str(config), "--config", str(tmp_path / "b.yaml"), "--train.seed", "9"]
        assert run(arguments) == 0
        saved = load_config(tmp_path / "run" / "config.yaml")
        assert (saved.train.seed, saved.train.max_steps, saved.optim.lr) == (9, 2, 0.02)
        assert saved.model.base_features == 4

    @pytest.mark.parametrize(("saved", "nccl"), [("cpu", False), ("auto", True)])
    def test_a_resumed_run_meets_for_the_device_that_it_was_started_with(self, tmp_path, monkeypatch, saved, nccl):
        save_config(tmp_path / "run" / "config.yaml", tiny_config(train={"device": saved}))
        job = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
        for name, value in job.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("segscse.hardware.pick_device", lambda name: torch.device(name.replace("auto", "cuda")))
        met = []

        def joined(ranks, *, nccl):
            met.append(nccl)
            raise InputError("enough")

        monkeypatch.setattr("segscse.cli.models.joined", joined)
        assert run(["train", "data", "--out", str(tmp_path / "run"), "--resume"]) == 2
        assert met == [nccl]

    def test_a_budget_takes_the_place_of_steps(self, dataset, config, tmp_path):
        arguments = ["train", str(dataset), "--out", str(tmp_path / "run"), "--config", str(config)]
        assert run([*arguments, "--budget", "0.3s", "--fold", "all"]) == 0
        saved = load_config(tmp_path / "run" / "config.yaml")
        assert (saved.train.budget, saved.train.max_steps) == ("0.3s", None)

    def test_the_folder_is_named_after_data_rank_and_fold(self, dataset, config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert run(["train", str(dataset), "--config", str(config), "--fold", "all", "--train.max-steps", "1"]) == 0
        assert (tmp_path / "runs" / "tiny_dataset_3d_foldall" / "model" / "model.json").is_file()

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["--fold", "first"], "--fold must be a number, 'all' or 'cv', got 'first'"),
            (["--fold", "9"], "fold must be between 0 and 4, got 9"),
            (["--budget", "soon"], "must be a duration such as 90s, 20m or 2h, got 'soon'"),
            (["--optim.lr", "-1"], "optim.lr must be > 0"),
            (["--optim.learning-rate", "1"], "learning-rate"),
            (["--model.attention.encoder", "scsee"], "unknown attention block 'scsee'"),
            (["--train.device", "mps"], "device 'mps' is not available"),
            (["--resume"], "cannot be resumed"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_leaves_no_folder(self, flags, expected, dataset, config, tmp_path, capsys):
        out = tmp_path / "run"
        line = refused(capsys, "train", dataset, "--out", out, "--config", config, *flags)
        assert expected in line
        assert not out.exists()

    def test_an_unknown_key_names_its_file(self, dataset, tmp_path, capsys):
        (tmp_path / "bad.yaml").write_text("model:\n  base_featurs: 8\n")
        line = refused(capsys, "train", dataset, "--out", tmp_path / "run", "--config", tmp_path / "bad.yaml")
        assert "bad.yaml" in line
        assert "base-featurs" in line or "base_featurs" in line
        assert not (tmp_path / "run").exists()

    def test_a_used_folder_isrefused(self, dataset, config, trained, capsys):
        line = refused(capsys, "train", dataset, "--out", trained.folder, "--config", config)
        assert "already exists and is not empty" in line


class TestBadData:
    def test_no_such_data_set(self, tmp_path, capsys):
        for verb in ("check", "plan", "train"):
            assert "no such data set" in refused(
                capsys, verb, tmp_path / "none", "--out" if verb != "check" else "--json", tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()

    def test_a_truncated_image(self, tmp_path, capsys):
        data = write_dataset(tmp_path / "data")
        victim = data / "imagesTr" / "case_2.nii.gz"
        victim.write_bytes(victim.read_bytes()[:-200])
        line = refused(capsys, "train", data, "--out", tmp_path / "run")
        assert "case_2.nii.gz" in line
        assert not (tmp_path / "run").exists()
        assert run(["check", str(data)]) == 2

    def test_a_label_of_another_shape(self, tmp_path, capsys):
        data = write_dataset(tmp_path / "data")
        write_volume(data / "labelsTr" / "case_3.nii.gz", np.ones((16, 20, 11), np.uint8), np.eye(4))
        line = refused(capsys, "plan", data, "--out", tmp_path / "plan.json")
        assert "case_3.nii.gz" in line
        assert "different grids" in line
        assert not (tmp_path / "plan.json").exists()

    def test_a_missing_label(self, tmp_path, capsys):
        data = write_dataset(tmp_path / "data")
        (data / "labelsTr" / "case_1.nii.gz").unlink()
        line = refused(capsys, "train", data, "--out", tmp_path / "run")
        assert "case_1" in line
        assert "missing" in line

    def test_check_lists_every_problem_and_writes_them(self, tmp_path, capsys):
        data = write_dataset(tmp_path / "data")
        (data / "imagesTr" / "case_0.nii.gz").write_bytes(b"not an image")
        write_volume(data / "labelsTr" / "case_3.nii.gz", np.full((16, 20, 12), 7, np.uint8), np.eye(4))
        assert run(["check", str(data), "--json", str(tmp_path / "found.json")]) == 2
        report = json.loads((tmp_path / "found.json").read_text())
        assert {finding["case"] for finding in report["findings"]} >= {"case_0", "case_3"}
        assert report["n_errors"] >= 2
        assert "errors" in capsys.readouterr().out


class TestPredict:
    def test_a_bad_case_is_listed_and_the_others_are_written(self, trained, tmp_path, capsys):
        for index in range(2):
            write_volume(tmp_path / "in" / f"s{index}.nii.gz", tiny_case(index)[0], np.eye(4))
        (tmp_path / "in" / "s0.nii.gz").write_bytes(b"\x1f\x8bbroken")
        line = refused(capsys, "predict", trained.folder, tmp_path / "in", "--out", tmp_path / "out")
        assert "s0" in line
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"s1.nii.gz", "quality.csv", "predictions.json"}
        assert set(np.unique(np.asarray(nib.load(tmp_path / "out" / "s1.nii.gz").dataobj))) <= {0, 2, 5}

    def test_options_of_a_prediction_come_together(self, trained, tmp_path, capsys):
        write_volume(tmp_path / "in" / "s0.nii.gz", tiny_case(0)[0], np.eye(4))
        out = tmp_path / "out"
        arguments = ["predict", str(trained.folder), str(tmp_path / "in"), "--out", str(out), "--device", "cpu"]
        arguments += ["--ensemble", str(trained.folder / "model"), "--uncertainty", "--foreground-only"]
        assert run([*arguments, "--memory", "20GB"]) == 0
        said = capsys.readouterr().out
        assert "memory: at most about" in said
        assert "left out 0 of" in said
        assert {path.name for path in out.iterdir()} >= {"s0.nii.gz", "uncertainty", "disagreement", "quality.csv"}
        assert run([*arguments, "--resume"]) == 0
        assert "0 label maps" in (said := capsys.readouterr().out)
        assert "1 more verified" in said

    def test_a_limit_that_is_too_small_is_one_line(self, trained, dataset, tmp_path, capsys):
        arguments = ["predict", trained.folder, dataset / "imagesTr", "--out", tmp_path / "out", "--memory"]
        assert "Give at least --memory" in refused(capsys, *arguments, "5MB")
        assert "must be a size" in refused(capsys, *arguments, "little")
        assert not (tmp_path / "out").exists()

    def test_no_model_there(self, dataset, tmp_path, capsys):
        line = refused(capsys, "predict", tmp_path, dataset / "imagesTr", "--out", tmp_path / "out")
        assert "holds no model" in line
        assert not (tmp_path / "out").exists()

    def test_the_input_folder_is_no_output(self, trained, dataset, capsys):
        images = dataset / "imagesTr"
        assert "holds the inputs" in refused(capsys, "predict", trained.folder, images, "--out", images)


class TestBlocks:
    SMALL = ("--channels", "8", "--repeats", "1", "--device", "cpu")

    def test_prints_and_writes_what_was_measured(self, tmp_path, capsys):
        arguments = ["blocks", "ENCAM", "scse", *self.SMALL, "--size", "4,6,5", "--precision", "fp32"]
        assert run([*arguments, "--out", str(tmp_path / "table.json")]) == 0
        out = capsys.readouterr().out
        assert [line.split()[0] for line in out.splitlines()[:3]] == ["block", "ENCAM", "scse"]
        assert "1803.02579: Roy et al., Concurrent Spatial" in out
        saved = json.loads((tmp_path / "table.json").read_text())
        assert [row["cost"]["parameters"] for row in saved["rows"]] == [64, 8 * 4 + 4 + 4 * 8 + 8 + 8 + 1]
        assert saved["setting"]["size"] == [4, 6, 5]

    def test_measures_all_blocks_where_none_is_named(self, tmp_path, capsys):
        assert run(["blocks", *self.SMALL, "--size", "4,6", "--out", str(tmp_path / "table.md")]) == 0
        lines = (tmp_path / "table.md").read_text().splitlines()
        assert {name for name in BLOCKS if any(line.startswith(f"| `{name}` |") for line in lines)} == set(BLOCKS)
        assert "slice_se: with the mean taken per slice, which the paper does not have; not measured" in (
            capsys.readouterr().out
        )

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["csee"], "unknown attention block 'csee'"),
            (["--size", "40x56"], "--size must be two or three positive numbers such as 40,56,40, got '40x56'"),
            (["--size", "4,4,4,4"], "--size must be two or three positive numbers"),
            (["--channels", "0"], "--channels must be at least 1, got 0"),
            (["--precision", "fp16"], "fp16"),
            (["--device", "mps"], "device 'mps' is not available"),
            (["--out", "table.csv"], "--out must end in .md or .json"),
            (["--size", "3000,3000,3000"], "more than --memory-gib 4"),
            (["slice_se", "--size", "4,4"], "none of the blocks can be measured"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, flags, expected, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert expected in refused(capsys, "blocks", *flags)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_training_process_leaves_a_usable_model(signum, code, dataset, config, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-c", "from segscse.cli import main; main()"]
    command += ["train", str(dataset), "--out", str(out), "--config", str(config), "--train.max-steps", "1000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 90
        while not (out / "metrics.csv").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signum)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert errors.strip().splitlines()[-1].startswith("segscse: stopped at step")
    assert "Traceback" not in errors
    assert load(out, device="cpu").predict((tiny_case(0)[0], np.eye(4))).array.shape == (16, 20, 12)
    assert (out / "checkpoints" / "last.ckpt").is_file()
