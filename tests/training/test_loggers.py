"""Loggers: what each one gets, that a failing one does not end a run, and that nothing goes over the network."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_config

from segscse.config import TrainConfig, load_config, read_yaml, save_config
from segscse.errors import InputError, Interrupted
from segscse.files import read_json
from segscse.training import loggers as module
from segscse.training.loggers import LOGGERS, GuardedLogger, check_loggers, open_loggers
from segscse.training.run import train_run

SHORT = {"max_steps": 20, "validations": 2}
PICTURE = "example: image, prediction, reference"
SETTINGS = ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT", *module._ENVIRONMENT)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    """Let a test see no settings of the machine, and leave none behind."""
    for variable in SETTINGS:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))


def _config(*names, **train):
    return tiny_config(train={**SHORT, "loggers": list(names), **train})


class Broken(module.Logger):
    """A logger whose store goes away after some calls."""

    name = version = "broken"

    def __init__(self, good=0):
        super().__init__()
        self.left, self.calls = good, []

    def _use(self, what):
        if self.left == 0:
            raise OSError(28, "No space left on device")
        self.left -= 1
        self.calls.append(what)

    def log_metrics(self, metrics, step=None):
        self._use(("metrics", step))

    def log_hyperparams(self, params):
        self._use("settings")

    def finalize(self, status):
        self._use(status)


@pytest.fixture
def broken(monkeypatch):
    """Make `mlflow` a logger that fails after the calls that it is given."""

    def make(good):
        logger = Broken(good)
        kind = module.LoggerKind(
            ("json",), lambda folder, run_id, step: logger, lambda _: "1", lambda inner, *rest: inner._use(rest)
        )
        monkeypatch.setitem(LOGGERS, "mlflow", kind)
        return logger

    return make


class TestChoice:
    def test_the_configuration_names_what_there_is(self):
        for name in LOGGERS:
            assert load_config({"train": {"loggers": [name]}}).train.loggers == (name,)
        with pytest.raises(InputError, match='Choose from: "tensorboard", "mlflow", "wandb"'):
            load_config({"train": {"loggers": ["csv"]}})
        with pytest.raises(InputError, match=r"train\.loggers must be different names"):
            TrainConfig(loggers=("wandb", "wandb"))

    @pytest.mark.parametrize("names", [(), ("mlflow",), ("tensorboard", "wandb")])
    def test_none_one_and_several_are_kept(self, tmp_path, names):
        config = load_config({"train": {"loggers": list(names)}})
        save_config(tmp_path / "c.yaml", config)
        assert load_config(tmp_path / "c.yaml").train.loggers == names

    @pytest.mark.parametrize("name", ["mlflow", "wandb"])
    def test_a_missing_package_is_refused_before_anything_is_written(self, dataset, tmp_path, monkeypatch, name):
        monkeypatch.setattr(module, "find_spec", lambda module_name: None)
        with pytest.raises(InputError, match=rf"pip install 'segscse\[{name}\]', or leave it out of train.loggers"):
            train_run(dataset, tmp_path / "run", _config(name))
        assert not (tmp_path / "run").exists()

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(InputError, match=r"unknown logger 'tensorbord'.*Did you mean 'tensorboard'"):
            check_loggers(["tensorbord"])

    def test_the_names_of_the_configuration_are_those_of_the_registry(self):
        assert "Literal[" + ", ".join(repr(name) for name in LOGGERS) + "]" in str(
            TrainConfig.__annotations__["loggers"]
        ).replace('"', "'")


def test_without_loggers_a_run_has_its_table_alone(dataset, tmp_path):
    run = train_run(dataset, tmp_path / "run", _config())
    assert pd.read_csv(run.folder / "metrics.csv")["step"].tolist() == [11, 20, 20]
    assert not {"tensorboard", "mlflow", "wandb"} & {item.name for item in run.folder.iterdir()}
    assert read_json(run.folder / "loggers.json") == {}


def test_tensorboard_has_the_settings(dataset, tmp_path):
    run = train_run(dataset, tmp_path / "run", _config("tensorboard"))
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors("settings/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert yaml.safe_load("\n".join(line.removeprefix("    ") for line in lines)) == read_yaml(
        run.folder / "config.yaml"
    )


class TestGuard:
    def test_a_logger_that_fails_ends_neither_the_run_nor_the_others(self, dataset, tmp_path, broken):
        logger = broken(good=3)
        console = Console(record=True, width=400, file=(tmp_path / "out").open("w"))
        run = train_run(dataset, tmp_path / "run", _config("mlflow", "tensorboard"), console=console)
        assert run.steps == 20
        assert len(logger.calls) == 3
        said = [line for line in console.export_text().splitlines() if line.startswith("warning")]
        assert said == [
            "warning: the logger mlflow failed (OSError: [Errno 28] No space left on device); "
            "training goes on without it, metrics.csv has every value"
        ]
        assert read_json(run.folder / "loggers.json") == {
            "mlflow": {"id": "1", "failed": "OSError: [Errno 28] No space left on device"},
            "tensorboard": {"id": None},
        }
        assert pd.read_csv(run.folder / "metrics.csv")["step"].tolist() == [11, 20, 20]
        assert list((run.folder / "tensorboard").glob("events.*"))

    def test_a_failing_logger_changes_no_weight(self, dataset, tmp_path, broken):
        broken(good=2)
        first, second = (
            train_run(dataset, tmp_path / name, _config(*names)).folder / "model" / "model.safetensors"
            for name, names in (("a", ["mlflow"]), ("b", []))
        )
        assert first.read_bytes() == second.read_bytes()

    def test_one_that_cannot_be_opened_is_refused(self, tmp_path, broken):
        broken(good=0)
        with pytest.raises(InputError, match=r"the logger 'mlflow' cannot be opened \(OSError: .* leave it out of"):
            open_loggers(_config("mlflow"), tmp_path, pytest.fail)

    def test_a_stop_is_not_a_failure_of_the_logger(self):
        class Stopped(Broken):
            def log_metrics(self, metrics, step=None):
                raise KeyboardInterrupt

        guard = GuardedLogger("tensorboard", Stopped(), pytest.fail)
        with pytest.raises(KeyboardInterrupt):
            guard.log_metrics({"a": 1.0}, 1)
        assert guard.working

    def test_settings_are_given_once_and_after_a_resume_it_is_tried_again(self, tmp_path, broken):
        first = broken(good=1)
        open_loggers(_config("mlflow"), tmp_path, pytest.fail)[0]
        assert first.calls == ["settings"]
        again = broken(good=1)
        (guard,) = open_loggers(_config("mlflow"), tmp_path, pytest.fail)
        guard.log_metrics({"a": 1.0}, 3)
        assert again.calls == [("metrics", 3)]


def _train_and_resume(dataset, folder, interrupt, *names):
    disarm = interrupt(12)
    with pytest.raises(Interrupted):
        train_run(dataset, folder, _config(*names))
    disarm()
    return train_run(dataset, folder, _config(*names, max_steps=24), resume=True)


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that stops the run with a signal at a step."""
    import signal

    from segscse.training.module import SegModule

    whole = SegModule.training_step

    def arm(step):
        def training_step(self, batch, batch_idx):
            if self.clock.step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return whole(self, batch, batch_idx)

        monkeypatch.setattr(SegModule, "training_step", training_step)
        return lambda: monkeypatch.setattr(SegModule, "training_step", whole)

    return arm


