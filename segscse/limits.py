"""What this process may still use: cores, memory and disk; and the refusals that come before long work.

A refusal needs a clear bound: `least` is what the work takes at the very least, `likely` what it is expected to take.
Work that may fit is done, with a warning.
"""

from __future__ import annotations

import errno
import math
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from segscse.errors import InputError

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
# Above this a control group's number means that there is no limit.
NO_LIMIT = 2**60


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this process, in bytes.

    Attributes:
        total: what there is; of the machine, or of the narrowest limit.
        available: what can still be taken.
        swap: free swap space beside it.
        by: what sets `available`: `machine`, `cgroup` or `ulimit`.
    """

    total: int
    available: int
    swap: int
    by: str


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a folder lies on, or will.

    Attributes:
        folder: the nearest folder that exists.
        free: bytes that this user can write.
        writable: whether files can be made in `folder`.
    """

    folder: Path
    free: int
    writable: bool


def usable_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Return the cores that this process may run on: its affinity, or a control group's share if that is less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    quotas = [_cpu_quota(folder) for folder in _groups("cpu", proc, cgroup)]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> Memory:
    """Return what this process may still take: of the machine, of its control group (v1 or v2), of `ulimit -v`.

    A group's pages of files count as free, for the kernel gives them up. Where a system does not tell what is
    available (macOS), all that it has is.

    Args:
        proc: where the process file system is mounted.
        cgroup: where control groups are mounted.
    """
    found = [_of_machine(proc)]
    for folder in _groups("memory", proc, cgroup):
        limit = _group_memory(folder)
        found += [limit] if limit is not None else []
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    statm = proc / "self" / "statm"
    if soft != resource.RLIM_INFINITY and statm.is_file():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        found.append(Memory(soft, max(0, soft - taken), 0, "ulimit"))
    return min(found, key=lambda item: item.available + item.swap)


