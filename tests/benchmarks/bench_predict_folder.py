"""The whole job, folder in and folder out, from the shell: seconds with and without mirroring, and where they go.

Run: python tests/benchmarks/bench_predict_folder.py RUN IMAGES [--cases 52] [--repeats 3] [--json FILE]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAIN = "from segscse.cli import main; main()"


def job(model, images, out, *flags):
    """Return the seconds of one `segscse predict` in a process of its own."""
    command = [sys.executable, "-c", MAIN, "predict", str(model), str(images), "--out", str(out), *flags]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def stages(model, images):
    """Return the seconds of each stage, one after the other in this process, in a fresh interpreter's order."""
    start = time.perf_counter()
    seconds = {}

    def lap(name):
        nonlocal start
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - start
        start = now

    from segscse.inference.manifest import digests
    from segscse.inference.memory import window_bytes
    from segscse.inference.pipeline import predict_files  # noqa: F401, its imports are timed
    from segscse.inference.predictor import load
    from segscse.inference.segment import Options, segment

    lap("import")
    predictor = load(model, device="cpu")
    lap("load")
    window_bytes(predictor)
    lap("measure memory")
    inner = predictor.evaluate
    network = 0.0

    def timed(windows):
        nonlocal network
        begun = time.perf_counter()
        logits = inner(windows)
        network += time.perf_counter() - begun
        return logits

    predictor.evaluate = timed
    with tempfile.TemporaryDirectory() as out:
        for path in sorted(images.glob("*.nii.gz")):
            digests([path])
            lap("digest")
            prepared = predictor.prepare(path)
            lap("read and prepare")
            made = segment([predictor], prepared, Options())
            lap("segment")
            made.quality()
            lap("quality")
            made.save(Path(out) / path.name)
            lap("write")
    seconds["network"] = network
    seconds["slabs and labels"] = seconds.pop("segment") - network
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--cases", type=int, default=52)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stages", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages:
        sys.stdout.write(json.dumps(stages(arguments.model, arguments.images)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "in").mkdir()
        chosen = [path for path in sorted(arguments.images.glob("*.nii.gz")) if not path.name.startswith(".")]
        for path in chosen[: arguments.cases]:
            shutil.copy(path, work / "in")
        results = {"cases": len(chosen[: arguments.cases]), "cores": os.cpu_count()}
        for name, flags in (("plain", []), ("mirrored", ["--tta"])):
            runs = [job(arguments.model, work / "in", work / f"{name}{n}", *flags) for n in range(arguments.repeats)]
            results[name] = {"seconds": statistics.median(runs), "all": runs}
            sys.stdout.write(f"{name}: {results[name]['seconds']:.2f} s for {results['cases']} cases\n")
        again = job(arguments.model, work / "in", work / "plain0", "--resume")
        results["resumed when complete"] = again
        single = work / "single"
        single.mkdir()
        shutil.copy(next((work / "in").iterdir()), single)
        results["one case"] = statistics.median(
            job(arguments.model, single, work / f"one{n}") for n in range(arguments.repeats)
        )
        command = [sys.executable, __file__, str(arguments.model), str(work / "in"), "--stages"]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results["stages"] = json.loads(printed)
        sys.stdout.write(json.dumps({key: value for key, value in results.items() if key != "plain"}, indent=2) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
