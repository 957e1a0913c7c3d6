"""What the benchmarks share: alternating timings, the machine, and results as JSON beside the scripts."""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from segscse.files import write_json
from segscse.hardware import pick_precision, versions

RESULTS = Path(__file__).parent / "results"


def alternate(calls, repeats, warm_up=2):
    """Return the median seconds of each named call, run in turn so that all share what else the machine does."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + warm_up):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def own_peak_mb():
    """Return this process's peak resident memory (Linux; getrusage would count what the parent process held)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine():
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    precision = pick_precision("auto", torch.device("cpu"))
    return {"cpu": cpu, "threads": torch.get_num_threads(), "precision": precision, "versions": versions()}


def save(name, results):
    """Write results under `results/`, say them, and return them."""
    results = {"machine": machine(), **results}
    write_json(RESULTS / f"{name}.json", results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return results
