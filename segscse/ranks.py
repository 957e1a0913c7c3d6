"""Several processes at one job: which one this is, what it takes of the work, and what ends all of them.

The processes are started by torchrun, by SLURM's `srun`, or by `--devices N`; see `segscse.launch`.
Inside `joined` they are a `Group`: process 0 decides and writes, the others follow. Gloo carries what is agreed on,
whatever the device; gradients go through Lightning's DDP. `share` alone needs neither torch nor a group.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from segscse.errors import InputError, Interrupted, SegscseError
from segscse.limits import usable_cores

if TYPE_CHECKING:
    from segscse.watch import Watch

Item = TypeVar("Item")
# How long a process waits for the others to be started.
START = timedelta(minutes=15)
# Processes that have vanished are found by `Watch` within a minute; this ends a job whose processes live and hang.
# It is long because one that has done its folds waits for those that others still train.
STUCK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which process of how many this is.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        local_rank: number of this process on its machine.
        local_world: number of processes on this machine.
        launcher: `torchrun`, `srun`, or nothing when the process was started alone.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str = ""

    @property
    def nodes(self) -> int:
        """Number of machines, which have equally many processes each."""
        return self.world // self.local_world


def share(items: Sequence[Item], rank: int, world: int) -> list[Item]:
    """Return what process `rank` of `world` takes of some items: every item goes to exactly one process.

    They are dealt like cards, so that of items sorted by size every process gets large and small ones.
    """
    return list(items[rank::world])


def deal_by_size(sizes: Mapping[str, int], world: int) -> list[dict[str, int]]:
    """Return what each process takes of named pieces of work, about equally much; every piece is in one part."""
    by_size = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return [dict(share(by_size, rank, world)) for rank in range(world)]


def read_ranks(environment: Mapping[str, str] | None = None) -> Ranks:
    """Return what torchrun or `srun` says about this process; a process alone where neither has started it.

    A SLURM batch script or an interactive shell has no job step of several tasks, so it counts as alone.

    Raises:
        InputError: the machines have different numbers of processes, or a number of theirs is missing or none.
    """
    values = os.environ if environment is None else environment
    try:
        ranks = _ranks_of(values)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        reason = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"what torchrun or srun says about this process cannot be read ({reason})",
            remedy="Unset TORCHELASTIC_RUN_ID and SLURM_STEP_NUM_TASKS, or start it by torchrun or srun",
        ) from error
    if ranks.local_world < 1 or ranks.world % ranks.local_world:
        remedy = "Start equally many on each, such as with --ntasks-per-node"
        raise InputError(f"the machines have different numbers of the {ranks.world} processes", remedy=remedy)
    return ranks


def ranks_or_alone() -> Ranks:
    """Return what `read_ranks` does; a process alone where that cannot be read, which other places refuse."""
    try:
        return read_ranks()
    except InputError:
        return Ranks()


def _ranks_of(values: Mapping[str, str]) -> Ranks:
    if "TORCHELASTIC_RUN_ID" in values:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world, local_rank, local_world = (int(values[name]) for name in names)
        return Ranks(rank, world, local_rank, local_world, "torchrun")
    if int(values.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        world, nodes = int(values["SLURM_STEP_NUM_TASKS"]), int(values.get("SLURM_STEP_NUM_NODES", "1"))
        local = world // nodes if world % nodes == 0 else 0
        return Ranks(int(values["SLURM_PROCID"]), world, int(values["SLURM_LOCALID"]), local, "srun")
    return Ranks()


class OtherRankError(SegscseError):
    """Another process of the job has failed or vanished.

    Args:
        message: which one, and why.
        told: whether that process has said so itself.
    """

    def __init__(self, message: str, *, told: bool) -> None:
        self.told = told
        super().__init__(message)


class Group:
    """The processes of a job, or one alone, for which everything here is free.

    Every method but `share` must be called by all processes, in one order.

    Args:
        ranks: which process this is.
        control: torch's process group for what is agreed on; None for a process alone.
        watch: over the other processes; None for a process alone.
    """

    def __init__(self, ranks: Ranks, control: Any = None, watch: Watch | None = None) -> None:
        self.ranks = ranks
        self.control = control
        self.watch = watch

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        """Return itself: Lightning copies the module that has it, and there is one job."""
        return self

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.ranks.rank

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.ranks.world

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, speaks and writes."""
        return self.ranks.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return what this process takes of some items."""
        return share(items, self.rank, self.world)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Mark work that no process can do without the others, so that it ends within a minute when one is lost."""
        if self.watch is None:
            yield
            return
        with self.watch.bound():
            yield

    def on_first(self, work: Callable[[], Item]) -> Item:
        """Return in every process what `work` returns in the first one; the others do not run it."""
        if self.control is None:
            return work()
        import torch.distributed as dist

        box = [work() if self.first else None]
        with self.bound():
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: Item) -> list[Item]:
        """Return the values of all processes, by rank, in every process."""
        if self.control is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        with self.bound():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Wait for all."""
        if self.control is not None:
            self.gather(None)

    def from_first(self, value: float) -> float:
        """Return the first process' number in every process."""
        if self.control is None:
            return value
        import torch
        import torch.distributed as dist

        number = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(number, src=0, group=self.control)
        return float(number)

    def largest(self, value: int) -> int:
        """Return the largest of the processes' whole numbers in every process."""
        if self.control is None:
            return value
        import torch
        import torch.distributed as dist

        number = torch.tensor(value)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self.control)
        return int(number)


