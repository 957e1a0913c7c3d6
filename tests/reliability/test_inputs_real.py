"""The real odd and broken NIfTI files, each with the outcome that is right for it, read and predicted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from segscse.cli import run
from segscse.data.io import read_image
from segscse.errors import InputError

pytestmark = pytest.mark.real

# Path below odd_headers, and what the refusal must say; None where the file is good.
OUTCOMES = {
    "nibabel/anatomical.nii": None,
    "nibabel/example4d.nii.gz": None,
    "nibabel/example_nifti2.nii.gz": None,
    "nibabel/functional.nii": None,
    "nibabel/reoriented_anat_moved.nii": None,
    "nibabel/row_major.dconn.nii": "must be 3D",
    "nibabel/standard.nii.gz": None,
    "nibabel/test.mgz": "sheared",
    "nifti-rs/27/float32.nii": None,
    "nifti-rs/27/float64.nii": None,
    "nifti-rs/27/int16.nii": None,
    "nifti-rs/27/int32.nii": None,
    "nifti-rs/27/int64.nii": None,
    "nifti-rs/27/int8.nii": None,
    "nifti-rs/27/uint16.nii": None,
    "nifti-rs/27/uint32.nii": None,
    "nifti-rs/27/uint64.nii": None,
    "nifti-rs/27/uint8.nii": None,
    "nifti-rs/avg152T1_LR_nifti.nii.gz": None,
    "nifti-rs/complex/complex32.nii": "real numbers",
    "nifti-rs/complex/complex64.nii": "real numbers",
    "nifti-rs/f32.nii.gz": None,
    "nifti-rs/fuzz_artifacts/crash-1.nii": ".",
    "nifti-rs/fuzz_artifacts/crash-ed7d46344d7efb3b9f0c374d66d2e02f66cc447d.nii": ".",
    "nifti-rs/minimal.img": "pair",
    "nifti-rs/minimal.img.gz": "pair",
    "nifti-rs/minimal.nii": None,
    "nifti-rs/minimal.nii.gz": None,
    "nifti-rs/minimal2.img.gz": "pair",
    "nifti-rs/minimal_extended_hdr.nii": None,
    "nifti-rs/rgb/3D.nii": "real numbers",
    "nifti-rs/rgb/4D.nii": "real numbers",
    "nifti-rs/rgba/4D.nii": "real numbers",
    "nifti-rs/zstat1.nii.gz": None,
    "nifti_jl/empty.nii.gz": "is empty",
    "nifti_jl/example4d.img.gz": "pair",
    "nifti_jl/example4d.nii.gz": None,
}
NO_IMAGES = (".hdr", ".hdr.gz")


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_real_odd_file_is_read_as_nibabel_reads_it_or_refused(name, shared_data, capfd):
    path = shared_data / "odd_headers" / name
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    if OUTCOMES[name] is None:
        volume = read_image(path)
        expected = np.asanyarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(volume.array.reshape(expected.shape), expected)
    else:
        with pytest.raises(InputError, match=OUTCOMES[name]) as caught:
            read_image(path)
        assert path.name in str(caught.value)
        assert caught.value.remedy
        assert "\n" not in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_every_file_of_the_folder_has_its_outcome(shared_data):
    root = shared_data / "odd_headers"
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    unnamed = {name for name in names - set(OUTCOMES) if not name.endswith(NO_IMAGES)}
    assert all(Path(name).suffix == "" for name in unnamed)  # fuzzers' crashes without an image's name
    for name in sorted(names - set(OUTCOMES)):
        with pytest.raises(InputError, match="is not an image"):
            read_image(root / name)


def test_the_broken_ones_are_named_in_one_batch_with_small_good_ones_that_come_out(
    shared_data, models, tmp_path, capsys
):
    chosen = {name: said for name, said in OUTCOMES.items() if said is not None or name.startswith("nifti-rs/27/")}
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number, name in enumerate(chosen):
        (inputs / f"{number:02d}_{Path(name).name}").symlink_to(shared_data / "odd_headers" / name)
    assert run(["predict", str(models["plain"]), str(inputs), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("segscse: warning: ")]
    refused = {f"{number:02d}" for number, said in enumerate(chosen.values()) if said is not None}
    assert {line.removeprefix("segscse: ")[:2] for line in lines} == refused
    assert len(lines) == len(refused)
    made = {path.name[:2] for path in (tmp_path / "out").glob("*.nii.gz")}
    assert made == {f"{number:02d}" for number in range(len(chosen))} - refused
