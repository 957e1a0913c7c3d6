"""Cases that fail in a folder's prediction: alone, told, and without the label map of an earlier run."""

import csv
import json
import signal

import pytest
from nearest import corrupt, nearest_predictor

from segscse.errors import InputError, Interrupted
from segscse.inference import pipeline
from segscse.inference.pipeline import predict_files
from segscse.inference.predictor import Ensemble
from segscse.inference.segment import Options, Segmentation

SIDE_FILES = {"predictions.json", "quality.csv"}


def _names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestUnexpectedErrors:
    """One that no stage foresees is that case's failure; a stop is none."""

    def _model(self, stage, error, monkeypatch):
        """Return a predictor that fails with an error in one stage of scan_1."""
        model = nearest_predictor()
        prepare, segment, save = model.prepare, pipeline.segment, Segmentation.save

        def fail(path, where):
            if stage == where and path.name.startswith("scan_1"):
                raise error

        def reading(files):
            fail(files[0], "reading")
            return prepare(files)

        def network(members, prepared, *arguments, **options):
            fail(prepared[0].source.path, "network")
            return segment(members, prepared, *arguments, **options)

        def writing(self, path):
            fail(path, "writing")
            save(self, path)

        model.prepare = reading
        monkeypatch.setattr(pipeline, "segment", network)
        monkeypatch.setattr(Segmentation, "save", writing)
        return model

    @pytest.mark.parametrize("stage", ["reading", "network", "writing"])
    @pytest.mark.parametrize("error", [AttributeError("no such tag"), OSError(28, "disk full"), Exception("odd")])
    def test_fail_alone_with_the_name_of_their_type(self, scans, out, monkeypatch, caplog, stage, error):
        caplog.set_level("DEBUG", logger=pipeline.__name__)
        model, options = self._model(stage, error, monkeypatch), Options(uncertainty=True)
        outcome = predict_files(model, [scans], out, options=options)
        reason = f"{type(error).__name__}: {error}"
        assert [(failure.case, failure.reason) for failure in outcome.failures] == [("scan_1", reason)]
        manifest = json.loads((out / "predictions.json").read_text())
        assert list(manifest["cases"]) == ["scan_0", "scan_2"]
        assert manifest["failures"] == {"scan_1": reason}
        names = {"scan_0.nii.gz", "scan_2.nii.gz"}
        assert _names(out) == {*names, *(f"uncertainty/{name}" for name in names), *SIDE_FILES}
        assert [record.exc_info[1] for record in caplog.records] == [error]

    @pytest.mark.parametrize("stage", ["reading", "network", "writing"])
    def test_a_stop_passes_and_leaves_a_manifest_of_what_is_whole(self, scans, out, monkeypatch, stage):
        error = Interrupted(signal.SIGTERM, "another process has vanished")
        with pytest.raises(Interrupted, match="vanished"):
            predict_files(self._model(stage, error, monkeypatch), [scans], out)
        manifest = json.loads((out / "predictions.json").read_text())
        assert "scan_0" in manifest["cases"]
        assert "scan_1" not in manifest["cases"]
        assert manifest["failures"] == {}


class TestFailuresOverEarlierPredictions:
    """What another model made of a case does not pass for this one's."""

    @pytest.fixture
    def done(self, scans, out):
        options = Options(uncertainty=True)
        predict_files(Ensemble([nearest_predictor(), nearest_predictor(mirror=True)]), [scans], out, options=options)
        return out

    @staticmethod
    def _rows(out):
        with (out / "quality.csv").open() as stream:
            return {row["case"] for row in csv.DictReader(stream)}

    def test_its_files_its_entry_and_its_row_go_and_the_reason_says_so(self, scans, done):
        corrupt(scans / "scan_1.nii.gz")
        outcome = predict_files(nearest_predictor(), [scans], done)
        (failure,) = outcome.failures
        removed = "scan_1.nii.gz"
        maps = ("uncertainty", "disagreement")
        assert failure.reason.endswith(
            f"Removed what an earlier run had made of it: {', '.join(f'{name}/{removed}' for name in maps)}, {removed}."
        )
        others = {f"scan_{index}.nii.gz" for index in (0, 2)}
        assert _names(done) == {*others, *SIDE_FILES}  # the earlier model's maps are not of these label maps
        manifest = json.loads((done / "predictions.json").read_text())
        assert list(manifest["cases"]) == ["scan_0", "scan_2"]
        assert list(manifest["failures"]) == ["scan_1"]
        assert self._rows(done) == {"scan_0", "scan_2"}

    def test_a_file_that_somebody_changed_stays(self, scans, done):
        (done / "scan_1.nii.gz").write_bytes(b"corrected by hand")
        corrupt(scans / "scan_1.nii.gz")
        (failure,) = predict_files(nearest_predictor(), [scans], done).failures
        assert (done / "scan_1.nii.gz").read_bytes() == b"corrected by hand"
        assert failure.reason.endswith("of it: uncertainty/scan_1.nii.gz, disagreement/scan_1.nii.gz.")

    def test_of_the_same_model_they_stay_where_the_scan_cannot_be_read_or_is_the_same(self, scans, out, monkeypatch):
        predict_files(nearest_predictor(), [scans], out)
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.name not in SIDE_FILES}

        def unreadable(files):
            raise InputError("cannot be read (Stale file handle)", file=files[0])

        with monkeypatch.context() as patched:
            patched.setattr(pipeline, "digests", unreadable)
            outcome = predict_files(nearest_predictor(), [scans], out, resume=True)
        assert len(outcome.failures) == 3
        assert outcome.failures[0].reason.endswith("What an earlier run of this model had made of it is kept.")
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name not in SIDE_FILES} == before
        assert self._rows(out) == {"scan_0", "scan_1", "scan_2"}
        again = predict_files(nearest_predictor(), [scans], out, resume=True)
        assert len(again.verified) == 3
        corrupt(scans / "scan_1.nii.gz")
        (failure,) = predict_files(nearest_predictor(), [scans], out, resume=True).failures
        assert failure.reason.endswith("Removed what an earlier run had made of it: scan_1.nii.gz.")

    def test_when_all_fail_no_row_is_left(self, scans, done):
        for path in scans.iterdir():
            corrupt(path)
        assert len(predict_files(nearest_predictor(), [scans], done).failures) == 3
        assert _names(done) == SIDE_FILES
        assert self._rows(done) == set()
