import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from processes import finish, start_two

from segscse import ranks as module
from segscse import watch as watching
from segscse.cli import run
from segscse.errors import InputError, Interrupted, SegscseError
from segscse.launch import ManyProcesses, require_processes
from segscse.ranks import (
    ALONE,
    Group,
    OtherRankError,
    Ranks,
    joined,
    read_ranks,
    share,
)
from segscse.watch import Watch

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_one_of_several_ends_with_its_code_where_a_stream_was_closed_from_the_start(closed):
    code = f"import sys; from segscse.ranks import Ranks, end; sys.{closed} = None; end(7, Ranks(0, 2))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_item_goes_to_exactly_one_process(world):
    items = [f"case{n}" for n in range(7)]
    parts = [share(items, rank, world) for rank in range(world)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class TestReading:
    def test_what_torchrun_says(self):
        ranks = read_ranks(TORCHRUN)
        assert ranks == Ranks(5, 8, 1, 4, "torchrun")
        assert ranks.nodes == 2

    def test_what_srun_says(self):
        assert read_ranks(SRUN) == Ranks(5, 8, 1, 4, "srun")

    @pytest.mark.parametrize(
        "environment",
        [{}, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "1"}],
        ids=["nothing", "a batch script", "a step of one task", "a stray variable"],
    )
    def test_without_a_launcher_a_process_is_alone(self, environment):
        assert read_ranks(environment) == Ranks() == ALONE.ranks

    @pytest.mark.parametrize(
        "environment", [{**SRUN, "SLURM_STEP_NUM_NODES": "3"}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}]
    )
    def test_machines_with_different_numbers_of_processes_are_refused(self, environment):
        with pytest.raises(InputError, match="different numbers of the 8 processes"):
            read_ranks(environment)

    @pytest.mark.parametrize(
        ("environment", "reason"),
        [
            ({"TORCHELASTIC_RUN_ID": "x"}, "'RANK' is not set"),
            ({**TORCHRUN, "RANK": "first"}, "invalid literal"),
            ({**SRUN, "SLURM_STEP_NUM_NODES": "0"}, "zero"),
            ({"SLURM_STEP_NUM_TASKS": "many"}, "invalid literal"),
        ],
    )
    def test_numbers_that_are_missing_or_none_are_refused(self, environment, reason):
        with pytest.raises(InputError, match=f"cannot be read .*{reason}"):
            read_ranks(environment)

    def test_the_command_line_says_so_in_one_line(self, monkeypatch, capsys, tmp_path):
        for name, value in {**SRUN, "SLURM_STEP_NUM_NODES": "3"}.items():
            monkeypatch.setenv(name, value)
        assert run(["predict", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


class TestFlags:
    @pytest.fixture(autouse=True)
    def _no_launcher(self, monkeypatch):
        for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(("devices", "nodes"), [(None, None), (1, 1), (None, 1)])
    def test_one_process_needs_nothing(self, devices, nodes):
        assert require_processes(devices, nodes) == Ranks()

    def test_several_have_to_be_started(self):
        with pytest.raises(ManyProcesses) as caught:
            require_processes(3, None)
        assert caught.value.devices == 3

    @pytest.mark.parametrize(
        ("devices", "nodes", "message"),
        [(0, None, "--devices must be >= 1, got 0"), (None, -1, "--nodes must be"), (2, 2, "torchrun or srun")],
    )
    def test_numbers_that_cannot_be(self, devices, nodes, message):
        with pytest.raises(InputError, match=message):
            require_processes(devices, nodes)

    def test_they_must_agree_with_the_launcher(self, monkeypatch):
        for name, value in TORCHRUN.items():
            monkeypatch.setenv(name, value)
        assert require_processes(4, 2) == require_processes(None, None) == Ranks(5, 8, 1, 4, "torchrun")
        with pytest.raises(InputError, match="--devices is 2, but torchrun started 4"):
            require_processes(2, None)
        with pytest.raises(InputError, match="--nodes is 1, but torchrun started 2"):
            require_processes(None, 1)


class TestAlone:
    def test_everything_is_free(self):
        with joined(Ranks()) as group, group.bound():
            assert group is ALONE
            assert group.first
            assert group.share([1, 2]) == [1, 2]
            assert group.on_first(lambda: 3) == 3
            assert group.gather(4) == [4]
            assert group.from_first(0.1) == 0.1
            assert group.largest(5) == 5
            group.barrier()

    def test_threads_are_a_part_of_the_cores(self, monkeypatch):
        chosen = []
        monkeypatch.setattr("torch.set_num_threads", chosen.append)
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
        monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
        for ranks in (Ranks(0, 4, 0, 4, "torchrun"), Ranks(0, 32, 0, 16, "torchrun"), Ranks(0, 2, 0, 1, "srun")):
            module._use_own_cores(ranks)
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
        module._use_own_cores(Ranks(0, 4, 0, 4, "srun"))
        assert chosen == [2, 1, 8, 3]

    @pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie processes to cores")
    def test_only_cores_that_it_may_use_are_counted(self):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert module.usable_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
        assert module.usable_cores() == len(allowed)

    def test_sigterm_is_an_error_that_can_be_told(self):
        with pytest.raises(Interrupted) as caught, module._terminable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_where_python_cannot_handle_signals_they_are_left_alone(self):
        before = signal.getsignal(signal.SIGTERM)

        def work():
            with module._terminable():
                module._ignore_sigterm()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=20))


@pytest.fixture
def make(store, monkeypatch):
    """Return a function that makes the watches of a job's processes, with a quick pulse."""
    monkeypatch.setattr(watching, "BEAT_S", 0.05)
    monkeypatch.setattr(watching, "LEAVE_S", 0.5)
    made = []

    def build(world):
        group = [Watch(Ranks(rank, world, rank, world), store.clone()) for rank in range(world)]
        for watch in group:
            watch.beat_s = 0.05
            watch.start()
        made.extend(group)
        return group

    yield build
    for watch in made:
        watch.leave("")


