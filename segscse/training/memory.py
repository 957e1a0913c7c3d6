"""How much memory and disk a training takes, before anything is read for it or written.

What a step keeps for the backward pass is counted, not guessed: the network runs on the smallest patches that it
takes, and the bytes that autograd keeps grow in proportion to the voxels of the batch. The rest is worked out from
shapes. `tests/benchmarks/bench_training_memory.py` holds the sum against the peak that the system reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch

from segscse.config import ExperimentConfig
from segscse.data.network_grid import network_shape
from segscse.data.plan import Plan, make_plan
from segscse.data.prepare import PlannedDataset
from segscse.data.sampling import cut_size
from segscse.data.split import Split
from segscse.data.store import CaseStore
from segscse.hardware import autocast
from segscse.inference.sliding_window import plan_sweep
from segscse.kernels.parts import counting
from segscse.limits import memory_part, require_disk, require_memory, size_text
from segscse.nets.build import build_unet, network_arguments
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.training.losses import deep_supervision_loss

# Copies of a weight that a training holds: itself, its gradient, its average, and the optimiser's moments.
MOMENTS = {"muon": 1, "sgd": 1, "adamw": 2}
# Voxels of the patch that the network runs on once.
PROBE_VOXELS = 4096
# What allocators and convolutions take beyond the tensors that autograd keeps.
OVERHEAD = 1.4
# Measured peaks beyond the program's lie between these shares of the estimate (bench_training_memory.py), the least of
# them without what a small training hardly takes: RUNTIME.
LEAST, MOST = 0.75, 1.3
# The box around a scan's content may be so much smaller than the scan.
LEAST_CONTENT = 0.2
# Metrics, plan, configuration and TensorBoard's files.
SMALL_FILES = 10 * 10**6
# Compiled kernels, the threads of autograd and what is imported when a training begins.
RUNTIME = 200 * 10**6
DISK_REMEDY = "Free disk space, choose another --out, or keep more cases in memory with --data.cache-gb"


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """Bytes by what holds them.

    Attributes:
        cases: preprocessed cases kept in memory.
        reading: the largest case while it is preprocessed.
        weights: with gradients, average and the optimiser's moments.
        step: what a step keeps for the backward pass, and takes besides.
        batch: of patches, with what augmentation takes.
        validation: the largest validation case.
        checkpoint: a checkpoint in memory while it is written.
    """

    cases: int
    reading: int
    weights: int
    step: int
    batch: int
    validation: int
    checkpoint: int

    @property
    def total(self) -> int:
        """Bytes beyond the program's at the worst moment."""
        running = self.weights + max(self.step + self.batch, self.validation, self.checkpoint)
        return RUNTIME + self.cases + max(self.reading, running)

    @property
    def least(self) -> int:
        """Bytes that it takes at the very least: scans may be cropped, and the cases may not fill their share."""
        return int(LEAST * (self.total - self.cases - RUNTIME) + LEAST_CONTENT * self.cases)

    @property
    def likely(self) -> int:
        """Bytes that it does not exceed in any measurement."""
        return int(MOST * self.total)

    def __str__(self) -> str:
        parts = ("cases", "weights", "step", "batch", "validation", "reading")
        return f"{size_text(self.total)} ({', '.join(f'{name} {size_text(getattr(self, name))}' for name in parts)})"


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """Bytes that a run folder takes.

    Attributes:
        cases: preprocessed cases that memory does not hold, when nothing of them is cropped.
        rest: checkpoints, model and logs at their largest.
        checkpoints: the last checkpoint, and the one that replaces it.
    """

    cases: int
    rest: int
    checkpoints: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What autograd keeps of a forward pass with its loss.

    Attributes:
        fixed: bytes whatever the patch, such as weights in another type.
        a_voxel: bytes a voxel of the batch.
    """

    fixed: float
    a_voxel: float


def kept_by_autograd(network: torch.nn.Module, plan: Plan, precision: str) -> Kept:
    """Run a network forward on its smallest patch and on one twice as long, and count what autograd keeps.

    Args:
        network: in training mode, on the CPU.
        plan: channels, strides, labels and batch.
        precision: `bf16` or `fp32`.
    """
    size, batch = _probe_size(plan), min(2, plan.batch_size)
    found = []
    for length in (size[0], 2 * size[0]):
        x = channels_last(torch.zeros((batch, len(plan.channels), length, *size[1:])))
        target = torch.zeros((batch, length, *size[1:]), dtype=torch.uint8)
        found.append(_kept_bytes(network, x, target, precision))
    more = found[1] - found[0]
    return Kept(max(0.0, found[0] - more), more / (batch * prod(size)))


def estimate_training(
    planned: PlannedDataset, split: Split, config: ExperimentConfig, kept: Kept, n_weights: int
) -> TrainingEstimate:
    """Return the memory that a training takes.

    Args:
        planned: the data set.
        split: which of its cases are trained and validated on.
        config: of the experiment.
        kept: by autograd.
        n_weights: numbers that the network learns.
    """
    plan = planned.plan
    grids = case_grids(planned)
    own = dict(zip(planned.fingerprint.cases, planned.fingerprint.shapes, strict=True))
    used = [*split.training, *split.validation]
    channels, classes = len(plan.channels), len(plan.labels)
    voxels = plan.batch_size * prod(plan.patch_size)
    cut = cut_size(plan, [grids[name] for name in split.training], spatial=config.augment.spatial_p > 0)
    averages = 1 if config.optim.average != "none" else 0
    bytes_ = [case_bytes(plan, grids[name]) for name in used]
    checkpoint = checkpoint_bytes(config, n_weights)
    return TrainingEstimate(
        cases=kept_in_memory(bytes_, config.data.cache_gb),
        # MONAI's resampling holds the scan, the sampling grid and the result, each in 32 or 64 bits.
        reading=max(8 * (channels + 1) * prod(own[name]) + (8 * channels + 48) * prod(grids[name]) for name in used),
        weights=4 * n_weights * (2 + averages + MOMENTS[config.optim.name]),
        # The backward pass of the loss holds its classes several times more.
        step=int(OVERHEAD * (kept.fixed + kept.a_voxel * voxels) + 12 * classes * voxels),
        # Cut, stacked, one ahead; then the patch in each step of the augmentation, and the sampling grid.
        batch=plan.batch_size * ((12 * channels + 3) * prod(cut) + (16 * channels + 60) * prod(plan.patch_size)),
        validation=max((_validation_bytes(plan, grids[name], kept) for name in split.validation), default=0),
        checkpoint=checkpoint,
    )


def case_grids(planned: PlannedDataset) -> dict[str, tuple[int, ...]]:
    """Return the `(X, Y, Z)` of every case at the plan's spacing, when nothing of it is cropped."""
    content = planned.fingerprint
    items = zip(content.cases, content.shapes, content.spacings_mm, strict=True)
    return {name: network_shape(shape, spacing, planned.plan) for name, shape, spacing in items}


