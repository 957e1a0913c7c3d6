import dataclasses
import json

import pytest
import torch
from tiny import tiny_plan

from segscse.config import ModelConfig
from segscse.errors import InputError
from segscse.inference.model_folder import ModelFolder, find_model, load_model, save_model, set_postprocessing
from segscse.inference.predictor import load
from segscse.nets.build import build_unet, network_arguments


@pytest.fixture
def model():
    torch.manual_seed(0)
    arguments = network_arguments(tiny_plan(), ModelConfig(base_features=4))
    return ModelFolder(tiny_plan(), arguments, {"seed": 3}, build_unet(arguments).state_dict())


@pytest.fixture
def folder(tmp_path, model):
    save_model(tmp_path / "model", model)
    return tmp_path / "model"


def _edit(folder, change):
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


def _as_version_1(folder):
    def change(description):
        for key in ("postprocessing", "engines", "sha256"):
            del description[key]
        description["version"] = 1

    _edit(folder, change)


def test_a_folder_of_version_1_is_read(folder, model):
    _as_version_1(folder)
    again = load_model(folder)
    assert (again.plan, again.engines) == (model.plan, ())
    assert all(torch.equal(again.weights[name], value) for name, value in model.weights.items())


def test_a_model_reads_back_equal(folder, model):
    again = load_model(folder)
    assert (again.plan, again.network, again.provenance) == (model.plan, model.network, model.provenance)
    assert again.weights.keys() == model.weights.keys()
    assert all(torch.equal(again.weights[name], value) for name, value in model.weights.items())


def test_the_postprocessing_can_be_changed_and_nothing_else_is(folder, model):
    before = json.loads((folder / "model.json").read_text())
    written = (folder / "model.json").stat().st_ino
    set_postprocessing(folder, [])
    assert (folder / "model.json").stat().st_ino == written
    set_postprocessing(folder, ["largest_component:2"])
    assert load_model(folder).postprocessing == ("largest_component:2",)
    assert json.loads((folder / "model.json").read_text()) == before | {"postprocessing": ["largest_component:2"]}
    assert load(folder).postprocessing == ("largest_component:2",)


def test_weights_in_channels_last_memory_are_written_too(tmp_path, model):
    weights = {
        name: value.contiguous(memory_format=torch.channels_last_3d) if value.ndim == 5 else value
        for name, value in model.weights.items()
    }
    save_model(tmp_path, dataclasses.replace(model, weights=weights))
    assert all(torch.equal(load_model(tmp_path).weights[name], value) for name, value in model.weights.items())


def test_all_files_have_the_rights_of_any_new_file(folder, tmp_path):
    (tmp_path / "plain").touch()
    rights = {path.name: path.stat().st_mode for path in (tmp_path / "plain", *folder.iterdir())}
    assert len(set(rights.values())) == 1, rights


def test_a_run_folder_stands_for_its_model(folder):
    assert find_model(folder.parent) == find_model(folder) == folder


def test_the_description_is_plain_json_and_the_folder_holds_two_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert list(json.loads((folder / "model.json").read_text())) == [
        *("format", "version", "plan", "network", "provenance", "postprocessing", "engines", "sha256")
    ]


class TestRefusals:
    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(InputError, match="holds no model"):
            load_model(tmp_path)

    def test_a_missing_weights_file(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
            load_model(folder)

    @pytest.mark.parametrize("size", [0, 4, 100, -10])
    def test_a_damaged_weights_file_of_a_folder_without_checksums(self, folder, size):
        _as_version_1(folder)
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model.safetensors: cannot be read") as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("place", [20, -1])
    def test_weights_with_one_other_bit(self, folder, place):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[place] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model.safetensors: is not the file that was written \(its SHA-256"):
            load_model(folder)

    @pytest.mark.parametrize(
        "steps", [["largest_component"], ["largest_component:9"], ["largest_component:0"], ["largest_component:2"] * 2]
    )
    def test_postprocessing_that_is_not_known(self, folder, steps):
        _edit(folder, lambda d: d.update(postprocessing=steps))
        with pytest.raises(InputError, match=r"asks for the postprocessing \['largest_component"):
            load_model(folder)

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", ".hidden", "a/b"])
    def test_a_checksum_of_a_file_elsewhere(self, folder, name):
        _edit(folder, lambda d: d["sha256"].update({name: "0" * 64}))
        with pytest.raises(InputError, match="is no segscse model"):
            load_model(folder)

    def test_weights_without_a_checksum(self, folder):
        _edit(folder, lambda d: d["sha256"].clear())
        with pytest.raises(InputError, match="is no segscse model"):
            load_model(folder)

    @pytest.mark.parametrize(
        ("graph", "problem"),
        [
            ({"engine": "openvino", "precision": "fp32", "files": ["a.xml"], "parity": {}}, "without a checksum"),
            ({"engine": "openvino", "precision": "fp32", "files": [], "parity": {}}, "without a checksum"),
            ({"engine": "other", "precision": "fp32", "files": ["model.safetensors"], "parity": {}}, "unknown engine"),
            ({"engine": "openvino"}, "is no segscse model"),
            ("openvino", "is no segscse model"),
        ],
        ids=["no sum", "no file", "engine", "fields", "text"],
    )
    def test_graphs_that_are_not_as_an_export_writes_them(self, folder, graph, problem):
        _edit(folder, lambda d: d["engines"].append(graph))
        with pytest.raises(InputError, match=problem):
            load_model(folder)

    def test_another_version(self, folder):
        _edit(folder, lambda d: d.update(version=3))
        with pytest.raises(InputError, match="is of version 3, this segscse reads 1 and 2"):
            load_model(folder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.update(extra=1),
            lambda d: d.pop("provenance"),
            lambda d: d.update(format="other"),
            lambda d: d.update(network=[1]),
            lambda d: d.update(provenance=None),
        ],
        ids=["unknown key", "missing key", "format", "network", "provenance"],
    )
    def test_a_description_that_is_not_ours(self, folder, change):
        _edit(folder, change)
        with pytest.raises(InputError, match="is no segscse model"):
            load_model(folder)

    def test_a_file_that_is_no_json(self, folder):
        (folder / "model.json").write_text("{")
        with pytest.raises(InputError, match="is not valid JSON"):
            load_model(folder)

    def test_a_list_in_place_of_a_description(self, folder):
        (folder / "model.json").write_text("[]")
        with pytest.raises(InputError, match="is no segscse model"):
            load_model(folder)

    def test_a_plan_with_unknown_keys(self, folder):
        _edit(folder, lambda d: d["plan"].update(surprise=1))
        with pytest.raises(InputError, match=r"missing or unknown: .*surprise"):
            load_model(folder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d["network"].update(surprise=1),
            lambda d: d["network"].pop("in_channels"),
            lambda d: d["network"].update(out_channels=7),
            lambda d: d["network"].update(features="wide"),
            lambda d: d["network"].update(block="resnet"),
        ],
        ids=["unknown", "missing", "mismatch", "type", "name"],
    )
    def test_a_network_that_cannot_be_built_or_does_not_fit_the_weights(self, folder, change):
        _edit(folder, change)
        with pytest.raises(InputError) as caught:
            load(folder, device="cpu")
        assert "\n" not in str(caught.value)
