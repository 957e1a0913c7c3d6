"""DDP on GPUs that this machine need not have: what Lightning is told about them."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from segscse.errors import InputError
from segscse.nets import UNet
from segscse.ranks import ALONE, Group, Ranks
from segscse.training import ddp


@pytest.fixture(autouse=True)
def _rank(monkeypatch):
    """Let this process be the first again: a trainer notes its number where Lightning's printing looks it up."""
    for place in ("lightning_fabric", "pytorch_lightning"):
        monkeypatch.setattr(f"{place}.utilities.rank_zero.rank_zero_only.rank", 0, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that shows this process so many GPUs, one of which it has chosen."""

    def show(number, chosen):
        for place in ("lightning_fabric.accelerators.cuda", "pytorch_lightning.accelerators.cuda"):
            monkeypatch.setattr(f"{place}.num_cuda_devices", lambda: number)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen)

    return show


def _trainer(folder, device, own):
    """Return Lightning's trainer of the last of eight processes on two machines."""
    group = Group(Ranks(rank=7, world=8, local_rank=3, local_world=4, launcher="srun"))
    return pl.Trainer(
        accelerator=device,
        devices=own,
        num_nodes=2,
        strategy=ddp.ddp_strategy(group, torch.device(device)),
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )


@pytest.mark.parametrize(("visible", "chosen"), [(1, 0), (4, 3)], ids=["its own alone", "all"])
def test_a_process_trains_on_the_gpu_that_it_was_given(gpus, tmp_path, visible, chosen):
    gpus(visible, chosen)
    trainer = _trainer(tmp_path, "cuda", [chosen])
    assert trainer.strategy.root_device == torch.device("cuda", chosen)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (8, 7, 3, 1)


def test_a_network_with_running_statistics_is_not_shared():
    def network(attention):
        sizes = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "features": (4, 8), "strides": (1, 2)}
        return UNet(**sizes, attention=attention)

    ddp.refuse_running_statistics(network("scse"), 2)
    with_batch_norm = network({"encoder": ("cbam", {"norm": "batch"})})
    ddp.refuse_running_statistics(with_batch_norm, 1)
    with pytest.raises(InputError, match=r"encoder\.0\.\S+ keeps statistics of its batches, which 2 processes would"):
        ddp.refuse_running_statistics(with_batch_norm, 2)


def test_processes_on_the_cpu_are_counted_alike(tmp_path):
    trainer = _trainer(tmp_path, "cpu", 1)
    assert trainer.strategy.root_device == torch.device("cpu")
    assert trainer.strategy.num_processes == 4
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (8, 7, 3, 1)


class OfFour(Group):
    """The first of four processes, which have the GPUs of these numbers."""

    def __init__(self, numbers):
        super().__init__(Ranks(rank=0, world=4, local_rank=0, local_world=4, launcher="torchrun"), control="gloo")
        self.numbers = numbers

    def gather(self, value):
        return [f"{value}{number}" for number in self.numbers]

    def on_first(self, work):
        return work()


@pytest.mark.parametrize(("numbers", "found"), [((0, 1, 0, 1), "2 GPUs"), ((0, 0, 0, 0), "1 GPU"), ((3, 1, 0, 2), "")])
def test_processes_that_share_a_gpu_are_refused_where_nccl_connects_them(gpus, monkeypatch, numbers, found):
    gpus(1, 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid="GPU-"))
    backend = ["nccl"]
    monkeypatch.setattr(ddp.dist, "get_backend", lambda: backend[0])
    if found:
        with pytest.raises(InputError, match=f"4 processes cannot share a training on {found}.*--train.device cpu"):
            ddp.refuse_shared_gpus(OfFour(numbers))
    else:
        ddp.refuse_shared_gpus(OfFour(numbers))
    backend[0] = "gloo"
    ddp.refuse_shared_gpus(OfFour(numbers))
    ddp.refuse_shared_gpus(ALONE)