def case_bytes(plan: Plan, shape: Sequence[int]) -> int:
    """Return the bytes of a preprocessed case: float32 channels and a label of 8 or 16 bits."""
    return (4 * len(plan.channels) + (1 if len(plan.labels) <= 256 else 2)) * prod(shape)


def kept_in_memory(cases: Sequence[int], cache_gb: float) -> int:
    """Return the bytes of the cases that a store of so many GB keeps in memory, in their order."""
    used = 0
    for size in cases:
        used += size if used + size <= cache_gb * 1e9 else 0
    return used


def checkpoint_bytes(config: ExperimentConfig, n_weights: int) -> int:
    """Return the size of a checkpoint: weights, their average, the optimiser's moments."""
    return 4 * n_weights * (1 + (config.optim.average != "none") + MOMENTS[config.optim.name])


def run_disk_bytes(planned: PlannedDataset, split: Split, config: ExperimentConfig, n_weights: int) -> DiskNeed:
    """Return the bytes that a run folder takes.

    The last checkpoint and the one before it are there, and a third while it is written; the model twice for the same
    reason.
    """
    grids = case_grids(planned)
    bytes_ = [case_bytes(planned.plan, grids[name]) for name in (*split.training, *split.validation)]
    cases = sum(bytes_) - kept_in_memory(bytes_, config.data.cache_gb)
    checkpoint = checkpoint_bytes(config, n_weights)
    return DiskNeed(cases, 3 * checkpoint + 8 * n_weights + SMALL_FILES, 2 * checkpoint)


