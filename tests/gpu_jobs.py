"""What is done on the CPU and on a stand-in for a GPU: `python gpu_jobs.py FOLDER`; results to `FOLDER/found.json`.

Per job the numbers that each of the two has given, or why there are none.
"""

import csv
import sys
import traceback
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from stand_in_gpu import GPU, on_gpu
from tiny import tiny_config, write_dataset

from segscse.attention import BLOCKS, build_attention
from segscse.attention.slicewise import ECADepth, SliceGate
from segscse.files import write_json
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.inference.segment import Options
from segscse.nets.dims import channels_last
from segscse.training.run import train_run
from segscse.training.soft_counts import soft_counts

CPU = torch.device("cpu")
OF_VOLUMES = SliceGate | ECADepth


def train(device, folder, dims):
    """Train, go on from the checkpoint, and return the curves."""
    model = {"base_features": 4, "max_features": 8, "spatial_dims": dims}
    for steps, resume in ((4, False), (6, True)):
        config = tiny_config(model=model, train={"max_steps": steps, "validations": 2, "loggers": ["tensorboard"]})
        run = train_run(folder / "data", folder / f"{device.type}{dims}", config, resume=resume)
    with (run.folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [float(row[name]) for name in ("train_loss", "val_dice") for row in rows]


def predict(device, folder, dims):
    """Predict by an ensemble of the CPU's run with itself, mirrored, and return what the maps hold."""
    model = load(*[folder / f"cpu{dims}"] * 2, engine="torch", device=device.type, mirror=True)
    scans = sorted((folder / "data" / "imagesTr").iterdir())[:2]
    out = folder / f"{device.type}{dims}_maps"
    outcome = predict_files(
        model, scans, out, options=Options(probabilities=True, uncertainty=True, foreground_only=True)
    )
    if outcome.failures:
        raise RuntimeError(outcome.failures[0].reason)
    return [float(np.mean(nib.load(path).dataobj)) for path in sorted(out.rglob("*.nii.gz"))]


def block(device, name, dims):
    """Return what a block and its gradient come to; on the CPU that is by kernels where a block has some."""
    torch.manual_seed(0)
    x = channels_last(torch.randn(2, 16, *(8, 8, 8)[:dims]))
    module = build_attention(name, 16, spatial_dims=dims)
    with torch.no_grad():
        for parameter in module.parameters():  # some begin at zero, where a block does nothing
            parameter.add_(0.1)
    module, x = module.to(device), x.to(device).requires_grad_()
    y = module(x)
    y.square().mean().backward()
    return [float(item.detach().double().square().mean()) for item in (y, x.grad)]


def many_classes(device):
    """Return the loss's counts of more classes than are taken one by one, and their gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 20, 6, 6, 6, generator=generator).to(device).requires_grad_()
    counts = soft_counts(logits, torch.randint(20, (2, 6, 6, 6), generator=generator).to(device))
    counts.square().sum().backward()
    return [*counts.tolist(), float(logits.grad.abs().sum())]


def mixed(device):
    """Add tensors of two devices."""
    return (torch.ones(3).to(device) + torch.ones(3)).tolist()


def jobs(folder):
    """Return every job by name, the trainings first, whose models are predicted with."""
    found = {f"train {dims}D": partial(train, folder=folder, dims=dims) for dims in (3, 2)}
    found |= {f"predict {dims}D": partial(predict, folder=folder, dims=dims) for dims in (3, 2)}
    found |= {
        f"{name} {dims}D": partial(block, name=name, dims=dims)
        for name in BLOCKS
        for dims in (2, 3)
        if dims == 3 or not issubclass(BLOCKS[name], OF_VOLUMES)
    }
    return found | {"many classes": many_classes, "mixed": mixed}


def main(folder):
    """Do every job on both devices."""
    torch.set_num_threads(1)
    write_dataset(folder / "data")
    found = {}
    for name, job in jobs(folder).items():
        found[name] = {}
        for device in (CPU, GPU):
            with on_gpu() if device is GPU else nullcontext():
                try:
                    found[name][device.type] = job(device)
                except Exception:  # whatever it is, it is what the test is to say
                    found[name][device.type] = traceback.format_exc()
    write_json(folder / "found.json", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
