"""Cases and folds dealt out among real processes: one of them dies, the job is started again, and nothing is lost."""

import shlex
from itertools import product

import pandas as pd
import pytest
from processes import finish, start, start_two
from tiny import SETTINGS, dataset, tiny_config, trained  # noqa: F401, fixtures
from yaml import safe_dump

import segscse
from segscse.files import read_json
from segscse.inference.manifest import merge_parts
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load

CASES = [f"case_{number}" for number in range(6)]
# As in the README, but for the data set and what keeps it short.
TORCHRUN = "-m torch.distributed.run --nproc-per-node 2 -m segscse train {dataset} --out {out} --fold cv {short}"


def _jobs():
    import rank_jobs

    return rank_jobs.__file__


class TestPrediction:
    @pytest.fixture(scope="class")
    def broken(self, trained, dataset, tmp_path_factory):  # noqa: F811
        """Return the output folder of two processes of which the second died after one case."""
        out = tmp_path_factory.mktemp("broken") / "out"
        ends = finish(start_two(_jobs(), "predict", trained.folder, dataset / "imagesTr", out))
        assert ends[1][0] == 9, ends
        assert "process 1 of 2 has vanished" in ends[0][1]
        return out

    def test_goes_on_after_a_death_and_loses_and_repeats_nothing(self, broken, trained, dataset):  # noqa: F811
        assert {path.name for path in broken.glob("predictions*")} == {"predictions.0.json", "predictions.1.json"}
        before = {path.name: path.stat().st_mtime_ns for path in broken.glob("*.nii.gz")}
        assert len(before) == 3 + 1  # the first process had finished its share
        model = load(trained.folder, device="cpu")
        outcome = predict_files(model, [dataset / "imagesTr"], broken, resume=True)
        assert sorted(path.name for path in outcome.verified) == sorted(before)
        names = sorted(path.name for path in outcome.written + outcome.verified)
        assert names == [f"{case}.nii.gz" for case in CASES]
        assert {name: (broken / name).stat().st_mtime_ns for name in before} == before
        assert sorted(read_json(broken / "predictions.json")["cases"]) == CASES
        assert [path.name for path in broken.glob("predictions*")] == ["predictions.json"]
        assert sorted(pd.read_csv(broken / "quality.csv")["case"]) == CASES

    def test_by_two_processes_is_that_of_one(self, trained, dataset, tmp_path, fingerprints):  # noqa: F811
        command = ["-m", "segscse", "predict", trained.folder, dataset / "imagesTr", "--out", tmp_path / "two"]
        ((code, said),) = finish([start(*command, "--device", "cpu", "--devices", "2")])
        assert code == 0, said
        assert f"6 label maps in {tmp_path / 'two'}" in said
        assert said.count("engine:") == 1
        predict_files(load(trained.folder, device="cpu"), [dataset / "imagesTr"], tmp_path / "one")
        names = [f"{case}.nii.gz" for case in CASES]
        one, two = ({name: fingerprints(tmp_path / side / name) for name in names} for side in ("one", "two"))
        assert [list(value.values()) for value in one.values()] == [list(value.values()) for value in two.values()]
        manifests = [read_json(tmp_path / side / "predictions.json")["cases"] for side in ("one", "two")]
        assert manifests[0].keys() == manifests[1].keys()
        assert all(manifests[0][case]["inputs"] == manifests[1][case]["inputs"] for case in CASES)


