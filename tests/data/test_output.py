"""Label maps in the format of the scan: whatever grid goes in comes out, bit for bit."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.data.io import Volume, read_image, read_labels
from segscse.data.output import output_suffix, write_labels
from segscse.errors import InputError

LABELS = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.uint8) % 4
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def _affine(order=(0, 1, 2), signs=(1, 1, 1), *, tilt=0.0, spacing=(0.7, 1.1, 3.3)):
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ (np.eye(3)[:, list(order)] * signs) * spacing
    affine[:3, 3] = (11.3, -27.1, 4.9)
    return affine


def _write_scan(path, affine):
    """Write a scan as the format's own library does: nibabel or ITK."""
    array = LABELS.astype(np.int16)
    if path.suffix in (".nrrd", ".mha", ".mhd", ".nhdr"):
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        sitk.WriteImage(image, str(path), True)
    elif path.suffix == ".mgz":
        nib.save(nib.MGHImage(array, affine), path)
    else:
        image = (nib.Nifti2Image if "2" in path.name else nib.Nifti1Image)(array, affine)
        image.set_qform(affine, 1)
        image.set_sform(affine, 2)
        nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a2.nii", "a.mgz", "a.nrrd", "a.mha"])
def test_48_orientations_and_obliques_return_bit_for_bit(tmp_path, name):
    grids = [_affine(order, signs) for order, signs in ORIENTATIONS]
    grids += [_affine(order, signs, tilt=0.3, spacing=(0.31, 0.9, 7.7)) for order, signs in ORIENTATIONS[::5]]
    for affine in grids:
        scan = read_image(_write_scan(tmp_path / name, affine))
        out = tmp_path / f"out{output_suffix(scan, 'input')}"
        write_labels(out, LABELS, scan)
        back = read_labels(out)
        assert back.affine.tobytes() == scan.affine.tobytes()
        np.testing.assert_array_equal(back.array, LABELS)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.nii", ".nii"), ("a.nii.gz", ".nii.gz"), ("a.mgz", ".mgz"), ("a.nhdr", ".nrrd"), ("a.mhd", ".mha")],
)
def test_the_output_has_the_inputs_format_in_one_file(tmp_path, name, suffix):
    scan = read_image(_write_scan(tmp_path / name, _affine()))
    assert (output_suffix(scan, "input"), output_suffix(scan, "nifti")) == (suffix, ".nii.gz")
    out = tmp_path / "out" / f"b{suffix}"
    write_labels(out, LABELS, scan)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    np.testing.assert_array_equal(read_labels(out).array, LABELS)


def test_an_array_gives_nifti():
    assert output_suffix(Volume(LABELS, np.eye(4)), "input") == ".nii.gz"


def test_nifti_2_gives_nifti_2_with_its_codes(tmp_path):
    scan = read_image(_write_scan(tmp_path / "a2.nii.gz", _affine(tilt=0.2)))
    write_labels(tmp_path / "b.nii.gz", LABELS, scan)
    before, after = nib.load(tmp_path / "a2.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    assert isinstance(after, nib.Nifti2Image)
    assert (int(after.header["qform_code"]), int(after.header["sform_code"])) == (1, 2)
    np.testing.assert_array_equal(before.get_qform(), after.get_qform())


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int8, np.int16, np.int32, np.int64])
def test_itk_reads_what_is_written_in_every_type(tmp_path, suffix, dtype):
    like = Volume(LABELS, _affine((2, 0, 1), (1, -1, 1), tilt=0.4))
    array = LABELS.astype(dtype) * np.iinfo(dtype).max // 3
    write_labels(tmp_path / f"a{suffix}", array, like)
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), array)
    back = read_image(tmp_path / f"a{suffix}")
    assert back.array.dtype == dtype
    np.testing.assert_allclose(back.affine, like.affine, atol=1e-12)


