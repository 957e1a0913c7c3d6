"""DICOM series, written by pydicom and read beside ITK's own series reader; label maps back as DICOM SEG."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.cli import run
from segscse.data.dicom import is_series, peek_series
from segscse.data.dicom_seg import _segment_numbers
from segscse.data.index import open_dataset
from segscse.data.inputs import find_inputs
from segscse.data.io import list_images, read_image, write_image
from segscse.data.output import output_suffix, write_labels
from segscse.errors import InputError
from segscse.inference.memory import scan_size

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")

SHORT = {"empty": b"", "cut": bytes(100), "zeros": bytes(4000)}
VOXELS = np.random.default_rng(0).integers(0, 900, (6, 9, 7)).astype(np.int16)  # slices, rows, columns
TILT = np.array([[np.cos(0.3), np.sin(0.3), 0], [-np.sin(0.3), np.cos(0.3), 0]])
FLAT = np.eye(3)[:2]


def _slice(folder, number, position, *, axes=FLAT, series="1.2.3.1", name=None, **changes):
    """Write one CT slice; `position` is its first voxel's, in mm, LPS."""
    file = pydicom.dataset.FileMetaDataset()
    file.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    file.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
    file.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data = pydicom.dataset.Dataset()
    data.file_meta = file
    data.SOPClassUID, data.SOPInstanceUID = file.MediaStorageSOPClassUID, file.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", series, "1.2.4"
    data.Modality, data.PatientName, data.PatientID, data.InstanceNumber = "CT", "Nobody", "0", str(number + 1)
    data.PatientBirthDate = data.PatientSex = data.StudyDate = data.StudyTime = data.AccessionNumber = ""
    data.ReferringPhysicianName = data.StudyID = data.Manufacturer = data.PositionReferenceIndicator = ""
    data.SeriesNumber = "1"
    data.ImagePositionPatient = [f"{value:.10g}" for value in position]
    data.ImageOrientationPatient = [f"{value:.10g}" for value in np.ravel(axes)]
    data.PixelSpacing, data.SliceThickness = ["0.7", "0.4"], "2.5"  # rows, columns
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.RescaleSlope, data.RescaleIntercept = "1", "-1000"
    pixels = VOXELS[number % len(VOXELS)]
    data.Rows, data.Columns = pixels.shape
    data.PixelData = pixels.tobytes()
    for key, value in changes.items():
        setattr(data, key, value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"s{number}.dcm")
    data.save_as(path, enforce_file_format=True)
    return path


def _series(folder, *, axes=FLAT, step=2.5, shuffle=True, count=6):
    normal = np.cross(*axes)
    names = np.random.default_rng(1).permutation(count) if shuffle else range(count)
    for number, name in zip(range(count), names, strict=True):
        position = np.array([-20.5, 31.25, 7.0]) + number * step * normal
        _slice(folder, number, position, axes=axes, name=f"IM{name:04d}")
    return folder


