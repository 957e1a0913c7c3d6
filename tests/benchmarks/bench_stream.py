"""Training from data larger than memory: does memory stay flat, and does the step wait for data?

Makes an MSD data set of `--gb` decoded gigabytes: `--distinct` phantom volumes as real files, every other case a hard
link to one of them. Then three processes, each watching its own anonymous memory (RssAnon: what only this process
holds), its mapped file pages (RssFile: page cache that it has mapped, which the system takes back) and, where there is
one, its control group's memory without file pages:

- `plan`: examine, fingerprint and plan all cases.
- `prepare`: preprocess the distinct cases one by one to the store on disk, and note the memory after each.
- `train`: the training step of a U-Net on patches, in turns of some steps each from the store on disk and from the same
  cases held in memory, through the data module that training uses. The store's entries of the linked cases are links
  too; so that this is no test of the page cache, the pages of all files are evicted before every step (`--cold`, the
  default), which is worse than any real run. What a step waits for its batch is timed beside the step itself. A CPU's
  step is long; `batch_ms` is how long a batch takes to make on the spot: the shortest step that would not wait for it.

Run: python tests/benchmarks/bench_stream.py [--gb 50] [--distinct 4] [--shape 512 512 400] [--work DIR]
Needs about 5 bytes of disk and of memory a voxel of each distinct case (--distinct 4: 2.1 GB, and as much memory for
the run in memory); everything is removed at the end. Results: tests/benchmarks/results/stream.json, or --json FILE.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BYTES_A_VOXEL = 5  # 32-bit image and 8-bit label
PARTS = ("plan", "prepare", "train")


def memory_mb():
    """Return this process's anonymous and mapped file memory, and its control group's anonymous memory, if any."""
    status = Path("/proc/self/status").read_text()
    found = {name: int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}
    group = Path("/sys/fs/cgroup/memory.stat")
    if group.is_file():
        found["cgroup_anon"] = int(group.read_text().split("anon ")[1].split()[0]) / 2**20
    return found


class Watch(threading.Thread):
    """Keeps the largest memory since it was last asked."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = {}

    def run(self):
        while True:
            for name, value in memory_mb().items():
                self.peak[name] = max(value, self.peak.get(name, 0.0))
            time.sleep(0.02)

    def take(self):
        peak, self.peak = self.peak, {}
        return {name: round(value, 1) for name, value in peak.items()}


