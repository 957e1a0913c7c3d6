"""Resources and values that a stranger chooses: what is read has limits, and they hold before memory is taken."""

import json
import os
import resource
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import trained  # noqa: F401, fixture
from watch import watched

from segscse.cli.terminal import findings_table, make_console, say
from segscse.config import load_config, one_line, read_yaml
from segscse.data.plan import Plan, load_plan
from segscse.data.plan_check import plan_problem
from segscse.errors import InputError
from segscse.files import MAX_JSON_DEPTH, MAX_TEXT_BYTES, read_json, read_limited, sha256_of
from segscse.inference.manifest import Manifest
from segscse.inference.model_folder import load_model
from segscse.inference.predictor import load

MERGES = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
MERGES = "a0: &a0 {k: 1}\n" + MERGES


@pytest.fixture
def folder(trained, tmp_path):  # noqa: F811
    """Return a model folder of its own."""
    shutil.copytree(trained.folder / "model", tmp_path / "model")
    return tmp_path / "model"


def _edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


class TestJson:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('{"a": 1, "b": 2, "a": 3}', "the name 'a' occurs twice"),
            ('{"a": NaN}', "NaN is no number of JSON"),
            ("[-Infinity]", "-Infinity is no number"),
            ("[1e999]", "1e999 is no number"),
            ("[18446744073709551616]", "does not fit in 64 bits"),
            ("[" + "9" * 100_000 + "]", "does not fit in 64 bits"),
            ("[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1), "nested deeper than 64 levels"),
            ('{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64 levels"),
            ('["\\ud800"]', "surrogates not allowed"),
            ('{"\\udfff": 1}', "surrogates not allowed"),
        ],
    )
    def test_what_is_no_value_of_ours_is_refused(self, text, problem, tmp_path):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=problem) as caught:
            read_json(tmp_path / "a.json")
        assert len(str(caught.value)) < 300

    def test_the_largest_values_and_a_byte_order_mark_are_read(self, tmp_path):
        value = [2**64 - 1, -(2**63), 1.5e308, "\U0001f9e0", True, None]
        (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
        assert read_json(tmp_path / "a.json") == value
        (tmp_path / "a.json").write_text("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH)
        read_json(tmp_path / "a.json")

    def test_a_large_file_is_refused_without_being_read(self, tmp_path):
        with (tmp_path / "a.json").open("wb") as stream:
            stream.truncate(2**40)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(InputError, match="is larger than 16777216 bytes, the limit"):
            read_json(tmp_path / "a.json")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000

    def test_a_file_of_just_the_limit_is_read(self, tmp_path):
        (tmp_path / "a").write_bytes(bytes(MAX_TEXT_BYTES))
        assert len(read_limited(tmp_path / "a")) == MAX_TEXT_BYTES

    @pytest.mark.parametrize("read", [read_json, read_yaml, load_plan, sha256_of])
    def test_a_pipe_is_refused_and_not_waited_for(self, read, tmp_path):
        os.mkfifo(tmp_path / "a.json")
        with pytest.raises(InputError, match=r"cannot be read \(is no plain file\)"):
            read(tmp_path / "a.json")

    def test_a_device_that_never_ends_is_refused(self, tmp_path):
        (tmp_path / "a.json").symlink_to("/dev/zero")
        with pytest.raises(InputError, match="is no plain file"):
            read_json(tmp_path / "a.json")


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("optim: {lr: 1, lr: 2}", r"the name 'lr' occurs twice, the second time in line 1"),
            ("model: &a [*a]", "more than 10000 values"),
            (MERGES, "more than 10000 values"),
            ("x: [" + "1," * 10_001 + "]", "more than 10000 values"),
            ("[" * 5000, "recursion"),
            ("a: 1\n---\nb: 2", "expected a single document"),
            ("a: !!int 0x", "invalid literal"),
            ("a: 2024-01-01", "a value of the kind 'timestamp' is no setting"),
        ],
        ids=["twice", "itself", "merges", "many", "deep", "two documents", "number", "date"],
    )  # fmt: skip
    def test_what_is_no_file_of_settings_is_refused(self, text, problem, tmp_path):
        (tmp_path / "a.yaml").write_text(text)
        start = time.process_time()
        with pytest.raises(InputError, match=problem) as caught:
            read_yaml(tmp_path / "a.yaml")
        assert time.process_time() - start < 60  # the bombs would take hours
        assert "\n" not in str(caught.value)

    def test_a_large_file_is_refused(self, tmp_path):
        (tmp_path / "a.yaml").write_text("a: 1\n" + "#" * 2**15)
        with pytest.raises(InputError, match="is larger than 32768 bytes"):
            read_yaml(tmp_path / "a.yaml")

    def test_a_few_aliases_and_a_merge_are_read(self, tmp_path):
        (tmp_path / "a.yaml").write_text("data: &x {folds: 3}\naugment:\n  scale: [1, 1]\n")
        assert load_config(tmp_path / "a.yaml").data.folds == 3
        (tmp_path / "b.yaml").write_text("a: &x {folds: 3}\nb:\n  <<: *x\n  folds: 4\n")
        assert read_yaml(tmp_path / "b.yaml") == {"a": {"folds": 3}, "b": {"folds": 4}}


