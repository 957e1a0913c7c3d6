"""A few real training steps on random data, in a process of their own: seconds a step and peak memory, measured.

The process may be killed for its memory without harm to the one that asked.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from segscse.config import ExperimentConfig
from segscse.data.augment import augment_batch
from segscse.data.plan import Plan
from segscse.data.transforms import label_dtype
from segscse.hardware import autocast, keep_freed_memory
from segscse.limits import peak_bytes, resident_bytes
from segscse.nets.build import build_unet, network_arguments
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.training.losses import deep_supervision_loss
from segscse.training.schedule import build_optimizer

# The first steps compile kernels and allocate memory.
WARM_UP = 2
STEPS = 8
# Beyond this time no further step is made, once there is one to count.
SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured of a training step.

    Attributes:
        step_s: median seconds of a step: augmentation, forward, backward, optimiser and average.
        first_s: seconds of the first, which compiles the kernels where they are not in numba's cache.
        window_s: seconds of a batch of windows in validation.
        program: bytes that the process held before the first step.
        peak: the most bytes that it held.
        device_peak: bytes of a GPU's memory; 0 on a CPU.
        steps: how many were measured.
    """

    step_s: float
    first_s: float
    window_s: float
    program: int
    peak: int
    device_peak: int
    steps: int


def run_trial(
    plan: Plan, config: ExperimentConfig, cut: Sequence[int], device: torch.device, precision: str
) -> Trial | str:
    """Make training steps in a new process; return what was measured, or why there is nothing.

    Args:
        plan: patch, batch and network.
        config: model, augmentation and optimiser.
        cut: voxels that are cut for a patch, along each window axis.
        device: where to run.
        precision: `bf16` or `fp32`.
    """
    # A forked child would share this process's threads and memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            threads = torch.get_num_threads()
            return pool.submit(_trial, plan, config, tuple(cut), device.type, precision, threads).result()
        except BrokenProcessPool:
            return "the process was killed, as systems do when memory runs out"
        except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError when memory runs out
            return " ".join(str(error).split())


def _trial(
    plan: Plan, config: ExperimentConfig, cut: tuple[int, ...], device_type: str, precision: str, threads: int
) -> Trial:
    import segscse.training.run  # noqa: F401, what a training holds in memory before its first step

    torch.set_num_threads(threads)
    device = torch.device(device_type)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.train.seed)
    network = network_to_channels_last(build_unet(network_arguments(plan, config.model)), plan.spatial_dims).to(device)
    optimizer = build_optimizer(network.parameters(), config.optim)
    average = [weight.detach().clone() for weight in network.parameters()] if config.optim.average != "none" else []
    shape = (plan.batch_size, len(plan.channels), *cut)
    generator = torch.Generator(device).manual_seed(config.train.seed)
    image = torch.randn(shape, generator=generator, device=device)
    kind = label_dtype(len(plan.labels))
    label = torch.randint(len(plan.labels), (shape[0], *cut), generator=generator, device=device, dtype=kind)
    draws = [np.random.default_rng([config.train.seed, number]) for number in range(plan.batch_size)]

    def step() -> None:
        patch, target = augment_batch(image.clone(), label, plan, config.augment, draws)
        with autocast(device, precision):
            loss = deep_supervision_loss(network(channels_last(patch)), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_norm)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [weight.detach() for weight in network.parameters()], 1e-3)

    def windows() -> None:
        with torch.inference_mode(), autocast(device, precision):
            network(channels_last(image.new_zeros((*shape[:2], *plan.patch_size))))

    program = resident_bytes()
    seconds = [_seconds(step, device)]
    while len(seconds) < WARM_UP + STEPS and (len(seconds) <= WARM_UP or sum(seconds[1:]) < SECONDS):
        seconds.append(_seconds(step, device))
    network.eval()
    _seconds(windows, device)
    counted = seconds[WARM_UP:]
    return Trial(
        step_s=median(counted),
        first_s=seconds[0],
        window_s=_seconds(windows, device),
        program=program,
        peak=peak_bytes(),
        device_peak=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        steps=len(counted),
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start
