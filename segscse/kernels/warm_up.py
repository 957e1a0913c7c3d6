"""Compile the CPU kernels beside other work, so that the first training step does not wait for them.

On a machine that has not run them yet, numba takes some eight seconds for the five kernels; later runs read the
machine code from numba's cache in a third of a second. While data are read, a thread compiles: half of the work is
LLVM's, which frees Python's lock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segscse.kernels.parts import GateParts, recalibrate
from segscse.nets.dims import CHANNELS_LAST, channels_last


@contextmanager
def compiling(dtype: torch.dtype) -> Iterator[threading.Thread]:
    """Compile the kernels for maps of a type in a thread while the body runs.

    A body that raises waits for the kernel that is being compiled, not for all.

    Args:
        dtype: float32 or bfloat16, as the convolutions return it.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_compile, args=(dtype, stop), name="segscse-compile", daemon=True)
    thread.start()
    try:
        yield thread
    except BaseException:
        stop.set()
        raise
    finally:
        thread.join()  # the process must not end in the middle of LLVM


def _compile(dtype: torch.dtype, stop: threading.Event) -> None:
    """Run every kernel once on a map of a few voxels: the types are then those of a training."""
    ones = torch.ones(2, requires_grad=True)
    norm = (ones, ones, 1e-5)
    gate = GateParts(channel=_Stoppable(stop), weight=ones, bias=torch.ones(1, requires_grad=True))
    x = torch.ones((1, 2, 2, 2)).to(dtype).contiguous(memory_format=CHANNELS_LAST[2]).requires_grad_()
    with suppress(Exception):  # stopped, or what the first training step will say
        # moments, activation_sums and then the gate, forward_rows, backward_sums, backward_rows
        y = recalibrate(x, norm=norm, slope=0.01, gate=gate)
        y.register_hook(_Stoppable(stop))
        y.float().sum().backward()


class _StoppedError(Exception):
    """The kernels are not wanted any more."""


class _Stoppable:
    """Hands a tensor on, unless it is time to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, values: Tensor) -> Tensor:
        if self.stop.is_set():
            raise _StoppedError
        return values


def cache_folder() -> str | None:
    """Return the folder that numba keeps the machine code in; None where none can be written.

    It is `NUMBA_CACHE_DIR`, the package's own `__pycache__`, or the user's cache folder: the first that can be written.
    Numba's index there is a pickle: share the folder with nobody whom you would not let run code.
    """
    from segscse.kernels import rows

    kernel: Any = rows.moments
    return kernel.stats.cache_path


def difference_from_torch() -> float:
    """Return how far the kernels are from torch, at most, on a map that all threads share; compiles them in fp32."""
    x = torch.linspace(-2, 3, 2 * 16 * 32**3).reshape(2, 16, 32, 32, 32).sin()
    weight, bias = torch.linspace(0.5, 1.5, 16), torch.linspace(-1, 1, 16)
    ours = recalibrate(channels_last(x), norm=(weight, bias, 1e-5), slope=0.01)
    theirs = F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), 0.01)
    return float((ours - theirs).abs().max())