def require_room(
    planned: PlannedDataset,
    split: Split,
    config: ExperimentConfig,
    device: torch.device,
    precision: str,
    folder: Path,
    *,
    cache: Path | None = None,
    runs: int = 1,
    beside: int = 1,
    processes: int = 1,
) -> list[str]:
    """Refuse a training that cannot fit into memory or onto the disk, before anything is written.

    Of a GPU's memory nothing is refused: how much of it steps take differs between its libraries.

    Args:
        planned: the data set.
        split: which of its cases are trained and validated on.
        config: of the experiment.
        device: where it runs.
        precision: `bf16` or `fp32`.
        folder: the run folder; what is in it already counts.
        cache: where the cases lie that memory does not hold; in the run folder if not given.
        runs: runs of this size that the disk has to hold, such as the folds of a cross-validation; cases are shared.
        beside: runs of this size that share the memory; each may take its part of all that there is.
        processes: that share a step, each on a GPU of its own.

    Returns:
        Warnings about what may not fit.

    Raises:
        InputError: it cannot fit; the remedy is a setting that makes it fit.
    """
    kept, n_weights = build_probe(planned.plan, config, precision if device.type == "cpu" else "fp32")
    found = estimate_training(planned, split, config, kept, n_weights)
    on_gpu = None
    if device.type == "cuda":
        on_gpu = _gpu_warning(found, processes)
        found = replace(found, step=0, batch=0, validation=0)

    def remedy(room: int) -> str:
        return smaller_settings(planned, split, config, kept, n_weights, room)

    disk = run_disk_bytes(planned, split, config, n_weights)
    store = CaseStore(planned.index.cases, planned.plan, cache or folder / "cache", 0.0)
    cached = sum(_bytes_in(store.folder / store.key(case)) for case in planned.index.cases)
    there = _bytes_in(folder) - (cached if store.folder.is_relative_to(folder) else 0)
    least = max(0, int(LEAST_CONTENT * disk.cases) - cached) + runs * disk.checkpoints - there
    likely = max(0, disk.cases - cached) + runs * disk.rest - there
    warnings = (
        require_memory("training", found.least, found.likely, remedy, found=memory_part(beside)),
        require_disk("the run", folder, least, likely, DISK_REMEDY),
        on_gpu,
    )
    return [warning for warning in warnings if warning is not None]


