"""What happens around the steps: the clock, checkpoints, the exported model, the log and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from segscse.errors import InputError, Interrupted, SegscseError
from segscse.ranks import ALONE, Group
from segscse.training.averaging import AveragedWeights
from segscse.training.checkpoints import FOLDER, LAST
from segscse.training.clock import RunClock
from segscse.training.log import MetricsTable
from segscse.training.module import SegModule
from segscse.training.random_states import random_states, restore_random_states
from segscse.training.signals import StopRequest, stop_on_signals

LOG_EVERY = 20
# What a checkpoint says of the keeper, see `RunKeeper.state_dict`.
KEPT = ("best", "dice", "waited", "rows", "losses", "random")
SaveModel = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


class RunKeeper(Callback):
    """Advances the clock, keeps `last.ckpt`, the exported model and the log, and stops the run.

    Args:
        folder: the run folder.
        clock: the run's clock.
        table: the log.
        stop: set by a signal while steps are made.
        save_model: writes weights and a summary as the run's model.
        average: the weight averaging, if any.
        checkpoint_every_s: longest time without a checkpoint.
        patience: validations without improvement before the run stops, or None.
        group: the processes of the run; a signal to one stops all.
    """

    def __init__(
        self,
        folder: Path,
        clock: RunClock,
        table: MetricsTable,
        stop: StopRequest,
        save_model: SaveModel,
        *,
        average: AveragedWeights | None,
        checkpoint_every_s: float,
        patience: int | None,
        group: Group = ALONE,
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.table = table
        self.stop = stop
        self.save_model = save_model
        self.average = average
        self.checkpoint_every_s = checkpoint_every_s
        self.patience = patience
        self.group = group
        self.best = -math.inf
        self.dice = math.nan
        self.waited = 0
        self._saved_at_s = 0.0
        self._losses: list[torch.Tensor] = []
        self._cases: list[str] = []
        self._resumed: dict[str, Any] | None = None
        self._signals = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: scores, the log's length and what is not in it yet, the random states."""
        return {
            "best": self.best,
            "dice": self.dice,
            "waited": self.waited,
            "rows": len(self.table.rows),
            "losses": [float(loss) for loss in self._losses],
            "random": random_states(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it lacks what this version keeps.
        """
        if missing := [name for name in KEPT if name not in state_dict]:
            raise InputError(
                f"is of an earlier version of segscse: it has no {missing[0]!r}",
                file=self.folder / FOLDER / LAST,
                remedy="Start a new run, or go on with the version that it was started with (run.json)",
            )
        self.best, self.dice, self.waited = (state_dict[name] for name in ("best", "dice", "waited"))
        self._resumed = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock (set-up is not the run's time) and listen to signals, in place of Lightning's handlers.

        A new run leaves a checkpoint before its first step: from then on it can be killed and resumed at any time,
        and a folder that cannot be written to shows now.
        """
        self._signals.enter_context(stop_on_signals(self.stop))
        # A finished run that is resumed has nothing left to do.
        trainer.should_stop = self.clock.done or self._out_of_patience
        if self._resumed is None:
            self._save_checkpoint(trainer)
        else:
            self.table.continue_from(self._resumed["rows"])
            self._losses = [torch.tensor(loss, device=pl_module.device) for loss in self._resumed["losses"]]
            restore_random_states(self._resumed["random"])
        self._saved_at_s = self.clock.elapsed_s
        self.clock.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; log, save or stop when it is time."""
        loss = outputs["loss"].detach()
        self._cases = sorted(set(batch["cases"]))
        if not torch.isfinite(loss):
            raise self._broken(f"the loss became {float(loss)} at step {self.clock.step + 1}")
        self.clock.finish_step()
        self._losses.append(loss)
        if self.clock.step % LOG_EVERY == 0:
            self._log_steps(trainer)
        self.agree_on_stop()
        # Before a validation nothing is saved or stopped but after it: a run that goes on from there would miss it.
        if not (trainer.enable_validation and (trainer.is_last_batch or self.clock.done)):
            if self.stop.signum is not None:
                self._save_checkpoint(trainer)
                self._stop(pl_module, self.stop.signum)
            if self.clock.elapsed_s - self._saved_at_s > self.checkpoint_every_s:
                self._save_checkpoint(trainer)
        if self.clock.done:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to validate weights that are no numbers."""
        self._require_finite(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the model (with `patience` only if it is the best), write the log and a checkpoint."""
        self.clock.finish_validation()
        self.agree_on_stop()
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val_dice")}
        self._log_steps(trainer, **scores)
        dice = scores["val_dice"]
        improved = dice > self.best or not math.isfinite(self.best)
        self.waited = 0 if improved else self.waited + 1
        if improved:
            self.best = dice if math.isfinite(dice) else -math.inf
        # Choosing the best of several validations would make the score of these cases too good. A run that stops for
        # lack of improvement has to choose.
        if improved or self.patience is None:
            self.dice = dice
            self._export(pl_module, scores)
        elif self._out_of_patience:
            trainer.should_stop = True
        self._save_checkpoint(trainer)
        if self.stop.signum is not None and not self.clock.done:
            self._stop(pl_module, self.stop.signum)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export the final weights when there was nothing to validate on."""
        self._signals.close()
        if not self.clock.validations_done:
            self._export(pl_module, {"val_dice": None})
        self._save_checkpoint(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._signals.close()

    def agree_on_stop(self) -> None:
        """Let a signal that reached one process stop all of them after the same step."""
        self.stop.signum = self.group.largest(self.stop.signum or 0) or None

    @property
    def _out_of_patience(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def _stop(self, module: pl.LightningModule, signum: int) -> None:
        """Leave a usable model and end the run."""
        if not self.clock.validations_done:
            self._export(module, {"val_dice": None})
        raise Interrupted(
            signum,
            f"stopped at step {self.clock.step}; continue with --resume (run folder: {self.folder})",
        )

    def _export(self, module: pl.LightningModule, scores: dict[str, Any]) -> None:
        assert isinstance(module, SegModule)  # the trainer only ever gets one
        self._require_finite(module)
        state = self.average.network_state() if self.average is not None else None
        known = {name: None if score is None or math.isnan(score) else score for name, score in scores.items()}
        self.save_model(state if state is not None else module.network.state_dict(), known)

    def _save_checkpoint(self, trainer: pl.Trainer) -> None:
        self._require_finite(trainer.lightning_module)
        trainer.save_checkpoint(self.folder / FOLDER / LAST)
        self._saved_at_s = self.clock.elapsed_s

    def _require_finite(self, module: pl.LightningModule) -> None:
        """Refuse to keep weights that a gradient spoiled in a step whose loss was still finite."""
        if not all(bool(weights.isfinite().all()) for weights in module.parameters()):
            raise self._broken(f"the weights are not finite after step {self.clock.step}")

    def _broken(self, problem: str) -> SegscseError:
        """Return the error of numbers that are no numbers any more; what is on disk was good and stays."""
        model, checkpoint = self.folder / "model", self.folder / FOLDER / LAST
        kept = f"the last good model is in {model}" if model.is_dir() else "there is no model yet"
        return SegscseError(
            f"{problem}, on patches of {', '.join(self._cases)}; {kept}, the last good checkpoint is {checkpoint}. "
            "Look at these cases, lower optim.lr, or set train.precision to fp32."
        )

    def _log_steps(self, trainer: pl.Trainer, **scores: float) -> None:
        """Write one row with the mean loss since the last row, and hand the same values to the loggers."""
        if not self._losses and not scores:
            return
        values: dict[str, float] = {
            "seconds": round(self.clock.elapsed_s, 2),
            "progress": round(self.clock.progress, 5),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        if self._losses:
            values["train_loss"] = float(torch.stack(self._losses).mean())
        self._losses = []
        values |= {name: round(score, 5) for name, score in scores.items()}
        self.table.add(step=self.clock.step, **{k: (round(v, 6) if v == v else "") for k, v in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in values.items() if v == v}, step=self.clock.step)


class RunProgress(Callback):
    """One line: how far the run is, the loss, the last Dice and the time left.

    Args:
        clock: the run's clock.
        console: where to draw; on anything but a terminal, a line is printed per validation instead.
    """

    def __init__(self, clock: RunClock, console: Console) -> None:
        self.clock = clock
        self.console = console
        self.loss: float | None = None
        self.dice = "-"
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]}  Dice {task.fields[dice]}"),
            TextColumn("{task.fields[left]} left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=1.0, step=0, loss="-", dice="-", left="-:--")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        value = float(outputs["loss"])
        self.loss = value if self.loss is None else 0.95 * self.loss + 0.05 * value
        self.bar.update(
            self.task,
            completed=self.clock.progress,
            step=self.clock.step,
            loss=f"{self.loss:.3f}",
            dice=self.dice,
            left=format_seconds(self.clock.seconds_left),
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the Dice."""
        self.dice = f"{float(trainer.callback_metrics['val_dice']):.4f}"
        if not self.console.is_terminal:
            loss = "-" if self.loss is None else f"{self.loss:.3f}"
            left = format_seconds(self.clock.seconds_left)
            taken, every = len(self.clock.validation_cases()), sum(map(len, self.clock.validation_calls))
            of = f" ({taken} of {every} cases)" if taken < every else ""
            self.console.print(f"step {self.clock.step}: loss {loss}, validation Dice {self.dice}{of}, {left} left")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        self.bar.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the bar."""
        self.bar.stop()


def format_seconds(seconds: float) -> str:
    """Return `m:ss` or `h:mm:ss`; `-:--` for NaN."""
    if seconds != seconds:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
