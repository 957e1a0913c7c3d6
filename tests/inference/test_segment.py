import dataclasses
from shutil import copytree

import nibabel as nib
import numpy as np
import pytest
import torch
from naive import naive_logits, naive_restore
from nearest import nearest_predictor
from scipy.spatial.transform import Rotation
from tiny import tiny_case, tiny_plan, tiny_plan_2d

from segscse.data.network_grid import preprocess_array
from segscse.data.plan import Normalisation
from segscse.errors import InputError
from segscse.inference.postprocess import apply_steps
from segscse.inference.predictor import Ensemble, Predictor, load
from segscse.inference.segment import Options, plan_sweeps, segment, shared_steps, wanted_voxels

CPU = torch.device("cpu")


def _network(dims, seed=0):
    torch.manual_seed(seed)
    conv = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
    return torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.Tanh(), conv(4, 3, 3, padding=1))


def _predictor(plan, seed=0, **options):
    return Predictor(_network(plan.spatial_dims, seed), plan, provenance={}, device=CPU, **options)


def _affine(spacing, codes):
    """Return an oblique affine whose axes run as `codes` says."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes))
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(0.12, -0.2, 0.1) @ np.diag(spacing)
    return affine @ nib.orientations.inv_ornt_aff(turn, (20, 20, 20))


@torch.no_grad()
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "IAR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.4, 2.1)])
@pytest.mark.parametrize("plan", [tiny_plan(patch_size=(8, 9, 8)), tiny_plan_2d(patch_size=(8, 12))], ids=["3d", "2d"])
@pytest.mark.parametrize("shape", [(20, 17, 23), (3, 30, 1), (40, 8, 9)])
def test_the_streamed_result_is_the_naive_one_voxel_for_voxel(codes, spacing, plan, shape):
    image = np.random.default_rng(5).normal(100, 20, shape).astype(np.float32)
    predictor, affine = _predictor(plan), _affine(spacing, codes)
    prepared = preprocess_array(image, affine, plan)
    logits = naive_logits(prepared.image, predictor.network, window=plan.patch_size, slice_axis=plan.slice_axis)
    labels, probabilities = naive_restore(logits, prepared, plan.label_ids)
    np.testing.assert_array_equal(predictor.predict((image, affine)).array, labels)
    dense = predictor.predict((image, affine), probabilities=True)
    np.testing.assert_array_equal(dense.array, labels)
    np.testing.assert_allclose(dense.probabilities, probabilities, atol=1e-5)


@pytest.mark.parametrize("angles", [(45, 180, 45), (0, 315, 225), (45, 45, 45)])
@pytest.mark.parametrize("shape", [(14, 14, 14), (16, 14, 10)])
def test_labels_lie_where_the_scan_does_however_two_axes_tie(angles, shape):
    """Rotated by 45 degrees about two axes it is rounding that says which axis of the scan is the canonical one."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().astype(np.float32)
    image = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], shape).astype(np.float32)
    plan = dataclasses.replace(tiny_plan(), spacing_mm=(1.0, 1.0, 1.0))
    found = nearest_predictor(plan).predict((image, affine)).array
    np.testing.assert_array_equal(found, np.array(plan.label_ids)[np.rint(image).astype(int) + 1])


@torch.no_grad()
def test_mirroring_averages_the_logits_of_each_window():
    plan = tiny_plan(patch_size=(8, 8, 8), mirror_axes=(0, 2))
    image = np.random.default_rng(5).normal(100, 20, (19, 16, 12)).astype(np.float32)
    predictor = _predictor(plan, mirror=True)
    prepared = preprocess_array(image, np.eye(4), plan)

    def averaged(x):
        flips = [(), (2,), (4,), (2, 4)]
        return sum(predictor.network(x.flip(axes)).flip(axes) for axes in flips) / 4

    labels, _ = naive_restore(naive_logits(prepared.image, averaged, window=(8, 8, 8)), prepared, plan.label_ids)
    np.testing.assert_array_equal(predictor.predict((image, np.eye(4))).array, labels)


