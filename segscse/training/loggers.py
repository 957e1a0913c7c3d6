"""Loggers: TensorBoard, MLflow and Weights & Biases behind one guard, so that a failing one cannot end a run.

`metrics.csv` is the record of a run and is written whatever happens here. A logger that cannot be opened is refused
before the first step. One that fails later (its disk is full, its server gone) is switched off for the rest of the run
with a warning and a note in `loggers.json`, and training goes on: what it had is kept, what follows is in
`metrics.csv`. After --resume it is tried again.

Nothing here uses the network unless the user's environment says so: MLflow keeps its database in the run folder unless
`MLFLOW_TRACKING_URI` names another store, Weights & Biases is offline (`wandb sync` uploads the folder later) unless
`WANDB_MODE` says otherwise, and both packages' reports to their makers are off unless switched on by name.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from segscse.config import ExperimentConfig, to_builtin
from segscse.errors import InputError, choose, one_line
from segscse.files import read_json, write_json

PROJECT = "segscse"
RECORD = "loggers.json"
# Reports to the packages' makers, and how long a store that does not answer may hold the run up.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
}


@dataclass(frozen=True, slots=True)
class LoggerKind:
    """How to use one package.

    Attributes:
        modules: what has to be installed, by the names that are imported.
        open: makes the logger from the run folder and, of a resumed run, its id in the earlier session and the step.
        run_id: the id under which to go on after --resume.
        picture: gives it an RGB image `(H, W, 3)`, uint8, with a name and a step.
        settings: gives it the configuration, nested.
        histogram: gives it values with a name and a step, where it has histograms.
        close: what its own `finalize` leaves open, given whether the run succeeded.
    """

    modules: tuple[str, ...]
    open: Callable[[Path, str | None, int | None], Logger]
    run_id: Callable[[Any], str | None]
    picture: Callable[[Any, str, np.ndarray, int], None]
    settings: Callable[[Any, dict[str, Any]], None] = lambda logger, values: logger.log_hyperparams(values)
    histogram: Callable[[Any, str, np.ndarray, int], None] | None = None
    close: Callable[[Any, bool], None] | None = None


class GuardedLogger(Logger):
    """A logger whose failure is a warning.

    Args:
        kind: its name in `LOGGERS`.
        inner: the logger.
        failed: called once, with the reason, when it fails.
    """

    def __init__(self, kind: str, inner: Logger, failed: Callable[[str, str], None]) -> None:
        super().__init__()
        self.kind = kind
        self.inner = inner
        self.working = True
        self._failed = failed

    @property
    def name(self) -> str:
        """The name in `LOGGERS`."""
        return self.kind

    @property
    def version(self) -> None:
        """None: a run folder is one version."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass scalars on."""
        self._try(lambda: self.inner.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Do nothing: the settings were given when the logger was opened."""

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Pass an RGB image `(H, W, 3)`, uint8, on."""
        self._try(lambda: LOGGERS[self.kind].picture(self.inner, name, picture, step))

    def log_histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Pass values on for a histogram; a logger without histograms is passed over."""
        histogram = LOGGERS[self.kind].histogram
        if histogram is not None:
            self._try(lambda: histogram(self.inner, name, values, step))

    def save(self) -> None:
        """Write what is held back."""
        self._try(self.inner.save)

    def finalize(self, status: str) -> None:
        """End the record."""
        close = LOGGERS[self.kind].close
        self._try(lambda: self.inner.finalize(status))
        if close is not None:
            self._try(lambda: close(self.inner, status == "success"))

    def _try(self, what: Callable[[], None]) -> None:
        if not self.working:
            return
        try:
            what()
        except Exception as error:  # whatever a logger raises, the run is worth more
            self.working = False
            self._failed(self.kind, f"{type(error).__name__}: {one_line(error)}")


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers whose package is missing.

    Raises:
        InputError: with the line that installs it.
    """
    for name in names:
        if name not in LOGGERS:
            raise choose("logger", name, LOGGERS)
        missing = [module for module in LOGGERS[name].modules if find_spec(module) is None]
        if missing:
            remedy = f"pip install 'segscse[{name}]', or leave it out of train.loggers"
            problem = f"the logger {name!r} needs {', '.join(missing)}, not installed here"
            raise InputError(problem, remedy=remedy)


def open_loggers(
    config: ExperimentConfig, folder: Path, warn: Callable[[str], None], step: int | None = None
) -> list[GuardedLogger]:
    """Open the run's loggers and give them the settings; for the first of several processes.

    Args:
        config: names the loggers, and is what they are given.
        folder: the run folder; its `loggers.json` says under which ids a run goes on.
        warn: shows a line to the user.
        step: the one that a resumed run goes on from; TensorBoard then hides what was logged after it.

    Raises:
        InputError: a logger cannot be opened.
    """
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    path = folder / RECORD
    record: dict[str, dict[str, str | None]] = read_json(path) if path.is_file() else {}

    def failed(name: str, reason: str) -> None:
        warn(f"the logger {name} failed ({reason}); training goes on without it, metrics.csv has every value")
        record[name]["failed"] = reason
        write_json(path, record)

    loggers = []
    for name in config.train.loggers:
        known = record.get(name, {}).get("id")
        try:
            inner = LOGGERS[name].open(folder, known, step)
            run_id = LOGGERS[name].run_id(inner)
            if name not in record:  # MLflow does not let settings change, and a resumed run only gets longer
                LOGGERS[name].settings(inner, to_builtin(asdict(config)))
        except Exception as error:
            remedy = "Correct its settings in the environment, or leave it out of train.loggers"
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"the logger {name!r} cannot be opened ({reason})", remedy=remedy) from error
        record[name] = {"id": run_id}
        loggers.append(GuardedLogger(name, inner, failed))
    write_json(path, record)
    return loggers


