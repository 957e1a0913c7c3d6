"""What the machine may do to a run: disks that are full or read-only, too little memory, two runs at once.

There are no worker processes in training, prediction and evaluation on one machine (threads only), so a SIGKILL to a
worker is one to the run: test_kill_training.py, test_kill_predict.py. What a scan needs is estimated before it is read:
tests/inference/test_memory.py.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killing import ROOT, differences, finish, predict, require_whole_gzip, start, train, training_state
from tiny import tiny_case, tiny_config
from volumes import write_volume

from segscse.config import ExperimentConfig
from segscse.errors import InputError
from segscse.files import LOCK, is_temporary, only_writer, remove_leftovers
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.training.checkpoints import damage
from segscse.training.run import train_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets limits that Linux enforces")
CONFIG = tiny_config(
    model={"base_features": 4, "max_features": 4},
    train={"max_steps": 6, "validations": 2, "checkpoint_every": "0.000001s"},
)
CASES = 4
FULL = "SEGSCSE_KILLS" in os.environ  # all fill levels, as with the full number of kills


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for index in range(CASES):
        write_volume(folder / f"scan_{index}.nii.gz", tiny_case(index)[0], np.eye(4))
    return folder


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    base = tmp_path_factory.mktemp("whole")
    process = start(train, base / "log", dataset, base / "run", CONFIG, False, base / "samples", None)
    assert finish(process) == 0, (base / "log").read_text()
    return base / "run"


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of so many bytes."""
    mounted = []

    def mount(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no disk can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# By the system while something is written, or by the check before anything is.
NO_SPACE = ("No space left on device", "of disk, and")


def _size(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _only_line(log, code):
    """Return the last line, which is the error; there is no traceback."""
    text = log.read_text()
    assert code == 2, text
    assert "Traceback" not in text, text
    line = text.strip().splitlines()[-1]
    assert line.startswith("segscse: ")
    return line


def _require_sound(folder):
    for path in folder.rglob("*"):
        assert not is_temporary(path)
        if path.suffix == ".ckpt":
            assert not damage(path)
        if path.suffix == ".gz":
            require_whole_gzip(path)
        if path.suffix == ".json":
            json.loads(path.read_text())


def _limited_train(limit, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(*arguments)


def _limited_predict(limit, *arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    predict(*arguments)


class TestAFullDisk:
    @pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.8] if FULL else [0.05, 0.6])
    def test_stops_training_with_what_is_there_whole_and_space_lets_it_go_on(
        self, share, dataset, whole, small_disk, tmp_path
    ):
        disk = small_disk("8m")
        run, log, samples = disk / "run", tmp_path / "log", tmp_path / "samples"
        free = int(share * _size(whole))
        (disk / "filler").write_bytes(b"x" * (8 * 2**20 - free))
        line = _only_line(log, finish(start(train, log, dataset, run, CONFIG, False, samples, None)))
        assert any(said in line for said in NO_SPACE)
        assert str(run) in line
        _require_sound(disk)
        (disk / "filler").unlink()
        resume = (run / "config.yaml").is_file()
        config = ExperimentConfig() if resume else CONFIG
        assert finish(start(train, log, dataset, run, config, resume, samples, None)) == 0, log.read_text()
        assert differences(training_state(whole), training_state(run)) == []

    @pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8] if FULL else [0.5])
    def test_fails_the_cases_that_do_not_fit_and_keeps_the_others(self, share, scans, trained, small_disk, tmp_path):
        assert finish(start(predict, tmp_path / "log", trained.folder, scans, tmp_path / "out", False, None)) == 0
        disk = small_disk("1m")
        (disk / "filler").write_bytes(b"x" * (2**20 - int(share * _size(tmp_path / "out")) // 4096 * 4096))
        code = finish(start(predict, tmp_path / "log", trained.folder, scans, disk / "out", False, None))
        text = (tmp_path / "log").read_text()
        assert any(said in text for said in NO_SPACE)
        assert "Traceback" not in text
        assert code in (0, 2)  # cases failed and are listed, or the list itself could not be written
        _require_sound(disk)
        (disk / "filler").unlink()
        assert finish(start(predict, tmp_path / "log", trained.folder, scans, disk / "out", True, None)) == 0
        for path in (tmp_path / "out").rglob("*.nii.gz"):
            assert (disk / "out" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()


class TestALimitOfTheFileSize:
    def test_between_the_small_files_and_the_checkpoint_is_named(self, dataset, whole, tmp_path):
        limit = (whole / "checkpoints" / "last.ckpt").stat().st_size // 2
        log = tmp_path / "log"
        process = start(
            _limited_train, log, limit, dataset, tmp_path / "run", CONFIG, False, tmp_path / "samples", None
        )
        line = _only_line(log, finish(process))
        assert "checkpoints/last.ckpt: cannot be written (File too large)" in line
        _require_sound(tmp_path / "run")

    def test_below_a_label_map_fails_its_case(self, scans, trained, tmp_path):
        process = start(_limited_predict, tmp_path / "log", 300, trained.folder, scans, tmp_path / "out", False, None)
        finish(process)
        text = (tmp_path / "log").read_text()
        assert "File too large" in text
        assert "Traceback" not in text
        _require_sound(tmp_path / "out")


class TestAFileInPlaceOfTheFolder:
    """What a read-only folder is to anyone but root."""

    @pytest.fixture
    def blocked(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        yield tmp_path / "file"
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("below", ["", "out"])
    def test_training_names_it(self, below, blocked, dataset):
        with pytest.raises(InputError, match=r"cannot be written to \((File exists|Not a directory)\)"):
            train_run(dataset, blocked / below, CONFIG)

    @pytest.mark.parametrize("below", ["", "out"])
    def test_prediction_names_it(self, below, blocked, scans, trained):
        with pytest.raises(InputError, match=r"file: is not a folder"):
            predict_files(load(trained.folder, device="cpu"), [scans], blocked / below)

    def test_a_folder_of_maps_that_cannot_be_made_fails_the_cases(self, scans, trained, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "probabilities").write_text("mine")
        code = finish(start(predict, tmp_path / "log", trained.folder, scans, tmp_path / "out", False, None))
        assert code == 0
        assert "0 written, 0 verified, [Failure(" in (tmp_path / "log").read_text()
        assert "cannot create the output folder" in (tmp_path / "log").read_text()
        assert not list((tmp_path / "out").glob("*.nii.gz"))  # a label map without its maps would look whole


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(dataset, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        train_run(dataset, tmp_path / "run", CONFIG)


def _starved(extra, model, scans, out):
    """Predict with so many bytes of address space more than are in use before the first scan."""
    predictor = load(model, device="cpu")
    predict_files(predictor, [scans / "scan_0.nii.gz"], out)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
    predict_files(predictor, [scans], out)


def test_too_little_memory_is_named_before_the_first_case(trained, tmp_path):
    scans = tmp_path / "scans"
    for index in range(2):
        write_volume(scans / f"scan_{index}.nii.gz", tiny_case(index)[0], np.eye(4))
    write_volume(scans / "scan_2.nii.gz", np.zeros((400, 400, 300), np.float32), np.eye(4))
    code = finish(start(_starved, tmp_path / "log", 150 * 2**20, trained.folder, scans, tmp_path / "out"))
    assert re.search(r"the largest case takes about .* can be had by ulimit -v", _only_line(tmp_path / "log", code))
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["scan_0.nii.gz"]
    _require_sound(tmp_path / "out")


def test_a_small_shared_memory_is_no_obstacle(dataset, tmp_path):
    """Loaders with worker processes fail there with a bus error; there are none."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no namespace of its own can be had here")
    steps = "--train.device cpu --train.max-steps 2 --model.base-features 4 --model.max-features 4"
    labels = dataset / "labelsTr"
    commands = [
        f"train {dataset} --out {tmp_path / 'run'} {steps}",  # predicts and scores in the end, too
        f"evaluate --pred {labels} --ref {labels} --out {tmp_path / 'scores'} --workers 2",
    ]
    program = "import sys; from segscse.cli import run; [run(a.split()) and sys.exit(1) for a in sys.argv[1:]]"
    shell = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-c", program, *commands],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "scores" / "summary.json").is_file()


class TestTwoRunsAtOnce:
    def test_the_second_training_is_refused_and_the_first_goes_on(self, dataset, whole, tmp_path):
        run, log = tmp_path / "run", tmp_path / "log"
        first = start(train, log, dataset, run, CONFIG, False, tmp_path / "samples", None)
        while not (run / LOCK).exists() and first.is_alive():
            time.sleep(0.001)
        second = tmp_path / "second"
        for resume in (False, True):
            code = finish(start(train, second, dataset, run, CONFIG, resume, tmp_path / "other", None))
            if first.is_alive():  # else it was too slow to be refused for that
                assert "another process is writing into it. Wait for it to end." in _only_line(second, code)
        assert finish(first) == 0, log.read_text()
        assert differences(training_state(whole), training_state(run)) == []
        assert not (run / LOCK).exists()

    def test_the_second_writer_is_refused_whatever_it_is(self, dataset, scans, trained, tmp_path):
        out = tmp_path / "out"
        with only_writer(out):
            for work in (
                lambda: train_run(dataset, out, CONFIG),
                lambda: predict_files(load(trained.folder, device="cpu"), [scans], out),
            ):
                with pytest.raises(InputError, match=r"out: another process is writing into it. Wait for it to end."):
                    work()
            assert [path.name for path in out.iterdir()] == [LOCK]
        assert not out.exists()  # made for nothing

    def test_a_lock_that_a_kill_left_is_none(self, tmp_path):
        (tmp_path / LOCK).write_bytes(b"")
        with only_writer(tmp_path):
            assert (tmp_path / LOCK).exists()
        assert list(tmp_path.iterdir()) == []

    def test_a_lock_that_its_owner_removed_meanwhile_is_refused(self, tmp_path, monkeypatch):
        import fcntl

        whole = fcntl.flock

        def late(file, operation):
            (tmp_path / LOCK).unlink()
            whole(file, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(InputError, match="another process is writing into it"), only_writer(tmp_path):
            pass

    def test_a_file_system_without_locks_is_used_without(self, tmp_path, monkeypatch):
        import fcntl

        def none(file, operation):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", none)
        with only_writer(tmp_path / "out"):
            (tmp_path / "out" / "a").write_text("a")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["a.tmp", ".0123456789ab.tm", ".0123456789AB.tmp", ".lock", "0123456789ab.tmp", ".0123456789ab.tmpx"]
    for name in (*kept, ".0123456789ab.tmp", ".0123456789ac.tmp.nii.gz"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".0123456789ad.tmp").mkdir()
    (tmp_path / ".0123456789ad.tmp" / "file").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".0123456789ae.tmp").symlink_to(tmp_path / "elsewhere")
    assert remove_leftovers(tmp_path, tmp_path / "none") == 4
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "elsewhere"}
