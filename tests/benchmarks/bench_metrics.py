"""All scores of a pair of CT-sized maps with 117 labels, beside surface-distance and MONAI, each in its own process.

The pair: TotalSegmentator's two segmentations (3 mm and fast model) of one chest CT in the shared data, 39 organs,
interpolated to 0.75 x 0.75 x 1.5 mm and stacked three times with labels of their own: (488, 404, 180), 117 labels.
Every tool reads the same two arrays; segscse computes its whole table, surface-distance HD95, HD, average distances,
surface Dice and Dice, MONAI HD95, ASSD, surface Dice and Dice. All run on one core, "segscse on all cores" excepted.
Peers get one label at a time, their leanest way: the two as one-hot float tensors would take 33 GB. "memory" is
the peak above what the process held once the packages and the pair were loaded; "resident" is the whole peak.

Run: python tests/benchmarks/bench_metrics.py [--json tests/benchmarks/metrics.json]
Needs Linux, surface-distance and MONAI; some ten minutes, nearly all of it MONAI's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

COPIES, ORGANS = 3, 39
MM = 3.0  # voxel size of the maps in the shared data
TOLERANCE_MM = 1.0
TOOLS = ("segscse", "segscse on all cores", "surface-distance", "MONAI")
PACKAGES = {"surface-distance": "surface-distance", "MONAI": "monai"}


def shared_maps():
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("SEGSCSE_SHARED") or beside)
    folder = (folder if (folder / "totalseg_ct").is_dir() else folder / "data") / "totalseg_ct"
    return [folder / "example_seg_fast.nii.gz", folder / "example_seg.nii.gz"]


def build_pair(zoom):
    """Return prediction and reference: every organ's mask interpolated linearly, the largest value wins."""
    import nibabel as nib

    maps = [np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in shared_maps()]
    organs = [label for label in range(1, 118) if all(np.count_nonzero(each == label) > 1 for each in maps)][:ORGANS]
    if len(organs) < ORGANS:
        raise SystemExit(f"the shared maps hold {len(organs)} organs in common, {ORGANS} are needed")
    stacks = []
    for each in maps:
        large = enlarge(each, organs, zoom)
        copies = [np.where(large > 0, large + ORGANS * copy, 0) for copy in range(COPIES)]
        stacks.append(np.concatenate(copies, axis=2).astype(np.uint8))
    return stacks


def enlarge(labels, organs, zoom):
    from scipy import ndimage

    shape = [size * factor for size, factor in zip(labels.shape, zoom, strict=True)]
    best, large = np.full(shape, 0.5, np.float32), np.zeros(shape, np.uint8)
    for number, organ in enumerate(organs, start=1):
        found = ndimage.find_objects((labels == organ).astype(np.uint8))[0]
        box = tuple(
            slice(max(side.start - 1, 0), min(side.stop + 1, size))
            for side, size in zip(found, labels.shape, strict=True)
        )
        mask = (labels[box] == organ).astype(np.float32)
        mask = ndimage.zoom(mask, zoom, order=1, grid_mode=True, mode="nearest")
        there = tuple(
            slice(side.start * factor, side.start * factor + size)
            for side, factor, size in zip(box, zoom, mask.shape, strict=True)
        )
        wins = mask >= best[there]
        large[there][wins], best[there][wins] = number, mask[wins]
    return large


def run_segscse(pred, ref, spacing, tolerance, workers=1):
    from segscse.evaluation.scores import evaluate

    def score():
        table = evaluate(pred, ref, spacing_mm=spacing, nsd_tolerance_mm=tolerance, workers=workers)
        columns = ["dice", "hd95_mm", "assd_mm", "nsd", "nsd_area"]
        return {name: table[name].tolist() for name in columns}

    return score


def run_segscse_on_all_cores(pred, ref, spacing, tolerance):
    return run_segscse(pred, ref, spacing, tolerance, workers=None)


def run_surface_distance(pred, ref, spacing, tolerance):
    import surface_distance as deepmind

    def score():
        dice, area = [], []
        for label in range(1, COPIES * ORGANS + 1):
            masks = ref == label, pred == label
            distances = deepmind.compute_surface_distances(*masks, spacing)
            deepmind.compute_robust_hausdorff(distances, 95)
            deepmind.compute_robust_hausdorff(distances, 100)
            deepmind.compute_average_surface_distance(distances)
            area.append(float(deepmind.compute_surface_dice_at_tolerance(distances, tolerance)))
            dice.append(float(deepmind.compute_dice_coefficient(*masks)))
        return {"dice": dice, "nsd_area": area}

    return score


