from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.data.io import (
    Volume,
    as_labels,
    image_stem,
    image_suffix,
    list_images,
    read_image,
    read_labels,
    write_image,
)
from segscse.data.output import write_labels
from segscse.data.peek import peek_scan
from segscse.errors import InputError

AFFINE = np.array([[-0.7, 0.1, 0, 31.5], [0.1, 0.7, 0, -20.25], [0, 0, 2.5, 7], [0, 0, 0, 1]])
GEOMETRY = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
GEOMETRY += ["srow_x", "srow_y", "srow_z", "xyzt_units"]


def _ramp(shape=(5, 6, 7), dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "suffix", "stem"),
        [
            ("a.nii.gz", ".nii.gz", "a"),
            ("b.c/a.1.NII.GZ", ".nii.gz", "a.1"),
            ("a.nii", ".nii", "a"),
            ("a.mgz", ".mgz", "a"),
            ("a.nrrd", ".nrrd", "a"),
            ("a.mha", ".mha", "a"),
            ("a.txt", None, "a.txt"),
            ("a.nii.bz2", None, "a.nii.bz2"),
        ],
    )
    def test_suffix_and_stem_of_image_names(self, name, suffix, stem):
        assert image_suffix(name) == suffix
        assert image_stem(name) == stem

    def test_a_folder_lists_its_images_sorted_without_hidden_and_other_files(self, tmp_path):
        for name in ("b.nii.gz", "a.mha", ".hidden.nii", "notes.txt"):
            (tmp_path / name).write_bytes(b"")
        assert list_images(tmp_path) == {"a": tmp_path / "a.mha", "b": tmp_path / "b.nii.gz"}

    def test_two_images_of_one_name_are_refused(self, tmp_path):
        for name in ("a.nii", "a.nii.gz"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=r"shares the name 'a' with a\.nii\. Keep one"):
            list_images(tmp_path)

    def test_a_folder_in_it_that_cannot_be_looked_into_is_not_passed_over(self, tmp_path, lock):
        (tmp_path / "series").mkdir()
        (tmp_path / "a.nii").touch()
        lock("iterdir", "series")
        assert list(list_images(tmp_path)) == ["a", "series"]
        with pytest.raises(InputError, match=r"series: cannot be read \(Permission denied\)"):
            read_image(tmp_path / "series")

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(InputError, match="none: is not a folder"):
            list_images(tmp_path / "none")


