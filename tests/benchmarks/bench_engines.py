"""The network by engine, beside nnU-Net's way of running it, alternating in one run; one volume from the shell.

Task04's architecture (features 32, 64, 128, 256; batch 2; patch 40x56x40; one channel, three classes), without
attention and with scSE in every encoder, bottleneck and decoder block; untrained weights. The reference is PyTorch
eager fp32 in contiguous memory with torch's own InstanceNorm, as nnU-Net runs it.

Run: python tests/benchmarks/bench_engines.py [--small] [--repeats 15] [--json FILE] [--scan FILE]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import nn

from segscse.data.plan import Normalisation, Plan
from segscse.hardware import pick_precision
from segscse.inference.convert import to_onnx, to_openvino
from segscse.inference.engines import OnnxRuntimeEngine, OpenVinoEngine, TorchEngine, installed
from segscse.inference.export import export_model
from segscse.inference.model_folder import ModelFolder, save_model
from segscse.inference.parity import compare, probe_windows
from segscse.inference.quantise import quantise
from segscse.nets.norm import InstanceNorm
from segscse.nets.unet import UNet

CPU = torch.device("cpu")
POSITIONS = ("encoder", "bottleneck", "decoder")


STRIDES = ((1, 1, 1), *((2, 2, 2),) * 3)
KERNELS = ((3, 3, 3),) * 4


def plan_of(window):
    return Plan(
        **{"dataset": "bench", "spatial_dims": 3, "spacing_mm": (1.0, 1.0, 1.0), "slice_axis": None},
        **{"patch_size": window, "batch_size": 2, "strides": STRIDES, "kernel_sizes": KERNELS},
        channels=("MRI",),
        normalisation=(Normalisation("zscore", 0.0, 1.0, -1.0, 1.0),),
        labels=((0, "background"), (1, "anterior"), (2, "posterior")),
        mirror_axes=(0, 1, 2),
        reasons=(),
    )


def network_arguments(attention, features):
    return {
        **{"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "features": list(features)},
        **{"strides": [list(item) for item in STRIDES], "kernel_sizes": [list(item) for item in KERNELS]},
        "attention": {position: [attention, {}] for position in POSITIONS},
    }


def as_nnunet(network):
    """Put torch's InstanceNorm3d in the place of ours, with the same weights; memory stays contiguous."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, InstanceNorm):
                norm = nn.InstanceNorm3d(len(child.weight), affine=True, eps=child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
    return network


def engines_of(network, reference, plan):
    """Return name to callable: the reference first, then ours and every engine that is installed."""
    found = {"nnU-Net's way (torch eager fp32)": reference, "torch fp32": TorchEngine(network, CPU, "fp32", 3)}
    if pick_precision("auto", CPU) == "bf16":
        found["torch bf16"] = TorchEngine(network, CPU, "bf16", 3)
    if installed("openvino"):
        graph = to_openvino(network, 1, plan.patch_size)
        found["openvino fp32"] = OpenVinoEngine(graph, "fp32")
        half = OpenVinoEngine(graph, "half")
        if half.precision != "fp32":  # elsewhere bf16 is emulated, and nobody would run it
            found[f"openvino {half.precision}"] = half
        if nncf_there():
            found["openvino int8"] = OpenVinoEngine(quantise(graph, probe_windows(plan, 8, seed=1)), "int8")
    if installed("onnxruntime"):
        found["onnxruntime fp32"] = OnnxRuntimeEngine(to_onnx(network, 1, plan.patch_size))
    return found


def nncf_there():
    from importlib.util import find_spec

    return find_spec("nncf") is not None


def measure(attention, features, window, repeats):
    plan = plan_of(window)
    torch.manual_seed(0)
    network = UNet(**network_arguments(attention, features)).eval()
    twin = UNet(**network_arguments(attention, features)).eval()
    twin.load_state_dict(network.state_dict())
    twin = as_nnunet(twin)

    @torch.inference_mode()
    def reference(x):
        return twin(x)

    batch = torch.cat(probe_windows(plan, 2))
    engines = engines_of(network, reference, plan)
    times = {name: [] for name in engines}
    for _ in range(repeats + 2):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(batch)
            times[name].append(1000 * (time.perf_counter() - start))
    windows = probe_windows(plan, 2)
    expected = [reference(one) for one in windows]
    base = statistics.median(times[next(iter(times))][2:])
    rows = []
    for name, values in times.items():
        median = statistics.median(values[2:])
        error = compare(engines[name], expected, windows).error
        rows.append({"attention": attention, "engine": name, "ms": median, "ratio": base / median, "error": error})
        sys.stdout.write(f"{attention:5} {name:34} {median:8.1f} ms  {base / median:6.2f} x  error {error:.1e}\n")
        sys.stdout.flush()
    return rows


def shell(features, window, scan, repeats=3):
    """Time `segscse predict` of one volume from the shell, start to file on disk, with an exported model."""
    plan, arguments = plan_of(window), network_arguments("scse", features)
    torch.manual_seed(0)
    weights = UNet(**arguments).state_dict()
    rows = []
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        save_model(base / "model", ModelFolder(plan, arguments, {}, weights))
        export_model(base / "model", base / "exported", precision="fp32")
        if scan is None:
            scan = base / "scan.nii.gz"
            array = np.random.default_rng(0).normal(size=[edge - 5 for edge in window]).astype(np.float32)
            nib.save(nib.Nifti1Image(array, np.eye(4)), scan)
        for engine in ("openvino", "auto", "torch"):
            code = "from segscse.cli import main; main()"
            command = [sys.executable, "-c", code, "predict", str(base / "exported"), str(scan), "--engine", engine]
            seconds = []
            for number in range(repeats):
                start = time.perf_counter()
                subprocess.run([*command, "--out", str(base / f"{engine}{number}")], check=True, capture_output=True)
                seconds.append(time.perf_counter() - start)
            rows.append({"engine": engine, "seconds": statistics.median(seconds)})
            sys.stdout.write(f"one volume from the shell, --engine {engine}: {statistics.median(seconds):.2f} s\n")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small network and window, to see that it runs")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--scan", type=Path, help="the volume for the shell; default: noise of nearly the window's size"
    )
    chosen = parser.parse_args()
    features, window = ((4, 8, 16, 16), (16, 16, 16)) if chosen.small else ((32, 64, 128, 256), (40, 56, 40))
    network = [row for name in ("none", "scse") for row in measure(name, features, window, chosen.repeats)]
    result = {"threads": torch.get_num_threads(), "network": network, "shell": shell(features, window, chosen.scan)}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
