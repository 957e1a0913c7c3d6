"""Two processes on the machine's cores beside one process with as many threads: the same global batch, whole commands.

Run: `python tests/benchmarks/bench_ranks.py [--dataset FOLDER] [--steps 60] [--repeats 3] [--batch 2]`. Without a data
set it makes phantoms. Of every run it takes the seconds of a step after the first twenty, from `metrics.csv`, those of
the validation, and those of the whole command. Both must show the same loss.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import save

from segscse.data.phantom import make_phantom_dataset

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = (1, 2)


def train(dataset, out, processes, arguments):
    """Train and return seconds of the command, a step and the validation, and the last loss."""
    command = [sys.executable, "-m", "segscse", "train", dataset, "--out", out, "--train.max_steps", arguments.steps]
    command += ["--train.validations", 1, "--train.device", "cpu", "--data.batch_size", arguments.batch]
    command += ["--data.max_patch_voxels", arguments.voxels]
    command += ["--devices", processes] if processes > 1 else []
    # Threads are for segscse to choose: all cores for one process, a part of them for each of two.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(ROOT)
    begin = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, env=environment, capture_output=True, text=True)
    whole = time.perf_counter() - begin
    with (Path(out) / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    steps = [row for row in rows if not row["val_dice"]]
    first, last = steps[0], steps[-1]
    a_step = (float(last["seconds"]) - float(first["seconds"])) / (int(last["step"]) - int(first["step"]))
    rest = arguments.steps - int(last["step"])
    validation = float(rows[-1]["seconds"]) - float(last["seconds"]) - rest * a_step
    return {"command_s": whole, "step_s": a_step, "validation_s": validation, "loss": float(last["train_loss"])}


def main():
    """Run both in turn and save medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--voxels", type=int, default=300_000, help="of a patch")
    arguments = parser.parse_args()
    if arguments.steps < 41:
        parser.error("--steps must be at least 41: the first twenty are not counted, and every twentieth is logged")
    found = {processes: [] for processes in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset or make_phantom_dataset(Path(folder) / "phantoms", cases=10, test_cases=1)
        for repeat in range(arguments.repeats):
            for processes in PROCESSES:
                found[processes].append(train(dataset, Path(folder) / f"{processes}_{repeat}", processes, arguments))
    names = found[1][0]
    medians = {
        processes: {name: statistics.median(run[name] for run in runs) for name in names}
        for processes, runs in found.items()
    }
    one, two = (medians[processes] for processes in PROCESSES)
    ratios = {name: two[name] / one[name] for name in ("command_s", "step_s", "validation_s")}
    if not math.isclose(one["loss"], two["loss"], abs_tol=5e-3):
        sys.exit(f"the losses differ: {one['loss']} and {two['loss']}")
    save(
        "ranks",
        {"settings": {**vars(arguments), "dataset": Path(dataset).name}, "seconds": medians, "two_over_one": ratios},
    )


if __name__ == "__main__":
    main()
