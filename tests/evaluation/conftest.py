"""Small label maps on disk for the evaluation tests."""

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([1.0, 2.0, 2.5, 1.0])


def blocks(shift=0):
    """Return a label map `(12, 12, 8)` with two blocks, moved by `shift` voxels along the first axis."""
    array = np.zeros((12, 12, 8), np.uint8)
    array[2 + shift : 6 + shift, 2:6, 2:6] = 1
    array[2 + shift : 5 + shift, 7:11, 2:6] = 2
    return array


@pytest.fixture
def save():
    """Return a function that writes an array as NIfTI and makes the folder."""

    def write(path, array, affine=AFFINE):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def folders(tmp_path, save):
    """Return folders `pred` and `ref` with cases a (perfect), b (shifted by one) and c (shifted by two)."""
    for shift, case in enumerate("abc"):
        save(tmp_path / "ref" / f"{case}.nii.gz", blocks())
        save(tmp_path / "pred" / f"{case}.nii.gz", blocks(shift))
    return tmp_path / "pred", tmp_path / "ref"
