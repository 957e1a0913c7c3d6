"""Start the processes that `--devices N` asks for, where no launcher has started them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from segscse.errors import InputError
from segscse.limits import usable_cores
from segscse.ranks import Ranks, read_ranks


class ManyProcesses(Exception):  # noqa: N818, a request and no error
    """A command is to be run by several processes, which nobody has started yet.

    Args:
        devices: how many.
    """

    def __init__(self, devices: int) -> None:
        self.devices = devices
        super().__init__(devices)


def require_processes(devices: int | None, nodes: int | None) -> Ranks:
    """Return which process this is, for a command with `--devices` and `--nodes`.

    Raises:
        ManyProcesses: the processes have to be started first, with `launch`.
        InputError: the numbers are not those that the launcher started, or several machines are asked of no launcher.
    """
    ranks = read_ranks()
    if _must_launch(ranks, devices, nodes):
        raise ManyProcesses(devices or 1)
    return ranks


def _must_launch(ranks: Ranks, devices: int | None, nodes: int | None) -> bool:
    """Return whether `--devices` asks for processes that nobody has started yet."""
    for flag, value in (("--devices", devices), ("--nodes", nodes)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be >= 1, got {value}")
    if not ranks.launcher:
        if (nodes or 1) > 1:
            remedy = "Start segscse on every one with torchrun or srun, as the README shows"
            raise InputError(f"--nodes {nodes}: a process cannot start others on other machines", remedy=remedy)
        return (devices or 1) > 1
    for flag, value, started in (("--devices", devices, ranks.local_world), ("--nodes", nodes, ranks.nodes)):
        if value not in (None, started):
            remedy = f"Leave {flag} out, or start as many as it says"
            raise InputError(f"{flag} is {value}, but {ranks.launcher} started {started}", remedy=remedy)
    return False


def launch(devices: int, arguments: Sequence[str]) -> int:
    """Run `segscse <arguments>` in several processes on this machine and return the exit code of the first to fail.

    torchrun's library starts them, passes signals on, and ends all when one has failed.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it logs addresses people who debug it; the processes say themselves what is wrong.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // devices)))
    os.environ |= {"OMP_NUM_THREADS": threads, **_loopback()}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=f"segscse-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "segscse", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            sys.stderr.write(f"segscse: process {rank} of {devices} was ended by {name}\n")
            return 128 - failure.exitcode
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _loopback() -> dict[str, str]:
    """Keep the connections of processes on one machine off its network."""
    name = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return {} if name is None or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": name}
