"""A training step beside nnU-Net's, for its Task04 network, batch and patch; each with its own loss and optimiser.

    python tests/benchmarks/bench_train_step.py [--repeats 10]

Features 32, 64, 128, 256, batch 2, patch 40x56x40, deep supervision. nnU-Net's side is its network, its compound loss,
SGD and clipping as its trainer makes them on a CPU (fp32, contiguous memory), from an environment of its own that
shares this one's torch. Ours is the default training step, Muon and the average of weights included, without attention
and with scSE in every encoder and decoder block. Augmentation and reading are left out on both sides. Each side is a
process; they take turns, and idle between them. Memory is what a process holds at its peak beyond what it held before
the network.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEATURES = (32, 64, 128, 256)
BATCH, PATCH, CLASSES = 2, (40, 56, 40), 3
CLIP_NORM = 12
OURS = {"segscse, no attention": "none", "segscse, scSE": "scse"}
THEIRS = "nnU-Net"


def held_mb(name):
    """Return a figure of this process's memory (Linux): `VmRSS`, or `VmHWM` for its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def nnunet_step():
    """Return nnU-Net's training step, as `nnUNetTrainer` builds it for one 3D configuration on a CPU."""
    import numpy as np
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    stages = len(FEATURES)
    network = PlainConvUNet(
        **{"input_channels": 1, "n_stages": stages, "features_per_stage": FEATURES, "conv_op": torch.nn.Conv3d},
        **{"kernel_sizes": 3, "strides": (1, *(2,) * (stages - 1)), "n_conv_per_stage": 2, "num_classes": CLASSES},
        **{"n_conv_per_stage_decoder": 2, "conv_bias": True, "deep_supervision": True},
        **{"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}},
        **{"nonlin": torch.nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}},
    )
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    weights = np.array([1 / 2**level for level in range(stages - 1)])
    weights[-1] = 0
    loss_of = DeepSupervisionWrapper(
        DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss),
        weights / weights.sum(),
    )
    image = torch.randn(BATCH, 1, *PATCH)
    label = torch.randint(CLASSES, (BATCH, 1, *PATCH)).float()
    targets = [label[(..., *[slice(None, None, 2**level)] * 3)] for level in range(stages - 1)]

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(network(image), targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()

    return step


def own_step(attention):
    """Return the default training step of segscse for the same network."""
    import torch

    from segscse.config import OptimConfig
    from segscse.hardware import autocast, keep_freed_memory, pick_precision
    from segscse.nets.dims import channels_last, network_to_channels_last
    from segscse.nets.unet import UNet
    from segscse.training.losses import deep_supervision_loss
    from segscse.training.schedule import build_optimizer

    keep_freed_memory()
    config, cpu = OptimConfig(), torch.device("cpu")
    precision = pick_precision("auto", cpu)
    unet = UNet(3, 1, CLASSES, features=FEATURES, attention=attention, deep_supervision=True)
    network = network_to_channels_last(unet, 3).train()
    optimizer = build_optimizer(network.parameters(), config)
    average = [weight.detach().clone() for weight in network.parameters()]
    image = torch.randn(BATCH, 1, *PATCH)
    label = torch.randint(CLASSES, (BATCH, *PATCH), dtype=torch.uint8)

    def step():
        with autocast(cpu, precision):
            loss = deep_supervision_loss(network(channels_last(image)), label)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        torch._foreach_lerp_(average, [weight.detach() for weight in network.parameters()], 1e-3)

    return step


def work(side, threads):
    """Answer each line on standard input with the seconds of one step, and the end of it with the memory taken."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if side == THEIRS:
        import nnunetv2.training.loss.compound_losses  # noqa: F401, before the memory is looked at
    else:
        import segscse.training.run  # noqa: F401, likewise
    before = held_mb("VmRSS")
    step = nnunet_step() if side == THEIRS else own_step(OURS[side])
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        answer(time.perf_counter() - start)
    answer(held_mb("VmHWM") - before)


def answer(figure):
    sys.stdout.write(f"{figure}\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--environment", type=Path, help="nnU-Net's; made where it is not, temporary if not given")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    options = parser.parse_args()
    if options.side:
        work(options.side, options.threads)
        return

    from bench_peers_faults import environment
    from measure import save

    with tempfile.TemporaryDirectory() as folder:
        peers = environment(options.environment or Path(folder) / "peers")
        pythons = {THEIRS: peers} | dict.fromkeys(OURS, sys.executable)
        script = [__file__, "--threads", str(options.threads), "--side"]
        sides = {
            side: subprocess.Popen([python, *script, side], stdin=-1, stdout=-1, text=True)
            for side, python in pythons.items()
        }
        seconds = {side: [] for side in sides}
        for _ in range(options.repeats + 2):
            for side, process in sides.items():
                process.stdin.write("step\n")
                process.stdin.flush()
                seconds[side].append(float(process.stdout.readline()))
        memory = {side: float(process.communicate()[0]) for side, process in sides.items()}
    step_ms = {side: 1000 * statistics.median(values[2:]) for side, values in seconds.items()}
    found = {
        side: {
            "step_ms": round(step_ms[side], 1),
            "nnU-Net's time over this": round(step_ms[THEIRS] / step_ms[side], 2),
            "peak_mb": round(memory[side]),
        }
        for side in sides
    }
    save("train_step", {"features": FEATURES, "batch": BATCH, "patch": PATCH, "sides": found})


if __name__ == "__main__":
    main()
