import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from segscse.data.io import read_image
from segscse.data.nifti_header import announced_bytes, peek_header
from segscse.errors import InputError

AFFINE = np.diag([-1.0, 1.0, 1.5, 1.0])
# Offsets of the NIfTI-1 standard.
PLACES = {
    "dim": (40, "<h"),
    "pixdim": (76, "<f"),
    "vox_offset": (108, "<f"),
    "xyzt_units": (123, "<B"),
    "qform_code": (252, "<h"),
}


@pytest.fixture
def edited(tmp_path, make_volume):
    """Return a function that writes a good file with header values changed at their place in the standard."""

    def write(qform=1, sform=1, **fields):
        path = make_volume(tmp_path / "a.nii", np.ones((4, 5, 6), np.int16), AFFINE, qform=qform, sform=sform)
        content = bytearray(path.read_bytes())
        for name, value in fields.items():
            field, _, number = name.partition("__")
            place, form = PLACES[field]
            struct.pack_into(form, content, place + int(number or 0) * struct.calcsize(form), value)
        path.write_bytes(content)
        return path

    return write


class TestWhatNibabelRepairsInSilenceIsSaid:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"pixdim__2": -1.0}, "pixdim[1,2,3] should be positive"),
            ({"qform": 0, "pixdim__2": 0.0}, "pixdim[1,2,3] should be non-zero"),
            ({"qform_code": 77}, "qform_code 77 not valid"),
        ],
    )
    def test_once_as_a_note_and_not_on_standard_error(self, edited, capfd, fields, said):
        volume = read_image(edited(**fields))
        assert any(note.startswith(f"its header is repaired: {said}") for note in volume.notes)
        np.testing.assert_array_equal(volume.affine, AFFINE)
        assert capfd.readouterr().err == ""

    def test_a_good_header_has_no_note(self, edited):
        assert read_image(edited()).notes == ()


class TestVoxelSizes:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_that_are_not_finite_are_refused_even_when_an_sform_is_set(self, edited, value):
        with pytest.raises(InputError, match="pixdim holds NaN or infinity"):
            read_image(edited(pixdim__1=value))

    def test_of_zero_are_refused_when_no_sform_says_better(self, edited):
        with pytest.raises(InputError, match="pixdim is 0 and no sform is set"):
            read_image(edited(sform=0, pixdim__3=0.0))

    def test_that_are_not_the_sforms_are_noted(self, edited):
        (note,) = read_image(edited(qform=0, pixdim__3=4.0)).notes
        assert note == "pixdim says 1x1x4 mm and the sform 1x1x1.5 mm, which counts"

    @pytest.mark.parametrize(("size", "noted"), [(1.5014, False), (1.5016, True)])
    def test_a_thousandth_is_rounding(self, edited, size, noted):
        assert bool(read_image(edited(qform=0, pixdim__3=size)).notes) == noted


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "does not say its units, so they are taken as mm"),
        (1, "gives metres as its unit, but its numbers are taken as mm"),
        (3, "gives micrometres as its unit, but its numbers are taken as mm"),
        (5, "gives no known unit as its unit, but its numbers are taken as mm"),
        (2, None),
        (10, None),  # mm and seconds
    ],
)
def test_units_other_than_mm_are_noted(edited, code, said):
    assert read_image(edited(xyzt_units=code)).notes == (() if said is None else (said,))


def test_a_quaternion_that_is_no_rotation_is_refused_by_name(edited):
    path = edited()
    content = bytearray(path.read_bytes())
    struct.pack_into("<fff", content, 256, 0.9, 0.9, 0.9)
    path.write_bytes(content)
    with pytest.raises(InputError, match="qform's quaternion is no rotation"):
        read_image(path)


class TestExtensions:
    def _with(self, edited, length, payload):
        content = edited().read_bytes()
        header = bytearray(content[:348])
        struct.pack_into("<f", header, 108, 352 + len(payload) + 8)
        path = edited()
        path.write_bytes(bytes(header) + b"\1\0\0\0" + struct.pack("<ii", length, 6) + payload + content[352:])
        return path

    def test_a_good_one_is_read_over(self, edited):
        volume = read_image(self._with(edited, 32, b"a comment".ljust(24, b"\0")))
        assert volume.array.shape == (4, 5, 6)
        assert volume.array.min() == 1

    def test_one_whose_length_is_no_multiple_of_16_is_no_obstacle(self, edited, recwarn):
        assert read_image(self._with(edited, 30, b"a comment".ljust(24, b"\0"))).array.min() == 1
        assert not [item for item in recwarn if "multiple of 16" in str(item.message)]

    @pytest.mark.parametrize("length", [0, -16, 4, 48, 2**30])
    def test_one_that_does_not_fit_is_refused(self, edited, length):
        with pytest.raises(InputError, match=f"a header extension of {length} bytes does not fit"):
            read_image(self._with(edited, length, b"\0" * 24))


class TestBeforeReading:
    def test_a_header_tells_the_length_of_its_file(self, edited):
        path = edited()
        assert announced_bytes(path.read_bytes()[:1024]) == path.stat().st_size == 352 + 2 * 4 * 5 * 6
        assert announced_bytes(b"no header" * 100) is None

    @pytest.mark.parametrize("axes", [0, 8, 9, -1])
    def test_a_number_of_axes_out_of_range_is_refused_and_announces_nothing(self, edited, axes):
        path = edited(dim__0=axes)
        assert announced_bytes(path.read_bytes()[:1024]) in (None, 352)
        with pytest.raises(InputError, match=r"number of axes|has no voxels|cannot be read"):
            read_image(path)

    def test_voxels_before_the_file_are_refused_and_announce_nothing(self, edited, tmp_path):
        content = edited(vox_offset=-(2.0**62)).read_bytes()
        assert announced_bytes(content[:1024]) is None
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match=r"b\.nii\.gz"):
            read_image(tmp_path / "b.nii.gz")

    def test_a_header_is_not_believed_that_announces_more_than_the_file_can_hold(self, edited):
        assert peek_header(edited()).get_data_shape() == (4, 5, 6)
        assert peek_header(edited(dim__1=32000, dim__2=32000)) is None

    def test_what_is_no_nifti_file_has_no_header(self, tmp_path):
        (tmp_path / "a.nii").write_bytes(b"text" * 200)
        assert peek_header(tmp_path / "a.nii") is None

    def test_nifti_2_is_known(self, tmp_path, make_volume):
        path = make_volume(tmp_path / "a.nii", np.ones((4, 5, 6), np.int16), AFFINE, image_class=nib.Nifti2Image)
        assert announced_bytes(path.read_bytes()[:1024]) == path.stat().st_size