class TestRoundTrip:
    @pytest.mark.parametrize(("qform", "sform"), [(1, 1), (2, 4), (1, 0), (0, 3), (0, 0)])
    @pytest.mark.parametrize("units", ["mm", "micron"])
    def test_affine_codes_and_units_return_bit_for_bit(self, tmp_path, make_volume, qform, sform, units):
        path = make_volume(tmp_path / "in.nii.gz", _ramp(), AFFINE, qform=qform, sform=sform, units=units)
        source = read_image(path)
        write_image(tmp_path / "out.nii.gz", np.ones((5, 6, 7), np.uint8), source)
        before, after = nib.load(path), nib.load(tmp_path / "out.nii.gz")
        for field in GEOMETRY:
            assert before.header[field].tobytes() == after.header[field].tobytes(), field
        np.testing.assert_array_equal(before.header["pixdim"][:4], after.header["pixdim"][:4])
        np.testing.assert_array_equal(before.affine, after.affine)
        np.testing.assert_array_equal(source.affine, after.affine)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32])
    def test_voxels_return_in_their_own_type(self, tmp_path, make_volume, dtype):
        source = read_image(make_volume(tmp_path / "in.nii", _ramp()))
        array = _ramp(dtype=dtype)
        write_image(tmp_path / "out.nii.gz", array, source)
        back = nib.load(tmp_path / "out.nii.gz")
        assert back.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(back.dataobj), array)

    def test_a_description_that_may_name_a_patient_is_not_copied(self, tmp_path):
        image = nib.Nifti1Image(_ramp(), np.eye(4))
        image.header["descrip"] = b"MUSTERMANN^MAX"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MUSTERMANN"))
        nib.save(image, tmp_path / "in.nii")
        write_image(tmp_path / "out.nii", _ramp(), read_image(tmp_path / "in.nii"))
        assert b"MUSTERMANN" not in (tmp_path / "out.nii").read_bytes()

    def test_an_image_of_another_format_gets_both_forms_and_millimetres(self, tmp_path):
        like = Volume(_ramp(), AFFINE)
        write_image(tmp_path / "out.nii.gz", _ramp(), like)
        header = nib.load(tmp_path / "out.nii.gz").header
        assert header.get_xyzt_units()[0] == "mm"
        for matrix, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
            assert code == 1
            np.testing.assert_allclose(matrix, AFFINE, atol=1e-5)

    @pytest.mark.parametrize(("shear", "qform"), [(0.0, 1), (1e-4, 0), (5e-4, 0)])
    def test_what_a_qform_cannot_hold_is_left_to_the_sform(self, tmp_path, shear, qform):
        affine = np.array([[0.7, 0.7 * shear, 0, -90], [0, 0.7, 0, 40], [0, 0, 1.5, 3], [0, 0, 0, 1]])
        array = np.zeros((256, 256, 8), np.uint8)
        write_image(tmp_path / "a.nii.gz", array, Volume(array, affine))
        np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").affine, affine, atol=1e-5)
        header = nib.load(tmp_path / "a.nii.gz").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (qform, 1)

    def test_reading_changes_no_input(self, tmp_path, make_volume, fingerprints):
        make_volume(tmp_path / "a.nii.gz", _ramp(), AFFINE)
        make_volume(tmp_path / "b.nii", _ramp(dtype=np.uint8), AFFINE)
        before = fingerprints(tmp_path)
        read_labels(tmp_path / "a.nii.gz")
        volume = read_image(tmp_path / "b.nii")
        write_image(tmp_path / "new" / "c.nii.gz", volume.array, volume)
        after = fingerprints(tmp_path)
        assert {name: after[name] for name in before} == before

    @pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
    def test_a_folder_called_as_a_home_folder_is_not_it(self, tmp_path, make_volume, monkeypatch, name):
        (tmp_path / "home" / "x").mkdir(parents=True)
        (tmp_path / "~").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        like = read_image(make_volume(tmp_path / "like.nii.gz", _ramp(), AFFINE))
        for folder in ("~", "~x"):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_labels(f"{folder}/{name}", _ramp().astype(np.uint8), like, {})
            assert [path.name for path in (tmp_path / folder).iterdir()] == [name]
            assert peek_scan(Path(folder) / name).shape == (5, 6, 7)
        assert list((tmp_path / "home").rglob("*.*")) == []

    def test_a_failed_write_leaves_nothing(self, tmp_path, make_volume):
        source = read_image(make_volume(tmp_path / "in.nii", _ramp()))
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a.nii.gz").mkdir()  # a folder has the name
        with pytest.raises(InputError, match="cannot be written"):
            write_image(tmp_path / "out" / "a.nii.gz", _ramp(), source)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.nii.gz"]


