"""Int8: what it is calibrated with, and what it costs in agreement."""

import numpy as np
import pytest
import torch
from tiny import tiny_case, tiny_plan, tiny_plan_2d

from segscse.cli import run
from segscse.errors import InputError
from segscse.files import read_json, write_json
from segscse.inference import parity
from segscse.inference.export import export_model
from segscse.inference.model_folder import load_model, save_model
from segscse.inference.predictor import load
from segscse.inference.quantise import calibration_windows


@pytest.fixture(scope="module")
def scans(tmp_path_factory, make_volume):
    folder = tmp_path_factory.mktemp("scans")
    return [make_volume(folder / f"c{number}.nii.gz", tiny_case(number)[0]) for number in range(5)]


def _brighter_than(threshold):
    """Return a network whose foreground is what is brighter than this, normalised."""
    return lambda x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :1] - threshold], dim=1)


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3D", "2D"])
def test_windows_are_the_networks_and_other_scans_verify(scans, plan):
    seen = []
    calibrate, verify = calibration_windows(
        scans, plan, _brighter_than(0), lambda done, total: seen.append((done, total))
    )
    assert {tuple(window.shape) for window in (*calibrate, *verify)} == {(1, 1, *plan.patch_size)}
    assert not any(torch.equal(a, b) for a in calibrate for b in verify)
    assert seen == [(number, 5) for number in range(1, 6)]


def test_one_scan_calibrates_and_verifies(scans):
    calibrate, verify = calibration_windows(scans[:1], tiny_plan(), _brighter_than(0))
    assert verify is calibrate


def test_windows_with_foreground_are_among_them_wherever_contrast_is(tmp_path, make_volume):
    array = np.zeros((40, 40, 16), np.float32)
    array[:, :24] = np.random.default_rng(0).choice([-1.0, 0.5], size=(40, 24, 16))  # the largest variance
    array[34:38, 34:38, 6:10] = 1.5
    path = make_volume(tmp_path / "a.nii", array)
    windows, _ = calibration_windows([path], tiny_plan(), _brighter_than(1.5))
    assert any((window > 1.5).any() for window in windows)
    assert len(windows) == 8


def test_a_model_that_finds_nothing_in_the_scans_is_not_quantised(trained, tmp_path, make_volume):
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    model = load_model(trained.folder)
    model.weights["heads.0.bias"][0] += 1e4  # background, whatever the scan
    save_model(tmp_path / "blind", model)
    array = np.random.default_rng(0).normal(size=(20, 20, 12)).astype(np.float32)
    scan = make_volume(tmp_path / "scan.nii.gz", array)
    with pytest.raises(
        InputError, match=r"not exported: in the \d windows .* nothing is found\. Give --calibrate more"
    ):
        export_model(tmp_path / "blind", tmp_path / "m", precision="int8", calibrate=[scan])
    assert not (tmp_path / "m").exists()


def test_a_scan_smaller_than_the_window_is_padded(tmp_path, make_volume):
    path = make_volume(tmp_path / "a.nii", np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32))
    windows, _ = calibration_windows([path], tiny_plan(), _brighter_than(0))
    assert [tuple(window.shape) for window in windows] == [(1, 1, 16, 16, 8)]
    assert not windows[0][..., 5:, :, :].any()


def _export_int8(trained, dataset, out, monkeypatch, *, flipped):
    """Export with another limit for flipped labels: a network of 30 steps and 4 features is near to its thresholds."""
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    monkeypatch.setitem(parity.TOLERANCES, "int8", parity.Tolerance(error=0.5, flipped=flipped))
    arguments = ["export", str(trained.folder), "--out", str(out), "--precision", "int8"]
    return run([*arguments, "--calibrate", str(dataset / "imagesTr")])


def test_a_quantised_model_says_so_and_segments_nearly_as_pytorch(trained, dataset, tmp_path, monkeypatch):
    assert _export_int8(trained, dataset, tmp_path / "m", monkeypatch, flipped=0.3) == 0
    predictor, reference = load(tmp_path / "m", engine="openvino"), load(trained.folder, engine="torch")
    assert predictor.engine.precision == "int8"
    image = torch.randn(1, 16, 20, 12, generator=torch.Generator().manual_seed(0))
    ours, theirs = predictor.logits(image), reference.logits(image)
    assert not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)  # it does compute in other numbers
    assert (ours - theirs).square().mean().sqrt() < 0.5 * theirs.std()


