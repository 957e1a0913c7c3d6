import dataclasses

import nibabel as nib
import numpy as np
import pytest

from segscse.data.phantom import (
    STORAGE_ORIENTATIONS,
    draw_anatomy,
    label_at,
    make_phantom_dataset,
    phantom_case,
    tube_level_mm,
)
from segscse.errors import InputError
from segscse.files import read_json


@pytest.fixture(scope="module")
def cases():
    return [phantom_case(0, index) for index in range(6)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("phantom"), cases=3, test_cases=2, seed=7)


def _dice(a, b):
    return 2.0 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def _world_mm(mask, affine):
    return nib.affines.apply_affine(affine, np.argwhere(mask))


class TestPhantomCase:
    def test_the_same_seed_and_index_give_the_same_case(self):
        for first, second in zip(phantom_case(3, 2), phantom_case(3, 2), strict=True):
            np.testing.assert_array_equal(first, second)

    def test_another_seed_or_index_gives_another_subject(self, cases):
        labels = [cases[0][1], phantom_case(0, 5)[1], phantom_case(1, 0)[1]]
        volumes = {tuple(np.bincount(label.ravel())) for label in labels}
        assert len(volumes) == 3

    def test_types_shapes_and_labels_are_as_promised(self, cases):
        for image, label, affine in cases:
            assert image.dtype == np.float32
            assert label.dtype == np.uint8
            assert image.shape == label.shape
            assert affine.shape == (4, 4)
            assert np.isfinite(image).all()
            assert set(np.unique(label)) == {0, 1, 2}

    def test_no_structure_is_tiny_or_touches_the_border(self, cases):
        for _, label, _ in cases:
            assert np.bincount(label.ravel())[1:].min() > 300
            inner = label[1:-1, 1:-1, 1:-1]
            assert np.count_nonzero(inner) == np.count_nonzero(label)

    def test_grids_are_anisotropic_oblique_and_stored_in_several_orientations(self, cases):
        codes = set()
        for _, _, affine in cases:
            spacing_mm = np.sort(nib.affines.voxel_sizes(affine))
            assert 0.9 < spacing_mm[0] < 1.1
            assert spacing_mm[1] == pytest.approx(spacing_mm[0])
            assert 2.0 < spacing_mm[2] < 3.0
            assert 0.5 < np.rad2deg(nib.affines.obliquity(affine)).max() < 20.0
            codes.add("".join(nib.aff2axcodes(affine)))
        assert codes == set(STORAGE_ORIENTATIONS)
        handedness = {np.sign(np.linalg.det(affine[:3, :3])) for _, _, affine in cases}
        assert handedness == {-1.0, 1.0}

    @pytest.mark.parametrize("index", range(5))
    def test_labels_lie_where_the_continuous_functions_say(self, cases, index):
        _, label, affine = cases[index]
        anatomy = draw_anatomy(np.random.default_rng([0, index]))
        axis_mm = np.arange(-26.0, 26.0, 0.75)  # a grid that knows nothing of the case's own
        points_mm = np.stack(np.meshgrid(axis_mm, axis_mm, axis_mm, indexing="ij"), -1) + anatomy.centre_mm
        fine = label_at(anatomy, points_mm)
        voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
        for value in (1, 2):
            centroid_mm = _world_mm(label == value, affine).mean(axis=0)
            np.testing.assert_allclose(centroid_mm, points_mm[fine == value].mean(axis=0), atol=0.3)
            fine_mm3 = np.count_nonzero(fine == value) * 0.75**3
            assert np.count_nonzero(label == value) * voxel_mm3 == pytest.approx(fine_mm3, rel=0.05)

    def test_every_voxel_has_the_label_of_its_centre(self, cases):
        _, label, affine = cases[3]
        anatomy = draw_anatomy(np.random.default_rng([0, 3]))
        every = _world_mm(np.ones(label.shape, bool), affine)
        np.testing.assert_array_equal(label_at(anatomy, every).reshape(label.shape), label)

    def test_the_head_lies_in_front_of_the_tail(self, cases):
        for _, label, affine in cases:
            assert _world_mm(label == 1, affine)[:, 1].mean() > _world_mm(label == 2, affine)[:, 1].mean() + 8.0

    def test_the_tube_is_negative_inside_and_grows_outside(self):
        anatomy = dataclasses.replace(draw_anatomy(np.random.default_rng(0)), wave_mm=np.zeros((4, 3)))
        middle_mm = anatomy.centre_mm + anatomy.tube_offset_mm + [-0.4 * anatomy.bend_mm, 0.0, 0.0]
        upwards_mm = middle_mm + np.array([[0.0, 0.0, z] for z in (0.0, 5.0, 10.0, 15.0)])
        level_mm = tube_level_mm(anatomy, upwards_mm)
        assert level_mm[0] < 0 < level_mm[2]
        np.testing.assert_allclose(np.diff(level_mm), 5.0)

    def test_structures_are_brighter_than_most_tissue_but_no_threshold_finds_them(self, cases):
        best = []
        for image, label, _ in cases:
            scale = np.percentile(image, 99)
            assert np.median(image[label == 1]) > np.median(image[label == 2]) > np.median(image[image > 0.2 * scale])
            thresholds = np.linspace(0.1, 1.2, 45) * scale
            best.append(max(_dice(image > threshold, label > 0) for threshold in thresholds))
        assert max(best) < 0.7

    def test_no_intensity_window_tells_head_from_everything_else(self, cases):
        best = []
        for image, label, _ in cases:
            edges = np.linspace(0.4, 1.3, 25) * np.percentile(image, 99)
            windows = [(low, high) for low in edges for high in edges if low < high]
            best.append(max(_dice((image > low) & (image < high), label == 1) for low, high in windows))
        assert np.mean(best) < 0.87

    def test_intensity_scales_differ_between_cases(self, cases):
        scales = [float(np.percentile(image, 99)) for image, _, _ in cases]
        assert max(scales) > 2.0 * min(scales)