class TestPostprocessing:
    STEPS = ("largest_component:2", "largest_component:5")

    def _image(self):
        return np.random.default_rng(8).normal(100, 20, (19, 16, 12)).astype(np.float32)

    def test_the_label_map_its_volumes_and_its_pieces_are_those_after_it(self):
        plan = tiny_plan(patch_size=(8, 8, 8))
        raw = _predictor(plan).predict((self._image(), np.eye(4)))
        kept = _predictor(plan, postprocessing=self.STEPS).predict((self._image(), np.eye(4)))
        expected = raw.array.copy()
        lost = apply_steps(expected, self.STEPS)
        assert sum(lost.values()) > 0
        np.testing.assert_array_equal(kept.array, expected)
        for label in (2, 5):
            assert kept.quality()[f"volume_ml_{label}"] == pytest.approx((expected == label).sum() / 1000)
            assert kept.quality()[f"components_{label}"] == 1
        assert max(raw.quality()[f"components_{label}"] for label in (2, 5)) > 1

    def test_an_ensemble_takes_the_steps_that_all_its_members_ask_for(self):
        plan = tiny_plan(patch_size=(8, 8, 8))
        members = [_predictor(plan, 0, postprocessing=self.STEPS), _predictor(plan, 1, postprocessing=self.STEPS[1:])]
        assert shared_steps(members) == self.STEPS[1:]
        raw = Ensemble([_predictor(plan, seed) for seed in (0, 1)]).predict((self._image(), np.eye(4))).array
        apply_steps(raw, self.STEPS[1:])
        np.testing.assert_array_equal(Ensemble(members).predict((self._image(), np.eye(4))).array, raw)


class TestForegroundOnly:
    @pytest.mark.parametrize("scheme", ["ct", "zscore", "zscore_nonzero"])
    def test_leaves_the_labels_of_everything_but_air_as_they_are(self, scheme):
        normalisation = (Normalisation(scheme, 40.0, 90.0, -150.0, 250.0),)
        plan = tiny_plan(patch_size=(8, 8, 8), normalisation=normalisation)
        rng = np.random.default_rng(0)
        air = 0.0 if scheme == "zscore_nonzero" else -1000.0
        image = np.full((40, 36, 30), air, np.float32)
        image[2:10, 3:9, 4:12] = rng.normal(50, 60, (8, 6, 8))
        image[30:37, 28:34, 20:28] = rng.normal(50, 60, (7, 6, 8))
        predictor = _predictor(plan)
        whole = predictor.predict((image, np.eye(4)))
        partial = predictor.predict((image, np.eye(4)), foreground_only=True)
        body = (image > -150) & (image != air)
        np.testing.assert_array_equal(partial.array[body], whole.array[body])
        assert whole.windows[1] == 0
        assert sum(partial.windows) == whole.windows[0]
        assert partial.windows[1] > whole.windows[0] / 2
        assert (partial.array != whole.array).any()  # in the air, where the network was not asked

    def test_of_ct_air_is_what_lies_below_the_lower_bound(self):
        plan = tiny_plan(normalisation=(Normalisation("ct", 40.0, 90.0, -150.0, 250.0),))
        image = np.full((6, 6, 6), -600.0, np.float32)
        image[0, 0, 0], image[2:4, 2:4, 2:4], image[3, 3, 3] = -1000, -150, -149
        prepared = preprocess_array(image, np.eye(4), plan)
        assert wanted_voxels(prepared.image, plan).nonzero().tolist() == [[3, 3, 3]]

    def test_of_mr_it_is_the_images_constant_background(self):
        image = np.zeros((8, 8, 8), np.float32)
        image[3:6, 3:6, 3:6] = 5
        prepared = preprocess_array(image, np.eye(4), tiny_plan())
        assert int(wanted_voxels(prepared.image, tiny_plan()).sum()) == 27
        assert prepared.image.shape[1:] == (5, 5, 5)


