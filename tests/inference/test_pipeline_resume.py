"""`predict --resume`: what is verified is left alone, what is not is made again."""

import json

import numpy as np
import pytest
import torch
from nearest import CPU, Nearest, corrupt, nearest_predictor
from tiny import tiny_case, tiny_plan
from volumes import write_volume

from segscse.errors import InputError
from segscse.files import sha256_of
from segscse.inference.engines import Engine, TorchEngine
from segscse.inference.model_folder import load_model, save_model
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import Predictor, load
from segscse.inference.segment import Options


class TestResume:
    def _again(self, scans, out, model=None, **options):
        outcome = predict_files(model or nearest_predictor(), [scans], out, resume=True, **options)
        return {path.name[:6] for path in outcome.written}, {path.name[:6] for path in outcome.verified}

    @pytest.fixture
    def done(self, scans, out):
        predict_files(nearest_predictor(), [scans], out)
        return out

    def test_leaves_verified_cases_alone(self, scans, done):
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.glob("*.nii.gz")}
        assert self._again(scans, done) == (set(), {"scan_0", "scan_1", "scan_2"})
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done.glob("*.nii.gz")} == before

    def test_makes_missing_and_damaged_outputs_again(self, scans, done):
        whole = (done / "scan_1.nii.gz").read_bytes()
        (done / "scan_0.nii.gz").unlink()
        corrupt(done / "scan_1.nii.gz")
        assert self._again(scans, done) == ({"scan_0", "scan_1"}, {"scan_2"})
        assert len((done / "scan_1.nii.gz").read_bytes()) == len(whole)

    def test_makes_the_output_of_a_changed_scan_again(self, scans, done):
        write_volume(scans / "scan_2.nii.gz", tiny_case(7)[0], np.eye(4))
        assert self._again(scans, done) == ({"scan_2"}, {"scan_0", "scan_1"})

    def test_makes_all_again_with_other_settings(self, scans, done):
        everything = {"scan_0", "scan_1", "scan_2"}
        assert self._again(scans, done, nearest_predictor(mirror=True)) == (everything, set())
        assert self._again(scans, done, options=Options(uncertainty=True)) == (everything, set())
        assert self._again(scans, done, options=Options(uncertainty=True)) == (set(), everything)
        (done / "uncertainty" / "scan_1.nii.gz").unlink()
        assert self._again(scans, done, options=Options(uncertainty=True)) == ({"scan_1"}, {"scan_0", "scan_2"})

    def test_makes_all_again_with_other_weights(self, scans, out, trained, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in (trained.folder / "model").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        assert len(self._again(scans, out, load(folder, device="cpu"))[0]) == 3
        assert len(self._again(scans, out, load(trained.folder, device="cpu"))[1]) == 3  # the same model elsewhere
        model = load_model(folder)
        next(iter(model.weights.values())).view(-1)[0] += 1e-3
        save_model(folder, model)
        assert len(self._again(scans, out, load(folder, device="cpu"))[0]) == 3

    def test_makes_all_again_with_another_network_that_was_given_in_memory(self, scans, out):
        def predictor(weight):
            network = torch.nn.Conv3d(1, 3, 1, bias=False)
            torch.nn.init.constant_(network.weight, weight)
            return Predictor(network, tiny_plan(), provenance={}, device=CPU)

        assert len(self._again(scans, out, predictor(1.0))[0]) == 3
        assert len(self._again(scans, out, predictor(1.0))[1]) == 3
        assert len(self._again(scans, out, predictor(2.0))[0]) == 3

    def test_makes_all_again_with_an_engine_of_which_nothing_is_known(self, scans, out):
        class Unknown(Engine):
            name, precision, device = "openvino", "fp32", CPU

            def __call__(self, windows):
                return Nearest()(windows)

        for _ in range(2):
            given = Predictor(Unknown(), tiny_plan(), provenance={}, device=CPU)
            assert len(self._again(scans, out, given)[0]) == 3

    def test_makes_all_again_with_another_engine(self, scans, done):
        class Other(TorchEngine):
            name = "openvino"

        other = Predictor(Other(Nearest(), CPU, "fp32", 3), tiny_plan(), provenance={}, device=CPU)
        assert len(self._again(scans, done, other)[0]) == 3
        assert len(self._again(scans, done, other)[1]) == 3

    @pytest.mark.parametrize(
        "content", ["{", "[]", '{"format": "other", "version": 1, "cases": {}}', "", '{"cases": 3}']
    )
    def test_trusts_no_damaged_manifest(self, scans, done, content):
        (done / "predictions.json").write_text(content)
        assert len(self._again(scans, done)[0]) == 3

    def test_takes_label_maps_without_a_manifest_for_somebody_elses(self, scans, done):
        (done / "predictions.json").unlink()
        with pytest.raises(InputError, match="in a folder that no prediction has written to"):
            self._again(scans, done)

    def test_trusts_no_edited_entry(self, scans, done):
        manifest = json.loads((done / "predictions.json").read_text())
        manifest["cases"]["scan_0"]["outputs"] = {}
        manifest["cases"]["scan_1"] = "fine"
        (done / "predictions.json").write_text(json.dumps(manifest))
        assert self._again(scans, done) == ({"scan_0", "scan_1"}, {"scan_2"})

    def test_without_it_all_is_made_again(self, scans, done):
        assert len(predict_files(nearest_predictor(), [scans], done).written) == 3

    def test_the_manifest_holds_digests_and_no_paths(self, scans, done):
        manifest = json.loads((done / "predictions.json").read_text())
        entry = manifest["cases"]["scan_0"]
        assert entry["inputs"] == [["scan_0.nii.gz", sha256_of(scans / "scan_0.nii.gz")]]
        assert entry["outputs"] == {"scan_0.nii.gz": sha256_of(done / "scan_0.nii.gz")}
        assert str(scans) not in json.dumps(manifest)
