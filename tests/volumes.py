"""Small volumes and data sets on disk, for all tests."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

TINY_SHAPE = (16, 20, 12)
LABELS = {0: "background", 1: "front", 2: "back"}
TINY_AFFINE = np.array([[-1.0, 0, 0, 30], [0, 1.0, 0, -20], [0, 0, 1.5, 5], [0, 0, 0, 1]])


def write_volume(path, array, affine=None, *, qform=1, sform=1, image_class=nib.Nifti1Image, units="mm"):
    """Write `array` as NIfTI with both forms set to `affine`, in the array's own data type; return the path."""
    affine = np.eye(4) if affine is None else np.asarray(affine, float)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    image = image_class(array, affine, dtype=array.dtype)
    image.set_qform(affine, qform)
    image.set_sform(affine, sform)
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return path


def tiny_case(number):
    """Return an image and its label map: two boxes of known brightness whose places depend on the number."""
    rng = np.random.default_rng([99, number])
    label = np.zeros(TINY_SHAPE, np.uint8)
    shift = number % 3
    label[3 + shift : 7 + shift, 4:9, 3:8] = 1
    label[9 + shift : 12 + shift, 10:16, 4:9] = 2
    image = rng.normal(100.0, 5.0, TINY_SHAPE) + 80.0 * (label == 1) + 160.0 * (label == 2)
    return image.astype(np.float32), label


def write_tiny_dataset(root, cases=6):
    """Write `case_0` ... in the MSD layout with labels 1 and 2; return the folder."""
    return write_msd(root, [tiny_case(number) for number in range(cases)], LABELS, TINY_AFFINE)


def write_msd(root, pairs, labels, affine):
    """Write pairs of image and label map as `case_0` ... in the MSD layout; return the folder."""
    names = [f"case_{number}.nii.gz" for number in range(len(pairs))]
    for name, (image, label) in zip(names, pairs, strict=True):
        write_volume(root / "imagesTr" / name, image, affine)
        write_volume(root / "labelsTr" / name, label, affine)
    description = {
        "modality": {"0": "MRI"},
        "labels": {str(number): label for number, label in labels.items()},
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root
