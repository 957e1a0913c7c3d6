"""Int8: what it is calibrated with, and what it costs in agreement."""

import numpy as np
import pytest
import torch
from tiny import tiny_case, tiny_plan, tiny_plan_2d

from segscse.cli import run
from segscse.errors import InputError
from segscse.inference.predictor import load
from segscse.inference.quantise import calibration_windows


@pytest.fixture(scope="module")
def scans(tmp_path_factory, make_volume):
    folder = tmp_path_factory.mktemp("scans")
    return [make_volume(folder / f"c{number}.nii.gz", tiny_case(number)[0]) for number in range(5)]


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3D", "2D"])
def test_windows_are_the_networks_and_other_scans_verify(scans, plan):
    seen = []
    calibrate, verify = calibration_windows(scans, plan, lambda done, total: seen.append((done, total)))
    assert {tuple(window.shape) for window in (*calibrate, *verify)} == {(1, 1, *plan.patch_size)}
    assert not any(torch.equal(a, b) for a in calibrate for b in verify)
    assert seen == [(number, 5) for number in range(1, 6)]


def test_one_scan_calibrates_and_verifies(scans):
    calibrate, verify = calibration_windows(scans[:1], tiny_plan())
    assert verify is calibrate


def test_a_scan_smaller_than_the_window_is_padded(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32))
    windows, _ = calibration_windows([path], tiny_plan())
    assert [tuple(window.shape) for window in windows] == [(1, 1, 16, 16, 8)]
    assert not windows[0][..., 5:, :, :].any()


def test_a_quantised_model_says_so_and_segments_nearly_as_pytorch(trained, dataset, tmp_path):
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    images = str(dataset / "imagesTr")
    arguments = ["export", str(trained.folder), "--out", str(tmp_path / "m"), "--precision", "int8"]
    code = run([*arguments, "--calibrate", images])
    if code == 2:  # a network of 30 steps may be too near to its thresholds: then the export must have left nothing
        assert not (tmp_path / "m").exists()
        pytest.skip("int8 flips too many labels of this barely trained network")
    assert code == 0
    predictor, reference = load(tmp_path / "m", engine="openvino"), load(trained.folder, engine="torch")
    assert predictor.engine.precision == "int8"
    ours, theirs = (item.predict(dataset / "imagesTr" / "case_0.nii.gz").array for item in (predictor, reference))
    assert 2 * ((ours == theirs) & (theirs > 0)).sum() / ((ours > 0).sum() + (theirs > 0).sum()) > 0.95


def test_int8_without_nncf_names_the_extra(trained, dataset, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    import sys

    from segscse.inference.export import export_model

    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"nncf is not installed .*segscse\[int8\]"):
        export_model(trained.folder, tmp_path / "m", precision="int8", calibrate=[dataset / "imagesTr"])
    assert not (tmp_path / "m").exists()
