"""What each verb does when memory or disk are short: refused in one line, before anything is written."""

import hashlib
import io
import json
import re
import tarfile

import numpy as np
import pytest
from loopback import Server
from tiny import dataset, tiny_config, trained  # noqa: F401, fixtures
from volumes import write_volume

from segscse import limits
from segscse.cli import run
from segscse.crossval import cross_validate
from segscse.data.fetch import fetch_archive
from segscse.errors import InputError
from segscse.inference.export import export_model
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import load
from segscse.inference.segment import Options
from segscse.limits import Disk, Memory

# The fixtures come by import, so every test that takes one looks like a redefinition.
# ruff: noqa: F811

TASK = "Task99_Toy"


@pytest.fixture
def memory(monkeypatch):
    """Return a function that leaves so many bytes of memory."""
    return lambda room: monkeypatch.setattr(limits, "memory", lambda: Memory(10**10, room, 0, "cgroup"))


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Return a function that leaves so many bytes of disk."""

    def leave(free):
        monkeypatch.setattr(limits, "disk_at", lambda path: Disk(tmp_path, free, True))
        monkeypatch.setattr("segscse.data.fetch.disk_at", limits.disk_at)

    return leave


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        write_volume(tmp_path / "scans" / f"{number}.nii", rng.normal(size=(48, 48, 48)).astype(np.float32))
    return tmp_path / "scans"


class TestPredict:
    def _predict(self, trained, scans, out, **options):
        said = []
        predict_files(load(trained.folder, device="cpu"), [scans], out, say=said.append, **options)
        return said

    def test_that_fits_says_what_it_takes(self, trained, scans, tmp_path):
        (line,) = self._predict(trained, scans, tmp_path / "out")
        assert line.startswith("memory: at most about")

    def test_with_too_little_memory_is_refused(self, trained, scans, tmp_path, memory):
        memory(10**5)
        with pytest.raises(InputError, match=r"the largest case takes about .* by its control group\. Free memory"):
            self._predict(trained, scans, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_that_would_fit_with_a_limit_is_told_which(self, trained, scans, tmp_path, memory):
        found = predict_files(load(trained.folder, device="cpu"), [scans], tmp_path / "first").memory
        memory(found.total - found.program - 10**4)
        _, warning = self._predict(trained, scans, tmp_path / "out")
        assert re.search(r"it may be killed\. Give --memory \d+MB$", warning)

    def test_with_too_little_disk_is_refused(self, trained, scans, tmp_path, disk):
        disk(100)
        with pytest.raises(InputError, match=r"the prediction takes about .* of disk"):
            self._predict(trained, scans, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_counts_probabilities(self, trained, scans, tmp_path, disk):
        disk(40_000)  # enough for three label maps of 48^3, packed as usual
        assert len(self._predict(trained, scans, tmp_path / "labels")) == 1
        options = Options(probabilities=True, uncertainty=True)
        assert len(self._predict(trained, scans, tmp_path / "maps", options=options)) == 2

    def test_into_a_file_is_refused(self, trained, scans, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(InputError, match="is not a folder"):
            self._predict(trained, scans, tmp_path / "out")


class TestExport:
    def test_with_too_little_disk_is_refused(self, trained, tmp_path, disk):
        pytest.importorskip("openvino", reason="the optional engine")
        disk(1000)
        with pytest.raises(InputError, match=r"the model takes about .* of disk"):
            export_model(trained.folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestCrossValidation:
    def test_needs_the_disk_of_all_folds_at_the_start(self, dataset, tmp_path, disk):
        disk(70_000)
        with pytest.raises(InputError, match=r"the run takes about .* of disk"):
            cross_validate(dataset, out=tmp_path / "cv", config=tiny_config(train={"max_steps": 1}))
        assert [path.name for path in (tmp_path / "cv").iterdir()] == ["settings.json"]  # and it may be started again


class TestEvaluate:
    @pytest.fixture
    def labels(self, tmp_path):
        label = np.zeros((32, 32, 32), np.uint8)
        label[4:9, 4:9, 4:9] = 1
        for folder in ("pred", "ref"):
            for number in range(3):
                write_volume(tmp_path / folder / f"{number}.nii.gz", label)
        return tmp_path

    def _evaluate(self, labels, *more):
        folders = ["--pred", labels / "pred", "--ref", labels / "ref", "--out", labels / "out", *more]
        return run(["evaluate", *(str(item) for item in folders)])

    def test_with_too_little_memory_is_refused(self, labels, memory, capsys):
        memory(2 * 32**3 - 1)
        assert self._evaluate(labels) == 2
        assert "the evaluation takes about" in capsys.readouterr().err
        assert not (labels / "out").exists()

    def test_with_room_for_one_case_at_a_time_warns(self, labels, memory, capsys):
        memory(2 * 32**3 * 10)
        assert self._evaluate(labels, "--workers", "2", "--no-viewer") == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if "Give --workers 1" in line]
        assert [line.startswith("segscse: warning: ") for line in lines] == [True]

    def test_into_a_file_is_refused_before_anything_is_read(self, labels, capsys):
        (labels / "out").write_text("")
        (labels / "ref" / "0.nii.gz").write_bytes(b"damaged")
        assert self._evaluate(labels) == 2
        assert "out: is not a folder" in capsys.readouterr().err


class TestFetch:
    @pytest.fixture
    def server(self):
        server = Server()
        content = {"training": [{"image": "./a.nii.gz", "label": "./a.nii.gz"}]}
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in (("dataset.json", json.dumps(content).encode()), ("a.nii.gz", bytes(30_000))):
                member = tarfile.TarInfo(f"{TASK}/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        server.payload = buffer.getvalue()
        yield server
        server.close()

    def _fetch(self, server, out):
        md5 = hashlib.md5(server.payload, usedforsecurity=False).hexdigest()
        return fetch_archive(f"{server.url}/{TASK}.tar", md5, out)

    def test_of_more_than_the_disk_holds_is_refused_before_the_first_byte(self, server, tmp_path, disk):
        disk(50_000)  # the archive alone would fit
        with pytest.raises(InputError, match="the archive with its content takes about"):
            self._fetch(server, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").iterdir()] == []

    def test_that_fits_is_made(self, server, tmp_path, disk):
        disk(200_000)
        assert (self._fetch(server, tmp_path / "data") / "a.nii.gz").is_file()

    def test_that_cannot_be_unpacked_keeps_the_archive(self, server, tmp_path, disk):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / f"{TASK}.tar").write_bytes(server.payload)
        disk(20_000)
        with pytest.raises(InputError, match=r"cannot be written \(0 MB to unpack, 0 MB free\)"):
            self._fetch(server, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").iterdir()] == [f"{TASK}.tar"]
