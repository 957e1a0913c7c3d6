"""A batch of one through the U-Net of Task04, forward and as a training step: oneDNN by name beside torch's own choice.

Run: python tests/benchmarks/bench_single.py [--features 16,32,64,128] [--repeats 9]
"""

import argparse

import torch
from measure import alternate, save

from segscse.kernels import single
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.nets.unet import UNet

SHAPE = (40, 56, 40)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", default="16,32,64,128")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    features = [int(part) for part in options.features.split(",")]
    network = network_to_channels_last(UNet(3, 1, 3, features=features, attention="scse"), 3)
    batches = {number: channels_last(torch.randn(number, 1, *SHAPE)) for number in (1, 2)}
    few = single.FEW

    def forward(number, limit):
        single.FEW = limit
        with torch.inference_mode():
            network(batches[number])

    def step(number, limit):
        single.FEW = limit
        network(batches[number]).square().mean().backward()

    seconds = {}
    for name, work in (("forward", forward), ("step", step)):
        calls = {
            "torch's choice": lambda work=work: work(1, 0),
            "onednn": lambda work=work: work(1, few),
            "a batch of two": lambda work=work: work(2, few),
        }
        seconds[name] = alternate(calls, options.repeats)
    ratios = {name: found["onednn"] / found["torch's choice"] for name, found in seconds.items()}
    save("single", {"features": features, "shape": SHAPE, "seconds": seconds, "onednn_over_choice": ratios})


if __name__ == "__main__":
    main()