class TestEnsemble:
    def test_averages_the_probabilities_of_networks_on_their_own_grids(self):
        plans = [tiny_plan(patch_size=(8, 8, 8)), tiny_plan(patch_size=(12, 8, 8), spacing_mm=(0.8, 1.3, 1.1))]
        members = [_predictor(plan, seed) for seed, plan in enumerate(plans)]
        image, affine = tiny_case(1)[0], _affine((0.9, 1.1, 1.6), "LPS")
        single = [member.predict((image, affine), probabilities=True).probabilities for member in members]
        found = Ensemble(members).predict((image, affine), probabilities=True, uncertainty=True)
        np.testing.assert_allclose(found.probabilities, np.mean(single, axis=0), atol=1e-6)
        np.testing.assert_array_equal(found.array, Ensemble(members).predict((image, affine)).array)
        assert found.uncertainty.shape == found.disagreement.shape == image.shape
        assert 0 < found.disagreement.max() <= found.uncertainty.max() <= 1
        assert 0 < found.quality()["disagreement"] <= 1
        assert members[0].predict((image, affine), uncertainty=True).disagreement is None

    def test_members_that_prepare_alike_share_the_image(self):
        ensemble = Ensemble([_predictor(tiny_plan(), 0), _predictor(tiny_plan(), 1)])
        first, second = ensemble.prepare((tiny_case(0)[0], np.eye(4)))
        assert first is second

    @pytest.mark.parametrize(
        "change", [{"labels": ((0, "background"), (2, "block"), (5, "cube"))}, {"channels": ("CT",)}]
    )
    def test_models_of_different_tasks_are_refused(self, change):
        with pytest.raises(InputError, match=f"has the {next(iter(change))} .*, the first model of the ensemble"):
            Ensemble([_predictor(tiny_plan()), _predictor(tiny_plan(**change))])

    def test_is_loaded_from_several_folders(self, trained):
        image = (tiny_case(0)[0], np.eye(4))
        ensemble = load(trained.folder, trained.folder / "model", device="cpu")
        np.testing.assert_array_equal(ensemble.predict(image).array, ensemble.members[0].predict(image).array)

    def test_is_the_folder_of_a_cross_validation(self, trained, tmp_path):
        for fold in ("fold0", "fold1", "fold2"):
            (tmp_path / fold).mkdir()
        copytree(trained.folder / "model", tmp_path / "fold0_before" / "model")
        for fold in ("fold0", "fold2"):  # the one between has not come to a model yet
            copytree(trained.folder / "model", tmp_path / fold / "model")
            (tmp_path / fold / "validation").mkdir()
            (tmp_path / fold / "validation" / "summary.json").touch()
        assert [one.folder for one in load(tmp_path, device="cpu").members] == [
            tmp_path / "fold0" / "model",
            tmp_path / "fold2" / "model",
        ]
        (tmp_path / "fold2" / "validation" / "summary.json").unlink()
        with pytest.raises(InputError, match="fold2: is not finished"):
            load(tmp_path, device="cpu")

    def test_is_not_the_folder_of_a_cross_validation_that_was_stopped_between_folds(self, trained, tmp_path):
        for name in ("fold0", "fold1"):
            copytree(trained.folder / "model", tmp_path / name / "model")
            (tmp_path / name / "validation").mkdir()
            (tmp_path / name / "validation" / "summary.json").touch()
        (tmp_path / "settings.json").touch()
        with pytest.raises(InputError, match="of which only fold0, fold1 are finished"):
            load(tmp_path, device="cpu")
        (tmp_path / "evaluation").mkdir()
        (tmp_path / "evaluation" / "summary.json").touch()
        assert len(load(tmp_path, device="cpu").members) == 2


def test_uncertainty_is_that_of_the_probabilities():
    found = _predictor(tiny_plan()).predict((tiny_case(0)[0], np.eye(4)), probabilities=True, uncertainty=True)
    expected = -(found.probabilities * np.log(np.clip(found.probabilities, 1e-30, None))).sum(axis=-1) / np.log(3)
    np.testing.assert_allclose(found.uncertainty, expected, atol=1e-5)


def test_all_members_are_swept_along_the_axis_that_suits_them_together():
    members = [_predictor(tiny_plan(patch_size=(8, 8, 8))), _predictor(tiny_plan(patch_size=(8, 8, 8)))]
    sweeps = plan_sweeps(members, [(60, 20, 20), (60, 20, 40)], None)
    assert {sweep.axis for sweep in sweeps} == {0}
    assert [sweep.slab_voxels for sweep in sweeps] == [9 * 400, 9 * 800]


def test_members_of_an_ensemble_make_no_larger_batches_than_their_own():
    members = [_predictor(tiny_plan(batch_size=2)), _predictor(tiny_plan_2d(batch_size=48))]
    shapes = [(60, 20, 20)] * 2
    for limit, expected in ((None, [2, 48]), (48, [2, 48]), (16, [2, 16]), (1, [1, 1])):
        assert [sweep.batch_size for sweep in plan_sweeps(members, shapes, limit)] == expected
    assert plan_sweeps(members[:1], shapes[:1], 16)[0].batch_size == 16  # of a single model it is what is asked for


def test_progress_rises_to_one():
    plan, shares = tiny_plan(patch_size=(8, 8, 8)), []
    prepared = preprocess_array(tiny_case(0)[0], np.eye(4), plan)
    segment([_predictor(plan)], [prepared], Options(foreground_only=True), advance=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_batch_does_not_change_the_result():
    plan = tiny_plan(patch_size=(8, 8, 8))
    prepared = preprocess_array(tiny_case(0)[0], np.eye(4), plan)
    found = [segment([_predictor(plan)], [prepared], Options(batch_size=size)).array for size in (1, 3, 50)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_the_batch_does_not_change_the_quality():
    plan = tiny_plan(patch_size=(4, 20, 12))  # one window a layer, so that a batch is as many layers
    prepared = preprocess_array(tiny_case(0)[0], np.eye(4), plan)
    rows = [segment([nearest_predictor(plan)], [prepared], Options(batch_size=size)).quality() for size in (1, 2, 8)]
    for name in ("border_entropy", "mean_confidence"):
        assert [row[name] for row in rows] == pytest.approx([rows[0][name]] * 3, rel=1e-6)


def test_a_network_with_other_classes_than_the_plan_is_a_defect():
    plan = dataclasses.replace(tiny_plan(), labels=((0, "background"), (1, "one")))
    with pytest.raises(RuntimeError):
        _predictor(plan).predict((tiny_case(0)[0], np.eye(4)))