def _open_tensorboard(folder: Path, run_id: str | None, step: int | None) -> TensorBoardLogger:
    # Steps that were made after the checkpoint are made again.
    purge = None if step is None else step + 1
    return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False, purge_step=purge)


def _tensorboard_picture(logger: TensorBoardLogger, name: str, picture: np.ndarray, step: int) -> None:
    logger.experiment.add_image(name, picture, step, dataformats="HWC")


def _tensorboard_settings(logger: TensorBoardLogger, values: dict[str, Any]) -> None:
    """Write them as text; as hyper-parameters they would need a final score beside them."""
    text = yaml.safe_dump(values, sort_keys=False)
    logger.experiment.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()))  # as code


def _tensorboard_histogram(logger: TensorBoardLogger, name: str, values: np.ndarray, step: int) -> None:
    logger.experiment.add_histogram(name, values, step)


def _open_mlflow(folder: Path, run_id: str | None, step: int | None) -> MLFlowLogger:
    store = (folder / "mlflow").resolve()
    elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
    if not elsewhere:
        store.mkdir(parents=True, exist_ok=True)
    return MLFlowLogger(
        experiment_name=PROJECT,
        run_name=folder.name,
        tracking_uri=elsewhere or f"sqlite:///{store / 'mlflow.db'}",
        artifact_location=None if elsewhere else (store / "artifacts").as_uri(),
        run_id=run_id,
    )


def _mlflow_picture(logger: MLFlowLogger, name: str, picture: np.ndarray, step: int) -> None:
    key = "".join(letter if letter.isalnum() or letter in " _-./" else "" for letter in name)  # what MLflow allows
    logger.experiment.log_image(logger.run_id, picture, key=key, step=step)


def _open_wandb(folder: Path, run_id: str | None, step: int | None) -> WandbLogger:
    import wandb

    mode = os.environ.get("WANDB_MODE", "offline")
    settings = wandb.Settings(silent=True, console="off")
    if mode == "offline" and hasattr(settings, "stop_fn"):
        # After an error of its own W&B would stop the program by SIGINT; offline nobody else can ask for that.
        settings.stop_fn = lambda: None
    run = wandb.init(
        name=folder.name,
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=folder,
        id=run_id or uuid.uuid4().hex[:8],
        resume="allow",
        mode=mode,
        settings=settings,
    )
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run)


def _wandb_picture(logger: WandbLogger, name: str, picture: np.ndarray, step: int) -> None:
    logger.log_image(name, [picture], step=step)


def _wandb_histogram(logger: WandbLogger, name: str, values: np.ndarray, step: int) -> None:
    import wandb

    logger.log_metrics({name: wandb.Histogram(values)}, step=step)


def _close_wandb(logger: WandbLogger, success: bool) -> None:
    """End the run, or the next one in this process would be added to it."""
    logger.experiment.finish(exit_code=0 if success else 1)


LOGGERS: dict[str, LoggerKind] = {
    "tensorboard": LoggerKind(
        modules=("tensorboard",),
        open=_open_tensorboard,
        run_id=lambda logger: None,
        picture=_tensorboard_picture,
        settings=_tensorboard_settings,
        histogram=_tensorboard_histogram,
    ),
    "mlflow": LoggerKind(
        modules=("mlflow", "sqlalchemy", "alembic"),
        open=_open_mlflow,
        run_id=lambda logger: logger.run_id,
        picture=_mlflow_picture,
    ),
    "wandb": LoggerKind(
        modules=("wandb",),
        open=_open_wandb,
        run_id=lambda logger: logger.experiment.id,
        picture=_wandb_picture,
        histogram=_wandb_histogram,
        close=_close_wandb,
    ),
}
