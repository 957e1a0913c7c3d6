"""A training step with the allocator as it is, and keeping what is freed, in processes that take turns.

Run on Linux with GNU's C library: python tests/benchmarks/bench_malloc.py
"""

import os
import statistics
import subprocess
import sys
import time


def measure(keep):
    import torch
    from measure import own_peak_mb

    from segscse.hardware import keep_freed_memory
    from segscse.nets.dims import channels_last, network_to_channels_last
    from segscse.nets.unet import UNet

    if keep:
        keep_freed_memory()
    network = network_to_channels_last(UNet(3, 1, 3, features=(16, 32, 64, 128), attention="scse"), 3)
    x = channels_last(torch.randn(2, 1, 40, 56, 40))

    def step():
        start = time.perf_counter()
        network.zero_grad()
        network(x).square().mean().backward()
        return 1000 * (time.perf_counter() - start)

    milliseconds = statistics.median([step() for _ in range(25)][5:])
    system, peak = os.times().system, own_peak_mb()
    sys.stdout.write(f"{milliseconds:.0f} ms a step, {system:.1f} s in the system, peak {peak:.0f} MB\n")


def main():
    for keep in ("no", "yes") * 3:
        result = subprocess.run([sys.executable, __file__, keep], capture_output=True, text=True)
        sys.stdout.write(f"keep freed memory: {keep}: {result.stdout or result.stderr}")


if __name__ == "__main__":
    measure(sys.argv[1] == "yes") if sys.argv[1:] else main()