class TestWatch:
    def test_nobody_is_lost_while_all_live(self, make):
        watches = make(3)
        assert watches[0].explain(RuntimeError("of our own")) is None
        assert [watch.lost(watching.SOON) for watch in watches] == [None] * 3

    def test_an_error_of_another_is_known_by_its_text(self, make):
        first, second, third = make(3)
        third.leave("node7: the disk is full")
        for watch in (first, second):
            found = watch.explain(RuntimeError("Connection closed by peer"))
            assert str(found) == "process 2 of 3 ended (node7: the disk is full)"
            assert found.told

    def test_what_it_has_not_told_people_the_first_that_is_left_says(self, make):
        watches = make(3)
        watches[0].leave("stopped", told=False)
        assert [watch.explain(RuntimeError()).told for watch in watches[1:]] == [False, True]

    def test_one_that_is_silent_has_vanished(self, make):
        first, second, third = make(3)
        second._done.set()  # as if it were killed
        founds = [watch.explain(RuntimeError()) for watch in (first, third)]
        assert all(str(found).startswith("process 1 of 3 has vanished: it was killed") for found in founds)
        assert [found.told for found in founds] == [False, True]

    def test_one_that_has_left_in_peace_is_not_missed(self, make):
        first, second = make(2)
        second.leave("")
        assert first.explain(RuntimeError()) is None

    def test_without_the_store_the_first_is_lost(self, make):
        _, second = make(2)

        class Gone:
            def set(self, *_):
                raise RuntimeError("no answer")

        second.store = Gone()
        assert str(second.explain(RuntimeError())).startswith("process 0 of 2 has vanished")

    @pytest.mark.parametrize(
        "error", [InputError("bad"), SegscseError("no"), ValueError("bug"), Interrupted(2, "stop")]
    )
    def test_errors_of_our_own_are_not_asked_about(self, make, error):
        first, second = make(2)
        second.leave("something")
        assert first.explain(error) is None

    def test_a_process_that_waits_for_a_lost_one_is_ended(self, make, monkeypatch, capsys):
        ended, codes = threading.Event(), []

        def end(code):
            codes.append(code)
            first._done.set()
            ended.set()

        monkeypatch.setattr(os, "_exit", end)
        monkeypatch.setattr(watching, "SILENT_S", 0.2)
        monkeypatch.setattr(watching, "GRACE_S", 0.1)
        first, second = make(2)
        second._done.set()
        assert not ended.wait(1.0)  # it is busy with something of its own
        with first.bound():
            assert ended.wait(20)
        assert codes[0] == 2
        assert "process 1 of 2 has vanished" in capsys.readouterr().err

    def test_the_first_waits_until_the_others_have_read(self, make):
        first, second = make(2)
        first.leave("")
        threading.Timer(0.1, second.leave, [""]).start()
        first.close()
        assert first._last[1] == "left "

    def test_it_waits_for_one_whose_beats_are_late(self, make, monkeypatch):
        monkeypatch.setattr(watching, "LEAVE_S", 60.0)
        first, second = make(2)
        second._done.set()  # no beat for longer than six looks take
        second._thread.join()
        first.leave("")
        threading.Timer(2.0, second.leave, [""]).start()
        first.close()
        assert first._last[1] == "left "

    def test_it_does_not_wait_for_one_that_was_lost_before(self, make, monkeypatch):
        monkeypatch.setattr(watching, "LEAVE_S", 600.0)
        first, second = make(2)
        second._done.set()
        assert "process 1 of 2 has vanished" in str(first.explain(RuntimeError()))
        first.leave("")
        first.close()
        assert not first._last[1].startswith("left")

    def test_many_processes_beat_more_slowly(self, store):
        assert Watch(Ranks(3, 64, 3, 8), store.clone()).beat_s == 4.0


@pytest.mark.parametrize(("nccl", "wound_up"), [(False, 1), (True, 0)])
def test_after_an_error_nccl_is_left_to_end_with_the_process(monkeypatch, nccl, wound_up):
    calls = []
    watch = SimpleNamespace(explain=lambda error: None, leave=lambda *_, **__: calls.append("left"), close=lambda: None)
    monkeypatch.setattr(module, "_connect", lambda ranks, nccl: (watch, None))
    monkeypatch.setattr(module, "_use_own_cores", lambda ranks: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("wound up"))
    with pytest.raises(RuntimeError, match="of our own"), joined(Ranks(0, 2, 0, 2), nccl=nccl):
        raise RuntimeError("of our own")
    assert calls == ["left", *["wound up"] * wound_up]


def test_two_processes_agree():
    code = (
        "from segscse.ranks import joined, read_ranks\n"
        "with joined(read_ranks()) as group:\n"
        "    got = [group.on_first(lambda: {'rank': group.rank}), group.gather(group.rank), group.barrier(),\n"
        "           group.from_first(group.rank + 0.1), group.largest(7 * group.rank), group.share('abc')]\n"
        "print(got)\n"
    )
    ends = finish(start_two("-c", code))
    for rank, (exit_code, said) in enumerate(ends):
        assert exit_code == 0, said
        assert said.strip() == f"[{{'rank': 0}}, [0, 1], None, 0.1, 7, {[['a', 'c'], ['b']][rank]}]"


def test_a_group_is_not_copied_with_what_has_it():
    from copy import deepcopy

    group = Group(Ranks(1, 2, 1, 2))
    assert deepcopy({"group": group})["group"] is group
    assert isinstance(OtherRankError("x", told=True), SegscseError)
