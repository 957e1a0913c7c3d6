"""The memory that a training is expected to take beside the peak that the system reports, at several sizes.

Each training is a process of its own: a few steps and one validation on a phantom data set, by `train_run`. `program`
is what the process held when the estimate was made.

Run: python tests/benchmarks/bench_training_memory.py [--only NAME ...] [--json FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# Name: shape of the scans, channels, labels, settings.
SIZES = {
    "small_3d": ((40, 56, 40), 1, 2, {"model": {"base_features": 16}}),
    "task04_3d": ((40, 56, 40), 1, 2, {"model": {"base_features": 32}}),
    "adamw_3d": ((40, 56, 40), 1, 2, {"optim": {"name": "adamw"}, "model": {"base_features": 32}}),
    "patch_3d": ((80, 80, 64), 1, 2, {"model": {"base_features": 16}}),
    "fp32_3d": ((64, 64, 64), 1, 2, {"train": {"precision": "fp32"}}),
    "many_labels_3d": ((96, 96, 80), 1, 37, {}),
    "residual_3d": ((64, 64, 64), 4, 3, {"model": {"block": "residual"}}),
    "cases_3d": ((128, 128, 128), 2, 2, {"data": {"max_patch_voxels": 100_000}}),
    "on_disk_3d": ((128, 128, 128), 2, 2, {"data": {"max_patch_voxels": 100_000, "cache_gb": 0.0}}),
    "large_2d": ((256, 256, 12), 1, 2, {"model": {"spatial_dims": 2}, "data": {"batch_size": 8}}),
    "small_2d": ((64, 64, 24), 1, 2, {"model": {"spatial_dims": 2}}),
    "wide_2d": ((128, 128, 16), 1, 4, {"model": {"spatial_dims": 2, "base_features": 48}}),
}
STEPS = 4


def child(name, folder):
    import numpy as np

    from segscse.config import load_config
    from segscse.limits import peak_bytes, resident_bytes
    from segscse.training import run
    from segscse.training.memory import build_probe, estimate_training

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from volumes import write_volume

    shape, channels, labels, settings = SIZES[name]
    rng = np.random.default_rng(0)
    rows = ["case," + ",".join(f"image{n}" if n else "image" for n in range(channels)) + ",label"]
    for case in range(6):
        label = np.zeros(shape, np.uint8)
        for number in range(1, labels + 1):
            corner = rng.integers(0, [size - 6 for size in shape])
            label[tuple(slice(low, low + 6) for low in corner)] = number
        files = [
            write_volume(folder / f"c{case}_{n}.nii", rng.normal(100, 20, shape).astype(np.float32) + label)
            for n in range(channels)
        ]
        files.append(write_volume(folder / f"l{case}.nii", label))
        rows.append(f"case{case}," + ",".join(file.name for file in files))
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    config = load_config(settings, overrides={"train": {"max_steps": STEPS, "validations": 1, "device": "cpu"}})
    found = {}
    preprocess = run._data

    def estimated(setup, *rest):
        kept, n_weights = build_probe(setup.planned.plan, config, setup.precision)
        estimate = estimate_training(setup.planned, setup.split, config, kept, n_weights)
        found.update(
            program=resident_bytes(),
            extra=estimate.total,
            text=str(estimate),
            patch=setup.planned.plan.patch_size,
            batch=setup.planned.plan.batch_size,
        )
        return preprocess(setup, *rest)

    run._data = estimated
    run.train_run(folder / "data.csv", folder / "run", config)
    found["peak"] = peak_bytes()
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    results = {}
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--child", name, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.stdout.write(f"{name}: failed: {done.stderr.strip().splitlines()[-1:]}\n")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        ratio = (found["peak"] - found["program"]) / found["extra"]
        results[name] = {**found, "peak_to_estimate": ratio}
        mb = {key: round(found[key] / 1e6) for key in ("program", "extra", "peak")}
        sys.stdout.write(f"{name}: {mb} MB, peak beyond the program / estimate {ratio:.2f}; {found['text']}\n")
        sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