def test_a_model_that_has_learned_is_quantised_within_the_limits_that_ship(learned, dataset, tmp_path):
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    scans = sorted((dataset / "imagesTr").glob("*.nii.gz"))
    (graph,) = export_model(learned.folder, tmp_path / "m", precision="int8", calibrate=scans).engines
    assert graph.parity["int8"]["foreground"] > 100
    image, label = tiny_case(50)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    ours, theirs = (
        load(tmp_path / "m", engine=engine).predict((image, affine)).array for engine in ("openvino", "torch")
    )
    assert (ours != theirs).sum() < 0.02 * (label > 0).sum()


def test_auto_takes_int8_that_computes_what_was_exported_however_far_from_made_up_windows(
    trained, dataset, tmp_path, monkeypatch
):
    assert _export_int8(trained, dataset, tmp_path / "m", monkeypatch, flipped=0.3) == 0
    (graph,) = load_model(tmp_path / "m").engines
    assert set(graph.parity) == {"int8", parity.MADE_UP}
    monkeypatch.setitem(parity.TOLERANCES, "int8", parity.Tolerance(error=0.5, flipped=-1.0))
    trial = load(tmp_path / "m").trials[1]
    assert (trial.engine, trial.problem) == ("openvino int8", None)


def test_the_tolerance_on_made_up_windows_is_what_the_export_found_and_half_as_much():
    exported = {parity.MADE_UP: {"error": 0.1, "flipped": 0.08, "windows": 4}}
    allowed = parity.made_up_tolerance("int8", exported)
    assert (allowed.error, allowed.flipped) == pytest.approx((0.152, 0.122))
    near, far = parity.Parity(0.12, 0.1, 4, 9), parity.Parity(0.12, 0.13, 4, 9)
    assert near.problem("int8", allowed) is None
    assert "0.13 of the foreground" in far.problem("int8", allowed)
    assert near.problem("int8") is not None


def test_no_record_lets_logits_be_further_off_than_int8_may_be():
    exported = {parity.MADE_UP: {"error": float("inf"), "flipped": 0.1}}
    assert parity.made_up_tolerance("int8", exported).error == parity.TOLERANCES["int8"].error
    assert parity.Parity(0.1, 0.1, 4, 9).problem("int8", parity.made_up_tolerance("int8", exported)) is None
    exported[parity.MADE_UP]["error"] = float("nan")
    assert parity.Parity(0.0, 0.0, 4, 9).problem("int8", parity.made_up_tolerance("int8", exported)) is not None


@pytest.mark.parametrize(("recorded", "refused"), [(0.02, False), (None, True)])
def test_auto_judges_a_graph_that_says_int8_by_its_record(trained, tmp_path, monkeypatch, recorded, refused):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    assert run(["export", str(trained.folder), "--out", str(tmp_path / "m"), "--precision", "fp32"]) == 0
    description = read_json(tmp_path / "m" / "model.json")
    (graph,) = description["engines"]
    graph["precision"] = "int8"
    if recorded is not None:
        graph["parity"][parity.MADE_UP] = {"error": recorded, "flipped": recorded, "windows": 4}
    write_json(tmp_path / "m" / "model.json", description)
    monkeypatch.setitem(parity.TOLERANCES, "int8", parity.Tolerance(error=0.5, flipped=-1.0))
    assert (load(tmp_path / "m").trials[1].problem is not None) == refused


@pytest.mark.parametrize("found", [None, [], {}, {"error": 0.1}, {"error": "0.1", "flipped": 0.1}])
def test_without_a_record_the_fixed_tolerance_counts(found):
    assert parity.made_up_tolerance("int8", {parity.MADE_UP: found}) == parity.TOLERANCES["int8"]


def test_a_graph_that_is_not_quantised_keeps_its_tolerance():
    exported = {parity.MADE_UP: {"error": 9.0, "flipped": 9.0}}
    assert parity.made_up_tolerance("fp32", exported) == parity.TOLERANCES["fp32"]


def test_a_quantised_model_that_changes_too_many_labels_is_not_exported(trained, dataset, tmp_path, monkeypatch):
    assert _export_int8(trained, dataset, tmp_path / "m", monkeypatch, flipped=-1.0) == 2
    assert not list(tmp_path.iterdir())


def test_int8_without_nncf_names_the_extra(trained, dataset, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    import sys

    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"nncf is not installed .*segscse\[int8\]"):
        export_model(trained.folder, tmp_path / "m", precision="int8", calibrate=[dataset / "imagesTr"])
    assert not (tmp_path / "m").exists()
