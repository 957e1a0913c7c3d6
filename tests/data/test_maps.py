import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.data.io import read_image
from segscse.data.maps import write_map


def test_the_map_of_a_nifti_2_scan_is_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(np.zeros((5, 6, 7), np.int16), np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "a.nii")
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 7)).astype(np.uint8)
    write_map(tmp_path / "b.nii.gz", values, read_image(tmp_path / "a.nii"))
    found = nib.load(tmp_path / "b.nii.gz")
    assert isinstance(found, nib.Nifti2Image)
    np.testing.assert_allclose(np.asarray(found.dataobj), values / 255, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3)])
def test_bytes_are_read_as_multiples_of_a_255th_on_the_same_grid(tmp_path, make_volume, shape):
    affine = np.array([[0, 0, -2.0, 5], [1.1, 0, 0, -3], [0, 0.9, 0, 2], [0, 0, 0, 1]])
    like = read_image(make_volume(tmp_path / "a.nii.gz", np.zeros((5, 6, 7), np.int16), affine, sform=3))
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_map(tmp_path / "out" / "b.nii.gz", values, like)
    found = nib.load(tmp_path / "out" / "b.nii.gz")
    assert found.get_data_dtype() == np.uint8
    assert (found.header["sform_code"], found.header["qform_code"]) == (3, 1)
    np.testing.assert_allclose(np.asarray(found.dataobj), values / 255, atol=1e-6)
    np.testing.assert_array_equal(found.affine, nib.load(tmp_path / "a.nii.gz").affine)
    if len(shape) == 3:
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "b.nii.gz"))).transpose(2, 1, 0)
        np.testing.assert_allclose(theirs, values / 255, atol=1e-6)
        np.testing.assert_allclose(read_image(tmp_path / "out" / "b.nii.gz").array, values / 255, atol=1e-6)
