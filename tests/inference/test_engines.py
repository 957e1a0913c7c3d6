"""Engines against PyTorch, and the choice among them; those of packages that are not here are skipped."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import tiny_plan, tiny_plan_2d

from segscse.attention import BLOCKS
from segscse.config import ModelConfig
from segscse.errors import InputError
from segscse.inference import engines, export, select
from segscse.inference.convert import to_onnx, to_openvino
from segscse.inference.engines import Engine, OnnxRuntimeEngine, OpenVinoEngine, TorchEngine, require
from segscse.inference.export import export_model
from segscse.inference.model_folder import ModelFolder, load_model, save_model
from segscse.inference.parity import TOLERANCES, Parity, compare, probe_windows
from segscse.inference.predictor import load
from segscse.inference.remembered import Trial, measurement_key, recall, remember
from segscse.nets.build import build_unet, network_arguments
from segscse.nets.norm import InstanceNorm
from segscse.nets.unet import UNet

CPU = torch.device("cpu")
IN_UNETS = [(3, name) for name in BLOCKS if name != "sk"]
IN_UNETS += [(2, name) for name in ("scse", "cbam", "project_excite", "danet_cam")]


def _openvino():
    return pytest.importorskip("openvino", reason="the extra openvino is not installed")


def _onnx():
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def _model(plan=None, **config):
    plan = plan or tiny_plan()
    arguments = network_arguments(plan, ModelConfig(base_features=4, spatial_dims=plan.spatial_dims, **config))
    torch.manual_seed(0)
    provenance = {"config": {"train": {"precision": "fp32"}}}
    return ModelFolder(plan, arguments, provenance, build_unet(arguments).state_dict())


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", _model())
    return tmp_path / "model"


def _unet(dims, name, *, block="plain"):
    torch.manual_seed(0)
    network = UNet(dims, 1, 3, features=(4, 8), attention={"encoder": name}, block=block).eval()
    for parameter in network.parameters():
        if parameter.numel() == 1:  # the weights with which some blocks start as the identity
            torch.nn.init.constant_(parameter, 0.3)
    return network


class TestConversion:
    @pytest.mark.parametrize(("dims", "name"), IN_UNETS)
    def test_every_block_computes_in_openvino_what_it_does_in_torch(self, dims, name):
        _openvino()
        network, window = _unet(dims, name), (16, 8, 8)[:dims]
        engine = OpenVinoEngine(to_openvino(network, 1, window), "fp32")
        for batch in (1, 3):  # any number of windows
            x = torch.randn(batch, 1, *window)
            torch.testing.assert_close(engine(x), network(x).detach(), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("dims", "name"), [(2, "scse"), (3, "danet_pam"), (3, "bam")])
    def test_blocks_compute_in_onnx_runtime_what_they_do_in_torch(self, dims, name):
        _onnx()
        network, window = _unet(dims, name, block="residual"), (16, 8, 8)[:dims]
        engine = OnnxRuntimeEngine(to_onnx(network, 1, window))
        for batch in (1, 3):
            x = torch.randn(batch, 1, *window)
            torch.testing.assert_close(engine(x), network(x).detach(), rtol=1e-3, atol=1e-3)

    def test_a_signal_is_handled_after_another_thread_has_let_go_of_it(self, tmp_path):
        _openvino()
        program = tmp_path / "program.py"
        program.write_text(
            "import os, signal, threading, torch\n"
            "from segscse.inference.convert import to_openvino\n"
            "from segscse.inference.engines import OpenVinoEngine\n"
            "network = torch.nn.Conv2d(1, 1, 3, padding=1).eval()\n"
            "held = [OpenVinoEngine(to_openvino(network, 1, (8, 8)), 'fp32')]\n"
            "thread = threading.Thread(target=held.clear)\n"
            "thread.start(); thread.join()\n"
            "signal.signal(signal.SIGINT, lambda *_: os._exit(7))\n"
            "os.kill(os.getpid(), signal.SIGINT)\n"
        )
        assert subprocess.run([sys.executable, program]).returncode == 7

    def test_the_norm_is_one_operation_of_openvino(self):
        _openvino()
        kinds = [op.get_type_name() for op in to_openvino(_unet(3, "none"), 1, (8, 8, 8)).get_ordered_ops()]
        assert kinds.count("MVN") == sum(isinstance(module, InstanceNorm) for module in _unet(3, "none").modules())

    def test_what_a_converter_cannot_express_is_one_line(self):
        _openvino()

        class Odd(torch.nn.Module):
            def forward(self, x):
                return torch.special.bessel_j0(x)

        with pytest.raises(InputError, match="the network cannot be expressed in OpenVINO") as caught:
            to_openvino(Odd(), 1, (8, 8, 8))
        assert "\n" not in str(caught.value)

    def test_the_interpreter_still_logs_after_a_conversion(self, caplog):
        _openvino()
        to_openvino(_unet(2, "none"), 1, (8, 8))
        import logging

        logging.getLogger("segscse.test").warning("heard")
        assert "heard" in caplog.text


class TestParity:
    WINDOWS = (torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))

    @staticmethod
    def _logits(window):
        ramp = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
        return torch.cat([-ramp, ramp], dim=1) + window

    def test_equal_logits_differ_by_nothing(self):
        expected = [self._logits(window) for window in self.WINDOWS]
        assert compare(self._logits, expected, self.WINDOWS) == Parity(0.0, 0.0, 2, 16)

    def test_error_and_flips_are_those_of_a_worked_example(self):
        expected = [torch.tensor([[[[0.0, 1.0]], [[2.0, -1.0]]]])]  # labels 1, 0
        got = torch.tensor([[[[0.0, 1.0]], [[2.0, 3.0]]]])  # labels 1, 1
        parity = compare(lambda _: got, expected, [torch.zeros(1, 1, 1, 2)])
        assert parity.flipped == 0.5
        assert parity.error == pytest.approx(2.0 / np.std([0.0, 1.0, 2.0, -1.0], ddof=1))

    @pytest.mark.parametrize("precision", list(TOLERANCES))
    def test_both_limits_count_and_nan_is_no_parity(self, precision):
        allowed = TOLERANCES[precision]
        assert Parity(allowed.error, allowed.flipped, 1, 9).problem(precision) is None
        for error, flipped in ((2 * allowed.error, 0.0), (0.0, 2 * allowed.flipped), (float("nan"), 0.0)):
            assert "allowed in" in Parity(error, flipped, 1, 9).problem(precision)

    @pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3D", "2D"])
    def test_probe_windows_are_normalised_and_the_same_each_time(self, plan):
        windows = probe_windows(plan, 3)
        assert [tuple(window.shape) for window in windows] == [(1, 1, *plan.patch_size)] * 3
        assert all(abs(window.mean()) < 1e-5 and abs(window.std() - 1) < 1e-4 for window in windows)
        assert all(torch.equal(a, b) for a, b in zip(windows, probe_windows(plan, 3), strict=True))
        assert not torch.equal(windows[0], windows[1])


class _Fake(Engine):
    """An engine of a known speed and error."""

    name, precision, device = "openvino", "fp32", CPU

    def __init__(self, network, *, off=0.0):
        self.network, self.off = network, off

    def __call__(self, windows):
        with torch.inference_mode():
            return self.network(windows) + self.off * torch.randn_like(windows)


class TestChoice:
    def test_torch_is_taken_where_nothing_was_exported(self, folder):
        predictor = load(folder, device="cpu")
        assert str(predictor.engine) == "torch fp32 on cpu"
        assert predictor.trials == ()

    @pytest.mark.parametrize(
        ("milliseconds", "off", "taken"),
        [((9, 3), 0.0, "openvino"), ((3, 9), 0.0, "torch"), ((9, 3), 1.0, "torch")],
        ids=["faster", "slower", "wrong"],
    )
    def test_auto_takes_the_fastest_that_agrees_with_torch(self, folder, monkeypatch, milliseconds, off, taken):
        model = load_model(folder)
        network = select.build_network(model)
        graph = select.ExportedGraph("openvino", "fp32", ("model.safetensors",), {})
        model = replace(model, engines=(graph,))
        monkeypatch.setattr(select, "installed", lambda engine: True)
        monkeypatch.setattr(select, "_open", lambda model, graph: _Fake(network, off=off))
        speeds = dict(zip(("torch", "openvino"), milliseconds, strict=True))
        monkeypatch.setattr(select, "_seconds", lambda engine, batch: speeds[engine.name] / 1000)
        engine, trials = select.load_engine(model, "auto", "cpu")
        assert engine.name == taken
        assert [trial.engine for trial in trials] == ["torch fp32 on cpu", "openvino fp32"]
        assert trials[0].ms_per_window == pytest.approx(milliseconds[0] / tiny_plan().batch_size)
        assert ("refused" in select.describe(trials)) == bool(off)

    def test_what_was_measured_is_remembered_for_the_same_folder(self, folder, monkeypatch):
        graph = select.ExportedGraph("openvino", "fp32", ("model.safetensors",), {})
        model = replace(load_model(folder), engines=(graph,))
        network = select.build_network(model)
        monkeypatch.setattr(select, "installed", lambda engine: True)
        monkeypatch.setattr(select, "_open", lambda model, graph: _Fake(network))
        measured = []
        monkeypatch.setattr(
            select, "_seconds", lambda engine, batch: measured.append(engine.name) or {"torch": 2.0}.get(engine.name, 1)
        )
        first = select.load_engine(model, "auto", "cpu")
        again = select.load_engine(model, "auto", "cpu")
        assert (first[0].name, again[0].name, again[1]) == ("openvino", "openvino", first[1])
        assert measured == ["torch", "openvino"]
        (folder / "model.json").write_text((folder / "model.json").read_text() + "\n")
        select.load_engine(model, "auto", "cpu")
        assert measured == ["torch", "openvino"] * 2

    def test_what_was_measured_without_a_gpu_does_not_hold_with_one(self, monkeypatch):
        found = {measurement_key("0123", "auto")}
        there = {"is_available": lambda: True, "device_count": lambda: 1, "get_device_name": lambda number: "A GPU"}
        for name, value in there.items():
            monkeypatch.setattr(torch.cuda, name, value)
        found.add(measurement_key("0123", "auto"))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Another GPU")
        found.add(measurement_key("0123", "auto"))
        monkeypatch.setattr("segscse.inference.remembered.cpu_name", lambda: "another processor")
        found.add(measurement_key("0123", "auto"))
        assert len(found) == 4

    def test_a_gpu_with_a_driver_that_does_not_fit_is_not_asked(self, monkeypatch):
        def fails(number):
            raise RuntimeError("The NVIDIA driver on your system is too old")

        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", fails)
        assert measurement_key("0123", "auto")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert measurement_key("0123", "cpu")

    @pytest.mark.parametrize("content", ["", "[]", '{"taken": "torch"}', '{"taken": "torch", "trials": [1]}'])
    def test_a_damaged_memory_is_measured_again(self, tmp_path, monkeypatch, content):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        trials = (Trial("torch fp32 on cpu", 2.5), Trial("openvino", float("inf"), "cannot read it"))
        remember("0123", "torch", trials)
        assert recall("0123") == ("torch", trials)
        next(tmp_path.rglob("*.json")).write_text(content)
        assert recall("0123") is None

    def test_a_cache_that_cannot_be_written_is_done_without(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        remember("0123", "torch", ())
        assert recall("0123") is None

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
    def test_a_graph_that_its_engine_cannot_read_is_passed_over(self, folder, name):
        _openvino() if name == "openvino" else _onnx()
        graph = select.ExportedGraph(name, "fp32", ("model.safetensors",), {})
        model = replace(load_model(folder), engines=(graph,))
        engine, trials = select.load_engine(model, "auto", "cpu")
        assert engine.name == "torch"
        assert f"{name} cannot read it" in trials[1].problem
        with pytest.raises(InputError, match=rf"model.safetensors: {name} cannot read it"):
            select.load_engine(model, name, "cpu")

    def test_unknown_names_and_impossible_devices_are_refused(self, folder):
        with pytest.raises(InputError, match="unknown engine 'tensorrt'"):
            load(folder, engine="tensorrt")
        with pytest.raises(InputError, match="openvino runs on the CPU here, not on 'cuda'"):
            load(folder, engine="openvino", device="cuda")

    def test_a_missing_package_is_named_with_its_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(InputError, match=r"openvino is not installed .*pip install 'segscse\[openvino\]'"):
            require("openvino")
        monkeypatch.setattr(select, "installed", lambda engine: False)
        model = replace(load_model(folder), engines=(select.ExportedGraph("onnxruntime", "fp32", ("a",), {}),))
        assert select.load_engine(model, "auto", "cpu")[0].name == "torch"
        with pytest.raises(InputError, match="onnxruntime is not installed"):
            select.load_engine(model, "onnxruntime", "cpu")

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
    def test_a_run_that_was_not_exported_is_converted_and_verified_on_loading(self, folder, name):
        _openvino() if name == "openvino" else _onnx()
        predictor, reference = load(folder, engine=name, device="cpu"), load(folder, engine="torch", device="cpu")
        image = torch.randn(1, 20, 17, 9)
        torch.testing.assert_close(predictor.logits(image), reference.logits(image), rtol=1e-3, atol=1e-3)

    def test_a_conversion_that_differs_is_refused(self, folder, monkeypatch):
        _openvino()
        monkeypatch.setattr(select, "OpenVinoEngine", lambda model, precision: _Fake(_unet(3, "none")))
        with pytest.raises(InputError, match="openvino cannot be used: its logits differ"):
            load(folder, engine="openvino", device="cpu")

    def test_torch_computes_in_half_precision_where_asked(self):
        network = _unet(3, "scse")
        x = torch.randn(2, 1, 8, 8, 8)
        half, whole = (TorchEngine(network, CPU, precision, 3)(x) for precision in ("bf16", "fp32"))
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), whole, rtol=0.1, atol=0.1)
        assert not torch.equal(half.float(), whole)


class TestExport:
    @pytest.fixture(scope="class")
    def exported(self, tmp_path_factory):
        _openvino(), _onnx()
        base = tmp_path_factory.mktemp("export")
        save_model(base / "model", _model())
        export_model(base / "model", base / "out", engines=("openvino", "onnxruntime"))
        return base / "out"

    def test_the_folder_carries_everything_and_nothing_else(self, exported):
        names = {path.name for path in exported.iterdir()}
        assert names == {"model.json", "model.safetensors", "model.onnx", "openvino.xml", "openvino.bin"}
        description = json.loads((exported / "model.json").read_text())
        assert set(description["sha256"]) == names - {"model.json"}
        assert [graph["engine"] for graph in description["engines"]] == ["openvino", "onnxruntime"]
        assert all(graph["parity"]["fp32"]["error"] < 1e-4 for graph in description["engines"])
        assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []

    @pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch", "auto"])
    def test_every_engine_of_the_folder_predicts_alike(self, exported, name):
        predictor = load(exported, engine=name, device="cpu")
        image = torch.randn(1, 20, 17, 9, generator=torch.Generator().manual_seed(0))
        expected = load(exported.parent / "model", engine="torch", device="cpu").logits(image)
        torch.testing.assert_close(predictor.logits(image), expected, rtol=1e-3, atol=1e-3)
        assert len(predictor.trials) == (3 if name == "auto" else 0)

    @pytest.mark.parametrize("name", ["openvino.bin", "openvino.xml", "model.onnx", "model.safetensors"])
    def test_one_changed_byte_of_any_file_is_refused(self, exported, name):
        kept = (exported / name).read_bytes()
        try:
            (exported / name).write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
            with pytest.raises(InputError, match=rf"{name}: is not the file that was written"):
                load(exported)
        finally:
            (exported / name).write_bytes(kept)

    @pytest.mark.parametrize("engine", ["openvino", "auto"])
    def test_it_predicts_without_monai_and_lightning(self, exported, tmp_path, make_volume, engine):
        path = make_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(20, 17, 9)).astype(np.float32))
        code = (
            "import sys\n"
            "for name in ('monai', 'pytorch_lightning', 'lightning', 'lightning_fabric'): sys.modules[name] = None\n"
            "from segscse.cli import run\n"
            f"sys.exit(run(['predict', {str(exported)!r}, {str(path)!r}, '--out', {str(tmp_path / 'out')!r}, "
            f"'--engine', {engine!r}, '--debug']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [file.name for file in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]

    def test_a_graph_that_differs_from_torch_is_not_exported(self, folder, tmp_path, monkeypatch):
        _openvino()
        true = InstanceNorm.forward
        wrong = lambda self, x: true(self, x) * (1.5 if torch.jit.is_tracing() else 1.0)  # noqa: E731
        monkeypatch.setattr(InstanceNorm, "forward", wrong)
        with pytest.raises(InputError, match=r"not exported: in openvino, its logits differ from PyTorch's by"):
            export_model(folder, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

    def test_half_precision_is_verified_as_it_runs_here(self, folder, tmp_path, monkeypatch):
        _openvino()
        verified, whole = [], export._verified
        monkeypatch.setattr(export, "_verified", lambda *given: verified.append(whole(*given)) or verified[-1])
        exported = export_model(folder, tmp_path / "out", precision="bf16")
        assert exported.engines[0].precision == "half"
        runs = load(tmp_path / "out", engine="openvino").engine.precision  # fp32 where the hardware has no other
        assert [precision for precision, _ in verified] == ["fp32", runs]
        assert exported.engines[0].parity == dict(verified)

    def test_what_cannot_work_is_refused_before_any_work(self, folder, tmp_path):
        for settings, problem in (
            ({"precision": "int8"}, "int8 needs scans to calibrate with"),
            ({"precision": "bf16", "engines": ["onnxruntime"]}, "ONNX Runtime computes in fp32 here, not in bf16"),
        ):
            with pytest.raises(InputError, match=problem):
                export_model(folder, tmp_path / "out", **settings)
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").write_text("")
        with pytest.raises(InputError, match="taken: exists already"):
            export_model(folder, tmp_path / "taken")
        assert not (tmp_path / "out").exists()

    def test_every_package_has_its_extra(self):
        assert set(engines.EXTRAS) >= {"openvino", "onnxruntime", "onnxscript", "nncf"}
