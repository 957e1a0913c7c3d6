"""Real processes for tests: started as `srun` starts them, or with any other command."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATH = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}


def start(*command, **environment):
    """Start `python <command>` with this checkout's package; return the process and the file of what it says."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115, a pipe that nobody reads would stop the process when it is full
    environment = {**os.environ, **PATH, **environment}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, stdout=said, stderr=said), said


def start_two(*command):
    """Start `python <command>` twice, as `srun --ntasks 2` on one machine does; nobody looks after the two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "GLOO_SOCKET_IFNAME": "lo"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1"}
    return [start(*command, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]


def finish(started, seconds=300):
    """Wait for processes; return exit code and output of each."""
    ends = []
    try:
        for process, said in started:
            code = process.wait(timeout=seconds)
            said.seek(0)
            ends.append((code, said.read()))
    finally:
        for process, said in started:
            process.kill()
            said.close()
    return ends
