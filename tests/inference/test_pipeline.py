import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nearest import CPU, Nearest, corrupt, nearest_predictor
from scipy import ndimage
from tiny import tiny_case, tiny_plan
from volumes import write_volume

from segscse.data.io import read_image, read_labels
from segscse.data.output import write_labels
from segscse.errors import InputError, Interrupted
from segscse.inference import pipeline
from segscse.inference import segment as segment_module
from segscse.inference.pipeline import PARTS, predict_files
from segscse.inference.predictor import Ensemble, Predictor
from segscse.inference.segment import Options

SIDE_FILES = {"predictions.json", "quality.csv"}


def _names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestFolders:
    def test_a_bad_case_does_not_stop_the_others(self, scans, out):
        good = (scans / "scan_1.nii.gz").read_bytes()
        (scans / "scan_1.nii.gz").write_bytes(good[: len(good) // 2])
        seen = []
        outcome = predict_files(nearest_predictor(), [scans], out, progress=lambda *step: seen.append(step))
        assert [path.name for path in outcome.written] == ["scan_0.nii.gz", "scan_2.nii.gz"]
        assert [failure.case for failure in outcome.failures] == ["scan_1"]
        assert "cut short" in outcome.failures[0].reason
        assert _names(out) == {"scan_0.nii.gz", "scan_2.nii.gz", *SIDE_FILES}
        assert seen == sorted(seen)
        assert seen[-1] == (3 * PARTS, 3 * PARTS)

    def test_a_case_without_its_channels_does_not_stop_the_others(self, scans, out):
        for path in list(scans.iterdir()):
            path.rename(scans / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert not predict_files(nearest_predictor(), [scans], out).failures
        before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
        shutil.copy(scans / "scan_1_0000.nii.gz", scans / "scan_1_0001.nii.gz")
        outcome = predict_files(nearest_predictor(), [scans], out)
        assert [path.name for path in outcome.written] == ["scan_0.nii.gz", "scan_2.nii.gz"]
        assert [failure.case for failure in outcome.failures] == ["scan_1"]
        assert "case 'scan_1' has the channel files [0, 1], the model takes [0]" in outcome.failures[0].reason
        assert "What an earlier run of this model had made of it is kept." in outcome.failures[0].reason
        assert {path.name: path.read_bytes() for path in out.glob("*.nii.gz")} == before

    def test_a_case_that_breaks_the_network_does_not_stop_the_others(self, scans, out):
        class Fragile(Nearest):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls == 3:  # the first call measures memory
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
                return super().forward(x)

        model = Predictor(Fragile(), tiny_plan(patch_size=(16, 20, 12)), provenance={}, device=CPU)
        outcome = predict_files(model, [scans], out)
        assert [failure.case for failure in outcome.failures] == ["scan_1"]
        assert "can't allocate memory" in outcome.failures[0].reason
        assert {path.name for path in outcome.written} == {"scan_0.nii.gz", "scan_2.nii.gz"}

    def test_a_case_that_cannot_be_written_does_not_stop_the_others(self, scans, out):
        (out / "scan_1.nii.gz").mkdir(parents=True)
        outcome = predict_files(nearest_predictor(), [scans], out)
        assert [failure.case for failure in outcome.failures] == ["scan_1"]
        assert len(outcome.written) == 2

    def test_a_folder_with_somebody_elses_label_maps_is_left_alone(self, scans, out):
        out.mkdir()
        (out / "scan_1.nii.gz").write_bytes(b"a reference, say")
        with pytest.raises(InputError, match=r"scan_1\.nii\.gz: is there already, in a folder that no prediction has"):
            predict_files(nearest_predictor(), [scans], out, resume=True)
        assert _names(out) == {"scan_1.nii.gz"}

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_label_map_that_somebody_has_corrected_is_put_aside(self, scans, out, resume):
        predict_files(nearest_predictor(), [scans], out)
        whole = (out / "scan_1.nii.gz").read_bytes()
        for number in (1, 2):
            (out / "scan_1.nii.gz").write_bytes(f"corrected {number}".encode())
            outcome = predict_files(nearest_predictor(), [scans], out, resume=resume)
            (warning,) = [note for _, note in outcome.warnings if "changed" in note]
            assert str(out / "changed") in warning
        assert (out / "scan_1.nii.gz").read_bytes() == whole
        kept = {path.name: path.read_text() for path in (out / "changed").iterdir()}
        assert kept == {"scan_1.nii.gz": "corrected 1", "1_scan_1.nii.gz": "corrected 2"}

    def test_cases_are_dealt_out_in_the_order_of_the_first_process(self):
        """Sizes may change meanwhile, of which each process would have seen others."""
        first = SimpleNamespace(on_first=lambda work: ["c", "a", "b"], share=lambda items: items[1::2])
        assert list(pipeline._dealt({"a": (), "b": (), "c": ()}, first)) == ["a"]

    def test_labels_are_what_the_predictor_gives(self, scans, out):
        predict_files(nearest_predictor(), [scans], out)
        for index in range(3):
            expected = nearest_predictor().predict(scans / f"scan_{index}.nii.gz").array
            np.testing.assert_array_equal(read_labels(out / f"scan_{index}.nii.gz").array, expected)

    def test_probabilities_are_written_on_the_same_grid_within_half_a_step(self, scans, out):
        options = Options(probabilities=True, uncertainty=True)
        predict_files(nearest_predictor(), [scans / "scan_0.nii.gz"], out, options=options)
        expected = nearest_predictor().predict(scans / "scan_0.nii.gz", probabilities=True, uncertainty=True)
        maps = {name: nib.load(out / name / "scan_0.nii.gz") for name in ("probabilities", "uncertainty")}
        assert maps["probabilities"].shape == (*expected.array.shape, 3)
        for name, image in maps.items():
            np.testing.assert_array_equal(image.affine, expected.affine)
            assert image.get_data_dtype() == np.uint8
            assert np.abs(np.asarray(image.dataobj) - getattr(expected, name)).max() <= 0.5 / 255 + 1e-6
        assert not (out / "disagreement").exists()

    def test_large_maps_are_drawn_in_a_file_that_does_not_stay(self, scans, out, monkeypatch):
        options = Options(probabilities=True)
        predict_files(nearest_predictor(), [scans / "scan_0.nii.gz"], out / "a", options=options)
        monkeypatch.setattr(pipeline, "MAP_BYTES", 100)
        predict_files(nearest_predictor(), [scans / "scan_0.nii.gz"], out / "b", options=options)
        first, second = (
            np.asarray(nib.load(out / name / "probabilities" / "scan_0.nii.gz").dataobj) for name in ("a", "b")
        )
        np.testing.assert_array_equal(first, second)
        assert _names(out / "a") == _names(out / "b")

    def test_a_full_disk_is_the_failure_of_a_case(self, scans, out, monkeypatch):
        def full(descriptor, start, size):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(pipeline, "MAP_BYTES", 100)
        monkeypatch.setattr(os, "posix_fallocate", full)
        outcome = predict_files(nearest_predictor(), [scans], out, options=Options(probabilities=True))
        assert len(outcome.failures) == 3
        assert "cannot make a file of 0.0 GB (No space left on device)" in outcome.failures[0].reason
        assert _names(out) == {"predictions.json"}

    def test_a_stop_leaves_no_map_behind(self, scans, out, monkeypatch):
        def stop(*arguments, **options):
            assert [name for name in _names(out) if ".tmp" in name]
            raise KeyboardInterrupt

        monkeypatch.setattr(pipeline, "MAP_BYTES", 100)
        monkeypatch.setattr(segment_module, "draw", stop)
        predictor = nearest_predictor()
        with pytest.raises(Interrupted):
            predict_files(predictor, [scans / "scan_0.nii.gz"], out, options=Options(probabilities=True))
        assert not [name for name in _names(out) if ".tmp" in name]

    def test_maps_of_an_earlier_model_do_not_stay_beside_the_new_labels(self, scans, out):
        predict_files(nearest_predictor(), [scans], out, options=Options(uncertainty=True))
        assert len(list((out / "uncertainty").iterdir())) == 3
        predict_files(nearest_predictor(mirror=True), [scans], out)
        assert not list((out / "uncertainty").iterdir())

    def test_pieces_of_an_ensemble_are_those_of_its_label_map(self, scans, out):
        ensemble = Ensemble([nearest_predictor(), nearest_predictor(tiny_plan(spacing_mm=(1.3, 1.0, 0.8)))])
        predict_files(ensemble, [scans / "scan_0.nii.gz"], out)
        with (out / "quality.csv").open() as stream:
            (row,) = csv.DictReader(stream)
        labels = read_labels(out / "scan_0.nii.gz").array
        for label in (2, 5):
            assert int(row[f"components_{label}"]) == ndimage.label(labels == label, np.ones((3, 3, 3)))[1]

    def test_an_ensemble_writes_its_disagreement(self, scans, out):
        ensemble = Ensemble([nearest_predictor(), nearest_predictor(tiny_plan(spacing_mm=(1.3, 1.0, 0.8)))])
        predict_files(ensemble, [scans], out, options=Options(uncertainty=True))
        assert len(list((out / "disagreement").iterdir())) == 3
        assert np.asarray(nib.load(out / "disagreement" / "scan_0.nii.gz").dataobj).max() > 0

    def test_the_quality_table_has_a_row_for_every_case(self, scans, out):
        predict_files(nearest_predictor(), [scans], out)
        with (out / "quality.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert {row["case"] for row in rows} == {"scan_0", "scan_1", "scan_2"}
        for row in rows:
            labels = read_labels(out / f"{row['case']}.nii.gz").array
            assert float(row["volume_ml_5"]) == pytest.approx((labels == 5).sum() / 1000, rel=1e-3)

    def test_the_folder_of_the_inputs_is_refused_as_output(self, scans):
        before = {path: path.read_bytes() for path in scans.iterdir()}
        for given in ([scans], [scans / "scan_0.nii.gz"]):
            with pytest.raises(InputError, match="the output folder holds the inputs"):
                predict_files(nearest_predictor(), given, scans / ".." / "scans")
        assert {path: path.read_bytes() for path in scans.iterdir()} == before

    def test_a_folder_of_links_to_the_inputs_is_refused_as_output(self, scans, tmp_path):
        """A label map would take the link's place, and with it the scan's name."""
        links = tmp_path / "links"
        links.mkdir()
        for path in scans.iterdir():
            (links / path.name).symlink_to(path)
        (tmp_path / "same").symlink_to(links)
        for given, out in (([links], links), ([links / "scan_0.nii.gz"], links), ([links], tmp_path / "same")):
            with pytest.raises(InputError, match="the output folder holds the inputs"):
                predict_files(nearest_predictor(), given, out)
        assert all(path.is_symlink() for path in links.iterdir())

    def test_nothing_to_predict_is_refused(self, tmp_path, out):
        with pytest.raises(InputError, match="no images found"):
            predict_files(nearest_predictor(), [tmp_path], out)

    def test_reading_stays_one_case_ahead(self, scans, out):
        """The next case is read while the network works on this one, the one after it is not."""
        begun, read = [], []

        class Slow(Nearest):
            def forward(self, x):
                expected = (0, 2, 3, 3)[len(begun)]  # the first call measures memory
                deadline = time.monotonic() + 30
                while len(read) < expected and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.05)  # in which nothing further may be read
                begun.append(len(read))
                return super().forward(x)

        model = Predictor(Slow(), tiny_plan(patch_size=(16, 20, 12)), provenance={}, device=CPU)
        prepare = model.prepare

        def counted(files):
            read.append(threading.current_thread().name)
            return prepare(files)

        model.prepare = counted
        predict_files(model, [scans], out)
        assert begun == [0, 2, 3, 3]
        assert threading.main_thread().name not in read


class TestFormats:
    """Label maps in the scans' own formats, and what `--resume` makes of them."""

    SUFFIXES = (".mha", ".nrrd", ".mgz")

    @pytest.fixture
    def mixed(self, tmp_path, scans):
        for index, suffix in enumerate(self.SUFFIXES):
            scan = scans / f"scan_{index}.nii.gz"
            write_volume(scan, np.round(100 * tiny_case(index)[0]).astype(np.int16), np.eye(4))
            volume = read_image(scan)
            write_labels(tmp_path / "mixed" / f"scan_{index}{suffix}", volume.array, volume)
        return tmp_path / "mixed"

    def test_label_maps_have_the_scans_formats_and_maps_are_nifti(self, mixed, scans, out):
        options = Options(uncertainty=True)
        outcome = predict_files(nearest_predictor(), [mixed], out, options=options, form="input")
        assert outcome.failures == []
        names = [f"scan_{index}{suffix}" for index, suffix in enumerate(self.SUFFIXES)]
        assert [path.name for path in outcome.written] == names
        maps = {f"uncertainty/scan_{index}.nii.gz" for index in range(3)}
        assert _names(out) == {*names, *maps, *SIDE_FILES}
        predict_files(nearest_predictor(), [scans], out / "nifti")
        for index, name in enumerate(names):
            found, expected = read_labels(out / name), read_labels(out / "nifti" / f"scan_{index}.nii.gz")
            np.testing.assert_array_equal(found.array, expected.array)
            np.testing.assert_allclose(found.affine, expected.affine, atol=1e-6)

    def test_resume_verifies_them_and_another_format_is_made_again(self, mixed, out):
        made = predict_files(nearest_predictor(), [mixed], out, form="input").written
        again = predict_files(nearest_predictor(), [mixed], out, form="input", resume=True)
        assert (again.written, again.verified) == ([], made)
        corrupt(made[1])
        again = predict_files(nearest_predictor(), [mixed], out, form="input", resume=True)
        assert (again.written, again.verified) == ([made[1]], [made[0], made[2]])
        nifti = predict_files(nearest_predictor(), [mixed], out, resume=True)
        assert [path.name for path in nifti.written] == [f"scan_{index}.nii.gz" for index in range(3)]


class TestStopping:
    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_in_the_middle_leaves_whole_files_and_a_manifest_of_them(self, scans, out, signum):
        class Stopping(Nearest):
            calls = 0

            def forward(self, x):
                self.calls += 1
                if self.calls == 4:  # after the call that measures memory and two cases
                    os.kill(os.getpid(), signum)
                    time.sleep(5)
                return super().forward(x)

        model = Predictor(Stopping(), tiny_plan(patch_size=(16, 20, 12)), provenance={}, device=CPU)
        with pytest.raises(Interrupted, match=r"stopped; 2 label maps are whole in .*go on with --resume") as caught:
            predict_files(model, [scans], out)
        assert caught.value.signum == signum
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert _names(out) == {"scan_0.nii.gz", "scan_1.nii.gz", *SIDE_FILES}
        outcome = predict_files(model, [scans], out, resume=True)
        assert len(outcome.verified) == 2
        assert [path.name for path in outcome.written] == ["scan_2.nii.gz"]

    def test_works_outside_the_main_thread_too(self, scans, out):
        found = []
        thread = threading.Thread(target=lambda: found.append(predict_files(nearest_predictor(), [scans], out)))
        thread.start()
        thread.join()
        assert len(found[0].written) == 3


def test_predicting_imports_neither_monai_nor_lightning_nor_torchs_compiler(trained, scans, out):
    code = (
        "import sys; HEAVY = ('monai', 'pytorch_lightning', 'pandas', 'matplotlib', 'torch._dynamo');"
        "from segscse.cli import run;"
        f"code = run(['predict', {str(trained.folder)!r}, {str(scans)!r}, '--out', {str(out)!r}, '--device', 'cpu']);"
        "print(code, [name for name in HEAVY if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr
