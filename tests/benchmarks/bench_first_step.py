"""From the command to the end of the first training step, in seconds: with an empty numba cache, then with a full one.

`import` is everything before the data set is opened; `read` the examination and the plan, beside which the kernels
compile; `room` the check of memory and disk; `preprocess` all cases; `start` Lightning and what of the compilation is
left; `step` the first step.

Run: python tests/benchmarks/bench_first_step.py --data DATASET [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHASES = ("import", "read", "room", "preprocess", "start", "step")


def child(arguments):
    from segscse.config import load_config
    from segscse.training import run, setup
    from segscse.training.callbacks import RunKeeper

    times = {"import": time.time() - arguments.began}

    def timed(name, work):
        def call(*given, **options):
            result = work(*given, **options)
            times[name] = time.time() - arguments.began
            return result

        return call

    setup.plan_dataset = timed("read", setup.plan_dataset)
    setup.require_room = timed("room", setup.require_room)
    run._data = timed("preprocess", run._data)
    RunKeeper.on_train_start = timed("start", RunKeeper.on_train_start)
    RunKeeper.on_train_batch_end = timed("step", RunKeeper.on_train_batch_end)
    config = load_config(overrides={"train": {"max_steps": 1, "validations": 1}})
    run.train_run(arguments.data, arguments.work / "run", config, fold=None)
    sys.stdout.write("\n" + json.dumps(times) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.began:
        child(arguments)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / "numba")}
        for name in ("empty cache", "full cache"):
            work = Path(folder) / name.replace(" ", "_")
            command = [sys.executable, __file__, "--data", str(arguments.data), "--work", str(work)]
            command += ["--began", str(time.time())]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
            ends = json.loads(done.stdout.strip().splitlines()[-1])
            known = [phase for phase in PHASES if phase in ends]
            before = [0.0, *(ends[phase] for phase in known)]
            results[name] = {phase: ends[phase] - start for phase, start in zip(known, before, strict=False)}
            shown = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in results[name].items())
            sys.stdout.write(f"{name}: first step after {ends['step']:.1f} s ({shown})\n")
            sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
