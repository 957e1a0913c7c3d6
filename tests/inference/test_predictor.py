from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import LABELS, tiny_case, tiny_plan, tiny_plan_2d
from volumes import write_volume

from segscse.data.plan import Normalisation
from segscse.errors import InputError
from segscse.inference.model_folder import load_model
from segscse.inference.predictor import Predictor, load
from segscse.inference.segment import Segmentation
from segscse.inference.select import build_network

CPU = torch.device("cpu")
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in permutations(range(3))
    for flips in product([1, -1], repeat=3)
]


class Nearest(torch.nn.Module):
    """Labels by the normalised intensity that is nearest to -1, 0 or 1."""

    def forward(self, x):
        return torch.stack([-((x[:, 0] - level) ** 2) for level in (-1.0, 0.0, 1.0)], dim=1)


def _predictor(plan=None, **options):
    return Predictor(Nearest(), plan or tiny_plan(), provenance={}, device=CPU, **options)


def _oblique():
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.12, -0.2, 0.1) @ np.diag([0.9, 1.3, 2.0])
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    return affine


def test_where_the_processor_multiplies_in_bf16_labels_are_nearly_those_of_fp32(trained, monkeypatch):
    image, affine = tiny_case(1)[0], np.eye(4)
    model = load_model(trained.folder)

    def asked_for_nothing():
        return Predictor(build_network(model), model.plan, provenance={}, device=CPU)

    expected = asked_for_nothing().predict((image, affine))
    monkeypatch.setattr("segscse.hardware._cpu_multiplies_bf16", lambda: True)
    predictor = asked_for_nothing()
    assert predictor.engine.precision == "bf16"
    found = predictor.predict((image, affine), probabilities=True)
    assert (found.array != expected.array).sum() <= 0.02 * (expected.array > 0).sum()
    assert found.probabilities.dtype == np.float32


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3d", "2d"])
def test_all_48_orientations_give_the_same_segmentation(plan):
    image, _ = tiny_case(1)
    affine = _oblique()
    predictor = _predictor(plan)
    straight = predictor.predict((image, affine))
    assert len(np.unique(straight.array)) == 3
    for orientation in ORIENTATIONS:
        turned = nib.apply_orientation(image, orientation)
        turned_affine = affine @ nib.orientations.inv_ornt_aff(orientation, image.shape)
        found = predictor.predict((turned, turned_affine))
        np.testing.assert_array_equal(found.array, nib.apply_orientation(straight.array, orientation))
        np.testing.assert_array_equal(found.affine, turned_affine)


