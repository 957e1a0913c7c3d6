"""A CT of 512 x 512 x 400 with 41 classes at 1.5 mm: seconds and peak memory, beside MONAI's sliding window.

The CT is made by resampling the spleen scan of the shared data along its slices. Each contender reads the file and
writes the label map in a process of its own. MONAI goes through `sliding_window_inference` and then either `logits`
(class logits resampled linearly to the scan's grid, as segscse does) or `labels` (largest logit first, then nearest
neighbour: less memory, coarser borders). The weights are random; `--network tiny` is a single convolution, which leaves
the machinery around the network.

Run: python tests/benchmarks/bench_predict_memory.py --shared DIR [--network tiny|unet] [--json FILE]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPLEEN = "msd_spleen/imagesTr/spleen_8.nii.gz"
CONTENDERS = ("segscse", "monai-labels", "monai-logits")
N_CLASSES = 41
SPACING_MM = 1.5


def make_ct(shared, shape, path):
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import zoom

    source = nib.load(shared / SPLEEN)
    array = np.asarray(source.dataobj)[: shape[0], : shape[1]].astype(np.float32)
    factor = shape[2] / array.shape[2]
    voxels = np.rint(zoom(array, (1, 1, factor), order=1)).astype(np.int16)
    affine = source.affine @ np.diag([1, 1, 0.6 / np.linalg.norm(source.affine[:3, 2]), 1])
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return voxels.shape


def make_plan(shape):
    from segscse.data.plan import Normalisation, Plan, plan_topology

    size = [round(extent * mm / SPACING_MM) for extent, mm in zip(shape, (0.785, 0.785, 0.6), strict=True)]
    patch, strides, kernels = plan_topology(size, (SPACING_MM,) * 3, 300_000)
    return Plan(
        dataset="benchmark",
        spatial_dims=3,
        spacing_mm=(SPACING_MM,) * 3,
        slice_axis=None,
        patch_size=patch,
        batch_size=2,
        strides=strides,
        kernel_sizes=kernels,
        channels=("CT",),
        normalisation=(Normalisation("ct", 50.0, 120.0, -200.0, 300.0),),
        labels=tuple((number, f"label_{number}") for number in range(N_CLASSES)),
        mirror_axes=(),
        reasons=(),
    )


def make_network(kind, plan):
    import torch

    from segscse.config import ModelConfig
    from segscse.nets.build import build_unet, network_arguments

    torch.manual_seed(0)
    if kind == "unet":
        return build_unet(network_arguments(plan, ModelConfig()))
    network = torch.nn.Conv3d(1, N_CLASSES, 3, padding=1)
    torch.nn.init.normal_(network.weight, std=0.3)
    return network


def run_segscse(kind, plan, scan, out):
    import torch

    from segscse.inference.pipeline import predict_files
    from segscse.inference.predictor import Predictor

    device = torch.device("cpu")
    predictor = Predictor(make_network(kind, plan), plan, provenance={}, device=device)
    outcome = predict_files(predictor, [scan], out)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0].reason)
    return {"estimated_gb": outcome.memory.total / 1e9, "windows": outcome.windows[0]}


def run_monai(kind, plan, scan, out, resampled):
    import nibabel as nib
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference
    from monai.transforms import Compose, LoadImage, Orientation, ScaleIntensityRange, Spacing, SpatialResample

    scheme = plan.normalisation[0]
    low, high = ((bound - scheme.mean) / scheme.std for bound in (scheme.low, scheme.high))
    prepare = Compose(
        [
            LoadImage(ensure_channel_first=True),
            Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacing(plan.spacing_mm, mode="bilinear", padding_mode="border"),
            ScaleIntensityRange(scheme.low, scheme.high, low, high, clip=True),
        ]
    )
    network = make_network(kind, plan).eval()
    source = nib.load(scan)
    with torch.inference_mode():
        image = prepare(scan)
        logits = sliding_window_inference(
            image[None], plan.patch_size, plan.batch_size, network, overlap=0.5, mode="gaussian"
        )[0]
        back = SpatialResample(mode="nearest" if resampled == "labels" else "bilinear", padding_mode="border")
        values = logits.argmax(dim=0, keepdim=True).float() if resampled == "labels" else logits
        values.affine = image.affine
        del logits
        values = back(values, dst_affine=torch.from_numpy(source.affine), spatial_size=source.shape)
        labels = values[0] if resampled == "labels" else values.argmax(dim=0)
    out.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.asarray(labels).astype(np.uint8), source.affine), out / scan.name)
    return {}


def child(arguments):
    if arguments.limit_gb:
        limit = int(arguments.limit_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    plan, scan, out = make_plan(arguments.shape), arguments.work / "ct.nii.gz", arguments.work / arguments.child
    start = time.perf_counter()
    if arguments.child == "segscse":
        found = run_segscse(arguments.network, plan, scan, out)
    else:
        found = run_monai(arguments.network, plan, scan, out, arguments.child.removeprefix("monai-"))
    seconds = time.perf_counter() - start
    from measure import own_peak_mb

    found |= {"seconds": seconds, "peak_gb": own_peak_mb() * 2**20 / 1e9}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def agreement(first, second):
    """Return the share of voxels with the same label."""
    import nibabel as nib
    import numpy as np

    pair = [np.asarray(nib.load(path).dataobj) for path in (first, second)]
    return float((pair[0] == pair[1]).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder with msd_spleen")
    parser.add_argument("--network", choices=("tiny", "unet"), default="tiny")
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--limit-gb", type=float, default=0, help="address space of each contender")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    results = {"network": arguments.network, "classes": N_CLASSES, "patch": make_plan(arguments.shape).patch_size}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results["shape"] = make_ct(arguments.shared, arguments.shape, work / "ct.nii.gz")
        options = ["--network", arguments.network, "--threads", str(arguments.threads), "--work", folder]
        options += ["--limit-gb", str(arguments.limit_gb), "--shape", *map(str, arguments.shape)]
        for name in arguments.contenders:
            start = time.perf_counter()
            command = [sys.executable, __file__, "--child", name, *options]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                results[name] = {"failed": (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1]}
            else:
                results[name] = json.loads(process.stdout.strip().splitlines()[-1])
                results[name]["process_seconds"] = time.perf_counter() - start
            sys.stdout.write(f"{name}: {json.dumps(results[name])}\n")
            sys.stdout.flush()
        for name in CONTENDERS[1:]:
            if all((work / item / "ct.nii.gz").is_file() for item in ("segscse", name)):
                results[name]["same_labels"] = agreement(work / "segscse" / "ct.nii.gz", work / name / "ct.nii.gz")
                sys.stdout.write(f"{name}: {results[name]['same_labels']:.4f} of the labels are segscse's\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
