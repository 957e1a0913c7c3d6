import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import SETTINGS, dataset, tiny_config  # noqa: F401, a fixture
from volumes import write_volume

from segscse import doctor, limits
from segscse.cli import run
from segscse.doctor import Finding, diagnose, machine_findings
from segscse.errors import InputError
from segscse.hardware import Kernels, examine_kernels, examine_machine
from segscse.limits import Disk, Memory
from segscse.training import run as training
from segscse.training.trial import run_trial

# The fixture comes by import, so every test that takes it looks like a redefinition.
# ruff: noqa: F811

GIB = 2**30


@pytest.fixture(scope="module")
def machine():
    return examine_machine("runs")


@pytest.fixture(scope="module")
def diagnosis(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("doctor") / "runs"
    found = diagnose(dataset, out=out, config=tiny_config(), fold="cv")
    assert not out.exists()
    return found


class TestMachine:
    def test_is_the_one_that_this_runs_on(self, machine):
        assert machine.cores == limits.usable_cores()
        assert machine.threads == torch.get_num_threads()
        assert machine.versions["torch"] == torch.__version__
        assert machine.engines[0] == "torch"
        assert machine.device in ("cpu", "cuda", "mps")
        assert len(machine.gpu) == torch.cuda.device_count()

    def test_runs_the_kernels_and_says_where_their_code_is_kept(self, machine):
        assert machine.kernels.run
        assert machine.kernels.threads in ("openmp", "pool")

    def test_tells_thread_settings_that_are_set(self, monkeypatch):
        monkeypatch.setenv("KMP_BLOCKTIME", "0")
        assert examine_machine().settings["KMP_BLOCKTIME"] == "0"

    def test_says_why_kernels_do_not_work(self, monkeypatch):
        monkeypatch.setattr("segscse.kernels.warm_up.difference_from_torch", lambda: 0.5)
        assert examine_kernels().problem == "they differ from torch by 0.5"

        def broken():
            raise OSError("no compiler")

        monkeypatch.setattr("segscse.kernels.warm_up.difference_from_torch", broken)
        assert examine_kernels().problem == "OSError: no compiler"

    @pytest.mark.parametrize(
        ("changes", "level", "problem"),
        [
            ({"disk": Disk("/x", 1, False)}, "error", "/x: cannot be written to"),
            ({"kernels": Kernels(False, "no compiler", "pool", None)}, "error", "kernels do not work here"),
            ({"kernels": Kernels(True, "", "pool", None)}, "warning", "compiled kernels cannot be kept"),
            ({"cores": 4, "threads": 1, "settings": {"OMP_NUM_THREADS": "1"}}, "warning", "Unset OMP_NUM_THREADS"),
            ({"cores": 4, "threads": 1, "settings": {}}, "warning", "Unset what limits its threads"),
            ({"cores": 2, "threads": 8}, "warning", "Set OMP_NUM_THREADS=2"),
            ({"shared_memory": 2**20}, "warning", "/dev/shm has 1 MB free"),
        ],
    )
    def test_findings_have_a_remedy(self, machine, changes, level, problem):
        healthy = replace(
            machine,
            cores=2,
            threads=2,
            shared_memory=GIB,
            kernels=Kernels(True, "", "openmp", "/cache"),
            disk=replace(machine.disk, writable=True),
        )
        assert machine_findings(healthy) == []
        (found,) = machine_findings(replace(healthy, **changes))
        assert found.level == level
        assert problem in str(found)
        assert found.remedy

    def test_broken_cpu_kernels_stop_no_gpu(self, machine):
        broken = replace(machine, kernels=Kernels(False, "no compiler", "", None))
        levels = [
            next(found.level for found in machine_findings(broken, device) if "CPU kernels" in found.problem)
            for device in ("cpu", "cuda")
        ]
        assert levels == ["error", "warning"]

    def test_an_old_torch_is_an_error(self, machine):
        old = replace(machine, versions={**machine.versions, "torch": "2.9.1+cpu"})
        assert "torch 2.9.1+cpu is older than 2.10" in str(machine_findings(old)[0])


class TestForecast:
    def test_of_the_tiny_data_set_is_measured(self, diagnosis):
        found = diagnosis.forecast
        assert not diagnosis.fails
        assert (found.training_cases, found.validation_cases) == (4, 2)
        assert found.steps == 30
        assert 0 < found.trial.step_s < found.run_s
        assert found.trial.program < found.trial.peak <= found.peak
        assert found.estimate.least < found.peak - found.trial.program < found.estimate.likely
        assert found.preprocess_s > 0
        assert found.validation_s > 0

    def test_of_five_folds_counts_the_disk_of_all(self, diagnosis, dataset, monkeypatch):
        monkeypatch.setattr(doctor, "run_trial", lambda *arguments: diagnosis.forecast.trial)
        one = diagnose(dataset, out="runs", config=tiny_config(), fold=0)
        assert diagnosis.forecast.run_bytes == 5 * one.forecast.run_bytes

    def test_does_not_count_what_other_runs_have_written(self, diagnosis, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(doctor, "run_trial", lambda *arguments: diagnosis.forecast.trial)
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 1000, True))
        (tmp_path / "old").mkdir()
        with (tmp_path / "old" / "last.ckpt").open("wb") as file:
            file.truncate(10**9)
        found = diagnose(dataset, out=tmp_path, config=tiny_config())
        assert any("of disk, and 0 MB are free" in item.problem for item in found.findings)

    def test_by_time_has_as_many_steps_as_fit(self, diagnosis):
        trial = diagnosis.forecast.trial
        timed = tiny_config(train={"max_steps": None, "budget": "100s"})
        steps, seconds = doctor._length(timed, replace(trial, step_s=0.5), validation_s=2.0)
        assert (steps, seconds) == (192, 100.0)  # two validations of 2 s
        assert doctor._length(timed, replace(trial, step_s=0.5), validation_s=50.0) == (100, 100.0)
        assert doctor._length(timed, None, validation_s=2.0) == (0, 0.0)

    def test_warns_of_a_run_too_short_to_learn(self, diagnosis):
        assert [str(found) for found in diagnosis.findings if "30 steps" in found.problem] == [
            "the run has 30 steps, too few to learn much from. Give a larger --budget, or a smaller "
            "--data.max-patch-voxels."
        ]

    def test_of_a_device_that_is_not_there_is_an_error(self, dataset):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        found = diagnose(dataset, config=tiny_config(train={"device": "cuda"}))
        assert found.fails
        assert found.forecast is None
        assert any("device 'cuda' is not available" in str(item) for item in found.findings)

    def test_of_a_data_set_that_does_not_fit_names_the_setting(self, dataset, monkeypatch):
        monkeypatch.setattr(limits, "memory", lambda: Memory(GIB, 10**4, 0, "cgroup"))
        found = diagnose(dataset, config=tiny_config())
        assert found.fails
        assert found.forecast.trial is None
        assert any("by its control group" in str(item) for item in found.findings)

    def test_of_steps_that_fail_is_an_error(self, dataset, monkeypatch):
        monkeypatch.setattr(doctor, "run_trial", lambda *arguments: "out of memory")
        found = diagnose(dataset, config=tiny_config(), budget="1h")
        assert any(item.problem == "a training step failed: out of memory" for item in found.findings)