def memory_part(parts: int) -> Memory:
    """Return the memory that is there for one of several processes that do the same: at most its part of all."""
    whole = memory()
    return replace(whole, available=min(whole.available, whole.total // parts), swap=whole.swap // parts)


def shared_memory(folder: Path = Path("/dev/shm")) -> int | None:
    """Return the free bytes of shared memory, which worker processes pass tensors through; None where it is no disk."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def disk_at(path: str | Path) -> Disk:
    """Return the file system of a folder that need not exist yet."""
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return Disk(folder, shutil.disk_usage(folder).free, writable)


def require_memory(
    what: str, least: float, likely: float, remedy: Callable[[int], str], *, found: Memory | None = None
) -> str | None:
    """Refuse work whose memory cannot be had.

    Args:
        what: such as "training"; the subject of the sentence.
        least: bytes beyond what the process holds now that it takes at the very least.
        likely: bytes that it is expected to take.
        remedy: what would make it fit into so many bytes.
        found: what there is; looked up if not given.

    Returns:
        A warning where `likely` does not fit; None where it does.

    Raises:
        InputError: `least` does not fit, swap included.
    """
    room = memory() if found is None else found
    if max(least, likely) <= room.available:
        return None
    who = {"machine": "", "cgroup": " by its control group", "ulimit": " by ulimit -v"}[room.by]
    problem = f"{what} takes about {size_text(likely)} more memory, and {size_text(room.available)} can be had{who}"
    if least > room.available + room.swap:
        raise InputError(problem, remedy=remedy(room.available))
    return f"{problem}: it may be killed. {remedy(room.available)}"


def require_disk(what: str, path: str | Path, least: float, likely: float, remedy: str) -> str | None:
    """Refuse work whose files cannot be written to `path`.

    Args:
        what: such as "the run"; the subject of the sentence.
        path: the folder that they go to.
        least: bytes that they take at the very least.
        likely: bytes that they are expected to take.
        remedy: what to do about a disk that is short.

    Returns:
        A warning where `likely` does not fit; None where it does.

    Raises:
        InputError: `least` does not fit, or nothing can be written there.
    """
    disk = disk_at(path)
    if not disk.writable:
        problem = "cannot be written to" if disk.folder.is_dir() else "is not a folder"
        raise InputError(problem, file=disk.folder, remedy="Choose another output folder with --out")
    if max(least, likely) <= disk.free:
        return None
    problem = f"{what} takes about {size_text(likely)} of disk, and {size_text(disk.free)} are free"
    if least > disk.free:
        raise InputError(problem, file=path, remedy=remedy)
    return f"{path}: {problem}. {remedy}"


def resident_bytes() -> int:
    """Return the bytes of memory that this process holds now; where the system does not say, at its peak so far."""
    statm = PROC / "self" / "statm"
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = PROC / "self" / "status"
    if status.is_file():  # getrusage would count what the parent process held before this one began
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size_text(size: float) -> str:
    """Return bytes as `1.23 GB` or `45 MB`."""
    return f"{size / 1e9:.2f} GB" if size >= 10**8 else f"{size / 1e6:.0f} MB"


def _of_machine(proc: Path) -> Memory:
    lines = (proc / "meminfo").read_text().splitlines() if (proc / "meminfo").is_file() else []
    parts = (line.replace(":", " ").split() for line in lines)
    kilobytes = {words[0]: int(words[1]) for words in parts if len(words) > 1 and words[1].isdigit()}
    if "MemAvailable" in kilobytes:
        total, available, swap = (1024 * kilobytes.get(name, 0) for name in ("MemTotal", "MemAvailable", "SwapFree"))
        return Memory(total, available, swap, "machine")
    total = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    return Memory(total, total, 0, "machine")


def _groups(controller: str, proc: Path, cgroup: Path) -> list[Path]:
    """Return the folders of this process's control groups, from its own up to the root; those of v1 and of v2."""
    file = proc / "self" / "cgroup"
    folders: list[Path] = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = cgroup / names if names else cgroup
        if names and not base.is_dir():
            base = cgroup / controller
        here = base / path.lstrip("/")
        # In a container the path may be the host's, and what is mounted here the container's own group.
        folders += [folder for folder in (here, *here.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return folders


def _group_memory(folder: Path) -> Memory | None:
    """Return a group's memory; None without a limit."""
    limit = _number(folder / "memory.max")
    if limit is not None:
        used, kinds = _number(folder / "memory.current"), ("inactive_file", "active_file")
        swap = (_number(folder / "memory.swap.max") or 0) - (_number(folder / "memory.swap.current") or 0)
    else:
        limit, used = (_number(folder / f"memory.{name}_in_bytes") for name in ("limit", "usage"))
        kinds, swap = ("total_inactive_file", "total_active_file"), 0
    if limit is None or limit >= NO_LIMIT:
        return None
    stat = folder / "memory.stat"
    pairs = (line.split() for line in stat.read_text().splitlines()) if stat.is_file() else ()
    files = sum(int(pair[1]) for pair in pairs if pair and pair[0] in kinds)
    return Memory(limit, min(limit, max(0, limit - (used or 0) + files)), max(0, swap), "cgroup")


def _cpu_quota(folder: Path) -> float | None:
    """Return the cores that a group may use; None without a limit."""
    both = folder / "cpu.max"
    parts = both.read_text().split() if both.is_file() else []
    if len(parts) == 2 and parts[0].isdigit():
        return int(parts[0]) / int(parts[1])
    quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota and period else None


def _number(file: Path) -> int | None:
    """Return the number that a file holds; None where it holds another word, or is not there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had; torch's are of no type of their own on a CPU."""
    if isinstance(error, RuntimeError):
        words = "(can't|cannot) allocate memory|(out of|not enough) memory|bad_alloc|_ALLOC_FAILED"
        return re.search(words, str(error), re.IGNORECASE) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
