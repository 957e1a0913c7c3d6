import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from segscse import limits
from segscse.errors import InputError
from segscse.limits import Memory

GIB = 2**30
MEMINFO = (
    "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\nSwapFree:  1048576 kB\n"
)
FILES = {
    "v2": {
        "memory.max": str(4 * GIB),
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
        "memory.swap.max": str(2 * GIB),
        "memory.swap.current": "0",
        "cpu.max": "150000 100000",
    },
    "v1": {
        "memory.limit_in_bytes": str(4 * GIB),
        "memory.usage_in_bytes": str(3 * GIB),
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}\n",
        "cpu.cfs_quota_us": "150000",
        "cpu.cfs_period_us": "100000",
    },
}


@pytest.fixture
def proc(tmp_path):
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(MEMINFO)
    return folder


def _group(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def _v2(proc, cgroup, files, path="/jobs/mine"):
    (proc / "self" / "cgroup").write_text(f"0::{path}\n")
    _group(cgroup / path.lstrip("/"), files)


class TestMemory:
    def test_of_a_machine_is_what_the_kernel_says_can_be_had(self, proc, tmp_path):
        assert limits.memory(proc, tmp_path / "none") == Memory(16 * GIB, 8 * GIB, GIB, "machine")

    def test_of_a_group_of_version_2_counts_its_files_as_free(self, proc, tmp_path):
        _v2(proc, tmp_path / "cgroup", FILES["v2"])
        assert limits.memory(proc, tmp_path / "cgroup") == Memory(4 * GIB, 3 * GIB, 2 * GIB, "cgroup")

    @pytest.mark.parametrize("path", ["/docker/abc", "/not/here"])
    def test_of_a_group_of_version_1_where_the_path_may_be_the_hosts(self, proc, tmp_path, path):
        (proc / "self" / "cgroup").write_text(f"4:memory:{path}\n3:cpu,cpuacct:{path}\n0::/\n")
        for controller in ("memory", "cpu"):
            _group(tmp_path / "cgroup" / controller, FILES["v1"])
        assert limits.memory(proc, tmp_path / "cgroup") == Memory(4 * GIB, 3 * GIB, 0, "cgroup")
        assert limits.usable_cores(proc, tmp_path / "cgroup") == min(2, limits.usable_cores())

    def test_a_limit_of_a_group_further_up_counts(self, proc, tmp_path):
        _v2(proc, tmp_path / "cgroup", {"memory.max": "max"})
        _group(tmp_path / "cgroup" / "jobs", FILES["v2"])
        assert limits.memory(proc, tmp_path / "cgroup").by == "cgroup"

    @pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
    def test_a_group_without_a_limit_does_not(self, proc, tmp_path, limit):
        name = "memory.max" if limit == "max" else "memory.limit_in_bytes"
        _v2(proc, tmp_path / "cgroup", {name: limit})
        assert limits.memory(proc, tmp_path / "cgroup").by == "machine"

    def test_of_this_machine_is_less_than_it_has(self):
        found = limits.memory()
        assert 0 < found.available <= found.total

    def test_under_ulimit_is_what_is_left_of_the_address_space(self):
        code = (
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
            "from segscse import limits\n"
            "found = limits.memory()\n"
            "print(found.by, found.total, found.available)\n"
            "block = bytearray(int(0.9 * found.available))\n"
            "print(limits.memory().available)\n"
            "try: bytearray(int(1.1 * found.available))\n"
            "except MemoryError: print('refused')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        first, after, refused = done.stdout.strip().splitlines()
        by, total, available = first.split()
        assert (by, int(total)) == ("ulimit", GIB)
        assert int(after) < 0.15 * int(available)
        assert refused == "refused"

    def test_without_proc_is_all_that_the_machine_has(self, tmp_path):
        found = limits.memory(tmp_path, tmp_path)
        assert found.available == found.total > 0


class TestLackOfMemory:
    @pytest.mark.parametrize(
        "take",
        [lambda: bytearray(2**62), lambda: np.empty(2**50), lambda: torch.empty(2**50)],
        ids=["py", "np", "torch"],
    )
    def test_is_recognised(self, take):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            take()
        assert limits.is_lack_of_memory(caught.value)

    @pytest.mark.parametrize(
        "said",
        [
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "MPS backend out of memory (MPS allocated: 8.00 GB)",
        ],
    )
    def test_of_a_gpu_is_recognised(self, said):
        assert limits.is_lack_of_memory(RuntimeError(said))

    @pytest.mark.parametrize("work", [lambda: torch.ones(2) @ torch.ones(3), lambda: [][0], lambda: np.ones(2) @ [1]])
    def test_is_not_seen_in_other_errors(self, work):
        with pytest.raises((RuntimeError, LookupError, ValueError)) as caught:
            work()
        assert not limits.is_lack_of_memory(caught.value)


class TestCores:
    def test_are_those_that_a_process_may_run_on(self):
        code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        code += "from segscse import limits; print(limits.usable_cores())"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"

    def test_are_no_more_than_a_group_may_use(self, proc, tmp_path):
        _v2(proc, tmp_path / "cgroup", {"cpu.max": "50000 100000"})
        assert limits.usable_cores(proc, tmp_path / "cgroup") == 1
        _v2(proc, tmp_path / "cgroup", {"cpu.max": "max 100000"})
        assert limits.usable_cores(proc, tmp_path / "cgroup") == limits.usable_cores(tmp_path, tmp_path)


class TestPeak:
    def test_is_this_process_own_and_no_less_than_it_holds(self):
        before = limits.peak_bytes()
        block = bytearray(10**8)
        assert limits.resident_bytes() >= len(block)
        assert limits.peak_bytes() >= max(before, limits.resident_bytes() - 10**7)

    def test_comes_from_getrusage_where_there_is_no_proc(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "PROC", tmp_path)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        monkeypatch.setattr(sys, "platform", "linux")
        assert limits.resident_bytes() == pytest.approx(1024 * peak, rel=0.05)
        monkeypatch.setattr(sys, "platform", "darwin")
        assert limits.resident_bytes() == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(("available", "parts", "expected"), [(12, 1, 12), (12, 4, 4), (3, 4, 3), (16, 2, 8)])
def test_a_part_of_the_memory_is_at_most_that_of_all_there_is(monkeypatch, available, parts, expected):
    monkeypatch.setattr(limits, "memory", lambda: Memory(16 * GIB, available * GIB, 8 * GIB, "machine"))
    assert limits.memory_part(parts) == Memory(16 * GIB, expected * GIB, 8 * GIB // parts, "machine")


class TestRequireMemory:
    ROOM = Memory(16 * GIB, 4 * GIB, GIB, "cgroup")

    def _check(self, least, likely):
        return limits.require_memory(
            "training", least * GIB, likely * GIB, lambda room: f"Use {room // GIB} GiB", found=self.ROOM
        )

    def test_says_nothing_where_it_fits(self):
        assert self._check(1, 4) is None

    @pytest.mark.parametrize("least", [1, 5])
    def test_warns_where_it_may_fit_with_swap(self, least):
        warning = self._check(least, 6)
        assert warning == (
            "training takes about 6.44 GB more memory, and 4.29 GB can be had by its control group: it may be killed. "
            "Use 4 GiB"
        )

    def test_refuses_where_not_even_swap_helps(self):
        with pytest.raises(InputError, match=r"training takes about 6\.44 GB .* Use 4 GiB\.$"):
            self._check(5.1, 6)


class TestRequireDisk:
    def test_says_nothing_where_it_fits_in_a_folder_that_does_not_exist_yet(self, tmp_path):
        assert limits.require_disk("the run", tmp_path / "a" / "b", 1, 2, "Free it") is None
        assert list(tmp_path.iterdir()) == []

    def test_warns_and_refuses_by_the_free_space(self, tmp_path):
        free = limits.disk_at(tmp_path).free
        warning = limits.require_disk("the run", tmp_path, 0, 4 * free, "Free it")
        assert "the run takes about" in warning
        assert warning.endswith("Free it")
        with pytest.raises(InputError, match=r"the run takes about .* are free\. Free it\."):
            limits.require_disk("the run", tmp_path, 2 * free, 4 * free, "Free it")

    def test_refuses_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(InputError, match=r"out: is not a folder\. Choose another output folder with --out"):
            limits.require_disk("the run", tmp_path / "out" / "run", 0, 0, "")

    def test_refuses_a_file_system_that_is_read_only(self, tmp_path):
        # In a mount namespace of its own, where this user may make one.
        code = (
            "import subprocess, sys\n"
            "from segscse import limits\n"
            "from segscse.errors import InputError\n"
            f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m,ro', 'none', {str(tmp_path)!r}], check=True)\n"
            "try:\n"
            f"    limits.require_disk('the run', {str(tmp_path / 'run')!r}, 0, 0, '')\n"
            "except InputError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run(["unshare", "-rm", sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            pytest.skip("this system lets nobody mount")
        assert "cannot be written to" in done.stdout


def test_sizes_are_said_in_gigabytes_or_megabytes():
    assert limits.size_text(1.234e9) == "1.23 GB"
    assert limits.size_text(45.4e6) == "45 MB"
    assert limits.size_text(0) == "0 MB"
