"""Short trainings, and what is read from their folders."""

import csv

import torch
from safetensors.torch import load_file

STEPS = 8
SHORT = {"max_steps": STEPS, "validations": 2}


def log_rows(folder):
    """Return the rows of the log."""
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def scores(folder):
    """Return step and Dice of every validation: the columns that no clock decides."""
    return [(row["step"], row["val_dice"], row["val_dice_2"]) for row in log_rows(folder) if row["val_dice"]]


def equal_weights(first, second):
    """Return whether two runs exported the same weights."""
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
