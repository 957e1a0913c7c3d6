"""What a network takes to train: its parameters, and the memory of a training step, counted tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segscse.config import ExperimentConfig
from segscse.data.plan import Plan
from segscse.hardware import autocast, pick_precision, working_device
from segscse.nets.build import build_unet, network_arguments
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.tensor_bytes import TensorBytes
from segscse.training.losses import deep_supervision_loss
from segscse.training.schedule import build_optimizer

STEPS = 2
"""The optimiser's state is there in the whole of the second step."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What training a network takes.

    Attributes:
        parameters: learned numbers.
        peak_bytes: the most that weights, gradients, optimiser, patches and feature maps take together in a step.
            What libraries need in passing, such as oneDNN for a convolution, is not seen.
    """

    parameters: int
    peak_bytes: int


def measure_footprint(plan: Plan, config: ExperimentConfig) -> Footprint:
    """Return the footprint of the network of a plan and a configuration, found by two steps on random patches.

    Raises:
        InputError: an attention block or the device is unknown.
    """
    device = working_device(config.train.device)
    precision = pick_precision(config.train.precision, device)
    counter = TensorBytes()
    with counter, torch.random.fork_rng([torch.cuda.current_device()] if device.type == "cuda" else []):
        bare = build_unet(network_arguments(plan, config.model))
        network = network_to_channels_last(bare, plan.spatial_dims).to(device).train()
        optimizer = build_optimizer(network.parameters(), config.optim)
        for _ in range(STEPS):
            images = torch.randn((plan.batch_size, len(plan.channels), *plan.patch_size), device=device)
            targets = torch.randint(len(plan.labels), (plan.batch_size, *plan.patch_size), device=device)
            with autocast(device, precision):
                loss = deep_supervision_loss(network(channels_last(images)), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_norm)
            optimizer.step()
    return Footprint(sum(parameter.numel() for parameter in network.parameters()), counter.peak)