def test_mlflow_has_scalars_settings_and_pictures_in_the_run_folder(dataset, tmp_path, interrupt):
    pytest.importorskip("mlflow", reason="needs the extra segscse[mlflow]")
    pytest.importorskip("sqlalchemy", reason="needs the extra segscse[mlflow]")
    run = _train_and_resume(dataset, tmp_path / "run", interrupt, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder / 'mlflow' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'segscse'")
    (found,) = client.search_runs([experiment.experiment_id])  # the resumed run is the same one
    assert found.info.run_id == read_json(run.folder / "loggers.json")["mlflow"]["id"]
    assert found.info.status == "FINISHED"
    assert found.data.params["optim/name"] == "muon"
    table = pd.read_csv(run.folder / "metrics.csv").dropna(subset=["val_dice"])
    history = {item.step: item.value for item in client.get_metric_history(found.info.run_id, "val_dice")}
    assert set(table["step"]) <= set(history)
    assert [history[step] for step in table["step"]] == pytest.approx(table["val_dice"].tolist(), abs=1e-4)
    assert any(name.startswith("gate_mean/") for name in found.data.metrics)
    pictures = list((run.folder / "mlflow" / "artifacts").rglob("*.png"))
    assert len(pictures) == len(table)
    assert all("example" in path.name for path in pictures)
    assert not (Path.cwd() / "mlruns").exists()


def _wandb_records(path):
    """Read an offline run's records: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, data = path.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            data = b""
            yield record


def _finished(path, timeout_s=60.0):
    """Wait for the package's own process, which writes the last records after the run has let go of it."""
    for _ in range(int(timeout_s / 0.1)):
        records = list(_wandb_records(path))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{path} has no end")


def _key(item):
    return item.key or ".".join(item.nested_key)


def test_wandb_has_scalars_settings_and_pictures_offline(dataset, tmp_path, interrupt):
    pytest.importorskip("wandb", reason="needs the extra segscse[wandb]")
    run = _train_and_resume(dataset, tmp_path / "run", interrupt, "wandb")
    record = read_json(run.folder / "loggers.json")["wandb"]
    assert "failed" not in record
    number = record["id"]
    files = sorted((run.folder / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    assert len(files) == 2  # the session that was stopped, and the resumed one, under one id
    records = [record for path in files for record in _finished(path)]
    rows = [{_key(item): json.loads(item.value_json) for item in r.history.item} for r in records if r.history.item]
    dice = {row["trainer/global_step"]: row["val_dice"] for row in rows if "val_dice" in row}
    table = pd.read_csv(run.folder / "metrics.csv").dropna(subset=["val_dice"])
    assert [dice[step] for step in table["step"]] == pytest.approx(table["val_dice"].tolist(), abs=1e-4)
    assert any(key.startswith("gate_mean/") for row in rows for key in row)
    assert len(list((run.folder / "wandb").rglob("media/images/*.png"))) == len(table)
    settings = [_key(item) for r in records for item in r.config.update] + [
        _key(item) for r in records for item in r.run.config.update
    ]
    assert "optim" in settings


def test_an_error_of_wandbs_own_does_not_stop_an_offline_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra segscse[wandb]")
    init, given = wandb.init, []
    monkeypatch.setattr(wandb, "init", lambda **options: given.append(options) or init(**options))
    (guard,) = open_loggers(_config("wandb"), tmp_path, pytest.fail)
    given[0]["settings"].stop_fn()  # by default it sends SIGINT
    guard.log_metrics({"loss": 1.0}, 1)
    guard.finalize("success")
    assert guard.working


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import urllib.request
from tiny import tiny_config, write_dataset
from segscse.training.run import train_run
folder = Path(sys.argv[1])
try:
    urllib.request.urlopen("http://segscse.invalid/control", timeout=5)
except OSError:
    pass
data = write_dataset(folder / "data")
train_run(data, folder / "run", tiny_config(train={"max_steps": 2, "validations": 1, "loggers": ["mlflow", "wandb"]}))
"""


def test_nothing_goes_over_the_network(tmp_path):
    """A proxy that all of their clients (requests, urllib, Go's) go through sees the control request and no other."""
    pytest.importorskip("mlflow", reason="needs the extra segscse[mlflow]")
    pytest.importorskip("sqlalchemy", reason="needs the extra segscse[mlflow]")
    pytest.importorskip("wandb", reason="needs the extra segscse[wandb]")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"

        def listen():
            while True:
                try:
                    with server.accept()[0] as connection:
                        asked.append(connection.recv(4096).split(b"\r\n")[0].decode())
                except OSError:
                    return

        threading.Thread(target=listen, daemon=True).start()
        names = ("http_proxy", "https_proxy", "all_proxy")
        proxies = {key: proxy for name in names for key in (name, name.upper())}
        kept = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
        environment = {**kept, **proxies, "PYTHONPATH": str(Path.cwd())}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        server.shutdown(socket.SHUT_RDWR)
    assert done.returncode == 0, done.stderr
    assert asked == ["GET http://segscse.invalid/control HTTP/1.1"]


def test_a_picture_and_a_histogram_reach_a_logger_that_has_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (guard,) = open_loggers(_config("tensorboard"), tmp_path, pytest.fail)
        guard.log_picture(PICTURE, np.zeros((4, 6, 3), np.uint8), 1)
        guard.log_histogram("gate/a", np.arange(5.0), 1)
        guard.save()
        guard.finalize("success")
    assert guard.working
    assert (guard.name, guard.version) == ("tensorboard", None)


def test_tensorboard_shows_a_step_once_that_was_made_again_after_a_kill(tmp_path):
    for first, step in ((1, None), (3, 2)):  # killed after step 4, with a checkpoint of step 2
        (guard,) = open_loggers(_config("tensorboard"), tmp_path, pytest.fail, step)
        for number in range(first, 5):
            guard.log_metrics({"loss": 10.0 * first + number}, number)
        guard.finalize("success")
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 11.0), (2, 12.0), (3, 33.0), (4, 34.0)]