class TestShapesAndTypes:
    def test_trailing_axes_of_one_are_dropped(self, tmp_path, make_volume):
        assert read_image(make_volume(tmp_path / "a.nii", _ramp((5, 6, 7, 1)))).array.shape == (5, 6, 7)
        assert read_image(make_volume(tmp_path / "b.nii", _ramp((5, 6, 7, 1, 1)))).array.shape == (5, 6, 7)

    def test_a_fourth_axis_holds_channels(self, tmp_path, make_volume):
        assert read_image(make_volume(tmp_path / "a.nii", _ramp((5, 6, 7, 2)))).array.shape == (5, 6, 7, 2)

    @pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1)])
    def test_a_slice_with_both_forms_set_is_a_volume_of_depth_one(self, tmp_path, make_volume, shape):
        volume = read_image(make_volume(tmp_path / "a.nii", _ramp(shape), AFFINE))
        np.testing.assert_array_equal(volume.array, _ramp((5, 6, 1)))

    def test_five_axes_are_refused(self, tmp_path, make_volume):
        with pytest.raises(InputError, match=r"a\.nii: must be 3D, or 4D .* got shape \(5, 6, 7, 1, 3\)"):
            read_image(make_volume(tmp_path / "a.nii", _ramp((5, 6, 7, 1, 3))))

    def test_a_line_is_refused(self, tmp_path, make_volume):
        with pytest.raises(InputError, match="must be 3D"):
            read_image(make_volume(tmp_path / "a.nii", _ramp((5,))))

    @pytest.mark.parametrize(
        "dtype", [np.complex64, np.complex128, [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["c64", "c128", "rgb"]
    )
    def test_colours_and_complex_numbers_are_refused(self, tmp_path, dtype):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), dtype), np.eye(4)), tmp_path / "a.nii")
        with pytest.raises(InputError, match="voxels must be real numbers, got data type"):
            read_image(tmp_path / "a.nii")

    @pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_either_byte_order_and_nifti_version_give_the_same_voxels(self, tmp_path, image_class, order):
        header = image_class.header_class(endianness=order)
        header.set_data_dtype(np.int16)
        image = image_class(_ramp(dtype=np.int16), AFFINE, header)
        nib.save(image, tmp_path / "a.nii.gz")
        volume = read_image(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(volume.array, _ramp())
        assert volume.array.dtype.isnative
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)

    @pytest.mark.parametrize(("slope", "inter"), [(0.5, -3.0), (-2.0, 0.0), (0.0, 0.0), (np.nan, np.nan)])
    def test_slope_and_intercept_are_applied_and_no_slope_means_none(self, tmp_path, make_volume, slope, inter):
        path = make_volume(tmp_path / "a.nii", _ramp(dtype=np.int16))
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([slope, inter], "<f4").tobytes()
        path.write_bytes(content)
        expected = _ramp() * slope + inter if slope and np.isfinite(slope) else _ramp()
        np.testing.assert_array_equal(read_image(path).array, expected)

    def test_an_infinite_intercept_is_refused(self, tmp_path, make_volume):
        path = make_volume(tmp_path / "a.nii", _ramp(dtype=np.int16))
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([1.0, np.inf], "<f4").tobytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read"):
            read_image(path)

    def test_mgh_has_the_voxels_and_the_affine_that_nibabel_reads(self, tmp_path):
        nib.save(nib.MGHImage(_ramp(), AFFINE), tmp_path / "a.mgz")
        expected = nib.load(tmp_path / "a.mgz")
        volume = read_image(tmp_path / "a.mgz")
        np.testing.assert_array_equal(volume.array, expected.get_fdata())
        np.testing.assert_array_equal(volume.affine, expected.affine)

    @pytest.mark.parametrize(("offset", "value"), [(20, b"\x00\x00\x00\x77"), (4, b"\x00\x00\x00\x00")])
    def test_a_damaged_mgh_header_is_refused(self, tmp_path, offset, value):
        content = bytearray(nib.MGHImage(_ramp(), np.eye(4)).to_bytes())
        content[offset : offset + 4] = value
        (tmp_path / "a.mgh").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mgh: "):
            read_image(tmp_path / "a.mgh")

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
    def test_itk_formats_have_the_voxels_and_the_affine_of_the_nifti_file(self, tmp_path, make_volume, suffix):
        path = make_volume(tmp_path / "a.nii.gz", _ramp(), AFFINE)
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"a{suffix}"))
        expected, volume = read_image(path), read_image(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(volume.array, expected.array)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)

    @pytest.mark.parametrize("suffix", [".NRRD", ".MHA", ".MHD"])
    def test_itk_formats_may_be_named_in_capitals(self, tmp_path, suffix):
        sitk.WriteImage(sitk.GetImageFromArray(_ramp((7, 6, 5))), str(tmp_path / f"a{suffix.lower()}"))
        (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}").array, _ramp((7, 6, 5)).transpose(2, 1, 0))
        assert peek_scan(tmp_path / f"a{suffix}").shape == (5, 6, 7)

    def test_itk_channels_come_last(self, tmp_path):
        array = _ramp((7, 6, 5, 2))  # SimpleITK's order: z, y, x, channel
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.nrrd"))
        np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd").array, array.transpose(2, 1, 0, 3))

    def test_itk_files_that_are_flat_or_no_image_are_refused(self, tmp_path):
        sitk.WriteImage(sitk.GetImageFromArray(_ramp((5, 6))), str(tmp_path / "flat.mha"))
        with pytest.raises(InputError, match=r"flat\.mha: must be 3D, got 2D"):
            read_image(tmp_path / "flat.mha")
        (tmp_path / "text.nrrd").write_text("hello")
        with pytest.raises(InputError, match=r"text\.nrrd: cannot be read"):
            read_image(tmp_path / "text.nrrd")

    @pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
    def test_itk_files_cut_in_half_are_refused(self, tmp_path, suffix):
        rng = np.random.default_rng(0)
        sitk.WriteImage(sitk.GetImageFromArray(rng.normal(size=(20, 20, 20))), str(tmp_path / f"a{suffix}"))
        content = (tmp_path / f"a{suffix}").read_bytes()
        (tmp_path / f"a{suffix}").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="is cut short: its header announces 64000 bytes of voxels"):
            read_image(tmp_path / f"a{suffix}")