def test_the_space_of_an_nrrd_and_the_missing_axis_of_its_channels_are_kept(tmp_path):
    array = np.zeros((2, 5, 6, 7), np.uint8)
    text = (
        "NRRD0005\ntype: uchar\ndimension: 4\nspace: right-anterior-superior\nsizes: 2 5 6 7\n"
        "space directions: none (0.1,0,0) (0,0.3,0) (0,0,-3)\nkinds: vector domain domain domain\n"
        "encoding: raw\nendian: little\nspace origin: (1.5,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + array.tobytes(order="F"))
    scan = read_image(tmp_path / "a.nrrd")
    assert scan.array.shape == (5, 6, 7, 2)
    np.testing.assert_allclose(scan.affine, [[0.1, 0, 0, 1.5], [0, 0.3, 0, 2], [0, 0, -3, 3], [0, 0, 0, 1]])
    write_labels(tmp_path / "b.nrrd", LABELS, scan)
    assert b"space directions: (0.1,0,0) (0,0.3,0) (0,0,-3)\n" in (tmp_path / "b.nrrd").read_bytes()
    assert b"space: right-anterior-superior\n" in (tmp_path / "b.nrrd").read_bytes()
    assert read_image(tmp_path / "b.nrrd").affine.tobytes() == scan.affine.tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        "spacings: 0.5 0.6 2\n",
        "spacings: 0.5 0.6 2\naxis mins: 10 20 30\n",
        "spacings: 0.5 0.6 2\naxis mins: 10 20 30\ncenters: cell cell cell\n",
        "spacings: 0.5 0.6 2\ncenters: cell ??? ???\n",
        "spacings: 0.5 0.6 2\naxis mins: nan nan nan\n",
        "spacings: 0.5 0.6 nan\n",
    ],
)
def test_an_nrrd_without_a_space_is_noted_and_keeps_its_spacings_and_place(tmp_path, fields):
    text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 6 7\n{fields}encoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + LABELS.tobytes(order="F"))
    scan = read_image(tmp_path / "a.nrrd")
    assert scan.notes == ("the header names no anatomical space, so the orientation is a guess",)
    write_labels(tmp_path / "b.nrrd", LABELS, scan)
    assert read_image(tmp_path / "b.nrrd").affine.tobytes() == scan.affine.tobytes()


@pytest.mark.parametrize(
    ("sizes", "spacing"),
    [("ElementSize = 0.5 0.6 2", (0.5, 0.6, 2)), ("ElementSize = 1 1 1\nElementSpacing = 3 4 5", (3, 4, 5))],
)
def test_a_metaimages_element_size_is_its_spacing_where_there_is_no_other(tmp_path, sizes, spacing):
    text = f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{sizes}\nDimSize = 5 6 7\nElementType = MET_UCHAR\n"
    (tmp_path / "a.mha").write_bytes(f"{text}ElementDataFile = LOCAL\n".encode() + LABELS.tobytes(order="F"))
    scan = read_image(tmp_path / "a.mha")
    write_labels(tmp_path / "b.mha", LABELS, scan)
    assert sitk.ReadImage(str(tmp_path / "b.mha")).GetSpacing() == spacing
    assert read_image(tmp_path / "b.mha").affine.tobytes() == scan.affine.tobytes()


@pytest.mark.parametrize(("dtype", "kept"), [(np.uint8, "uint8"), (np.int16, "int16"), (np.uint16, "int32")])
def test_mgh_takes_the_smallest_of_its_types(tmp_path, dtype, kept):
    write_labels(tmp_path / "a.mgz", LABELS.astype(dtype), Volume(LABELS, _affine()))
    assert nib.load(tmp_path / "a.mgz").get_data_dtype().name == kept


def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    like = Volume(LABELS, np.eye(4))
    for name, dtype, problem in (
        ("a.mgz", np.uint32, "MGH holds no label ids beyond 32 bits"),
        ("a.png", np.uint8, "the suffix must be"),
        ("a.dcm", np.uint8, "DICOM SEG (needs highdicom|refers to a DICOM series)"),
    ):
        with pytest.raises(InputError, match=problem):
            write_labels(tmp_path / name, LABELS.astype(dtype), like, {1: "a"})
    assert not list(tmp_path.iterdir())
