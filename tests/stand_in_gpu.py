"""A stand-in for a GPU on a machine without one: tensors that say they are on `gpu:0` and compute on the CPU.

An operation that takes tensors of both devices fails, as it does on a GPU; and as there, nothing that asks for the CPU
gets the kernels for it. What it cannot show: CUDA's own kernels, streams, memory and speed.

Torch counts its devices once in a process, so that this is for processes of its own: see `gpu_jobs.py`. It rests on
torch's interface for devices that are written in Python, which is experimental and came with torch 2.10.
"""

from contextlib import contextmanager
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from segscse.inference import restore, select
from segscse.training import run, setup

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# Where the indices of a tensor on the GPU may be on the CPU.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):  # autocast asks, even where it is off
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("gpu", _Module())
# `torch.tensor` makes its tensors on the CPU first, where they can be seen on their way to another device.
torch._C._set_only_lift_cpu_tensors(True)
GPU = torch.device("gpu", 0)


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU; `held` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        size, strides, offset = held.shape, held.stride(), held.storage_offset()
        return torch.Tensor._make_wrapper_subclass(
            cls, size, strides=strides, storage_offset=offset, dtype=held.dtype, device=GPU
        )

    def __init__(self, held):
        self.held = held

    def __tensor_flatten__(self):
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return OnGpu(inner["held"])

    def __deepcopy__(self, memo):
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = torch.nn.Parameter(copy) if isinstance(self, torch.nn.Parameter) else copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


class _Devices(TorchDispatchMode):
    """Sees operations on the CPU's tensors, too, which may put something on the GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


def _compute(function, args, kwargs):
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
    there = [isinstance(item, OnGpu) for item in tensors]
    if any(there) and not all(there):
        _refuse_mixing(function, tensors, there)
    asked = kwargs.get("device")
    on_gpu = any(there) if asked is None else torch.device(asked).type == GPU.type
    if function is aten.copy_.default:
        on_gpu = there[0]
    plain = kwargs if asked is None else {**kwargs, "device": torch.device("cpu")}
    own_args, own_kwargs = tree_map(lambda item: item.held if isinstance(item, OnGpu) else item, (args, plain))
    result = function(*own_args, **own_kwargs)
    if not on_gpu:
        return result
    result = tree_map(lambda item: OnGpu(item) if type(item) is torch.Tensor else item, result)
    return return_and_correct_aliasing(function, args, kwargs, result) if any(there) else result


def _refuse_mixing(function, tensors, there):
    """Refuse what CUDA refuses; numbers may come from the CPU where the operation's first tensor is on the GPU."""
    if function in COPIES or (function in INDEXING and there[0]):
        return
    if there[0] and all(known or item.ndim == 0 for known, item in zip(there, tensors, strict=True)):
        return
    raise RuntimeError(f"{function}: tensors on two devices, {[(str(item.device), *item.shape) for item in tensors]}")


class _OneGpu(Accelerator):
    """Lightning's view of it."""

    parse_devices = staticmethod(lambda devices: devices)
    get_parallel_devices = staticmethod(lambda devices: [GPU])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: GPU.type)

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}


_Trainer = pl.Trainer


def _trainer(*, accelerator, devices, **arguments):
    return _Trainer(**arguments, strategy=SingleDeviceStrategy(device=GPU, accelerator=_OneGpu()))


@contextmanager
def on_gpu():
    """Let trainings and predictions take the stand-in for their device."""
    with (
        mock.patch.object(run.pl, "Trainer", _trainer),
        mock.patch.object(setup, "working_device", return_value=GPU),
        mock.patch.object(select, "working_device", return_value=GPU),
        mock.patch.dict(restore.TILE, {GPU.type: restore.TILE["cuda"]}),
        _Devices(),
    ):
        yield
