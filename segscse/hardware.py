"""What the machine offers: the device to run on and the precision that it computes fast in."""

from __future__ import annotations

import ctypes
import platform
from importlib.metadata import version
from typing import Literal

import torch

from segscse.errors import InputError

PACKAGES = ("torch", "monai", "pytorch-lightning", "nibabel", "SimpleITK", "numpy")


def pick_device(name: str) -> torch.device:
    """Return the named device, or the best one for `auto`.

    Raises:
        InputError: the device is not there.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available.get(name, False):
        present = [device for device, there in available.items() if there]
        raise InputError(f"device {name!r} is not available here; available: {', '.join(present)}")
    return torch.device(name)


def pick_precision(name: Literal["auto", "bf16", "fp32"], device: torch.device) -> Literal["bf16", "fp32"]:
    """Return bf16 for `auto` where the hardware multiplies in it (AMX, AVX512-BF16, recent GPUs), else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the mixed-precision context for a device; disabled for fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> bool:
    """Let GNU's allocator keep what is freed for the next request; return whether this system has it.

    By default it maps large tensors anew at every step and the system clears their pages each time, which took 4 to 9 %
    of a training step on two cores (tests/benchmarks/bench_malloc.py). It holds for the whole process from here on;
    beyond 2 GiB free at the end of the heap, memory still goes back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = ((mmap_max, 0), (top_pad, 2**28), (trim_threshold, 2**31 - 1))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)


def versions() -> dict[str, str]:
    """Return the versions that decide a result."""
    from segscse import __version__

    packages = {name: version(name) for name in PACKAGES}
    # torch's own version names its build (+cpu, +cu132), which the package's metadata may leave out.
    return {"segscse": __version__, "python": platform.python_version(), **packages, "torch": str(torch.__version__)}


def _cpu_multiplies_bf16() -> bool:
    """Ask for AMX or AVX512-BF16; without them oneDNN emulates bf16, several times slower than fp32."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(check is not None and bool(check()) for check in checks)
