"""What tests have several real processes do: `python rank_jobs.py <job> <arguments>`, in the processes of a job."""

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch
from tiny import tiny_config

from segscse import ablation, crossval
from segscse.config import ExperimentConfig
from segscse.errors import Interrupted
from segscse.files import write_json
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.inference.segment import Segmentation
from segscse.ranks import end, joined, read_ranks
from segscse.training.averaging import AveragedWeights
from segscse.training.losses import deep_supervision_loss
from segscse.training.module import SegModule
from segscse.training.run import train_run

SHORT = {"max_steps": 8, "validations": 2}
seen = {"cases": [], "weights": []}


def train(group, dataset, base):
    """Train a run, stop another by a signal to the last process alone, and go on with one that is there."""
    dataset, base = Path(dataset), Path(base)
    _take_notes()
    losses(group, base)
    run = train_run(dataset, base / "whole", tiny_config(train=SHORT), group=group)
    notes = {"dice": run.dice, "digests": [_digest(state) for state in seen["weights"]], "validated": [*seen["cases"]]}
    seen["cases"].clear()
    short = {"max_steps": 1, "validations": 1}
    few = train_run(dataset, base / "few", tiny_config(train=short), fold=1, group=group)
    notes |= {"few_dice": few.dice, "few_validated": [*seen["cases"]]}
    timed = {"max_steps": None, "budget": "0.5s", "validations": 1}
    notes["timed_steps"] = train_run(dataset, base / "timed", tiny_config(train=timed), group=group).steps
    write_json(base / f"seen{group.rank}.json", notes)
    train_run(dataset, base / "begun_alone", ExperimentConfig(), resume=True, group=group)
    step = SegModule.training_step

    def stopping(self, batch, index):
        if self.clock.step == 2 and group.rank == group.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    SegModule.training_step = stopping
    try:
        train_run(dataset, base / "stopped", tiny_config(train=SHORT), group=group)
    except Interrupted as error:
        write_json(base / f"stopped{group.rank}.json", {"signum": error.signum, "message": str(error)})


def losses(group, base):
    """Take the gradient of the loss of a shared batch as DDP does: the mean of the processes'."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(4, 2, 6, 6, generator=generator)
    target = torch.randint(0, 3, (4, 6, 6), generator=generator)
    weights = torch.randn(3, 2, generator=generator, requires_grad=True)
    loss = deep_supervision_loss(levels(weights, inputs[group.rank :: 2]), target[group.rank :: 2], world=2)
    loss.backward()
    torch.distributed.all_reduce(weights.grad)
    torch.save({"loss": loss.detach(), "gradient": weights.grad / 2}, base / f"loss{group.rank}.pt")


def levels(weights, inputs):
    """Return logits at two resolutions."""
    logits = torch.einsum("kc,bcxy->bkxy", weights, inputs)
    return [logits, logits[..., ::2, ::2]]


def predict(group, model, inputs, out):
    """Predict; the last process dies when it has written one case."""
    save = Segmentation.save
    done = []

    def dying(self, path):
        if done and group.rank == 1:
            os._exit(9)
        done.append(path)
        save(self, path)

    Segmentation.save = dying
    from segscse.inference import manifest

    manifest.SECONDS_BETWEEN_WRITES = -1.0
    predict_files(load(Path(model), device="cpu"), [Path(inputs)], Path(out), group=group)


def cross_validate(group, dataset, out):
    """Cross-validate; the last process dies in the second step of its first fold."""
    _die_in_second_step(group)
    config = tiny_config(train={"max_steps": 2, "validations": 1}, data={"folds": 3})
    crossval.cross_validate(Path(dataset), out=Path(out), config=config, group=group)


def ablate(group, dataset, out):
    """Compare two variants on two folds; the last process dies in the second step of its first run."""
    _die_in_second_step(group)
    config = tiny_config(train={"validations": 1}, data={"folds": 3})
    variants = ["none", "scse"]
    ablation.ablate(Path(dataset), out=Path(out), attention=variants, folds=[0, 1], steps=2, config=config, group=group)


def _die_in_second_step(group):
    step = SegModule.training_step

    def dying(self, batch, index):
        if self.clock.step == 1 and group.rank == 1:
            os._exit(9)
        return step(self, batch, index)

    SegModule.training_step = dying


def _take_notes():
    """Keep which cases this process validates, and the average it has after every step."""
    validate, average = SegModule.validation_step, AveragedWeights.on_train_batch_end

    def validation_step(self, batch, index):
        seen["cases"].append(batch.get("case"))
        return validate(self, batch, index)

    def on_train_batch_end(self, *arguments):
        average(self, *arguments)
        seen["weights"].append({name: value.clone() for name, value in self.network_state().items()})

    SegModule.validation_step, AveragedWeights.on_train_batch_end = validation_step, on_train_batch_end


def _digest(state):
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()


if __name__ == "__main__":
    with joined(read_ranks()) as shared:
        globals()[sys.argv[1]](shared, *sys.argv[2:])
    end(0, read_ranks())
