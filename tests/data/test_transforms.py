import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom
import torch
from monai.transforms import NormalizeIntensity
from volumes import TINY_AFFINE, TINY_SHAPE, tiny_case

from segscse.data.io import Volume
from segscse.data.network_grid import normalise, prepare_files, preprocess_array
from segscse.data.plan import Normalisation
from segscse.data.transforms import label_channels, preprocess
from segscse.errors import InputError

TURN = np.radians(20)
OBLIQUE = np.array(
    [
        [-0.8 * np.cos(TURN), 0.8 * np.sin(TURN), 0, 20],
        [0.8 * np.sin(TURN), 0.8 * np.cos(TURN), 0, -15],
        [0, 0, 2.5, 30],
        [0, 0, 0, 1],
    ]
)


def _blob(shape, affine, centre_mm, width_mm=3.0):
    """Return a Gaussian blob at a place in the world, cut to zero beyond three widths."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    distance = np.linalg.norm(nib.affines.apply_affine(affine, index) - centre_mm, axis=-1)
    return np.where(distance < 3 * width_mm, np.exp(-0.5 * (distance / width_mm) ** 2), 0).astype(np.float32)


def _as_itk(array, affine):
    image = sitk.GetImageFromArray(np.asarray(array, np.float32).transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


@pytest.fixture
def raw(build_plan):
    """Return a function that makes plans whose normalisation changes nothing."""
    return lambda **fields: build_plan(
        **{"normalisation": (Normalisation("ct", 0.0, 1.0, -1e9, 1e9),), "spacing_mm": (1.0, 1.0, 1.0), **fields}
    )


class TestGeometry:
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (0.5, 0.5, 2.5), (1.6, 1.6, 1.6)])
    def test_a_blob_in_an_oblique_volume_stays_at_its_place_in_the_world(self, tmp_path, make_volume, raw, spacing):
        shape = (40, 44, 18)
        centre_mm = OBLIQUE[:3] @ [22, 17, 8, 1] + [0.3, -0.2, 0.4]
        path = make_volume(tmp_path / "a.nii.gz", _blob(shape, OBLIQUE, centre_mm), OBLIQUE)
        prepared = preprocess([path], None, raw(spacing_mm=spacing))
        np.testing.assert_allclose(nib.affines.voxel_sizes(prepared.affine), spacing, rtol=1e-5)
        assert nib.aff2axcodes(prepared.affine) == ("R", "A", "S")
        image = prepared.image[0].numpy().astype(np.float64)
        voxel = [(image * index).sum() / image.sum() for index in np.indices(image.shape)]
        np.testing.assert_allclose(nib.affines.apply_affine(prepared.affine, voxel), centre_mm, atol=0.1)

    @pytest.mark.parametrize("spacing", [(1.03, 1.07, 2.1), (0.61, 1.13, 3.3)])
    def test_resampling_equals_simpleitks_on_the_same_grid(self, tmp_path, make_volume, raw, spacing):
        rng = np.random.default_rng(0)
        array = rng.normal(size=(24, 26, 14)).astype(np.float32)
        labels = rng.integers(0, 3, array.shape).astype(np.uint8)
        paths = [make_volume(tmp_path / f"{n}.nii", a, OBLIQUE) for n, a in (("i", array), ("l", labels))]
        prepared = preprocess(paths[:1], paths[1], raw(spacing_mm=spacing))
        affine = nib.load(paths[0]).affine
        grid = _as_itk(prepared.image[0], prepared.affine)
        linear = sitk.Resample(_as_itk(array, affine), grid, sitk.Transform(), sitk.sitkLinear, 0.0)
        nearest = sitk.Resample(_as_itk(labels, affine), grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0.0)
        inside = (slice(3, -3), slice(3, -3), slice(3, -3))
        expected = sitk.GetArrayFromImage(linear).transpose(2, 1, 0)
        np.testing.assert_allclose(prepared.image[0].numpy()[inside], expected[inside], atol=2e-3)
        agree = prepared.label.numpy()[inside] == sitk.GetArrayFromImage(nearest).transpose(2, 1, 0)[inside]
        assert agree.mean() > 0.99  # no sample lies midway between two voxels

    def test_in_2d_the_slice_axis_keeps_its_own_spacing(self, tmp_path, make_volume, raw):
        array = np.random.default_rng(0).normal(size=(20, 20, 7)).astype(np.float32)
        path = make_volume(tmp_path / "a.nii", array, np.diag([0.5, 0.5, 7.5, 1]))
        plan = raw(spacing_mm=(1.0, 1.0, 5.0), spatial_dims=2, slice_axis=2)
        prepared = preprocess([path], None, plan)
        np.testing.assert_allclose(nib.affines.voxel_sizes(prepared.affine), (1.0, 1.0, 7.5))
        assert prepared.image.shape[-1] == 7

    @pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL", "PIR"])
    def test_the_stored_orientation_does_not_matter(self, tmp_path, make_volume, raw, orientation):
        image, label = tiny_case(0)
        target = nib.orientations.axcodes2ornt(tuple(orientation))
        turn = nib.orientations.ornt_transform(nib.io_orientation(TINY_AFFINE), target)
        paths = []
        for name, array in (("i", image), ("l", label)):
            turned = nib.Nifti1Image(array, TINY_AFFINE).as_reoriented(turn)
            paths.append(make_volume(tmp_path / f"{name}.nii", np.asarray(turned.dataobj), turned.affine))
        prepared = preprocess(paths[:1], paths[1], raw(spacing_mm=(1.0, 1.0, 1.5)))
        np.testing.assert_allclose(prepared.image[0], image[::-1], rtol=1e-6)
        np.testing.assert_array_equal(prepared.label, label[::-1])

    def test_a_label_map_in_another_orientation_than_the_image_is_aligned(self, tmp_path, make_volume, raw):
        image, label = tiny_case(0)
        paths = [make_volume(tmp_path / "i.nii", image, TINY_AFFINE)]
        flip = TINY_AFFINE @ nib.orientations.inv_ornt_aff(np.array([[0, 1], [1, -1], [2, 1]]), TINY_SHAPE)
        paths.append(make_volume(tmp_path / "l.nii", label[:, ::-1], flip))
        prepared = preprocess(paths[:1], paths[1], raw(spacing_mm=(1.0, 1.0, 1.5)))
        np.testing.assert_array_equal(prepared.label, label[::-1])

    def test_empty_surroundings_are_cropped_but_for_one_voxel(self, tmp_path, make_volume, raw):
        image, label = np.full((20, 20, 20), -1024, np.int16), np.zeros((20, 20, 20), np.uint8)
        image[5:12, 6:10, 0:9] = np.random.default_rng(0).integers(-1000, 1000, (7, 4, 9))
        label[6:9, 7:9, 2:5] = 1
        paths = [make_volume(tmp_path / "i.nii", image), make_volume(tmp_path / "l.nii", label)]
        prepared = preprocess(paths[:1], paths[1], raw())
        assert tuple(prepared.image.shape) == (1, 9, 6, 10)
        np.testing.assert_array_equal(prepared.image[0], image[4:13, 5:11, 0:10])
        np.testing.assert_array_equal(prepared.label, label[4:13, 5:11, 0:10])
        np.testing.assert_allclose(prepared.affine[:3, 3], (4, 5, 0))

    @pytest.mark.parametrize("shape", [(1, 1, 1), (5, 5, 3), (1, 9, 9), (9, 9, 1)])
    def test_very_small_volumes_pass(self, tmp_path, make_volume, raw, shape):
        path = make_volume(tmp_path / "a.nii", np.random.default_rng(0).normal(size=shape).astype(np.float32))
        prepared = preprocess([path], None, raw(spacing_mm=(2.0, 2.0, 2.0)))
        assert min(prepared.image.shape) >= 1
        assert torch.isfinite(prepared.image).all()

    def test_the_source_is_the_way_back(self, tmp_path, make_volume, raw):
        path = make_volume(tmp_path / "a.nii.gz", tiny_case(0)[0], TINY_AFFINE)
        source = preprocess([path], None, raw()).source
        assert source.path == path
        assert source.array.shape == TINY_SHAPE
        np.testing.assert_array_equal(source.affine, nib.load(path).affine)


class TestIntensities:
    def test_z_scores_are_numpys(self, tmp_path, make_volume, build_plan):
        image = tiny_case(0)[0]
        path = make_volume(tmp_path / "a.nii", image, np.diag([1, 1, 1.5, 1]))
        prepared = preprocess([path], None, build_plan())
        exact = image.astype(np.float64)
        np.testing.assert_allclose(prepared.image[0], (exact - exact.mean()) / exact.std(), atol=1e-5)

    def test_ct_is_clipped_and_scaled_by_the_data_set(self, tmp_path, make_volume, build_plan):
        image = np.random.default_rng(0).integers(-1024, 2000, (9, 9, 9)).astype(np.int16)
        path = make_volume(tmp_path / "a.nii", image)
        plan = build_plan(normalisation=(Normalisation("ct", 80.0, 25.0, -100.0, 300.0),), spacing_mm=(1.0, 1.0, 1.0))
        expected = (np.clip(image.astype(float), -100, 300) - 80) / 25
        np.testing.assert_allclose(preprocess([path], None, plan).image[0], expected, atol=1e-5)

    def test_channels_are_normalised_each_by_its_own_scheme(self, tmp_path, make_volume, build_plan):
        rng = np.random.default_rng(0)
        arrays = [rng.normal(50, 9, (6, 6, 6)).astype(np.float32), rng.normal(-3, 2, (6, 6, 6)).astype(np.float32)]
        paths = [make_volume(tmp_path / f"{n}.nii", array) for n, array in enumerate(arrays)]
        schemes = (Normalisation("ct", 50.0, 9.0, 45.0, 55.0), Normalisation("zscore", 0.0, 1.0, 0.0, 1.0))
        image = preprocess(paths, None, build_plan(normalisation=schemes, spacing_mm=(1.0, 1.0, 1.0))).image.numpy()
        np.testing.assert_allclose(image[0], (arrays[0].clip(45, 55) - 50) / 9, atol=1e-5)
        np.testing.assert_allclose(image[1], (arrays[1] - arrays[1].mean()) / arrays[1].std(), atol=1e-4)

    def test_within_what_is_not_zero_z_scores_are_monais(self, tmp_path, make_volume, build_plan):
        rng = np.random.default_rng(0)
        arrays = [np.zeros((14, 12, 10), np.float32) for _ in range(2)]
        for array in arrays:
            array[3:10, 2:9, 3:8] = rng.normal(80, 20, (7, 7, 5))
        arrays[1][4, 4, 4] = 0
        paths = [make_volume(tmp_path / f"{n}.nii", array) for n, array in enumerate(arrays)]
        schemes = (Normalisation("zscore_nonzero", 0.0, 1.0, 0.0, 1.0),) * 2
        image = preprocess(paths, None, build_plan(normalisation=schemes, spacing_mm=(1.0, 1.0, 1.0))).image
        box = (slice(None), slice(2, 11), slice(1, 10), slice(2, 9))
        expected = NormalizeIntensity(nonzero=True, channel_wise=True)(torch.tensor(np.stack(arrays)))[box]
        np.testing.assert_allclose(image, expected, atol=1e-5)
        assert not image[:, 0].any()

    def test_within_what_is_not_zero_scores_come_before_resampling(self, tmp_path, make_volume, build_plan):
        image = np.zeros((12, 12, 12), np.float32)
        image[3:9, 3:9, 3:9] = np.random.default_rng(0).normal(500, 10, (6, 6, 6))
        path = make_volume(tmp_path / "a.nii", image)
        plan = build_plan(normalisation=(Normalisation("zscore_nonzero", 0.0, 1.0, 0.0, 1.0),), spacing_mm=(0.8,) * 3)
        assert preprocess([path], None, plan).image.abs().max() < 4  # afterwards the rim would lie at -20

    @pytest.mark.parametrize("value", [0.0, 7.0, -1024.0])
    def test_a_constant_image_becomes_zero(self, tmp_path, make_volume, build_plan, value):
        path = make_volume(tmp_path / "a.nii", np.full((6, 6, 6), value, np.float32))
        prepared = preprocess([path], None, build_plan(spacing_mm=(1.0, 1.0, 1.0)))
        assert tuple(prepared.image.shape) == (1, 6, 6, 6)
        assert not prepared.image.any()

    def test_mean_and_spread_of_very_many_voxels_are_summed_in_64_bits(self):
        channel = torch.tensor([10_000.0, 10_002.0]).repeat(2_000_000)
        out = normalise(channel, Normalisation("zscore", 0.0, 1.0, 0.0, 1.0))
        assert out.dtype == torch.float32
        np.testing.assert_allclose(out[:2], [-1.0, 1.0], atol=1e-6)
        np.testing.assert_allclose(out[-2:], [-1.0, 1.0], atol=1e-6)


class TestLabels:
    def test_ids_with_gaps_in_any_order_become_channel_numbers(self):
        ids, channels = (0, 7, 3, 300), np.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]]])
        volume = Volume(np.array(ids)[channels], np.eye(4))
        np.testing.assert_array_equal(label_channels(volume, ids), channels)

    def test_neighbouring_ids_that_float32_cannot_tell_apart_stay_apart(self, tmp_path, make_volume, raw):
        ids = (0, 312_782_546, 312_782_550)  # of the Allen mouse brain atlas
        label = np.zeros((6, 6, 6), np.int64)
        label[1:3], label[3:5] = ids[1], ids[2]
        paths = [
            make_volume(tmp_path / "i.nii", np.random.default_rng(0).normal(size=label.shape).astype(np.float32)),
            make_volume(tmp_path / "l.nii", label),
        ]
        plan = raw(labels=tuple((number, f"r{number}") for number in ids))
        assert preprocess(paths[:1], paths[1], plan).label[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 0]

    def test_more_than_256_labels_are_kept_apart(self, tmp_path, make_volume, raw):
        label = np.arange(343, dtype=np.int16).reshape(7, 7, 7)
        paths = [make_volume(tmp_path / "i.nii", label.astype(np.float32)), make_volume(tmp_path / "l.nii", label)]
        prepared = preprocess(paths[:1], paths[1], raw(labels=tuple((n, str(n)) for n in range(343))))
        np.testing.assert_array_equal(prepared.label, label)

    @pytest.mark.parametrize("stray", [1, 4, 9])
    def test_an_id_that_the_plan_does_not_know_is_refused_and_never_becomes_another(
        self, tmp_path, make_volume, raw, stray
    ):
        paths = [
            make_volume(tmp_path / "i.nii", np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)),
            make_volume(tmp_path / "l.nii", np.full((4, 4, 4), stray, np.uint8)),
        ]
        plan = raw(labels=((0, "background"), (3, "a"), (5, "b")))
        with pytest.raises(InputError, match=rf"l\.nii: holds label ids \[{stray}\], the plan has \[0, 3, 5\]"):
            preprocess(paths[:1], paths[1], plan)


class TestRefusals:
    """What `read_image` refuses, no other reader may let in."""

    @pytest.fixture
    def paths(self, tmp_path, make_volume):
        image, label = tiny_case(0)
        return [make_volume(tmp_path / f"{n}.nii.gz", a, TINY_AFFINE) for n, a in (("i", image), ("l", label))]

    @pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
    def test_values_that_are_not_finite_are_an_input_error(self, tmp_path, make_volume, build_plan, value):
        image = tiny_case(0)[0].astype(np.float64)
        image[1, 2, 3] = value
        path = make_volume(tmp_path / "a.nii", image, TINY_AFFINE)
        with pytest.raises(InputError, match=r"a\.nii: intensities hold NaN or infinity"):
            preprocess([path], None, build_plan())

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_wrong_checksum_of_image_or_label_map_is_an_input_error(self, paths, build_plan, which):
        content = bytearray(paths[which].read_bytes())
        content[-6] ^= 0xFF
        paths[which].write_bytes(content)
        with pytest.raises(InputError, match="CRC check failed"):
            preprocess(paths[:1], paths[1], build_plan())

    def test_a_label_map_of_halves_is_an_input_error(self, paths, make_volume, build_plan):
        make_volume(paths[1], tiny_case(0)[1] * np.float32(0.5), TINY_AFFINE)
        with pytest.raises(InputError, match=r"label values must be whole numbers, got 0\.5"):
            preprocess(paths[:1], paths[1], build_plan())

    def test_forms_that_disagree_are_an_input_error(self, paths, build_plan):
        image = nib.load(paths[0])
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
        image.set_qform(np.eye(4), 1)
        nib.save(image, paths[0].with_name("q.nii.gz"))
        with pytest.raises(InputError, match="qform and sform disagree"):
            preprocess([paths[0].with_name("q.nii.gz")], None, build_plan())

    def test_another_number_of_channels_is_an_input_error(self, paths, build_plan):
        with pytest.raises(InputError, match="the image has 2 channels, the plan has 1"):
            preprocess([paths[0], paths[0]], None, build_plan())


class TestArrays:
    def test_an_array_gives_what_its_file_gives(self, tmp_path, make_volume, build_plan):
        image = tiny_case(0)[0]
        path = make_volume(tmp_path / "a.nii.gz", image, OBLIQUE)
        plan = build_plan(spacing_mm=(1.0, 1.0, 2.0))
        expected, prepared = (
            prepare_files([path], {"a": plan})["a"],
            preprocess_array(image, nib.load(path).affine, plan),
        )
        assert torch.equal(prepared.image, expected.image)
        np.testing.assert_array_equal(prepared.affine, expected.affine)
        assert prepared.label is None

    @pytest.mark.parametrize("shape", [(6, 6, 6), (6, 6, 6, 1)])
    def test_the_callers_array_is_left_as_it_is(self, build_plan, shape):
        array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        kept = array.copy()
        preprocess_array(array, np.eye(4), build_plan(spacing_mm=(1.0, 1.0, 1.0)))
        np.testing.assert_array_equal(array, kept)

    def test_channels_come_last(self, build_plan):
        array = np.random.default_rng(0).normal(size=(5, 6, 7, 2)).astype(np.float32)
        plan = build_plan(normalisation=(Normalisation("ct", 0.0, 1.0, -9.0, 9.0),) * 2, spacing_mm=(1.0, 1.0, 1.0))
        np.testing.assert_array_equal(preprocess_array(array, np.eye(4), plan).image, array.transpose(3, 0, 1, 2))

    @pytest.mark.parametrize("shape", [(5, 5), (5, 5, 0), (1, 1, 1, 1, 1)])
    def test_other_shapes_are_refused(self, build_plan, shape):
        with pytest.raises(InputError, match=r"an image must be \(X, Y, Z\) or \(X, Y, Z, C\)"):
            preprocess_array(np.zeros(shape), np.eye(4), build_plan())

    @pytest.mark.parametrize("affine", [np.eye(3), np.diag([1.0, 0.0, 1.0, 1.0]), np.full((4, 4), np.nan)])
    def test_an_unusable_affine_is_refused(self, build_plan, affine):
        with pytest.raises(InputError, match="the affine cannot be used"):
            preprocess_array(np.zeros((4, 4, 4)), affine, build_plan())

    def test_nan_is_refused(self, build_plan):
        with pytest.raises(InputError, match=r"^intensities hold NaN or infinity"):
            preprocess_array(np.full((4, 4, 4), np.nan), np.eye(4), build_plan())


@pytest.mark.real
@pytest.mark.parametrize("name", ["CT_pitch.nii.gz", "MR_Gd.nii.gz"])
def test_real_oblique_volumes_are_resampled_as_simpleitk_does(shared_data, raw, name):
    path = shared_data / "volumes" / name
    prepared = preprocess([path], None, raw(spacing_mm=(3.0, 3.0, 4.0)))
    itk = sitk.ReadImage(str(path), sitk.sitkFloat32)
    linear = sitk.Resample(itk, _as_itk(prepared.image[0], prepared.affine), sitk.Transform(), sitk.sitkLinear, 0.0)
    inside = (slice(3, -3),) * 3
    expected = sitk.GetArrayFromImage(linear).transpose(2, 1, 0)[inside]
    np.testing.assert_allclose(prepared.image[0].numpy()[inside], expected, atol=2e-3 * np.ptp(expected))


def test_a_label_map_on_another_grid_is_an_input_error(tmp_path, make_volume, build_plan):
    image, label = tiny_case(0)
    moved = TINY_AFFINE.copy()
    moved[0, 3] += 3
    paths = [make_volume(tmp_path / "i.nii", image, TINY_AFFINE), make_volume(tmp_path / "l.nii", label, moved)]
    with pytest.raises(InputError, match=r"l\.nii: label and image lie on different grids \(position"):
        preprocess(paths[:1], paths[1], build_plan())
