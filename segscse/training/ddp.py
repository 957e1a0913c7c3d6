"""Lightning's DDP for processes that have met already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy

from segscse.errors import InputError
from segscse.ranks import Group


def ddp_strategy(group: Group, device: torch.device) -> DDPStrategy:
    """Return DDP over a group's processes, each on the CPU or on the GPU that `joined` gave it.

    Norms here have no running statistics, so there are no buffers to send around at every step; see
    `refuse_running_statistics`.

    Args:
        group: of two processes or more.
        device: the kind of device that trains, `cpu` or `cuda`.
    """
    own = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    return DDPStrategy(
        # Lightning takes the entry of this process' number on its machine. That need not be its GPU's number: where a
        # launcher shows every process a GPU of its own, all of them are number 0.
        parallel_devices=[own] * group.ranks.local_world,
        cluster_environment=Joined(group),
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
    )


def refuse_shared_gpus(group: Group) -> None:
    """Refuse two processes on one GPU, which NCCL cannot connect.

    Raises:
        InputError: there are.
    """
    if group.control is None or dist.get_backend() != "nccl":
        return
    gpus = group.gather(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))
    group.on_first(lambda: _refuse_repeated(gpus))


def _refuse_repeated(gpus: Sequence[str]) -> None:
    if (found := len(set(gpus))) < len(gpus):
        raise InputError(
            f"{len(gpus)} processes cannot share a training on {found} GPU{'s' if found > 1 else ''}",
            remedy="Start a process for every GPU, or train with --train.device cpu",
        )


def refuse_odd_parts(batch_size: int, world: int) -> None:
    """Refuse to share a batch whose parts would differ: the mean of the parts' gradients would not be the batch's.

    Raises:
        InputError: `world` does not divide the batch.
    """
    if batch_size % world:
        below = batch_size - batch_size % world
        raise InputError(
            f"a batch of {batch_size} patches cannot be shared by {world} processes in equal parts",
            remedy=f"Set data.batch_size to {f'{below} or ' if below else ''}{below + world}, or start another number",
        )


def refuse_running_statistics(network: torch.nn.Module, world: int) -> None:
    """Refuse to share a network that keeps statistics of its batches: each process would keep those of its parts.

    Raises:
        InputError: a layer has some, such as the batch norm in `cbam:norm=batch`.
    """
    layer = next((name for name, _ in network.named_buffers() if name.endswith("running_mean")), None)
    if world > 1 and layer is not None:
        raise InputError(
            f"{layer.rpartition('.')[0]} keeps statistics of its batches, which {world} processes would keep apart",
            remedy="Train in one process, or give the block another norm",
        )


class Joined(ClusterEnvironment):
    """Tells Lightning which process this is; they are started and connected."""

    def __init__(self, group: Group) -> None:
        self.ranks = group.ranks

    creates_processes_externally = True
    main_address = ""  # for connecting, which is done
    main_port = 0

    @staticmethod
    def detect() -> bool:
        """Return False: it is given and never guessed."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self.ranks.world

    def set_world_size(self, size: int) -> None:
        """Keep the number that the launcher started."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Keep the number that the launcher gave."""

    def local_rank(self) -> int:
        """Return the number of this process on its machine."""
        return self.ranks.local_rank

    def node_rank(self) -> int:
        """Return the number of this machine."""
        return self.ranks.rank // self.ranks.local_world