def run_monai(pred, ref, spacing, tolerance):
    import torch
    from monai import metrics

    torch.set_num_threads(1)

    def score():
        found = {"dice": [], "hd95_mm": [], "assd_mm": [], "nsd": []}
        options = {"include_background": True, "spacing": list(spacing)}
        for label in range(1, COPIES * ORGANS + 1):
            masks = [torch.from_numpy(array == label)[None, None] for array in (pred, ref)]
            found["hd95_mm"].append(metrics.compute_hausdorff_distance(*masks, percentile=95, **options).item())
            found["assd_mm"].append(metrics.compute_average_surface_distance(*masks, symmetric=True, **options).item())
            found["nsd"].append(metrics.compute_surface_dice(*masks, [tolerance], **options).item())
            found["dice"].append(metrics.compute_dice(*masks, include_background=True).item())
        return found

    return score


RUNNERS = dict(zip(TOOLS, (run_segscse, run_segscse_on_all_cores, run_surface_distance, run_monai), strict=True))


def measure(tool, folder, spacing, tolerance):
    """Score in this process; write time and memory as JSON."""
    pred, ref = (np.load(folder / f"{name}.npy") for name in ("pred", "ref"))
    score = RUNNERS[tool](pred, ref, spacing, tolerance)
    held = resident_mb("VmRSS")
    start = time.perf_counter()
    scores = score()
    seconds = time.perf_counter() - start
    peak = resident_mb("VmHWM")
    result = {"seconds": seconds, "memory_mb": peak - held, "resident_mb": peak, "scores": scores}
    (folder / "result.json").write_text(json.dumps(result))


def resident_mb(field):
    """Return memory of this process now (VmRSS) or at its peak (VmHWM); getrusage's peak includes the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def largest_differences(results):
    """Return how far the scores that tools share lie from segscse's."""
    ours = results["segscse"]["scores"]
    return {
        tool: {name: float(np.abs(np.subtract(values, ours[name])).max()) for name, values in result["scores"].items()}
        for tool, result in results.items()
        if tool != "segscse"
    }


def run_tools(tools, zoom, folder):
    """Build the pair and score it with each tool in a process of its own; return the results by tool."""
    pred, ref = build_pair(zoom)
    np.save(folder / "pred.npy", pred)
    np.save(folder / "ref.npy", ref)
    sys.stdout.write(f"pair {pred.shape}, {len(np.unique(ref)) - 1} labels\n")
    results = {}
    for tool in tools:
        command = [sys.executable, __file__, "--zoom", *map(str, zoom), "--measure", tool, str(folder)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = results[tool] = json.loads((folder / "result.json").read_text())
        memory = f"memory {found['memory_mb']:6.0f} MB  resident {found['resident_mb']:6.0f} MB"
        sys.stdout.write(f"{tool:<22} {found['seconds']:8.2f} s  {memory}\n")
        sys.stdout.flush()
    return results


def report_on(results, zoom):
    """Return what to keep, and say how the peers compare."""
    ours, peers = results["segscse"], [tool for tool in results if tool in PACKAGES]
    rows = {
        tool: {key: round(value, 3) for key, value in each.items() if key != "scores"} for tool, each in results.items()
    }
    for tool in peers:
        faster = results[tool]["seconds"] / ours["seconds"]
        less = results[tool]["memory_mb"] / max(ours["memory_mb"], 1)
        rows[tool] |= {"times_slower": round(faster, 1), "times_memory": round(less, 1)}
        sys.stdout.write(f"segscse is {faster:.1f} times faster than {tool} with 1/{less:.1f} of its memory\n")
    differences = largest_differences(results)
    sys.stdout.write(f"largest differences from segscse: {json.dumps(differences)}\n")
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("numpy", "scipy", *(PACKAGES[tool] for tool in peers))},
        "pair": {"labels": COPIES * ORGANS, "spacing_mm": spacing_of(zoom), "nsd_tolerance_mm": TOLERANCE_MM},
        "results": rows,
        "largest_difference_from_segscse": differences,
    }


def spacing_of(zoom):
    return tuple(MM / factor for factor in zoom)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoom", type=int, nargs=3, default=(4, 4, 2), help="1 1 1 for a trial in seconds")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="segscse must be among them")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], Path(given.measure[1]), spacing_of(given.zoom), TOLERANCE_MM)
        return
    with tempfile.TemporaryDirectory() as name:
        results = run_tools(given.tools, given.zoom, Path(name))
    report = report_on(results, given.zoom)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