ALONE = Group(Ranks())


@contextmanager
def joined(ranks: Ranks, *, nccl: bool = False) -> Iterator[Group]:
    """Join the processes of a job for as long as the context lasts; an error in one ends it in all.

    Every process gets its part of the machine's cores, and the GPU of its number where there are GPUs.

    Args:
        ranks: which process this is.
        nccl: whether NCCL is to carry gradients between GPUs; Gloo does between CPUs.

    Raises:
        OtherRankError: another process failed or vanished; it is named.
        Interrupted: SIGTERM, outside of what handles it itself.
    """
    if ranks.world == 1:
        yield ALONE
        return
    _use_own_cores(ranks)
    with _terminable():
        watch, control = _connect(ranks, nccl=nccl)
        group = Group(ranks, control, watch)
        try:
            yield group
            group.barrier()
        except BaseException as error:
            _ignore_sigterm()  # torchrun sends it when another process has ended
            found = watch.explain(error)
            watch.leave("" if found is not None else _said(error), told=not isinstance(error, Interrupted))
            _disconnect(watch, wind_up=not nccl)
            if found is not None:
                raise found from error
            raise
        watch.leave("")
        _disconnect(watch)


def _use_own_cores(ranks: Ranks) -> None:
    """Compute with this process' part of the cores: torchrun says 1 to OpenMP whatever the machine has."""
    import torch

    given = int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) if ranks.launcher == "srun" else 0
    torch.set_num_threads(given or max(1, usable_cores() // ranks.local_world))


def _connect(ranks: Ranks, *, nccl: bool) -> tuple[Watch, Any]:
    """Meet the other processes; return the watch over them and the group for what is agreed on."""
    import torch
    import torch.distributed as dist

    from segscse.watch import Watch

    if ranks.launcher == "srun":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        place = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
        os.environ |= {"RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world)}
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # where the GPU is used, that says so
            torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    try:
        store, rank, world = next(dist.rendezvous("env://", timeout=START))
        backend = "nccl" if nccl else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=STUCK)
        control = dist.new_group(backend="gloo", timeout=STUCK) if nccl else dist.group.WORLD
        watch = Watch(ranks, store.clone())
        dist.barrier(group=control)
    except (dist.DistError, RuntimeError) as error:
        remedy = f"Start all {ranks.world} within {START.seconds // 60} minutes, on machines that reach each other"
        reason = str(error).partition("\n")[0]
        raise SegscseError(
            f"process {ranks.rank} of {ranks.world} cannot join the others ({reason}). {remedy}."
        ) from error
    watch.start()
    return watch, control


def _disconnect(watch: Watch, *, wind_up: bool = True) -> None:
    """Close the connections, at which the others wake up, and keep the store until they have left, too.

    After an error NCCL would wait for the others, who never come: without `wind_up` its connections end with the
    process, and the others learn of it from their watch.
    """
    import torch.distributed as dist

    if wind_up:
        with suppress(Exception):  # a vanished peer must not keep this process from ending
            dist.destroy_process_group()
    watch.close()


def end(code: int, ranks: Ranks) -> NoReturn:
    """End the process; one of several at once, since what Gloo's threads still do can abort a process that winds up."""
    if ranks.world > 1:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                if stream is not None:
                    stream.flush()
        os._exit(code)
    sys.exit(code)


def _said(error: BaseException) -> str:
    """Return what the others are told: the error in one line, and where it happened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{socket.gethostname()}: {text}"


class Terminated(Interrupted):
    """SIGTERM: someone's wish, or torchrun's, because another process has ended."""


def _ignore_sigterm() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the others learn of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        _ignore_sigterm()  # once is enough: the process is ending
        raise Terminated(signum, "stopped; start it again with --resume")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
