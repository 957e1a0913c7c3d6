"""T6, checkpoints: fourteen files that a stranger made; none runs, none is taken for a run's or a model's."""

import json
import shutil

import pytest
import torch
from bad_checkpoints import ATTACKS, names_in
from tiny import dataset, tiny_config, trained  # noqa: F401, fixtures
from watch import watched

from segscse.errors import InputError
from segscse.files import sha256_of
from segscse.inference.predictor import load
from segscse.training.run import train_run
from segscse.training.untrusted import refuse_foreign


@pytest.fixture(scope="module")
def sound(trained):  # noqa: F811
    """Return what the tiny run's checkpoint holds."""
    return torch.load(trained.folder / "checkpoints" / "last.ckpt", weights_only=True)


def _make(name, sound, folder):
    folder.mkdir()
    file, canary = folder / "evil.ckpt", folder / "canary"
    ATTACKS[name].make(sound, file, canary)
    return file, canary


@pytest.mark.filterwarnings("ignore:Found keys that are not in the model")
@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_works_on_a_loader_that_trusts(name, sound, tmp_path):
    file, canary = _make(name, sound, tmp_path / "attack")
    assert ATTACKS[name].falls(file, canary)


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.checkpoint])
def test_a_run_does_not_go_on_from_it(name, sound, trained, dataset, tmp_path):  # noqa: F811
    file, canary = _make(name, sound, tmp_path / "attack")
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    shutil.copyfile(file, folder / "checkpoints" / "last.ckpt")
    (folder / "checkpoints" / "previous.ckpt").unlink()  # what a damaged one gives way to
    model = sha256_of(folder / "model" / "model.safetensors")
    with watched(folder) as seen, pytest.raises(InputError, match=ATTACKS[name].says) as caught:
        train_run(dataset, folder, tiny_config(train={"max_steps": 40}), resume=True)
    assert "last.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    assert seen.events == []
    assert sha256_of(folder / "model" / "model.safetensors") == model


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_not_taken_for_weights(name, sound, trained, tmp_path):  # noqa: F811
    file, canary = _make(name, sound, tmp_path / "attack")
    folder = tmp_path / "model"
    shutil.copytree(trained.folder / "model", folder)
    shutil.copyfile(file, folder / "model.safetensors")
    description = json.loads((folder / "model.json").read_text())
    description["sha256"]["model.safetensors"] = sha256_of(file)
    (folder / "model.json").write_text(json.dumps(description))
    with watched() as seen, pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        load(folder, device="cpu")
    assert not canary.exists()
    assert seen.events == []


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.checkpoint])
def test_a_checkpoint_in_a_model_folder_is_not_looked_at(name, sound, trained, tmp_path):  # noqa: F811
    file, canary = _make(name, sound, tmp_path / "attack")
    folder = tmp_path / "model"
    shutil.copytree(trained.folder / "model", folder)
    for copy in ("last.ckpt", "model.pt", "model.pkl"):
        shutil.copyfile(file, folder / copy)
    with watched() as seen:
        load(folder, device="cpu")
    assert not canary.exists()
    assert seen.events == []


def test_a_checkpoint_of_our_own_is_accepted_and_names_nothing_but_tensors(trained):  # noqa: F811
    file = trained.folder / "checkpoints" / "last.ckpt"
    refuse_foreign(file)
    assert {name.partition(" ")[0] for name in names_in(file)} <= {"torch", "torch._utils", "collections"}