class TestGeometry:
    def test_forms_that_disagree_are_refused_with_the_distance(self, tmp_path):
        image = nib.Nifti1Image(_ramp(), np.eye(4))
        moved = np.eye(4)
        moved[0, 3] = 4.0
        image.set_qform(np.eye(4), 1)
        image.set_sform(moved, 1)
        nib.save(image, tmp_path / "a.nii")
        with pytest.raises(InputError, match=r"qform and sform disagree \(position: the voxels lie up to 4 mm apart\)"):
            read_image(tmp_path / "a.nii")

    def test_a_form_without_a_code_cannot_disagree(self, tmp_path):
        image = nib.Nifti1Image(_ramp(), np.eye(4))
        moved = np.eye(4)
        moved[0, 3] = 4.0
        image.set_sform(moved, 1)
        image.set_qform(np.eye(4), 0)
        nib.save(image, tmp_path / "a.nii")
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii").affine, moved)

    def test_no_form_at_all_is_noted(self, tmp_path, make_volume):
        volume = read_image(make_volume(tmp_path / "a.nii", _ramp(), qform=0, sform=0))
        assert volume.notes == ("neither qform nor sform is set, so the orientation is a guess",)
        assert read_image(make_volume(tmp_path / "b.nii", _ramp())).notes == ()

    @pytest.mark.parametrize(
        ("matrix", "problem"),
        [
            ([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]], "the affine is sheared"),
            ([[1, 0, 0], [0, 0, 0], [0, 0, 1]], "the affine is singular"),
            ([[1, 0, 0], [0, np.nan, 0], [0, 0, 1]], "the affine holds NaN"),
        ],
    )
    def test_an_unusable_affine_is_refused(self, tmp_path, make_volume, matrix, problem):
        path = make_volume(tmp_path / "a.nii", _ramp())
        content = bytearray(path.read_bytes())
        rows = np.column_stack([matrix, [0, 0, 0]]).astype("<f4")
        content[280:328] = rows.tobytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_image(path)


class TestLabels:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16, np.int8])
    def test_whole_numbers_of_any_type_become_the_smallest_integer_type(self, tmp_path, make_volume, dtype):
        array = np.zeros((4, 4, 4), dtype)
        array[1:3, 1:3, 1:3] = 7
        volume = read_labels(make_volume(tmp_path / "a.nii.gz", array))
        assert volume.array.dtype == np.uint8
        np.testing.assert_array_equal(volume.array, array)

    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            ([0, 255], np.uint8),
            ([0, 256], np.uint16),
            ([0, 65536], np.uint32),
            ([0, 2**33], np.uint64),
            ([-1, 127], np.int8),
            ([-1, 128], np.int16),
            ([-1, 2**31], np.int64),
            ([], np.uint8),
        ],
    )
    def test_no_value_wraps_around(self, values, dtype):
        labels = as_labels(np.array(values, np.int64))
        assert labels.dtype == dtype
        assert labels.tolist() == values

    def test_labels_that_fit_no_integer_type_are_refused(self, tmp_path, make_volume):
        for name, array in {"a": np.full((3, 3, 3), 1e30), "b": np.array([-1.0, 1e19] * 4).reshape(2, 2, 2)}.items():
            with pytest.raises(InputError, match=rf"{name}\.nii: label values between .* fit no integer type"):
                read_labels(make_volume(tmp_path / f"{name}.nii", array))

    @pytest.mark.parametrize("value", [0.5, 0.9882, 1.002])
    def test_values_between_whole_numbers_are_refused_and_named(self, tmp_path, make_volume, value):
        array = np.ones((4, 4, 4), np.float32)
        array[2, 2, 2] = value
        with pytest.raises(InputError, match=f"label values must be whole numbers, got {value:g}.* nearest neighbour"):
            read_labels(make_volume(tmp_path / "a.nii", array))

    def test_rounding_of_a_scale_factor_is_forgiven(self, tmp_path, make_volume):
        path = make_volume(tmp_path / "a.nii", np.full((4, 4, 4), 255, np.uint8))
        content = bytearray(path.read_bytes())
        content[112:116] = np.array(1 / 255, "<f4").tobytes()
        path.write_bytes(content)
        assert np.unique(read_labels(path).array).tolist() == [1]

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_refused(self, tmp_path, make_volume, value):
        with pytest.raises(InputError, match="label values hold NaN or infinity"):
            read_labels(make_volume(tmp_path / "a.nii", np.full((3, 3, 3), value, np.float32)))

    def test_a_label_map_with_channels_is_refused(self, tmp_path, make_volume):
        with pytest.raises(InputError, match="a label map must be 3D"):
            read_labels(make_volume(tmp_path / "a.nii", np.zeros((3, 3, 3, 2), np.uint8)))
