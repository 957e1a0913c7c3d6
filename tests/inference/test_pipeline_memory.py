"""The memory of a folder's prediction: stated, kept to, refused beforehand, and what is done where it is not known."""

import threading

import numpy as np
import pytest
from nearest import CPU, Nearest, nearest_predictor
from tiny import tiny_case, tiny_plan
from volumes import write_volume

from segscse.data.io import read_image
from segscse.data.output import write_labels
from segscse.errors import InputError
from segscse.inference import room
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import Predictor


def test_the_estimate_is_stated_and_a_limit_keeps_to_it(scans, out):
    said = []
    outcome = predict_files(nearest_predictor(), [scans], out, memory=10**12, say=said.append)
    assert outcome.memory.total < 10**12
    assert said == [f"memory: at most about {outcome.memory}"]


def test_an_impossible_limit_is_refused_with_what_would_do_and_nothing_is_written(scans, out):
    with pytest.raises(InputError, match=r"--memory 10 MB is too little: the smallest .*Give at least --memory"):
        predict_files(nearest_predictor(), [scans], out, memory=10**7)
    assert not out.exists()


def test_with_little_memory_cases_go_one_after_the_other(scans, out, monkeypatch):
    model = nearest_predictor(tiny_plan(batch_size=1))
    needed = predict_files(model, [scans], out).memory
    assert needed.overlapped
    monkeypatch.setattr(room, "resident_bytes", lambda: needed.program)
    alone = needed.total - needed.reading - needed.image - needed.labels
    tight = predict_files(model, [scans], out, memory=alone + needed.reading // 2)
    assert not tight.memory.overlapped
    assert len(tight.written) == 3


def test_what_was_found_to_fit_is_not_refused_later_because_the_process_grew(scans, out, monkeypatch):
    needed = predict_files(nearest_predictor(), [scans], out).memory
    grown = iter(range(100))
    monkeypatch.setattr(room, "resident_bytes", lambda: needed.program + 10**9 * next(grown))
    outcome = predict_files(nearest_predictor(), [scans], out, memory=needed.total)
    assert (outcome.memory, outcome.failures) == (needed, [])


def test_a_case_whose_header_did_not_tell_is_refused_alone(tmp_path, scans, out, monkeypatch):
    monkeypatch.setattr(room, "scan_size", lambda files: None)
    outcome = predict_files(nearest_predictor(), [scans], out, memory=10**7)
    assert outcome.memory is None
    assert len(outcome.failures) == 3
    assert all("is too little" in failure.reason for failure in outcome.failures)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_of_every_format_is_known_beforehand(tmp_path, out, suffix):
    scan = write_volume(tmp_path / "scan.nii.gz", tiny_case(0)[0], np.eye(4))
    write_labels(tmp_path / "in" / f"scan{suffix}", np.round(read_image(scan).array).astype(np.int16), read_image(scan))
    with pytest.raises(InputError, match="--memory 10 MB is too little"):
        predict_files(nearest_predictor(), [tmp_path / "in"], out, memory=10**7)
    assert predict_files(nearest_predictor(), [tmp_path / "in"], out).memory is not None


def test_a_case_whose_header_did_not_tell_gets_the_batch_that_fits(scans, out, monkeypatch):
    batches, readers = [], set()

    class Counting(Nearest):
        def forward(self, x):
            batches.append(len(x))
            return super().forward(x)

    plan = tiny_plan(patch_size=(8, 20, 12), batch_size=3)  # three windows a case
    model = Predictor(Counting(), plan, provenance={}, device=CPU)
    known = predict_files(model, [scans], out).memory
    assert batches == [1, 3, 3, 3]  # the first call measures memory
    monkeypatch.setattr(room, "scan_size", lambda files: None)
    monkeypatch.setattr(room, "resident_bytes", lambda: known.program)
    prepare = model.prepare
    model.prepare = lambda files: readers.add(threading.current_thread()) or prepare(files)
    batches.clear()
    alone = known.total - known.reading - known.image - known.labels
    outcome = predict_files(model, [scans], out, memory=alone - known.activations // 3)
    assert (outcome.memory, len(outcome.written)) == (None, 3)
    assert max(batches) < 3
    assert readers == {threading.main_thread()}  # with a limit and no size known, one case at a time