@pytest.mark.parametrize("axes", [FLAT, TILT, FLAT[::-1], np.array([[0.0, 1, 0], [0, 0, -1]])])
def test_a_series_is_what_itk_reads_whatever_its_files_are_called(tmp_path, axes):
    folder = _series(tmp_path / "scan", axes=axes)
    (folder / "notes.txt").write_text("no slice")
    volume = read_image(folder)
    np.testing.assert_array_equal(volume.array, VOXELS.transpose(2, 1, 0) - 1000)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    expected = np.eye(4)
    expected[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    expected[:3, 3] = image.GetOrigin()
    np.testing.assert_allclose(volume.affine, np.diag([-1, -1, 1, 1]) @ expected, atol=1e-6)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert [pydicom.dcmread(path).InstanceNumber for path in volume.files] == list(range(1, 7))


def test_each_slice_is_rescaled_as_it_says(tmp_path):
    for number in range(3):
        changes = {"RescaleSlope": str(0.5 + number), "RescaleIntercept": "0"}
        _slice(tmp_path / "pet", number, (0, 0, 3.0 * number), **changes)
    expected = VOXELS[:3] * np.array([0.5, 1.5, 2.5])[:, None, None]
    np.testing.assert_allclose(read_image(tmp_path / "pet").array, expected.transpose(2, 1, 0))


def test_a_single_slice_is_as_deep_as_it_is_thick(tmp_path):
    _slice(tmp_path / "one", 0, (0, 0, 0))
    volume = read_image(tmp_path / "one")
    assert volume.array.shape == (7, 9, 1)
    assert abs(volume.affine[2, 2]) == 2.5
    assert volume.notes == ("a single slice; its thickness stands for the slice distance",)


class TestPeeking:
    """The size of a series by a few of its headers."""

    @pytest.mark.parametrize("axes", [FLAT, TILT])
    def test_is_that_of_the_volume_where_names_follow_places(self, tmp_path, axes):
        scan = read_image(_series(tmp_path / "scan", axes=axes, shuffle=False))
        shape, affine, itemsize = peek_series(tmp_path / "scan")
        assert (shape, itemsize) == (scan.array.shape, scan.array.dtype.itemsize)
        np.testing.assert_allclose(affine, scan.affine, atol=1e-6)

    def test_slices_may_overlap(self, tmp_path):
        for number, place in enumerate((0, 60, 20, 80, 30, 10, 40, 50, 70)):
            _slice(tmp_path / "scan", number, (0, 0, place), SliceThickness="12.5")
        shape, affine, _ = peek_series(tmp_path / "scan")
        assert shape == (7, 9, 9)
        assert abs(affine[2, 2]) == 10
        assert scan_size([tmp_path / "scan"]).spacing_mm == (0.4, 0.7, 10)

    def test_names_that_do_not_follow_places_tell_nothing(self, tmp_path):
        for number, place in enumerate((0, 60, 20, 80, 40, 10, 30, 50, 70)):
            _slice(tmp_path / "scan", number, (0, 0, place), SliceThickness="12.5")
        assert peek_series(tmp_path / "scan") is None

    def test_scaled_voxels_take_what_itk_makes_of_them(self, tmp_path):
        _slice(tmp_path / "pet", 0, (0, 0, 0), RescaleSlope="0.5")
        assert peek_series(tmp_path / "pet")[2] == read_image(tmp_path / "pet").array.dtype.itemsize == 8

    def test_is_unknown_where_they_do_not_tell(self, tmp_path):
        (tmp_path / "empty").mkdir()
        _slice(tmp_path / "thin", 0, (0, 0, 0), SliceThickness=None)
        for number in range(2):
            _slice(tmp_path / "two", number, (0, 0, number), series=f"1.2.{number}")
            _slice(tmp_path / "again", number, (0, 0, 0))
        assert [scan_size([tmp_path / name]) for name in ("empty", "thin", "two", "again")] == [None] * 4


class TestRefusals:
    def _refused(self, folder, problem):
        with pytest.raises(InputError, match=problem) as caught:
            read_image(folder)
        assert "\n" not in str(caught.value)

    def test_a_missing_slice(self, tmp_path):
        folder = _series(tmp_path / "scan", shuffle=False)
        (folder / "IM0003").unlink()
        self._refused(folder, r"unevenly spaced: 5 mm between IM0002 and IM0004, 2.5 mm elsewhere. Is a slice missing")

    def test_two_series(self, tmp_path):
        folder = _series(tmp_path / "scan")
        _slice(folder, 0, (0, 0, 99), series="1.2.3.9", name="other")
        self._refused(folder, "holds 2 DICOM series: .* Put each series into a folder of its own")

    def test_another_orientation(self, tmp_path):
        folder = _series(tmp_path / "scan")
        _slice(folder, 1, (0, 0, 99), axes=TILT, name="z_scout")
        self._refused(folder, "z_scout: has another orientation than IM0000")

    def test_another_size(self, tmp_path):
        folder = _series(tmp_path / "scan")
        _slice(folder, 1, (0, 0, 99), name="z", Rows=7, Columns=9)
        self._refused(folder, "z: has another size or voxel size than IM0000")

    def test_two_slices_at_one_place(self, tmp_path):
        folder = _series(tmp_path / "scan", shuffle=False)
        _slice(folder, 8, (-20.5, 31.25, 7.0 + 2.5), name="z_echo2")
        self._refused(folder, "lies where .* does")

    def test_a_tilted_gantry(self, tmp_path):
        for number in range(5):
            _slice(tmp_path / "scan", number, (0, 0.8 * number, 2.5 * number))
        self._refused(tmp_path / "scan", "the affine is sheared")

    def test_slices_off_the_line(self, tmp_path):
        for number in range(5):
            _slice(tmp_path / "scan", number, (0, 0.8 * (number == 2), 2.5 * number))
        self._refused(tmp_path / "scan", "the slices do not lie on one line")

    def test_colours_and_files_without_a_place(self, tmp_path):
        colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        colour |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
        _slice(tmp_path / "rgb", 0, (0, 0, 0), **colour, PixelData=bytes(9 * 7 * 3 + 1))
        self._refused(tmp_path / "rgb", "voxels must be grey values, got colours")
        path = _slice(tmp_path / "lost", 0, (0, 0, 0))
        data = pydicom.dcmread(path)
        del data.ImagePositionPatient
        data.save_as(path)
        self._refused(tmp_path / "lost", "is no slice of an image .CT file without a usable position")

    def test_a_single_slice_of_unknown_thickness(self, tmp_path):
        _slice(tmp_path / "one", 0, (0, 0, 0), SliceThickness=None)
        self._refused(tmp_path / "one", "one slice of unknown thickness")

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
    def test_a_file_cut_short(self, tmp_path, share):
        folder = _series(tmp_path / "scan")
        content = (folder / "IM0002").read_bytes()
        (folder / "IM0002").write_bytes(content[: int(share * len(content))])
        self._refused(folder, "IM0002|holds 2 DICOM series")

    def test_several_frames(self, tmp_path):
        _slice(tmp_path / "many", 0, (0, 0, 0), NumberOfFrames="6", PixelData=VOXELS.tobytes())
        self._refused(tmp_path / "many", "several frames are not supported")


class TestFolders:
    def test_a_series_folder_is_one_image_among_others(self, tmp_path, make_volume):
        _series(tmp_path / "in" / "a")
        make_volume(tmp_path / "in" / "b.nii.gz", np.ones((4, 4, 4), np.float32))
        (tmp_path / "in" / "empty").mkdir()
        assert list_images(tmp_path / "in") == {"a": tmp_path / "in" / "a", "b": tmp_path / "in" / "b.nii.gz"}
        assert is_series(tmp_path / "in" / "a")
        assert not is_series(tmp_path / "in")
        single = find_inputs([tmp_path / "in" / "a"], 1)
        assert single == {"a": (tmp_path / "in" / "a",)}
        assert list(find_inputs([tmp_path / "in"], 1)) == ["a", "b"]

    def test_the_folder_that_one_is_in_has_its_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(_series(tmp_path / "a"))
        assert list(find_inputs([Path(".")], 1)) == ["a"]

    def test_links_to_two_folders_of_one_name_are_two_cases(self, tmp_path):
        for name in ("p1", "p2"):
            (tmp_path / name).symlink_to(_series(tmp_path / "pacs" / name / "DICOM"))
        assert list(find_inputs([tmp_path / "p1", tmp_path / "p2"], 1)) == ["p1", "p2"]

    def test_slices_may_be_named_img_and_have_folders_beside_them(self, tmp_path):
        folder = _series(tmp_path / "in")
        for path in sorted(folder.iterdir()):
            path.rename(path.with_suffix(".img"))
        _series(folder / "more")
        assert list(find_inputs([folder], 1)) == ["in"]

    def test_one_with_other_images_beside_it_is_refused(self, tmp_path, make_volume):
        make_volume(_series(tmp_path / "in") / "scan.nii.gz", np.ones((4, 4, 4), np.float32))
        with pytest.raises(InputError, match=r"in: holds DICOM files and other images \(scan\.nii\.gz\)"):
            find_inputs([tmp_path / "in"], 1)

    def test_check_and_predict_take_series(self, tmp_path, trained):
        for name in ("a", "b"):
            folder = _series(tmp_path / "set" / "images" / name)
            label = (VOXELS.transpose(2, 1, 0) > 450).astype(np.uint8)
            write_image(tmp_path / "set" / "labels" / f"{name}.nii.gz", label, read_image(folder))
        assert [case.id for case in open_dataset(tmp_path / "set").cases] == ["a", "b"]
        assert run(["check", str(tmp_path / "set")]) == 0
        series = str(tmp_path / "set" / "images" / "a")
        assert run(["predict", str(trained.folder), series, "--out", str(tmp_path / "out")]) == 0
        back = read_image(tmp_path / "out" / "a.nii.gz")
        np.testing.assert_allclose(back.affine, read_image(series).affine, atol=1e-5)
        assert run(["predict", str(trained.folder), series, "--out", series]) == 2

    def test_a_folder_of_series_is_predicted_to_dicom_seg_and_resumed(self, tmp_path, trained, capsys):
        highdicom = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
        _series(tmp_path / "in" / "a")
        command = ["predict", str(trained.folder), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        assert run([*command, "--format", "input"]) == 0
        assert len(highdicom.seg.segread(tmp_path / "out" / "a.dcm").SegmentSequence) == 2
        assert run([*command, "--format", "input", "--resume"]) == 0
        assert "1 more verified" in capsys.readouterr().out


@pytest.mark.parametrize("axes", [FLAT, TILT])
def test_a_label_map_of_a_series_becomes_dicom_seg_and_points_to_its_slices(tmp_path, axes):
    highdicom = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    scan = read_image(_series(tmp_path / "scan", axes=axes))
    labels = np.zeros(scan.array.shape, np.uint8)
    labels[1:4, 2:6, 1:5], labels[4:6, 3:8, 2:4] = 2, 7
    labels[0, 0], labels[6, 8] = 3, 9  # ids of no label are left out
    assert output_suffix(scan, "input") == ".dcm"
    write_labels(tmp_path / "seg.dcm", labels, scan, {0: "background", 2: "block", 7: "ball"})
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [item.segment_label for item in seg.SegmentSequence] == ["block", "ball"]
    assert seg.StudyInstanceUID == "1.2.3"
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in scan.files]
    frames = seg.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    for segment, number in enumerate((2, 7)):
        np.testing.assert_array_equal(frames[..., segment].transpose(2, 1, 0), labels == number)


@pytest.mark.parametrize(("ids", "itemsize"), [([2, 7, 300], 1), (list(range(5, 305)), 2)])
def test_segments_take_one_number_a_voxel(ids, itemsize):
    labels = np.random.default_rng(0).integers(0, 400, (5, 6, 70)).astype(np.uint16)
    numbers = _segment_numbers(labels, ids)
    assert numbers.nbytes == itemsize * labels.size
    expected = [ids.index(label) + 1 if label in ids else 0 for label in labels.transpose(2, 1, 0).ravel()]
    assert numbers.ravel().tolist() == expected


@pytest.mark.parametrize("content", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("name", ["IM0005", "im17", "other.dcm"])
def test_a_slice_that_a_copy_has_left_empty_is_no_end_of_the_series(tmp_path, content, name):
    folder = _series(tmp_path / "a", shuffle=False)
    (folder / name).write_bytes(content)
    (folder / "notes").write_text("of the scan")
    with pytest.raises(InputError, match=rf"{name}: is named as a slice of the series, and is no whole DICOM file"):
        read_image(folder)
    (folder / name).unlink()
    assert read_image(folder).array.shape[2] == (5 if name == "IM0005" else 6)