class TestPlan:
    VALUES = (
        ("dataset", 3),
        ("spatial_dims", 4),
        ("spatial_dims", True),
        ("spacing_mm", [1.0, 1.0]),
        ("spacing_mm", [1.0, 1.0, 0.0]),
        ("spacing_mm", [1.0, 1.0, "1"]),
        ("slice_axis", 1),
        ("patch_size", [10**9, 10**9, 10**9]),
        ("patch_size", [2**20, 2**20, 8]),
        ("patch_size", [16, 16, 7]),
        ("patch_size", [16, 16]),
        ("patch_size", 16),
        ("batch_size", 0),
        ("batch_size", 10**6),
        ("batch_size", 2.0),
        ("strides", []),
        ("strides", [[1, 1, 1]] * 17),
        ("strides", [[2, 2, 2]]),
        ("strides", [[1, 1, 1], [10**9, 2, 2]]),
        ("kernel_sizes", [[3, 3, 3]]),
        ("kernel_sizes", [[2, 3, 3]] * 3),
        ("kernel_sizes", [[10**9 + 1, 3, 3]] * 3),
        ("channels", []),
        ("channels", ["MRI", 3]),
        ("channels", "MRI"),
        ("normalisation", []),
        ("labels", [[0, "a"], [0, "b"]]),
        ("labels", [["0", "a"]]),
        ("labels", [[0, None]]),
        ("labels", [[0.5, "a"]]),
        ("labels", []),
        ("labels", 5),
        ("mirror_axes", [3]),
        ("mirror_axes", [0, 0]),
        ("mirror_axes", "ab"),
        ("reasons", [1]),
    )

    @pytest.mark.parametrize(("name", "value"), VALUES)
    def test_a_value_that_no_plan_has_is_named(self, name, value, trained):  # noqa: F811
        fields = json.loads((trained.folder / "plan.json").read_text())
        with pytest.raises(InputError, match=r"is no plan \((" + name + "|patch_size|mirror_axes|slice_axis) is"):
            Plan.from_json(fields | {name: value}, "plan.json")

    @pytest.mark.parametrize(
        "change", [{"mean": 1e999}, {"std": 0}, {"std": None}, {"low": 5, "high": 1}, {"scheme": "os.system"}]
    )
    def test_a_normalisation_that_no_plan_has_is_named(self, change, trained):  # noqa: F811
        fields = json.loads((trained.folder / "plan.json").read_text())
        fields["normalisation"][0] |= change
        with pytest.raises(InputError, match=r"is no plan \(normalisation is"):
            Plan.from_json(fields, "plan.json")

    def test_a_plan_of_our_own_is_good(self, trained):  # noqa: F811
        assert plan_problem(trained.planned.plan) == ""


