"""What the machine offers: the device to run on and the precision that it computes fast in."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch

from segscse.errors import InputError
from segscse.limits import Disk, Memory, disk_at, memory, shared_memory, usable_cores

PACKAGES = ("torch", "monai", "pytorch-lightning", "nibabel", "SimpleITK", "numpy")
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The CPU kernels of segscse.

    Attributes:
        run: whether they compute what they should here.
        problem: why not, or empty.
        threads: whose they share: `openmp`, torch's own, or `pool`, Python's beside them.
        cache: the folder that keeps their machine code; None where every process compiles anew.
    """

    run: bool
    problem: str
    threads: str
    cache: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process has to work with.

    Attributes:
        system: operating system and processor architecture.
        cpu: the processor's name.
        cores: that this process may run on.
        threads: of torch.
        settings: environment variables that decide about threads, as far as they are set.
        memory: what can be taken.
        shared_memory: free bytes of `/dev/shm`; None where the system has none.
        gpu: names, total and free bytes of the CUDA devices that can be used.
        idle_gpus: number of CUDA devices that this torch and the driver cannot use together.
        mps: whether Apple's GPU can be used.
        bf16: whether the best device here multiplies in bfloat16.
        device: what `auto` takes.
        disk: where outputs go.
        kernels: of segscse, on the CPU.
        versions: of what decides a result.
        packages: versions of segscse's other dependencies, and of the optional ones that are installed.
        engines: what can compute a network in prediction.
    """

    system: str
    cpu: str
    cores: int
    threads: int
    settings: dict[str, str]
    memory: Memory
    shared_memory: int | None
    gpu: tuple[tuple[str, int, int], ...]
    idle_gpus: int
    mps: bool
    bf16: bool
    device: str
    disk: Disk
    kernels: Kernels
    versions: dict[str, str]
    packages: dict[str, str]
    engines: tuple[str, ...]


def examine_machine(out: str | Path = ".") -> Machine:
    """Return what this process has to work with; outputs go to `out`, which need not exist."""
    from segscse.inference.engines import PACKAGES as ENGINES
    from segscse.inference.engines import installed

    device = pick_device("auto")
    gpus = [_gpu(number) for number in range(torch.cuda.device_count())]
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        settings={name: os.environ[name] for name in THREAD_SETTINGS if name in os.environ},
        memory=memory(),
        shared_memory=shared_memory(),
        gpu=tuple(gpu for gpu in gpus if gpu is not None),
        idle_gpus=gpus.count(None),
        mps=torch.backends.mps.is_available(),
        bf16=pick_precision("auto", device) == "bf16",
        device=device.type,
        disk=disk_at(out),
        kernels=examine_kernels(),
        versions=versions(),
        packages=_dependencies(),
        engines=tuple(name for name in ENGINES if installed(name)),
    )


def examine_kernels() -> Kernels:
    """Run the CPU kernels on a small map and compare them with torch."""
    from segscse.kernels.threads import openmp_is_shared
    from segscse.kernels.warm_up import cache_folder, difference_from_torch

    threads = "openmp" if openmp_is_shared() else "pool"
    try:
        off = difference_from_torch()
    except Exception as error:  # whatever a compiler or a foreign processor comes up with
        return Kernels(False, f"{type(error).__name__}: {error}", threads, None)
    right = off < 1e-4
    return Kernels(right, "" if right else f"they differ from torch by {off:.2g}", threads, cache_folder())


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


def working_device(name: str) -> torch.device:
    """Return what `pick_device` does, after it has computed something.

    Raises:
        InputError: the device is not there, or torch cannot use it, as with a GPU that its build has no code for.
    """
    device = pick_device(name)
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"device {device.type!r} cannot be used ({reason})",
            remedy="Install a torch that is built for it, free it if others fill it, or take the CPU: "
            "--train.device cpu, or --device cpu",
        ) from error
    return device


def pick_precision(name: Literal["auto", "bf16", "fp32"], device: torch.device) -> Literal["bf16", "fp32"]:
    """Return bf16 for `auto` where the hardware multiplies in it (AMX, AVX512-BF16, recent GPUs), else fp32.

    Raises:
        InputError: bf16 on Apple's GPU, which has no transposed convolution of volumes in it.
    """
    if name == "bf16" and device.type == "mps":
        raise InputError("bf16 cannot be used on device 'mps'", remedy="Leave the precision at auto, which is fp32")
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


def _gpu(number: int) -> tuple[str, int, int] | None:
    """Return name, total and free bytes; None where the driver is too old, or the device is another's or full."""
    try:
        free, total = torch.cuda.mem_get_info(number)
        return torch.cuda.get_device_name(number), total, free
    except RuntimeError:
        return None


def _dependencies() -> dict[str, str]:
    """Return the versions of what segscse declares and finds, but for what `versions` says."""
    try:
        declared = requires("segscse") or []
    except PackageNotFoundError:  # run from a checkout
        declared = []
    names = sorted({re.split(r"[^\w.-]", item)[0] for item in declared} - {*PACKAGES, "segscse"}, key=str.lower)
    return {name: found for name in names if (found := _installed_version(name)) is not None}


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name, or its architecture where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_multiplies_bf16() -> bool:
    """Ask for AMX or AVX512-BF16; without them oneDNN emulates bf16, several times slower than fp32."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    return any(check is not None and bool(check()) for check in checks)