def make_dataset(folder, n_cases, distinct, shape):
    """Write phantom CT volumes with two labels, and links to them."""
    import nibabel as nib
    import numpy as np

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    names = [f"case_{number:03d}.nii.gz" for number in range(n_cases)]
    for number, name in enumerate(names):
        paths = [folder / "imagesTr" / name, folder / "labelsTr" / name]
        if number >= distinct:
            for path in paths:
                os.link(path.with_name(names[number % distinct]), path)
            continue
        rng = np.random.default_rng(number)
        texture = np.tile(rng.integers(-40, 40, 64, np.int16).reshape(4, 4, 4), [-(-size // 4) for size in shape])
        image = np.ascontiguousarray(texture[tuple(slice(size) for size in shape)])
        label = np.zeros(shape, np.uint8)
        for value, share in ((1, 0.3), (2, 0.15)):
            low = [int(size * (0.1 + 0.05 * (number % 4))) for size in shape]
            box = tuple(slice(a, a + int(size * share)) for a, size in zip(low, shape, strict=True))
            label[box] = value
            image[box] += 200
        for path, array in zip(paths, (image, label), strict=True):
            picture = nib.Nifti1Image(array, np.diag([-0.8, -0.8, 0.8, 1.0]))
            picture.set_sform(picture.affine, 1)
            nib.save(picture, path)
    pairs = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "large", "2": "small"}
    description = {"modality": {"0": "CT"}, "labels": labels, "training": pairs}
    (folder / "dataset.json").write_text(json.dumps(description))


def run_plan(arguments):
    from segscse.config import ExperimentConfig
    from segscse.data.plan import save_plan
    from segscse.data.prepare import plan_dataset

    watch, peaks = Watch(), []
    watch.start()
    start = time.perf_counter()
    after = []

    def progress(done, total):
        after.append(memory_mb()["RssAnon"])
        peaks.append(watch.take().get("RssAnon", 0.0))

    planned = plan_dataset(arguments.work / "data", ExperimentConfig(), progress=progress)
    save_plan(arguments.work / "plan.json", planned.plan)
    return {
        "cases": len(planned.index.cases),
        "seconds_a_case": (time.perf_counter() - start) / len(after),
        "peak_anon_mb_first_quarter": max(peaks[: max(1, len(peaks) // 4)]),
        "peak_anon_mb_last_quarter": max(peaks[-max(1, len(peaks) // 4) :]),
        "anon_mb_after_each_case": [round(value) for value in after],
    }


def open_store(arguments, memory_gb, only=None):
    from segscse.data.index import open_dataset
    from segscse.data.plan import load_plan
    from segscse.data.store import CaseStore

    plan = load_plan(arguments.work / "plan.json")
    cases = open_dataset(arguments.work / "data").cases[:only]
    return CaseStore(cases, plan, arguments.work / ("memory" if memory_gb else "cache"), memory_gb), cases, plan


def run_prepare(arguments):
    store, _, _ = open_store(arguments, 0.0, arguments.distinct)
    watch, peaks, after = Watch(), [], []
    before = memory_mb()["RssAnon"]
    watch.start()
    start = time.perf_counter()

    def progress(done, total):
        after.append(memory_mb())
        peaks.append(watch.take())

    store.prepare(progress)
    voxels = max(float(x) * y * z for x, y, z in store.shapes().values())
    return {
        "seconds_a_case": (time.perf_counter() - start) / len(after),
        "peak_anon_mb_each_case": [peak["RssAnon"] for peak in peaks],
        "peak_bytes_a_voxel": (max(peak["RssAnon"] for peak in peaks) - before) * 2**20 / voxels,
        "anon_mb_after_each_case": [round(item["RssAnon"], 1) for item in after],
    }


def link_store(arguments):
    """Give every linked case an entry of the store that links to its original's files; return the entries."""
    store, cases, _ = open_store(arguments, 0.0)
    folders = [store.folder / store.key(case) for case in cases]
    for number, folder in enumerate(folders[arguments.distinct :], start=arguments.distinct):
        folder.mkdir(exist_ok=True)
        for path in folders[number % arguments.distinct].iterdir():
            if not (folder / path.name).exists():
                os.link(path, folder / path.name)
    return folders


def evict(folders):
    """Drop the files' pages from memory."""
    for folder in folders:
        for path in folder.iterdir():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes():
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def make_sources(arguments):
    """Return the data module over all cases on disk, and the one over the distinct ones in memory."""
    from segscse.config import AugmentConfig
    from segscse.data.datamodule import SegDataModule
    from segscse.data.sampling import PatchSampler, cut_size

    sources = {}
    for name, memory_gb, only in (("disk", 0.0, None), ("memory", 1e6, arguments.distinct)):
        store, cases, plan = open_store(arguments, memory_gb, only)
        before = memory_mb()["RssAnon"]
        store.prepare()
        held = memory_mb()["RssAnon"] - before
        cut = cut_size(plan, list(store.shapes().values()), spatial=True)
        sampler = PatchSampler(store, tuple(case.id for case in cases), plan, cut, 0.33, 0)
        module = SegDataModule(sampler, (), AugmentConfig(), lambda: 0, lambda: False)
        sources[name] = {"module": module, "batches": iter(module.stream), "held_mb": held}
    return sources, sampler


def make_step(plan):
    """Return a function that makes a step of training with a batch."""
    import torch

    from segscse.config import ModelConfig
    from segscse.nets.build import build_unet, network_arguments
    from segscse.nets.dims import channels_last, network_to_channels_last
    from segscse.training.losses import deep_supervision_loss

    torch.manual_seed(0)
    network = network_to_channels_last(build_unet(network_arguments(plan, ModelConfig())), plan.spatial_dims)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)

    def step(batch):
        loss = deep_supervision_loss(network(channels_last(batch["image"])), batch["label"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def timed_step(source, step, watch):
    """Make one step; return what was measured of it."""
    read, start = disk_bytes(), time.perf_counter()
    batch = next(source["batches"])
    waited = time.perf_counter()
    step(source["module"].on_after_batch_transfer(batch, 0))
    done = time.perf_counter()
    peak = watch.take() or memory_mb()
    return {
        "wait_s": waited - start,
        "step_s": done - waited,
        "read_mb": (disk_bytes() - read) / 1e6,
        "anon_mb": peak["RssAnon"],
        "file_mb": peak["RssFile"],
    }


def batch_ms(source, folders, count=10):
    """Return the median time of making a batch on the spot, from files that are not in memory if folders are given."""
    seconds = []
    for number in range(count):
        evict(folders)
        start = time.perf_counter()
        source["module"].sampler.batch(10_000 + number)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def run_train(arguments):
    import math

    from segscse.hardware import keep_freed_memory

    folders = link_store(arguments)[: arguments.distinct]
    keep_freed_memory()
    sources, sampler = make_sources(arguments)
    plan, step = sampler.plan, make_step(sampler.plan)
    cold = {"disk": folders if arguments.cold else [], "memory": []}
    taken = {name: [] for name in sources}
    watch = Watch()
    watch.start()
    for turn in range(arguments.turns + 1):
        for name, source in sources.items():
            for _ in range(arguments.steps):
                evict(cold[name])
                found = timed_step(source, step, watch)
                taken[name] += [found] if turn else []  # the first turn allocates and chooses kernels
    results = {"patch": plan.patch_size, "cut": sampler.cut_size, "batch_size": plan.batch_size, "cold": arguments.cold}
    results["batch_mb"] = plan.batch_size * math.prod(sampler.cut_size) * BYTES_A_VOXEL / 1e6
    for name, rows in taken.items():
        column = {key: [row[key] for row in rows] for key in rows[0]}
        half = len(rows) // 2
        results[name] = {
            "batch_ms": batch_ms(sources[name], cold[name]),
            "wait_ms_median": 1000 * statistics.median(column["wait_s"]),
            "wait_ms_95th": 1000 * statistics.quantiles(column["wait_s"], n=20)[-1],
            "step_ms_median": 1000 * statistics.median(column["step_s"]),
            "wait_share": sum(column["wait_s"]) / (sum(column["wait_s"]) + sum(column["step_s"])),
            "read_mb_a_step": statistics.mean(column["read_mb"]),
            "peak_anon_mb_first_half": max(column["anon_mb"][:half]),
            "peak_anon_mb_second_half": max(column["anon_mb"][half:]),
            "peak_file_mb": max(column["file_mb"]),
            "store_anon_mb": sources[name]["held_mb"],
            "steps": len(rows),
        }
        sources[name]["batches"].close()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=50, help="decoded size of the data set")
    parser.add_argument("--distinct", type=int, default=4, help="cases that are real files")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--turns", type=int, default=6, help="turns of disk and memory that count")
    parser.add_argument("--cold", action=argparse.BooleanOptionalAction, default=True, help="evict pages before steps")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="where the data are made (default: a temporary folder)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        found = {"plan": run_plan, "prepare": run_prepare, "train": run_train}[arguments.part](arguments)
        sys.stdout.write("\n" + json.dumps(found) + "\n")
        return
    case_gb = n_voxels(arguments.shape) * BYTES_A_VOXEL / 1e9
    n_cases = max(arguments.distinct + 1, round(arguments.gb / case_gb))
    results = {"layout": {"cases": n_cases, "distinct": arguments.distinct, "shape": arguments.shape}}
    results["layout"]["decoded_gb"] = n_cases * case_gb
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        make_dataset(Path(folder) / "data", n_cases, arguments.distinct, arguments.shape)
        options = ["--work", folder, "--distinct", str(arguments.distinct), "--steps", str(arguments.steps)]
        options += ["--turns", str(arguments.turns), "--cold" if arguments.cold else "--no-cold"]
        for part in PARTS:
            command = [sys.executable, __file__, "--part", part, *options]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[part] = json.loads(process.stdout.strip().splitlines()[-1])
            sys.stdout.write(f"{part}: {json.dumps(results[part])}\n")
            sys.stdout.flush()
    from measure import machine, save

    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    else:
        save("stream", results)


def n_voxels(shape):
    """Return the number of voxels."""
    return shape[0] * shape[1] * shape[2]


if __name__ == "__main__":
    main()
