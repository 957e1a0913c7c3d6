"""What a gate costs: in the Task04 U-Net at every encoder and decoder block, and alone beside reading and writing.

Run: python tests/benchmarks/bench_attention.py [--precision bf16]

Where the hardware does not multiply in bf16, oneDNN emulates it: convolutions take longer than in fp32, and what a gate
adds is a smaller share of them than it would be on hardware that does.
"""

import argparse
import gc

import torch
from measure import alternate, save
from torch import nn

from segscse.attention import build_attention
from segscse.hardware import autocast, keep_freed_memory, pick_precision
from segscse.kernels.parts import recalibrate
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.nets.unet import UNet
from segscse.tensor_bytes import TensorBytes

PATCH = (40, 56, 40)
BATCH = 2
VARIANTS = ("none", "textbook_scse", "scse", "se", "eca")
BLOCKS = {"scse": "textbook_scse", "sse": "textbook_sse", "se": "textbook_se", "eca": "textbook_eca"}
MAPS = ((2, 16, 40, 56, 40), (2, 32, 40, 56, 40), (2, 64, 20, 28, 20), (2, 128, 10, 14, 10))


class Textbook(nn.Module):
    """Each gate as its formula is usually written down: a product a gate, and for scSE the sum of two maps."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def kernel_parts(self):
        return None

    def forward(self, x):
        block = self.block
        if not hasattr(block, "cse") and not hasattr(block, "mlp") and block.conv.weight.ndim == 5:
            return x * torch.sigmoid(block.conv(x))
        channel = x.mean((2, 3, 4))
        if hasattr(block, "cse"):
            channel = torch.sigmoid(block.cse.mlp(channel))[:, :, None, None, None]
            return x * channel + x * torch.sigmoid(block.sse.conv(x))
        if hasattr(block, "mlp"):
            return x * torch.sigmoid(block.mlp(channel))[:, :, None, None, None]
        return x * torch.sigmoid(block.conv(channel[:, None])[:, 0])[:, :, None, None, None]


def network(variant, features):
    name = variant.removeprefix("textbook_")
    unet = UNet(3, 1, 3, features=features, attention=name)
    if name != variant:
        for stage in [*unet.encoder[:-1], *unet.decoder]:
            stage.attention = Textbook(stage.attention)
    return network_to_channels_last(unet, 3)


def training_step(net, x, context):
    net.train()
    net.zero_grad()
    with context():
        loss = net(x).float().square().mean()
    loss.backward()


def training_peak_mb(variant, features, context):
    """Return the most that weights, gradients and feature maps of a first training step take together."""
    gc.collect()
    with TensorBytes() as counter:
        training_step(network(variant, features), channels_last(torch.randn(BATCH, 1, *PATCH)), context)
    return counter.peak / 1e6


def inference(net, x, context):
    net.eval()
    with torch.inference_mode(), context():
        net(x)


def unets(features, repeats, context):
    x = channels_last(torch.randn(BATCH, 1, *PATCH))
    nets = {variant: network(variant, features) for variant in VARIANTS}
    found = {}
    for what, call in (("training step", training_step), ("inference", inference)):
        calls = {name: lambda net=net, call=call: call(net, x, context) for name, net in nets.items()}
        times = alternate(calls, repeats)
        found[what] = {
            name: {"ms": round(1000 * seconds, 1), "added": round(seconds / times["none"] - 1, 4)}
            for name, seconds in times.items()
        }
    peaks = {name: training_peak_mb(name, features, context) for name in VARIANTS}
    found["peak training memory"] = {
        name: {"mb": round(mb), "added": round(mb / peaks["none"] - 1, 4)} for name, mb in peaks.items()
    }
    return found


def blocks(repeats):
    found = []
    for shape in MAPS:
        x, upstream = (channels_last(torch.randn(shape)) for _ in range(2))
        target = torch.empty_like(x)
        calls = {"read and write once": lambda x=x, target=target: target.copy_(x)}
        for name, textbook in BLOCKS.items():
            block = build_attention(name, shape[1], spatial_dims=3)
            for label, module in ((name, block), (textbook, Textbook(block))):
                leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
                calls[label] = lambda module=module, x=x: module(x.detach())
                calls[f"{label} backward"] = lambda module=module, leaf=leaf, upstream=upstream: module(leaf).backward(
                    upstream
                )
        with torch.enable_grad():
            times = alternate(calls, repeats)
        limit = times["read and write once"]
        for name, textbook in BLOCKS.items():
            for suffix, passes in (("", "forward"), (" backward", "forward and backward")):
                ours, theirs = times[name + suffix], times[textbook + suffix]
                found.append(
                    {
                        "block": name,
                        "map": shape,
                        "passes": passes,
                        "ms": round(1000 * ours, 3),
                        "textbook over ours": round(theirs / ours, 2),
                        "ours over reading and writing once": round(ours / limit, 2),
                    }
                )
    return found


def kernels(repeats):
    """Return what a gate adds to the kernels alone, over all gated blocks of the network, by type of map."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        added = {}
        for shape in MAPS[1:]:
            calls = {}
            for name in ("none", "scse", "se", "eca"):
                gate = None if name == "none" else build_attention(name, shape[1], spatial_dims=3).parts()
                x, upstream = (channels_last(torch.randn(shape)).to(dtype) for _ in range(2))
                leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
                norm = (torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True), 1e-5)

                def forward(x=x, norm=norm, gate=gate):
                    with torch.inference_mode():
                        recalibrate(x, norm=norm, slope=0.01, gate=gate)

                def both(leaf=leaf, norm=norm, gate=gate, upstream=upstream):
                    recalibrate(leaf, norm=norm, slope=0.01, gate=gate).backward(upstream)

                calls[name, "forward"], calls[name, "forward and backward"] = forward, both
            times = alternate(calls, repeats)
            for (name, passes), seconds in times.items():  # an encoder and a decoder block have this size
                more = 2000 * (seconds - times["none", passes])
                added[name, passes] = added.get((name, passes), 0.0) + more
        found[str(dtype).removeprefix("torch.")] = {
            passes: {name: round(ms, 1) for (name, which), ms in added.items() if which == passes and name != "none"}
            for passes in ("forward", "forward and backward")
        }
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", default="32,64,128,256")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    options = parser.parse_args()
    features = tuple(int(width) for width in options.features.split(","))
    precision = pick_precision(options.precision, torch.device("cpu"))

    def context():
        return autocast(torch.device("cpu"), precision)

    suffix = "" if options.precision == "auto" else f"_{precision}"
    found = unets(features, options.repeats, context)
    save(f"attention_{features[0]}{suffix}", {"features": features, "unet_precision": precision, **found})
    if not suffix:
        keep_freed_memory()
        save("attention_blocks", {"blocks": blocks(options.repeats)})
        save("attention_kernels", {"added_ms": kernels(3 * options.repeats)})


if __name__ == "__main__":
    main()
