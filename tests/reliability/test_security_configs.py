"""T6, configurations: sixteen files that ask for code; settings reach our registries and nothing else."""

import importlib
import logging.config
import pickle
from contextlib import suppress
from pathlib import Path

import cyclopts
import numpy as np
import pytest
import yaml
from cyclopts.config import Env
from tiny import dataset  # noqa: F401, fixture
from watch import watched

from segscse.cli import run
from segscse.config import ExperimentConfig, FlatConfig, load_config

BILLION_LAUGHS = "".join(
    [
        "model: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n",
        *[f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)],
    ]
)


class _Runs:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with what payloads need: a pickle, an array, a module and a hub repository, all of which fire."""
    canary, folder = tmp_path / "canary", tmp_path / "stranger"
    folder.mkdir()
    (folder / "evil.pkl").write_bytes(pickle.dumps(_Runs(canary), 2))
    np.save(folder / "evil.npy", np.array([_Runs(canary)], dtype=object), allow_pickle=True)
    for name in ("stranger_module.py", "hubconf.py"):
        (folder / name).write_text(f"open({str(canary)!r}, 'w').close()\ndef fire(): return 1\n")
    monkeypatch.syspath_prepend(str(folder))
    return tmp_path


def _call(path, *args, **named):
    return {"class_path": path, "args": list(args), "named": named}


def _touch(place):
    return f"touch '{place}/canary'"


CALLS = {
    "os.system": lambda place: _call("os.system", _touch(place)),
    "subprocess.Popen": lambda place: _call("subprocess.Popen", _touch(place), shell=True),
    "builtins.eval": lambda place: _call("builtins.eval", f"open({str(place / 'canary')!r}, 'w').close()"),
    "functools.partial": lambda place: _call("functools.partial", {"class_path": "os.system"}, _touch(place)),
    "torch.load": lambda place: _call("torch.load", str(place / "stranger" / "evil.pkl"), weights_only=False),
    "torch.hub.load": lambda place: _call("torch.hub.load", str(place / "stranger"), "fire", source="local"),
    "numpy.load": lambda place: _call("numpy.load", str(place / "stranger" / "evil.npy"), allow_pickle=True),
    "importlib.import_module": lambda place: _call("importlib.import_module", "stranger_module"),
}


def _expression(place):
    return "$__import__('os').system(" + repr(_touch(place)) + ")"


TEXTS = {
    **{
        name: lambda place, make=make: yaml.safe_dump({"model": {"block": make(place)}}) for name, make in CALLS.items()
    },
    "monai.bundle expression": lambda place: yaml.safe_dump(
        {"model": {"attention": {"encoder": _expression(place), "decoder": {"_target_": "os.system"}}}}
    ),
    "monai.bundle expression as a name": lambda place: yaml.safe_dump(
        {"model": {"attention": {"encoder": _expression(place)}}}
    ),
    "call in a mapping": lambda place: yaml.safe_dump({"data": {"spacing_mm": {"any": CALLS["os.system"](place)}}}),
    "call in a list": lambda place: yaml.safe_dump({"augment": {"scale": [CALLS["os.system"](place), 1.4]}}),
    "call in a set": lambda place: "augment:\n  scale: !!set {? {class_path: os.system}, ? 1.4}\n",
    "python/object/apply": lambda place: f'model: !!python/object/apply:os.system ["{_touch(place)}"]\n',
    "alias bomb": lambda place: BILLION_LAUGHS,
    "logging.conf": lambda place: (
        "[loggers]\nkeys=root\n[handlers]\nkeys=h\n[formatters]\nkeys=\n[logger_root]\nhandlers=h\n"
        f"[handler_h]\nclass=StreamHandler\nargs=(__import__('os').system(\"{_touch(place)}\"),)\n"
    ),
}


def _build(value):
    """Make objects of `class_path` as a loader that trusts does, and call what is to be called later."""
    if isinstance(value, (list, set, tuple)):
        return [_build(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        return {key: _build(item) for key, item in value.items()}
    module, _, name = value["class_path"].rpartition(".")
    function = getattr(importlib.import_module(module), name)
    if "args" not in value:
        return function
    made = function(*_build(value["args"]), **value["named"])
    return made() if value["class_path"] == "functools.partial" else getattr(made, "wait", lambda: None)()


def _fires(name, text, place):
    from monai.bundle import ConfigParser

    if name == "call in a set":  # PyYAML's safe loader refuses a mapping in a set; one that trusts takes tuples
        _build({_Frozen({"class_path": "os.system", "args": [_touch(place)], "named": {}})})
    elif name.startswith("monai"):
        ConfigParser(yaml.safe_load(text)).get_parsed_content("model#attention#encoder")
    elif name == "python/object/apply":
        yaml.unsafe_load(text)
    elif name == "logging.conf":
        file = place / "logging.conf"
        file.write_text(text)
        logging.config.fileConfig(file, disable_existing_loggers=False)
    else:
        with suppress(RuntimeError):  # torch.load, after the payload: there was nothing else in the file
            _build(yaml.safe_load(text))


class _Frozen(dict):
    __hash__ = object.__hash__


def _written_out(value, known):
    """Return how many values there are when aliases are written out, without writing them out."""
    if id(value) not in known:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        known[id(value)] = 1 + sum(_written_out(item, known) for item in inner)
    return known[id(value)]


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "alias bomb"])
def test_the_attack_works_on_a_loader_that_trusts(name, place):
    _fires(name, TEXTS[name](place), place)
    assert (place / "canary").exists()


def test_the_alias_bomb_works_on_a_loader_that_trusts():
    assert len(BILLION_LAUGHS) < 1000
    assert _written_out(yaml.safe_load(BILLION_LAUGHS), {}) > 10**9


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_is_refused_and_nothing_runs(name, place, dataset, capsys):  # noqa: F811
    file = place / "config.yaml"
    file.write_text(TEXTS[name](place))
    with watched(place / "out") as seen:
        code = run(["train", str(dataset), "--config", str(file), "--out", str(place / "out")])
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("segscse: ")
    assert said.count("\n") == 1
    assert len(said) < 1500
    assert seen.events == []
    assert not (place / "canary").exists()
    assert not (place / "out").exists()


@pytest.mark.parametrize("flag", ["--model.block", "--model.attention.encoder", "--optim.name"])
@pytest.mark.parametrize("value", ["os.system", "$__import__('os').system('true')", '{"class_path": "os.system"}'])
def test_a_flag_is_refused_likewise(flag, value, dataset, tmp_path, capsys):  # noqa: F811
    with watched(tmp_path / "out") as seen:
        code = run(["train", str(dataset), flag, value, "--out", str(tmp_path / "out")])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert seen.events == []
    assert not (tmp_path / "out").exists()


class TestEnvironment:
    VARIABLES = (
        "SEGSCSE_OPTIM_NAME",
        "SEGSCSE_OPTIM__NAME",
        "OPTIM_NAME",
        "JSONARGPARSE_OPTIM__NAME",
        "PL_OPTIM__NAME",
    )

    def test_the_attack_works_on_a_parser_that_reads_the_environment(self, monkeypatch):
        monkeypatch.setenv("SEGSCSE_OPTIM_NAME", "sgd")
        app = cyclopts.App(config=Env("SEGSCSE_"), result_action="return_value")
        app.default(_config)
        assert app([], exit_on_error=False).optim.name == "sgd"

    def test_a_variable_changes_nothing(self, monkeypatch):
        for name in self.VARIABLES:
            monkeypatch.setenv(name, "sgd")
        assert load_config() == ExperimentConfig()
        assert load_config({"optim": {"lr": 1.0}}).optim.name == "muon"


def _config(*, config: FlatConfig = ExperimentConfig()) -> ExperimentConfig:  # noqa: B008, frozen
    return config


class TestAnyFileAsConfiguration:
    SECRET = "token: hunter2: 1\n"

    def test_the_attack_works_on_a_reader_that_quotes(self):
        with pytest.raises(yaml.YAMLError, match="hunter2"):
            yaml.safe_load(self.SECRET)

    @pytest.mark.parametrize("content", [SECRET, "hunter2", "- hunter2", "token: [hunter2\nnext: line\n"])
    def test_what_is_in_it_is_not_shown(self, content, tmp_path, dataset, capsys):  # noqa: F811
        file = tmp_path / "secret"
        file.write_text(content)
        assert run(["train", str(dataset), "--config", str(file), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr()
        assert "hunter2" not in said.err + said.out

    def test_the_list_of_users_is_refused(self, dataset, tmp_path, capsys):  # noqa: F811
        assert run(["train", str(dataset), "--config", "/etc/passwd", "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("segscse: /etc/passwd: ")
        assert "root" not in said


def test_there_are_sixteen_attacks():
    variants = {"monai.bundle expression as a name", "call in a set"}
    assert len({*TEXTS, "environment variable", "any file as configuration"} - variants) == 16