class TestTrial:
    def test_of_a_process_that_is_killed_says_so(self, build_plan, monkeypatch):
        monkeypatch.setattr("segscse.training.trial._trial", _killed)
        assert "was killed" in run_trial(build_plan(), tiny_config(), (8, 8, 8), torch.device("cpu"), "fp32")

    def test_of_more_labels_than_8_bits_hold_is_measured(self, build_plan):
        plan = build_plan(labels=tuple((number, str(number)) for number in range(300)))
        found = run_trial(plan, tiny_config(), plan.patch_size, torch.device("cpu"), "fp32")
        assert not isinstance(found, str), found

    def test_of_steps_that_do_not_fit_says_so(self, build_plan, monkeypatch):
        monkeypatch.setattr("segscse.training.trial._trial", _limited)
        found = run_trial(build_plan(), tiny_config(), (256, 256, 256), torch.device("cpu"), "fp32")
        assert isinstance(found, str)
        assert "memory" in found


def _killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def _limited(*arguments):
    """Make the steps in an address space that leaves 100 MB, half of what the images take."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 10**8, held + 10**8))
    x = torch.randn((2, 1, *arguments[2]))
    return x.shape


class TestCommand:
    @pytest.fixture
    def config(self, tmp_path):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(SETTINGS))
        return path

    def test_says_what_there_is_and_writes_it(self, dataset, config, tmp_path, capsys):
        arguments = ["doctor", dataset, "--config", config, "--out", tmp_path / "runs", "--json", tmp_path / "d.json"]
        assert run([str(argument) for argument in arguments]) == 0
        out = capsys.readouterr().out
        assert "this machine" in out
        assert "this training" in out
        assert out.endswith("nothing would fail\n")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["d.json", "tiny.yaml"]
        found = json.loads((tmp_path / "d.json").read_text())
        assert found["forecast"]["trial"]["steps"] > 0
        assert found["machine"]["memory"]["available"] > 0

    def test_ends_with_2_where_something_would_fail(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert run(["doctor", "--out", str(tmp_path / "file")]) == 2
        out = capsys.readouterr().out
        assert "cannot be written to. Choose another folder with --out." in " ".join(out.split())
        assert out.endswith("something would fail\n")

    def test_names_a_data_set_that_is_not_there(self, tmp_path, capsys):
        assert run(["doctor", str(tmp_path / "nothing")]) == 2
        assert "error: " in capsys.readouterr().out


class TestRefusals:
    def test_training_under_ulimit_is_refused_before_anything_is_written(self, tmp_path):
        # A limit of the address space that leaves 120 MB: the scans of 144^3 take more than that to preprocess.
        rng = np.random.default_rng(0)
        for number in range(3):
            write_volume(tmp_path / "images" / f"{number}.nii", rng.normal(size=(144, 144, 144)).astype(np.float32))
            label = np.zeros((144, 144, 144), np.uint8)
            label[20:60, 20:60, 20:60] = 1
            write_volume(tmp_path / "labels" / f"{number}.nii", label)
        code = (
            "import contextlib, resource, sys\n"
            "from segscse.training import setup\n"
            "from segscse import cli, limits\n"
            "original = setup.plan_dataset\n"
            "def planned(*arguments, **options):\n"
            "    found = original(*arguments, **options)\n"
            "    held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "    resource.setrlimit(resource.RLIMIT_AS, (held + 120 * 10**6,) * 2)\n"
            "    return found\n"
            "setup.plan_dataset = planned\n"
            "setup.kernels_compiling = lambda *arguments: contextlib.nullcontext()\n"  # LLVM aborts without memory
            f"sys.exit(cli.run(['train', {str(tmp_path)!r}, '--out', {str(tmp_path / 'run')!r}]))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        line = done.stderr.strip().splitlines()[-1]
        assert line.startswith("segscse: training takes about ")
        assert "can be had by ulimit -v. " in line
        assert not (tmp_path / "run").exists()

    def test_training_on_a_full_disk_is_refused_before_anything_is_written(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, 10**5, True))
        with pytest.raises(InputError, match=r"the run takes about .* of disk, and 0 MB are free"):
            training.train_run(dataset, tmp_path / "run", tiny_config())
        assert not (tmp_path / "run").exists()


def test_a_finding_is_one_sentence_or_two():
    assert str(Finding("error", "it fails.", "Mend it")) == "it fails. Mend it."
    assert str(Finding("warning", "it may fail")) == "it may fail."