def test_at_the_plans_own_spacing_it_is_the_threshold_voxel_by_voxel():
    image, _ = tiny_case(2)
    image[0, 0, 0] = image.min() - 1.0  # the crop is decided by what is above the minimum and not zero
    found = _predictor().predict((image, np.diag([-1.0, -1.0, 1.0, 1.0]))).array
    normal = (image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    expected = np.array([0, 2, 5])[np.abs(normal[..., None] - np.array([-1, 0, 1])).argmin(axis=-1)]
    sure = np.abs(np.abs(normal) - 0.5) > 1e-3
    np.testing.assert_array_equal(found[sure], expected[sure])


def test_affine_codes_and_units_of_the_file_come_back_bit_for_bit(tmp_path):
    image, _ = tiny_case(0)
    nifti = nib.Nifti1Image(image, _oblique())
    nifti.set_sform(_oblique(), 3)
    nifti.set_qform(_oblique(), 1)
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.header["descrip"] = b"Jane Doe"
    nib.save(nifti, tmp_path / "scan.nii.gz")
    _predictor().predict(tmp_path / "scan.nii.gz").save(tmp_path / "out" / "scan.nii.gz")
    source, result = nib.load(tmp_path / "scan.nii.gz"), nib.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(source.affine, result.affine)
    names = ["qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"]
    for name in (*names, "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(source.header[name], result.header[name], err_msg=name)
    np.testing.assert_array_equal(source.header["pixdim"][:4], result.header["pixdim"][:4])
    assert b"Jane" not in result.header["descrip"].tobytes()
    assert result.get_data_dtype() == np.uint8
    assert result.header["scl_slope"] != result.header["scl_slope"] or result.header["scl_slope"] in (0, 1)


@pytest.mark.parametrize(("last", "dtype"), [(5, np.uint8), (255, np.uint8), (256, np.uint16), (70_000, np.uint32)])
def test_the_smallest_integer_type_holds_every_label_of_the_model(last, dtype):
    plan = tiny_plan(labels=((0, "background"), (2, "block"), (last, "ball")))
    found = _predictor(plan).predict((np.zeros((4, 4, 4), np.float32), np.eye(4)))
    assert found.array.dtype == dtype
    found = _predictor(plan).predict((tiny_case(0)[0], np.eye(4)))
    assert found.array.dtype == dtype
    assert set(np.unique(found.array)) == {0, 2, last}
    assert dict(found.labels) == {0: "background", 2: "block", last: "ball"}


@pytest.mark.parametrize("affine", [np.eye(4), _oblique()], ids=["same grid", "oblique"])
def test_probabilities_sum_to_one_and_their_largest_is_the_label(affine):
    found = _predictor().predict((tiny_case(0)[0], affine), probabilities=True)
    assert found.probabilities.shape == (16, 20, 12, 3)
    assert found.probabilities.dtype == np.float32
    np.testing.assert_allclose(found.probabilities.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array(list(LABELS))[found.probabilities.argmax(axis=-1)], found.array)
    assert _predictor().predict((tiny_case(0)[0], affine)).probabilities is None


def test_files_and_arrays_give_the_same(tmp_path):
    image, _ = tiny_case(3)
    path = write_volume(tmp_path / "scan.nii.gz", image, _oblique())
    affine = nib.load(path).affine
    predictor = _predictor()
    for given in (path, str(path), [path], (image[..., None], affine)):
        np.testing.assert_array_equal(predictor.predict(given).array, predictor.predict((image, affine)).array)


def test_several_channels_may_be_files_or_a_fourth_axis(tmp_path):
    first, second = tiny_case(0)[0], tiny_case(1)[0]
    plan = tiny_plan(channels=("a", "b"), normalisation=(Normalisation("zscore", 0.0, 1.0, -1.0, 1.0),) * 2)
    files = [write_volume(tmp_path / f"x_000{n}.nii.gz", array, np.eye(4)) for n, array in enumerate((first, second))]
    predictor = _predictor(plan)
    together = predictor.predict((np.stack([first, second], axis=-1), np.eye(4)))
    np.testing.assert_array_equal(predictor.predict(files).array, together.array)
    with pytest.raises(InputError, match="1 channels, the plan has 2"):
        predictor.predict(files[0])


@pytest.mark.parametrize(
    ("image", "affine"),
    [
        (np.zeros((4, 4)), np.eye(4)),
        (np.zeros((4, 0, 4)), np.eye(4)),
        (np.zeros((4, 4, 4)), np.eye(3)),
        (np.zeros((4, 4, 4)), np.zeros((4, 4))),
        (np.full((4, 4, 4), np.nan), np.eye(4)),
    ],
    ids=["2D", "empty", "3x3", "singular", "NaN"],
)
def test_arrays_that_cannot_be_used_are_refused(image, affine):
    with pytest.raises(InputError):
        _predictor().predict((image, affine))


def test_a_list_of_array_and_affine_is_taken_as_the_pair():
    image = tiny_case(0)[0]
    expected = _predictor().predict((image, _oblique()))
    found = _predictor().predict([image, _oblique()])
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_array_equal(found.affine, expected.affine)


@pytest.mark.parametrize(
    ("image", "given"),
    [
        (np.zeros((4, 4, 4)), "an array without its affine"),
        (torch.zeros(4, 4, 4), "got Tensor"),
        ([np.zeros((4, 4, 4))], "got list"),
        ((np.zeros((4, 4, 4)), np.eye(4), 1), "got tuple"),
        (["a.nii.gz", np.eye(4)], "got list"),
        (3, "got int"),
    ],
)
def test_what_is_neither_files_nor_a_pair_is_refused(image, given):
    with pytest.raises(InputError, match=given) as caught:
        _predictor().predict(image)
    assert "Give (array, affine)" in str(caught.value)


def test_mirroring_does_not_change_a_voxelwise_network():
    image, _ = tiny_case(0)
    np.testing.assert_array_equal(
        _predictor(mirror=True).predict((image, _oblique())).array, _predictor().predict((image, _oblique())).array
    )


def test_mirroring_a_trained_network_changes_logits_but_not_the_grid(trained):
    image, _ = tiny_case(0)
    plain = load(trained.folder, device="cpu").predict((image, np.eye(4)), probabilities=True)
    averaged = load(trained.folder, device="cpu", mirror=True).predict((image, np.eye(4)), probabilities=True)
    assert plain.array.shape == averaged.array.shape
    assert np.abs(plain.probabilities - averaged.probabilities).max() > 1e-4


def test_an_unknown_device_is_refused_with_those_there_are(trained):
    with pytest.raises(InputError, match=r"device 'tpu' is not available here; available: .*cpu"):
        load(trained.folder, device="tpu")


def test_a_segmentation_is_a_frozen_value():
    found = _predictor().predict((tiny_case(0)[0], np.eye(4)))
    assert isinstance(found, Segmentation)
    with pytest.raises(AttributeError):
        found.array = None
