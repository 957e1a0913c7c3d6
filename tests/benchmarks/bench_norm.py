"""InstanceNorm of segscse beside torch's, forward and backward on channels-last maps, alternating in one run.

Run: python tests/benchmarks/bench_norm.py
"""

import statistics
import sys
import time

import torch

from segscse.nets.dims import channels_last
from segscse.nets.norm import InstanceNorm

SHAPES = ((2, 16, 40, 56, 40), (2, 32, 20, 28, 20), (2, 64, 10, 14, 10), (48, 16, 40, 56))
REPEATS = 15


def milliseconds(module, x, gradient):
    start = time.perf_counter()
    module(x).backward(gradient)
    return 1000 * (time.perf_counter() - start)


def main():
    for shape in SHAPES:
        torch_class = {4: torch.nn.InstanceNorm2d, 5: torch.nn.InstanceNorm3d}[len(shape)]
        modules = {"torch": torch_class(shape[1], affine=True), "segscse": InstanceNorm(shape[1])}
        times = {name: [] for name in modules}
        x = channels_last(torch.randn(shape)).requires_grad_()
        gradient = channels_last(torch.randn(shape))
        for _ in range(REPEATS):
            for name, module in modules.items():
                times[name].append(milliseconds(module, x, gradient))
        ours, theirs = statistics.median(times["segscse"]), statistics.median(times["torch"])
        sys.stdout.write(f"{shape}: torch {theirs:.2f} ms, segscse {ours:.2f} ms, ratio {theirs / ours:.2f}\n")


if __name__ == "__main__":
    main()