def _gpu_warning(found: TrainingEstimate, processes: int) -> str | None:
    """Return what to say where the GPU has too little free memory for its part of a step, in fp32, or a validation."""
    step = (found.step + found.batch) // processes
    needed = found.weights + max(step, found.validation)
    free, _ = torch.cuda.mem_get_info()
    if needed <= free:
        return None
    smaller = "smaller --data.batch-size or --data.max-patch-voxels"
    remedy = "coarser --data.spacing-mm" if found.validation > step else smaller
    return (
        f"training takes up to {size_text(needed)} of the GPU's memory, and {size_text(free)} are free: it may end for "
        f"lack of it. Give a {remedy}"
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # another process has renamed it
            total += file.stat().st_size if file.is_file() else 0
    return total


def smaller_settings(
    planned: PlannedDataset, split: Split, config: ExperimentConfig, kept: Kept, n_weights: int, room: int
) -> str:
    """Return the settings that make a training fit into `room` bytes, as they are given on the command line.

    First fewer cases in memory, then smaller batches, then smaller patches.
    """
    for given, changed, plan in _candidates(planned, config):
        one = replace(planned, plan=plan)
        rest = estimate_training(one, split, _with_cache(changed, 0.0), kept, n_weights)
        spare = int(room / MOST) - rest.total
        if spare < 0:
            continue
        now = estimate_training(one, split, changed, kept, n_weights)
        if now.cases > spare:
            given = [f"--data.cache-gb {int(spare / 1e8) / 10:g}", *given]
        return f"Give {' '.join(given)}" if given else "Give it more memory"
    least = estimate_training(planned, split, _with_cache(config, 0.0), kept, n_weights)
    coarser = " or a coarser --data.spacing-mm" if least.validation > least.step + least.batch else ""
    return f"Free memory{coarser}; with one small patch a step and all cases on disk it does not fit either"


def _candidates(planned: PlannedDataset, config: ExperimentConfig) -> list[tuple[list[str], ExperimentConfig, Plan]]:
    """Return settings in the order in which they are tried: flags, configuration and plan."""
    found: list[tuple[list[str], ExperimentConfig, Plan]] = []
    batch, plan = planned.plan.batch_size, planned.plan
    while True:
        flags = [] if batch == plan.batch_size else [f"--data.batch-size {batch}"]
        changed = replace(config, data=replace(config.data, batch_size=batch))
        found.append((flags, changed, replace(plan, batch_size=batch)))
        if batch == 1:
            break
        batch //= 2
    voxels = config.data.max_patch_voxels
    while plan.slice_axis is None and voxels // 2 >= PROBE_VOXELS:
        voxels //= 2
        data = replace(config.data, batch_size=1, max_patch_voxels=voxels)
        changed = replace(config, data=data)
        flags = ["--data.batch-size 1", f"--data.max-patch-voxels {voxels}"]
        found.append((flags, changed, make_plan(planned.fingerprint, changed, plan.dataset)))
    return found


def _with_cache(config: ExperimentConfig, cache_gb: float) -> ExperimentConfig:
    return replace(config, data=replace(config.data, cache_gb=cache_gb))


def _probe_size(plan: Plan) -> tuple[int, ...]:
    """Return the smallest window that the network takes, several of them side by side where that is very small."""
    size = [prod(stride[axis] for stride in plan.strides) for axis in range(plan.spatial_dims)]
    while prod(size) < PROBE_VOXELS:
        size[size.index(min(size))] *= 2
    return tuple(size)


def _kept_bytes(network: Any, x: torch.Tensor, target: torch.Tensor, precision: str) -> int:
    """Return the bytes that autograd keeps of a pass, weights left out."""
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.detach())  # held, so that no other takes its address
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with counting(), hooks, autocast(torch.device("cpu"), precision):
        loss = deep_supervision_loss(network(x), target)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    for weight in network.parameters():
        storages.pop(weight.untyped_storage().data_ptr(), None)
    del loss
    return sum(storages.values())


def _validation_bytes(plan: Plan, shape: tuple[int, ...], kept: Kept) -> int:
    """Return what a validation case takes: the open slab of its logits, label maps in 64 bits, a batch."""
    voxels, classes = prod(shape), len(plan.labels)
    sweep = plan_sweep(shape, plan.patch_size, slice_axis=plan.slice_axis, batch_size=plan.batch_size)
    windows = plan.batch_size * prod(plan.patch_size)
    # Without autograd a map goes as soon as the next is there; a third of them stays for the skip connections.
    running = ceil(OVERHEAD * kept.a_voxel * windows / 3)
    return 4 * classes * sweep.slab_voxels + 26 * voxels + 8 * classes * windows + running


def build_probe(plan: Plan, config: ExperimentConfig, precision: str) -> tuple[Kept, int]:
    """Return what autograd keeps of a plan's network on a CPU, and the numbers that the network learns."""
    state = torch.get_rng_state()  # the run's own weights must not depend on this
    network = network_to_channels_last(build_unet(network_arguments(plan, config.model)), plan.spatial_dims)
    n_weights = sum(weight.numel() for weight in network.parameters())
    kept = kept_by_autograd(network.train(), plan, precision)
    torch.set_rng_state(state)
    return kept, n_weights
