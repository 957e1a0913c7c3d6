"""Prediction and preprocessing that are killed leave whole files, and end as an uninterrupted run does.

A few kills by default; `SEGSCSE_KILLS=30` makes that many of either.
"""

import csv
import json
import os
import random
import time

import nibabel as nib
import numpy as np
import pytest
from killing import KILLED, finish, kill_after, predict, prepare, require_whole_gzip, start
from tiny import tiny_case, tiny_config, write_dataset
from volumes import write_volume

from segscse.files import LOCK, is_temporary
from segscse.inference.pipeline import MAPS

KILLS = int(os.environ.get("SEGSCSE_KILLS", "3"))
CASES = 20


def _files(folder, pattern="**/*"):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}


def _wait_for(path, process):
    while not path.exists() and process.is_alive():
        time.sleep(0.001)


def _kill_within(begin, started, seconds, rng):
    """Begin until a kill at a random moment of the work comes before its end."""
    while True:
        started.unlink(missing_ok=True)
        process = begin()
        _wait_for(started, process)
        if kill_after(process, rng.uniform(0.0, seconds)):
            return


class TestPrediction:
    @pytest.fixture(scope="class")
    def scans(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("scans")
        for index in range(CASES):
            write_volume(folder / f"scan_{index:02}.nii.gz", tiny_case(index)[0], np.diag([-1.0, -1.0, 1.0, 1.0]))
        return folder

    @pytest.fixture(scope="class")
    def whole(self, scans, trained, tmp_path_factory):
        """Return the outputs of an uninterrupted run and how long it took after the model was loaded."""
        base = tmp_path_factory.mktemp("whole")
        for name in ("first", "timed"):
            process = start(predict, base / "log", trained.folder, scans, base / name, False, base / f"{name}_started")
            _wait_for(base / f"{name}_started", process)
            began = time.monotonic()
            assert finish(process) == 0, (base / "log").read_text()
        assert _files(base / "first") == _files(base / "timed")  # equal to the byte
        assert len(_files(base / "first")) == 3 * CASES + 2
        return base / "first", time.monotonic() - began

    @staticmethod
    def _require_whole(out):
        for path in out.rglob("*.nii.gz"):
            if not is_temporary(path):
                require_whole_gzip(path)
                assert nib.load(path).shape[:3] == (16, 20, 12)
        if (out / "predictions.json").is_file():
            json.loads((out / "predictions.json").read_text())
        if (out / "quality.csv").is_file():
            with (out / "quality.csv").open() as stream:
                assert all(None not in row.values() for row in csv.DictReader(stream))
        names = {path.name for path in out.iterdir() if not is_temporary(path) and path.suffix != ".gz"}
        assert names <= {LOCK, "predictions.json", "quality.csv", *MAPS}

    @pytest.mark.parametrize("number", range(KILLS))
    def test_a_kill_at_any_moment_leaves_whole_files_and_the_rest_is_made(
        self, number, scans, whole, trained, tmp_path
    ):
        rng = random.Random(number)
        out, started = tmp_path / "out", tmp_path / "started"

        def begin():
            return start(predict, tmp_path / "log", trained.folder, scans, out, number % 2 == 1, started)

        _kill_within(begin, started, whole[1], rng)
        if out.exists():
            self._require_whole(out)
        assert finish(start(predict, tmp_path / "log", trained.folder, scans, out, True, None)) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
        assert _files(out) == _files(whole[0])  # and so nothing temporary is left

    def test_verified_cases_are_not_made_again_after_a_kill(self, scans, whole, trained, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        for name, content in _files(whole[0]).items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        (out / "scan_03.nii.gz").unlink()
        (out / ".0123456789ab.tmp.nii.gz").write_bytes(b"half")  # as a kill would leave them
        (out / "uncertainty" / ".0123456789ab.tmp.nii.gz").write_bytes(b"half")
        (out / LOCK).write_bytes(b"")
        assert finish(start(predict, tmp_path / "log", trained.folder, scans, out, True, None)) == 0
        assert f"1 written, {CASES - 1} verified, []" in (tmp_path / "log").read_text()
        assert _files(out) == _files(whole[0])


class TestPreprocessing:
    CONFIG = tiny_config(
        model={"base_features": 4, "max_features": 4},
        train={"max_steps": 1, "validations": 1},
        data={"cache_gb": 0.0},
    )

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory):
        """Return the data set, the run and how long its preprocessing took."""
        base = tmp_path_factory.mktemp("whole")
        data = write_dataset(base / "data", cases=12)
        for name in ("first", "timed"):
            started = base / f"{name}_started"
            process = start(prepare, base / "log", data, base / name, self.CONFIG, started)
            _wait_for(started, process)
            began = time.monotonic()
            while started.exists() and process.is_alive():
                time.sleep(0.001)
            seconds = time.monotonic() - began
            assert finish(process) == 0, (base / "log").read_text()
        return data, base / "first", seconds

    @pytest.mark.parametrize("number", range(KILLS))
    def test_a_kill_at_any_moment_leaves_whole_arrays_and_the_rest_is_made(self, number, whole, tmp_path):
        data, first, seconds = whole
        folder, started = tmp_path / "run", tmp_path / "started"
        expected = _files(first / "cache")
        rng = random.Random(number)
        while True:
            process = start(prepare, tmp_path / "log", data, folder, self.CONFIG, started)
            _wait_for(started, process)
            process.join(rng.uniform(0.0, seconds))
            within = started.exists()
            process.kill()
            if finish(process) == KILLED and within and started.exists():
                break
            started.unlink(missing_ok=True)
            folder.rename(tmp_path / f"ended{rng.random()}")
        found = {name: content for name, content in _files(folder / "cache").items() if not is_temporary(first / name)}
        assert all(content == expected[name] for name, content in found.items())
        assert {path.name for path in folder.iterdir()} <= {LOCK, "cache"}
        times = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("label.npy")}
        assert finish(start(prepare, tmp_path / "log", data, folder, self.CONFIG, started)) == 0
        assert _files(folder / "cache") == expected  # and so nothing temporary is left
        assert all(path.stat().st_mtime_ns == before for path, before in times.items())  # whole cases were kept
        weights = [run / "model" / "model.safetensors" for run in (folder, first)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