class TestModelFolder:
    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d["network"].update(features=[10**9] * len(d["network"]["features"])),
            lambda d: d["network"].update(features=[60_000] * len(d["network"]["features"])),
            lambda d: d["network"].update(features=[4] * 10**5),
            lambda d: d["network"].update(features=[-4, 8, 8]),
            lambda d: d["network"].update(features=[4.0, 8.0, 8.0]),
            lambda d: d["network"].update(features={"0": 4}),
            lambda d: d["network"].update(kernel_sizes=[[101] * 3] * 3),
            lambda d: d["network"].update(attention={"encoder": ["se", {"reduction": 10**30}]}),
            lambda d: d["network"].update(attention={"encoder": ["se", {"channels": 7}]}),
            lambda d: d["network"].update(attention={"encoder": ["os.system", {}]}),
            lambda d: d["network"].update(attention={"encoder": 5}),
            lambda d: d["network"].update(attention=["scse"]),
            lambda d: d["network"].update(block=["plain"]),
            lambda d: d["network"].update(_target_="os.system"),
            lambda d: d["plan"].update(patch_size=[2**40, 2**40, 2**40]),
            lambda d: d["provenance"].update(label_volumes_ml=[1]),
            lambda d: d["provenance"].update(label_volumes_ml={"2": "x"}),
            lambda d: d["provenance"].update(label_volumes_ml={"2": [1]}),
            lambda d: d["provenance"].update(label_pieces=[1]),
            lambda d: d["provenance"].update(label_pieces={"2": "x"}),
            lambda d: d.update(version=[2]),
            lambda d: d.update(postprocessing=["os.system"]),
            lambda d: d["engines"].append({"engine": "torch", "precision": "fp32", "files": ["model.safetensors"],
                                           "parity": {}}),
            lambda d: d["engines"].append({"engine": "openvino", "precision": "fp32", "files": ["model.safetensors"],
                                           "parity": {}}),
            lambda d: d["engines"].append({"engine": ["x"], "precision": "fp32", "files": [["a"]], "parity": {}}),
        ],
    )  # fmt: skip
    def test_a_description_that_no_run_writes_is_refused_at_once(self, change, folder):
        _edit(folder, change)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        with watched() as seen, pytest.raises(InputError) as caught:
            load(folder, device="cpu")
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        assert time.process_time() - start < 2
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
        assert seen.events == []

    @pytest.mark.parametrize("config", [[], {"train": []}, {"train": {"precision": ["fp32"]}}, None])
    def test_a_record_of_another_form_does_not_matter(self, config, folder):
        _edit(folder, lambda d: d["provenance"].update(config=config))
        assert load(folder, device="cpu").engine.name == "torch"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_named(self, value, folder):
        weights = load_file(folder / "model.safetensors")
        name = sorted(weights)[0]
        weights[name].view(-1)[0] = value
        self._replace(folder, weights)
        with pytest.raises(InputError, match=rf"holds NaN or infinity in {name}"):
            load_model(folder)

    def test_weights_of_other_names_and_kinds_are_named(self, folder):
        weights = load_file(folder / "model.safetensors")
        name = sorted(weights)[0]
        self._replace(folder, weights | {name: weights[name].to(torch.int32)})
        with pytest.raises(InputError, match=rf"{name} is int32 .*, the network takes float32"):
            load(folder, device="cpu")
        self._replace(folder, {key: value for key, value in weights.items() if key != name})
        with pytest.raises(InputError, match=f"{name} is in one of them only"):
            load(folder, device="cpu")

    @pytest.mark.parametrize("length", [0, 7, 8, 2**24 + 1, 2**63, 2**64 - 1])
    def test_a_header_of_any_length_is_refused(self, length, folder):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"[" * 100)
        _edit(folder, lambda d: d["sha256"].update({"model.safetensors": sha256_of(folder / "model.safetensors")}))
        with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
            load_model(folder)

    @pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
    def test_a_pipe_in_place_of_a_file_is_not_waited_for(self, name, folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(InputError, match=r"is no plain file|holds no model"):
            load_model(folder)

    @staticmethod
    def _replace(folder, weights):
        save_file(weights, folder / "model.safetensors")
        _edit(folder, lambda d: d["sha256"].update({"model.safetensors": sha256_of(folder / "model.safetensors")}))


class TestManifest:
    GOOD = {"key": "k", "inputs": [["a", "1"]], "outputs": {"a.nii.gz": "2"}, "quality": {"look": ""}}  # noqa: RUF012

    @pytest.mark.parametrize(
        "change",
        [
            {"outputs": {"../a.nii.gz": "2"}},
            {"outputs": {"/etc/passwd": "2"}},
            {"outputs": {"a.nii.gz": "2", "b.nii.gz": "2"}},
            {"outputs": {"probabilities/a.nii.gz": "2"}},
            {"outputs": ["a.nii.gz"]},
            {"quality": {}},
            {"quality": None},
            {"inputs": {"a": "1"}},
        ],
    )
    def test_an_entry_that_we_do_not_write_counts_as_none(self, change, tmp_path):
        cases = {"good": self.GOOD, "bad": self.GOOD | change, "worse": [1]}
        content = {"format": "segscse-predictions", "version": 2, "cases": cases}
        (tmp_path / "predictions.json").write_text(json.dumps(content))
        assert list(Manifest(tmp_path, "k").cases) == ["good"]

    @pytest.mark.parametrize("cases", [None, [1, 2], "x", 3])
    def test_a_list_in_place_of_the_cases_counts_as_none(self, cases, tmp_path):
        content = {"format": "segscse-predictions", "version": 2, "cases": cases}
        (tmp_path / "predictions.json").write_text(json.dumps(content))
        assert Manifest(tmp_path, "k").cases == {}


class TestTerminal:
    STEERING = "a\x1b[2J\x1b]0;title\x07\u202egnp.\u200b\udcff"

    def test_names_do_not_steer_the_terminal(self, capsys):
        say(f"case {self.STEERING}\nnext line, größer 海馬")
        said = capsys.readouterr().out
        assert said == "case a\\x1b[2J\\x1b]0;title\\x07\\u202egnp.\\u200b\\udcff\nnext line, größer 海馬\n"
        assert one_line(f"{self.STEERING}\n x") == "a\\x1b[2J\\x1b]0;title\\x07\\u202egnp.\\u200b\\udcff x"

    def test_a_table_of_findings_does_not_either(self, capsys):
        from segscse.data.examine import Finding

        make_console(stderr=False).print(findings_table([Finding("error", self.STEERING, "f", "p[bold]", "r")]))
        said = capsys.readouterr().out
        assert "\x1b]0" not in said
        assert "\u202e" not in said


def test_the_watch_sees_what_it_says(tmp_path):
    import socket
    import subprocess

    with watched(tmp_path / "in") as seen:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a").write_text("a")
        assert seen.events == []
        (tmp_path / "out").write_text("a")
        os.system("true")
        subprocess.run(["true"], check=True)
        (tmp_path / "out").rename(tmp_path / "in" / "b")
        with pytest.raises(OSError, match="network is closed"):
            socket.create_connection(("127.0.0.1", 9))
        with pytest.raises(OSError, match="network is closed"):
            socket.socket().connect(("127.0.0.1", 9))
        np.save(tmp_path / "x.npy", np.zeros(1))
    kinds = [event.partition(" ")[0] for event in seen.events]
    assert kinds[0] == "open"
    assert {"os.system", "subprocess.Popen", "os.rename", "socket.connect", "socket.getaddrinfo"} <= set(kinds)
    assert f"open {tmp_path / 'x.npy'}" in seen.events
    (tmp_path / "later").write_text("a")
    assert not any("later" in event for event in seen.events)