class TestParts:
    def test_a_kill_while_parts_are_merged_loses_nothing(self, tmp_path, monkeypatch):
        from segscse.inference.manifest import Manifest

        for part, case in enumerate("ab"):
            manifest = Manifest(tmp_path, "key", part)
            (tmp_path / f"{case}.nii.gz").write_text(case)
            manifest.add(case, [], [tmp_path / f"{case}.nii.gz"], {"look": False})
            manifest.save()
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                merge_parts(tmp_path)
        assert sorted(merge_parts(tmp_path)) == ["a", "b"]
        assert sorted(read_json(tmp_path / "predictions.json")["cases"]) == ["a", "b"]
        assert [path.name for path in tmp_path.glob("*.json")] == ["predictions.json"]

    def test_a_case_that_failed_in_one_is_out_of_the_whole(self, tmp_path):
        from segscse.inference.manifest import Manifest

        for name in "ab":
            (tmp_path / f"{name}.nii.gz").write_text(name)
        earlier = Manifest(tmp_path, "other")
        for name in "ab":
            earlier.add(name, [], [tmp_path / f"{name}.nii.gz"], {"look": False})
        earlier.save()
        part = Manifest(tmp_path, "key", 1)
        assert part.drop("b") == ["b.nii.gz"]
        part.failures["b"] = "is empty"
        part.save()
        assert list(merge_parts(tmp_path)) == ["a"]
        found = read_json(tmp_path / "predictions.json")
        assert (list(found["cases"]), found["failures"]) == (["a"], {"b": "is empty"})

    @pytest.mark.parametrize("name", ["predictions.modelA.json", "predictions.0.old.json", "predictions.-1.json"])
    def test_a_copy_of_the_manifest_is_no_part(self, tmp_path, name):
        from segscse.inference.manifest import Manifest

        (tmp_path / "a.nii.gz").write_text("a")
        manifest = Manifest(tmp_path, "key")
        manifest.add("a", [], [tmp_path / "a.nii.gz"], {"look": False})
        manifest.save()
        (tmp_path / "predictions.json").rename(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        assert merge_parts(tmp_path) == {}
        assert (tmp_path / name).read_bytes() == content

    def test_a_folder_without_any_is_left_alone(self, tmp_path):
        assert merge_parts(tmp_path / "none") == {}
        assert not list(tmp_path.iterdir())


class TestCrossValidation:
    def test_goes_on_after_a_death_and_loses_and_repeats_nothing(self, dataset, tmp_path):  # noqa: F811
        out = tmp_path / "cv"
        ends = finish(start_two(_jobs(), "cross_validate", dataset, out))
        assert ends[1][0] == 9, ends
        assert "process 1 of 2 has vanished" in ends[0][1]
        done = {fold: out / fold / "model" / "model.safetensors" for fold in ("fold0", "fold2")}
        before = {fold: path.stat().st_mtime_ns for fold, path in done.items()}
        assert not (out / "fold1" / "model").exists()
        config = tiny_config(train={"max_steps": 2, "validations": 1}, data={"folds": 3})
        summary = segscse.cross_validate(dataset, out=out, config=config, resume=True)
        assert {fold: path.stat().st_mtime_ns for fold, path in done.items()} == before
        assert summary["overall"]["n_cases"] == 6
        assert sorted(pd.read_csv(out / "evaluation" / "cases.csv")["case"].unique()) == CASES

    def test_the_readmes_line_trains_and_scores_every_fold(self, dataset, tmp_path):  # noqa: F811
        config = tmp_path / "config.yaml"
        short = {"max_steps": 2, "validations": 1, "device": "cpu", "precision": "fp32"}
        config.write_text(safe_dump({**SETTINGS, "train": short, "data": {**SETTINGS["data"], "folds": 2}}))
        line = TORCHRUN.format(dataset=dataset, out=tmp_path / "cv", short=f"--config {config}")
        ((code, said),) = finish([start(*shlex.split(line))])
        assert code == 0, said
        assert "mean foreground Dice" in said
        assert said.count("report:") == 1
        folds = [read_json(tmp_path / "cv" / f"fold{fold}" / "run.json") for fold in range(2)]
        assert sorted(case for fold in folds for case in fold["validation_cases"]) == CASES
        assert all(fold["processes"] == 1 for fold in folds)  # no DDP inside
        assert all(list((tmp_path / "cv" / f"fold{fold}" / "tensorboard").glob("events.*")) for fold in range(2))
        assert sorted(pd.read_csv(tmp_path / "cv" / "evaluation" / "cases.csv")["case"].unique()) == CASES


class TestAblation:
    def test_goes_on_after_a_death_and_loses_and_repeats_nothing(self, dataset, tmp_path):  # noqa: F811
        out = tmp_path / "ablation"
        ends = finish(start_two(_jobs(), "ablate", dataset, out))
        assert ends[1][0] == 9, ends
        assert "process 1 of 2 has vanished" in ends[0][1]
        done = sorted(path.parent.relative_to(out).as_posix() for path in out.glob("*/*/outcome.json"))
        assert done == ["none/seed0_fold0", "scse/seed0_fold1"]
        assert not (out / "ablation.json").exists()
        models = [out / folder / "model" / "model.safetensors" for folder in done]
        before = [path.stat().st_mtime_ns for path in models]
        ablation = segscse.ablate(dataset, out=out, resume=True)
        assert [path.stat().st_mtime_ns for path in models] == before
        assert [variant.name for variant in ablation.variants] == ["none", "scse"]
        assert read_json(out / "ablation.json")["rounds"] == [{"seed": 0, "fold": 0}, {"seed": 0, "fold": 1}]

    def test_the_command_deals_out_the_runs(self, dataset, tmp_path):  # noqa: F811
        config = tmp_path / "config.yaml"
        short = {"validations": 1, "device": "cpu", "precision": "fp32"}
        config.write_text(safe_dump({**SETTINGS, "train": short, "data": {**SETTINGS["data"], "folds": 3}}))
        out = tmp_path / "ablation"
        settings = ["--attention", "none,scse", "--folds", "0,1", "--steps", "2", "--config", config]
        ((code, said),) = finish([start("-m", "segscse", "ablate", dataset, "--out", out, *settings, "--devices", "2")])
        assert code == 0, said
        assert said.count("ablation.md") == 1
        table = read_json(out / "ablation.json")
        assert len(table["rounds"]) == 2
        for variant, fold in product(["none", "scse"], [0, 1]):
            run = read_json(out / variant / f"seed0_fold{fold}" / "run.json")
            assert run["processes"] == 1
            assert (out / variant / f"seed0_fold{fold}" / "validation" / "cases.csv").is_file()
