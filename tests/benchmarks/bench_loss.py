"""What Dice and cross-entropy need, forward and backward: one autograd function beside separate operations.

Run: python tests/benchmarks/bench_loss.py [--classes 3,38] [--size 64,64,64] [--repeats 9]
"""

import argparse
import statistics
import sys
import time

import torch

from segscse.hardware import keep_freed_memory
from segscse.training.soft_counts import _SoftCounts, dense_counts


def seconds(function, logits, target):
    logits = logits.detach().requires_grad_()
    start = time.perf_counter()
    function(logits, target).sum().backward()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="3,38")
    parser.add_argument("--size", default="64,64,64")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    size = [int(part) for part in options.size.split(",")]
    for n_classes in map(int, options.classes.split(",")):
        torch.manual_seed(0)
        logits = torch.randn(2, n_classes, *size).contiguous(memory_format=torch.channels_last_3d)
        target = torch.randint(0, n_classes, (2, *size))
        ways = {"separate": dense_counts, "one function": _SoftCounts.apply}
        times = {name: [] for name in ways}
        for repeat in range(options.repeats + 2):
            for name, function in ways.items():
                taken = seconds(function, logits, target)
                if repeat >= 2:
                    times[name].append(taken)
        medians = {name: statistics.median(values) for name, values in times.items()}
        text = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in medians.items())
        ratio = medians["separate"] / medians["one function"]
        sys.stdout.write(f"{n_classes} classes: {text}, {ratio:.2f} times as fast\n")


if __name__ == "__main__":
    main()
