"""Share work out among the threads that torch computes with.

Threads of our own would compete with torch's: its OpenMP threads wait for the next operation by spinning, and on two
cores the system then often puts two busy threads on one. So the work goes to OpenMP's threads themselves, through the
entry that compilers call (`GOMP_parallel`, in GNU's runtime and in LLVM's on Linux). Where torch has no such runtime,
a thread pool does it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

Job = Callable[[int], None]
Runtime = tuple[Callable[..., None], Callable[[], int], Callable[[], int]]
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_in_parallel(job: Job, number: int) -> None:
    """Call `job(0)` to `job(number - 1)`, one a thread of torch's, at once; the first error of any is raised.

    Where OpenMP gives fewer threads than it is asked for, as under `OMP_THREAD_LIMIT`, a thread does several of them.

    Args:
        job: must free Python's lock for the calls to overlap.
        number: at most `torch.get_num_threads()`.
    """
    if number == 1:
        job(0)
        return
    errors: list[BaseException] = []

    def kept(index: int) -> None:
        try:
            job(index)
        except BaseException as error:  # an exception cannot pass through OpenMP
            errors.append(error)

    runtime = _openmp()
    if runtime is None:
        _with_pool(kept, number)
    else:
        _with_openmp(runtime, kept, number)
    if errors:
        raise errors[0]


def openmp_is_shared() -> bool:
    """Return whether the work goes to torch's own threads, and not to a pool beside them."""
    return _openmp() is not None


@lru_cache(maxsize=1)
def _openmp() -> Runtime | None:
    """Return `GOMP_parallel`, `omp_get_thread_num` and `omp_get_num_threads` of torch's runtime."""
    path = str(torch._C.__file__)
    try:
        # The first waits for the threads, which need Python's lock: it must let go of it. The others need not.
        start, own = ctypes.CDLL(path).GOMP_parallel, ctypes.PyDLL(path)
        thread_number, team_size = own.omp_get_thread_num, own.omp_get_num_threads
    except (AttributeError, OSError):
        return None
    start.argtypes = (_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype, thread_number.restype, team_size.restype = None, ctypes.c_int, ctypes.c_int
    return start, thread_number, team_size


def _with_openmp(runtime: Runtime, job: Job, number: int) -> None:
    start, thread_number, team_size = runtime

    def thread(_: int | None) -> None:
        # The team may be smaller than asked for: the environment can limit it.
        for index in range(thread_number(), number, team_size()):
            job(index)

    # A team of another size than torch's would make the runtime end and start threads.
    start(_CALLBACK(thread), None, torch.get_num_threads(), 0)


def _with_pool(job: Job, number: int) -> None:
    others = _pool(os.getpid(), number - 1)
    waiting = [others.submit(job, index) for index in range(1, number)]
    job(0)
    for future in waiting:
        future.result()


@lru_cache(maxsize=4)
def _pool(process: int, number: int) -> ThreadPoolExecutor:
    """Return the helper threads of this process; a forked child has none of its parent's."""
    return ThreadPoolExecutor(number, thread_name_prefix="segscse-kernel")


def bounds(total: int, shares: int) -> Sequence[int]:
    """Return `shares + 1` numbers from 0 to `total` that cut it into equal parts."""
    return [total * index // shares for index in range(shares + 1)]
