"""A training step on idle cores, and with all threads pushed onto one core, by OpenMP spin count.

Run on Linux: python tests/benchmarks/bench_spin.py
"""

import os
import statistics
import subprocess
import sys
import time

COUNTS = ("default", "10000")


def measure():
    import torch

    from segscse.nets.dims import channels_last, network_to_channels_last
    from segscse.nets.unet import UNet

    network = network_to_channels_last(UNet(3, 1, 3, features=(8, 16, 32, 64), attention="scse"), 3)
    x = channels_last(torch.randn(2, 1, 32, 32, 24))

    def step():
        start = time.perf_counter()
        network(x).square().mean().backward()
        return 1000 * (time.perf_counter() - start)

    idle = statistics.median([step() for _ in range(12)][2:])
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})
    crowded = statistics.median([step() for _ in range(4)])
    sys.stdout.write(f"idle cores {idle:.0f} ms, all threads on one core {crowded:.0f} ms\n")


def main():
    for count in COUNTS * 2:
        # The package sets the count only where the environment does not; 300000 is the library's default.
        environment = {**os.environ, "GOMP_SPINCOUNT": "300000" if count == "default" else count}
        result = subprocess.run([sys.executable, __file__, "measure"], env=environment, capture_output=True, text=True)
        sys.stdout.write(f"GOMP_SPINCOUNT {count}: {result.stdout or result.stderr}")


if __name__ == "__main__":
    measure() if sys.argv[1:] == ["measure"] else main()
