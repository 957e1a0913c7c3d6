"""How long the pictures and gate statistics of a validation take, beside one step of training.

Run: `python tests/benchmarks/bench_tensorboard.py`. A run validates a handful of times in minutes or hours.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

import torch
from torch.utils.tensorboard import SummaryWriter

from segscse.inference.sliding_window import predict_volume
from segscse.nets import UNet
from segscse.training.tensorboard import example_picture, gate_weights

PATCH = (40, 56, 40)


def main() -> None:
    """Print both times, medians of five."""
    features, strides = (32, 64, 128, 256), ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    network = UNet(spatial_dims=3, in_channels=1, out_channels=3, features=features, strides=strides, attention="scse")
    image, label = torch.randn(1, *PATCH), torch.randint(0, 3, PATCH)

    def step() -> None:
        network.train()
        out = network(image[None].repeat(2, 1, 1, 1, 1))
        (out[0] if isinstance(out, list) else out).square().mean().backward()

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as board:

        def pictures() -> None:
            network.eval()
            with torch.no_grad(), gate_weights(network) as gates:
                logits = predict_volume(image, network, window=PATCH, n_classes=3)
            board.add_image("x", example_picture(image[0], logits.argmax(0), label, 0, (0, 1, 2)), 0, dataformats="HWC")
            for name, gate in gates.items():
                board.add_histogram(name, gate.sample, 0)
                for what, value in gate.moments.items():
                    board.add_scalar(f"{what}/{name}", value, 0)

        for name, work in (("training step, batch 2", step), ("pictures and gates", pictures)):
            work()
            seconds = []
            for _ in range(5):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
            sys.stdout.write(f"{name}: {1000 * statistics.median(seconds):.0f} ms\n")


if __name__ == "__main__":
    main()
