import os
import subprocess
import sys
import threading

import pytest
import torch

from segscse.kernels import threads

RUNTIMES = ["openmp", "pool"]


@pytest.fixture(params=RUNTIMES)
def runtime(request, monkeypatch):
    if request.param == "pool":
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    elif threads._openmp() is None:
        pytest.skip("torch's OpenMP runtime has no GOMP_parallel here")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_each_job_runs_once(runtime, number):
    done = []
    threads.run_in_parallel(done.append, number)
    assert sorted(done) == list(range(number))


def test_jobs_run_at_once_on_threads_of_their_own(runtime):
    meeting = threading.Barrier(3, timeout=20)
    names = set()

    def job(index):
        names.add(threading.get_ident())
        meeting.wait()

    threads.run_in_parallel(job, 3)
    assert len(names) == 3


def test_an_error_in_a_job_is_raised_after_the_others_have_ended(runtime):
    done = []

    def job(index):
        if index == 1:
            raise ValueError("job 1")
        done.append(index)

    with pytest.raises(ValueError, match="job 1"):
        threads.run_in_parallel(job, 3)
    assert sorted(done) == [0, 2]


def test_several_python_threads_may_compute_at_once(runtime):
    totals = [0, 0]

    def work(which):
        for _ in range(20):
            threads.run_in_parallel(
                lambda index: totals.__setitem__(which, totals[which] + 1) if index == 0 else None, 2
            )

    callers = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert totals == [20, 20]


def test_on_linux_the_work_goes_to_the_threads_of_torch():
    if sys.platform != "linux":
        pytest.skip("other systems link torch with another OpenMP runtime")
    assert threads._openmp() is not None


@pytest.mark.parametrize("limit", ["OMP_THREAD_LIMIT=1", "OMP_MAX_ACTIVE_LEVELS=0", "OMP_THREAD_LIMIT=2"])
def test_each_job_runs_once_where_openmp_gives_fewer_threads(limit):
    if threads._openmp() is None:
        pytest.skip("torch's OpenMP runtime has no GOMP_parallel here")
    name, _, value = limit.partition("=")
    code = (
        "import torch\n"
        "from segscse.kernels.threads import run_in_parallel\n"
        "torch.set_num_threads(3)\n"
        "done = []\n"
        "run_in_parallel(done.append, 3)\n"
        "assert sorted(done) == [0, 1, 2], done\n"
    )
    environment = {**os.environ, name: value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_bounds_cut_a_range_into_equal_parts():
    assert threads.bounds(10, 3) == [0, 3, 6, 10]
    assert threads.bounds(2, 2) == [0, 1, 2]


def test_kernels_compile_where_no_folder_can_be_written(tmp_path):
    # Numba finds no place for its cache: the kernels must compile all the same.
    code = (
        "from numba.core import caching\n"
        "def refuse(*arguments): raise RuntimeError('cannot cache function')\n"
        "caching.FunctionCache.__init__ = refuse\n"
        "import torch\n"
        "from segscse.kernels.parts import recalibrate\n"
        "x = torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)\n"
        "assert torch.equal(recalibrate(x, slope=0.5), torch.where(x > 0, x, 0.5 * x))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