class TestMakePhantomDataset:
    def test_dataset_json_lists_what_is_there(self, dataset):
        content = read_json(dataset / "dataset.json")
        assert content["labels"] == {"0": "background", "1": "head", "2": "tail"}
        assert content["modality"] == {"0": "MRI"}
        assert content["numTraining"] == len(content["training"]) == 3
        assert content["numTest"] == len(content["test"]) == 2
        listed = {entry[key] for entry in content["training"] for key in ("image", "label")}
        listed |= set(content["test"]) | {path.replace("imagesTs", "labelsTs") for path in content["test"]}
        there = {f"./{path.relative_to(dataset).as_posix()}" for path in dataset.rglob("*") if path.is_file()}
        assert there == listed | {"./dataset.json"}

    def test_files_hold_the_cases_and_one_geometry(self, dataset):
        for index, section in enumerate(("Tr", "Tr", "Tr", "Ts", "Ts")):
            image_file = nib.load(dataset / f"images{section}" / f"phantom_{index:03d}.nii.gz")
            label_file = nib.load(dataset / f"labels{section}" / f"phantom_{index:03d}.nii.gz")
            image, label, affine = phantom_case(7, index)
            np.testing.assert_array_equal(np.asarray(label_file.dataobj), label)
            np.testing.assert_allclose(np.asarray(image_file.dataobj), image, atol=0.5 if index % 2 == 0 else 0)
            for file in (image_file, label_file):
                qform, qcode = file.get_qform(coded=True)
                sform, scode = file.get_sform(coded=True)
                assert qcode == scode == 1
                np.testing.assert_allclose(sform, affine, atol=1e-4)
                np.testing.assert_allclose(qform, sform, atol=1e-4)
                np.testing.assert_allclose(file.header.get_zooms(), nib.affines.voxel_sizes(affine), rtol=1e-5)
                assert file.header.get_xyzt_units()[0] == "mm"

    def test_both_integer_and_float_images_occur(self, dataset):
        kinds = {nib.load(path).get_data_dtype() for path in (dataset / "imagesTr").iterdir()}
        assert kinds == {np.dtype(np.int16), np.dtype(np.float32)}

    def test_writing_twice_gives_the_same_bytes(self, dataset, tmp_path):
        again = make_phantom_dataset(tmp_path / "again", cases=3, test_cases=2, seed=7)
        for path in dataset.rglob("*.*"):
            assert (again / path.relative_to(dataset)).read_bytes() == path.read_bytes()

    def test_the_same_request_returns_at_once(self, dataset):
        before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
        assert make_phantom_dataset(dataset, cases=3, test_cases=2, seed=7) == dataset
        assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before

    def test_another_data_set_is_not_overwritten(self, dataset):
        with pytest.raises(InputError, match="holds another data set"):
            make_phantom_dataset(dataset, cases=4, test_cases=2, seed=7)

    def test_no_test_cases_are_possible(self, tmp_path):
        out = make_phantom_dataset(tmp_path, cases=1, test_cases=0)
        assert read_json(out / "dataset.json")["test"] == []
        assert not (out / "imagesTs").exists()

    @pytest.mark.parametrize("wrong", [{"cases": 0}, {"test_cases": -1}, {"seed": -1}])
    def test_numbers_out_of_range_are_refused(self, tmp_path, wrong):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} must be at least"):
            make_phantom_dataset(tmp_path, **wrong)
