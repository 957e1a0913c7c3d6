"""Pictures and viewer volumes: pixels, aspect, and what NIfTI readers see."""

import base64
import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from segscse.data.io import Volume
from segscse.evaluation.pictures import case_pictures, jpeg_uri, paint
from segscse.evaluation.scene import DISAGREEMENT, load_scene
from segscse.evaluation.viewer import case_volumes

from .conftest import AFFINE, blocks


def _scene(image=None, shift=1, affine=AFFINE):
    return load_scene(image, Volume(blocks(shift), affine), Volume(blocks(), affine), None)


def _rgb(colour):
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _volume(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def test_a_picture_of_many_small_pieces_takes_more_than_a_byte_a_pixel_and_is_encoded():
    pixels = np.random.default_rng(0).integers(0, 256, (298, 298, 3), np.uint8)
    content = base64.b64decode(jpeg_uri(pixels).partition(",")[2])
    assert len(content) > 298 * 298
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (298, 298)
        assert np.abs(np.asarray(picture).astype(int) - pixels).mean() < 10


def test_nine_pictures_in_the_shape_of_the_body():
    pictures = case_pictures(_scene(np.random.default_rng(0).random((12, 12, 8))))
    assert [(picture.view, picture.plane) for picture in pictures[:4]] == [
        ("prediction", "axial"), ("prediction", "coronal"), ("prediction", "sagittal"), ("reference", "axial"),
    ]  # fmt: skip
    axial = pictures[0]
    assert axial.height / axial.width == pytest.approx(24 / 12, rel=0.02)  # 12 x 1 mm by 12 x 2 mm
    assert (axial.left, axial.top) == ("R", "A")
    decoded = Image.open(io.BytesIO(base64.b64decode(axial.uri.partition(",")[2])))
    assert decoded.size == (axial.width, axial.height)


def test_pixels_of_every_view():
    scene = _scene(affine=np.eye(4))
    shared = ("axial", 3), (0.0, 1.0), 1 / 8
    plane, limits, per_pixel_mm = shared
    errors = paint(scene, *plane, "disagreement", limits, per_pixel_mm)
    assert errors.shape == (96, 96, 3)
    # Voxel (6, 3): prediction only; (2, 3): reference only. Right and anterior are left and top of the picture.
    for voxel, value in (((6, 3), 1), ((2, 3), 2)):
        row, column = ((11 - at) * 8 + 4 for at in (voxel[1], voxel[0]))
        expected = 0.85 * np.array(_rgb(DISAGREEMENT[value][1]))
        assert errors[row, column] == pytest.approx(expected, abs=1)
    assert errors[(11 - 3) * 8 + 4, (11 - 4) * 8 + 4].tolist() == [0, 0, 0]  # they agree
    prediction = paint(scene, *plane, "prediction", limits, per_pixel_mm)
    reference = paint(scene, *plane, "reference", limits, per_pixel_mm)
    assert prediction[(11 - 3) * 8 + 4, (11 - 6) * 8 + 4].any()
    assert not reference[(11 - 3) * 8 + 4, (11 - 6) * 8 + 4].any()


def test_nan_voxels_are_black():
    image = np.full((12, 12, 8), np.nan)
    assert not paint(_scene(image, 0), "axial", 0, "disagreement", (0.0, 1.0), 1.0).any()


def test_viewer_volumes_keep_labels_and_place():
    array = np.random.default_rng(0).random((12, 12, 8))
    array[0, 0, 0] = np.nan
    labels = np.where(blocks() == 2, 40, blocks())
    scene = load_scene(array, Volume(labels, AFFINE), Volume(blocks(1), AFFINE), None)
    volumes = case_volumes(scene)
    assert volumes.labels == (1, 2, 40)
    prediction = _volume(volumes.prediction)
    np.testing.assert_array_equal(np.asarray(prediction.dataobj), np.where(labels == 40, 3, labels))
    np.testing.assert_array_equal(prediction.affine, AFFINE)
    assert _volume(volumes.image).get_data_dtype() == np.uint8
    assert np.unique(np.asarray(_volume(volumes.disagreement).dataobj)).tolist() == [0, 1, 2, 3]
    assert volumes.note == ""


def test_a_label_below_zero_is_not_drawn():
    reference = blocks().astype(np.int16)
    reference[:, :, 0] = -1
    volumes = case_volumes(load_scene(None, Volume(blocks(1), AFFINE), Volume(reference, AFFINE), None))
    assert volumes.labels == (1, 2)
    np.testing.assert_array_equal(np.asarray(_volume(volumes.prediction).dataobj), blocks(1))
    np.testing.assert_array_equal(np.asarray(_volume(volumes.reference).dataobj), np.maximum(reference, 0))


def test_large_volumes_are_cropped_then_thinned_and_keep_their_place():
    shape = (80, 80, 80)
    labels = np.zeros(shape, np.uint8)
    labels[30:50, 30:50, 30:50] = 1
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5
    image = np.indices(shape)[0].astype(np.float32)
    scene = load_scene(image, Volume(labels, affine), Volume(labels, affine), None)
    cropped = case_volumes(scene, max_voxels=60_000)
    assert cropped.note == "Cropped to the labels."
    reference = _volume(cropped.reference)
    assert reference.shape == (50, 36, 30)  # 15 mm on either side, in whole voxels
    assert reference.affine[:3, 3].tolist() == [5 + 15, 5 + 2 * 22, 5 + 3 * 25]
    assert int(np.asarray(reference.dataobj).sum()) == 20**3
    thinned = case_volumes(scene, max_voxels=6_000)
    assert thinned.note.startswith("Cropped to the labels, every ")
    small = _volume(thinned.reference)
    assert np.prod(small.shape) <= 6_000
    centre = nib.affines.apply_affine(small.affine, np.argwhere(np.asarray(small.dataobj)).mean(axis=0))
    np.testing.assert_allclose(centre, nib.affines.apply_affine(affine, [39.5] * 3), atol=3)
    empty = load_scene(image, Volume(labels * 0, affine), Volume(labels * 0, affine), None)
    assert case_volumes(empty, max_voxels=60_000).note.startswith("Shown whole, every ")
