import numpy as np
import pytest
import torch

from segscse.data.index import Case, open_dataset
from segscse.data.sampling import PatchSampler, cut_padded, cut_size
from segscse.data.store import CaseStore


@pytest.fixture
def sampler(tmp_path, tiny_dataset, build_plan):
    def build(*, seed=0, share=0.33, cut=None, cases=None, **fields):
        plan = build_plan(**fields)
        cases = cases or open_dataset(tiny_dataset).cases
        store = CaseStore(cases, plan, tmp_path / "store", 1.0)
        return PatchSampler(store, tuple(case.id for case in cases), plan, cut or plan.patch_size, share, seed)

    return build


@pytest.fixture
def needle(tmp_path, make_volume):
    """Return a case of 40 x 40 x 40 voxels, each of its own value, with one foreground voxel near a corner."""
    label = np.zeros((40, 40, 40), np.uint8)
    label[1, 38, 2] = 1
    image = np.arange(40**3, dtype=np.float32).reshape(label.shape)
    paths = [make_volume(tmp_path / f"{name}.nii", array) for name, array in (("i", image), ("l", label))]
    return Case("needle", (paths[0],), paths[1], "needle")


def _flat(**fields):
    return {"spatial_dims": 2, "slice_axis": 2, "patch_size": (8, 8), "mirror_axes": (0, 1), **fields}


class TestBatches:
    def test_a_batch_is_a_function_of_seed_and_step_alone(self, sampler):
        first, again, other = sampler(seed=3), sampler(seed=3), sampler(seed=4)
        batches = [first.batch(step) for step in range(4)]
        for step in (2, 0, 3, 1):  # in any order
            for key in ("image", "label"):
                assert torch.equal(again.batch(step)[key], batches[step][key])
        assert not torch.equal(batches[0]["image"], batches[1]["image"])
        assert not torch.equal(batches[0]["image"], other.batch(0)["image"])

    @pytest.mark.parametrize("world", [2, 3, 6])
    def test_the_parts_of_several_processes_are_the_batch_of_one(self, sampler, world):
        source = sampler(batch_size=6, share=0.5)
        whole = source.batch(7)
        draws = [rng.random() for rng in source.augmentation(7)]
        assert len(set(draws)) == 6
        for rank in range(world):
            part = source.batch(7, rank, world)
            assert torch.equal(part["image"], whole["image"][rank::world])
            assert torch.equal(part["label"], whole["label"][rank::world])
            assert [rng.random() for rng in source.augmentation(7, rank, world)] == draws[rank::world]

    def test_cutting_and_augmenting_do_not_share_random_numbers(self, sampler):
        source = sampler(batch_size=4)
        states = [str(source._rng(3, purpose, index).bit_generator.state) for purpose in range(3) for index in range(4)]
        assert len(set(states)) == 12

    def test_shapes_are_those_of_the_cut(self, sampler):
        batch = sampler(batch_size=5, cut=(10, 9, 8)).batch(0)
        assert batch["image"].shape == (5, 1, 10, 9, 8)
        assert batch["label"].shape == (5, 10, 9, 8)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slices_are_cut_across_the_slice_axis(self, sampler, needle, axis):
        flat = _flat(slice_axis=axis, spacing_mm=(1.0, 1.0, 1.0))
        batch = sampler(cases=[needle], share=1.0, batch_size=3, **flat).batch(0)
        assert batch["image"].shape == (3, 1, 8, 8)
        steps = [stride for number, stride in enumerate((1600.0, 40.0, 1.0)) if number != axis]
        image = batch["image"][0, 0]
        ratio = (image[1, 0] - image[0, 0]) / (image[0, 1] - image[0, 0])
        assert ratio.item() == pytest.approx(steps[0] / steps[1], rel=2e-2)

    def test_image_and_label_are_cut_at_the_same_place(self, sampler):
        batch = sampler(batch_size=4, share=1.0).batch(0)
        image, label = batch["image"][:, 0], batch["label"]
        assert image[label == 1].mean() > image[label == 0].mean() + 0.5
        assert image[label == 2].mean() > image[label == 1].mean() + 0.5


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_foreground_patches_come_from_cases_that_have_some(tmp_path, make_volume, needle, build_plan, memory_gb):
    empty = make_volume(tmp_path / "empty.nii", np.zeros((40, 40, 40), np.uint8))
    healthy = [Case(f"healthy_{number}", needle.images, empty, f"healthy_{number}") for number in range(5)]
    plan, cases = build_plan(batch_size=2, spacing_mm=(1.0, 1.0, 1.0)), [*healthy, needle]
    store = CaseStore(cases, plan, tmp_path / "store", memory_gb)
    names = tuple(case.id for case in cases)
    assert store.with_foreground(names) == ("needle",)
    sampler = PatchSampler(store, names, plan, plan.patch_size, 0.5, 0, store.with_foreground(names))
    batches = [sampler.batch(step) for step in range(60)]
    assert {batch["cases"][0] for batch in batches} == {"needle"}
    assert all(batch["label"][0].any() for batch in batches)
    assert {batch["cases"][1] for batch in batches} == set(names)


@pytest.mark.parametrize("flat", [None, 0, 2])
@pytest.mark.parametrize("cut", [(8, 8, 8), (13, 14, 12)])
def test_batches_are_the_same_whatever_the_cache(tmp_path, tiny_dataset, build_plan, flat, cut):
    """All in memory, all on disk, and some of both, prepared in another order."""
    plan = build_plan(**(_flat(slice_axis=flat) if flat is not None else {}))
    cases = open_dataset(tiny_dataset).cases
    names = tuple(case.id for case in cases)
    one = CaseStore(cases, plan, tmp_path / "a", 1.0)[names[0]].nbytes
    stores = [
        CaseStore(order, plan, tmp_path / f"{gb}", gb)
        for order, gb in ((cases, 1.0), (cases, 0.0), (cases[::-1], 2.5 * one / 1e9))
    ]
    samplers = [PatchSampler(store, names, plan, cut[: plan.spatial_dims], 0.5, 7) for store in stores]
    for store in stores:
        store.prepare()
    assert [sum(store[name].mapped for name in names) for store in stores] == [0, 6, 4]
    for step in range(6):
        expected, *others = (sampler.batch(step) for sampler in samplers)
        for batch in others:
            for key in ("image", "label"):
                assert torch.equal(batch[key], expected[key])
                assert batch[key].is_contiguous()
                assert batch[key].dtype == expected[key].dtype


class TestPlaces:
    @pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.1, 0.5), (0.33, 0.5), (0.8, 0.8), (1.0, 1.0)])
    @pytest.mark.parametrize("flat", [False, True])
    def test_the_share_of_patches_with_foreground_is_as_asked_but_one_of_each_batch(
        self, sampler, needle, share, expected, flat
    ):
        fields = _flat(spacing_mm=(1.0, 1.0, 1.0)) if flat else {"spacing_mm": (1.0, 1.0, 1.0)}
        source = sampler(cases=[needle], share=share, **fields)
        hits = [bool(label.any()) for step in range(300) for label in source.batch(step)["label"]]
        assert np.mean(hits) == pytest.approx(expected, abs=0.06 if share == 0.8 else 0.005)
        assert all(any(pair) for pair in zip(hits[::2], hits[1::2], strict=True)) == (share > 0)

    def test_of_one_patch_a_batch_the_share_stays_as_asked(self, sampler, needle):
        source = sampler(cases=[needle], share=0.33, spacing_mm=(1.0, 1.0, 1.0), batch_size=1)
        hits = [bool(source.batch(step)["label"].any()) for step in range(600)]
        assert np.mean(hits) == pytest.approx(0.33, abs=0.06)

    def test_classes_are_chosen_alike_whatever_their_size(self, sampler, tmp_path, make_volume):
        label = np.zeros((40, 40, 40), np.uint8)
        label[2, 2, 2], label[20:40, 20:40, 20:40] = 1, 2
        image = np.arange(40**3, dtype=np.float32).reshape(label.shape)
        paths = [make_volume(tmp_path / f"{name}.nii", array) for name, array in (("i", image), ("l", label))]
        case = Case("a", (paths[0],), paths[1], "a")
        source = sampler(cases=[case], share=1.0, spacing_mm=(1.0, 1.0, 1.0))
        hits = [bool((item == 1).any()) for step in range(200) for item in source.batch(step)["label"]]
        assert np.mean(hits) == pytest.approx(0.5, abs=0.08)

    def test_a_patch_lies_inside_an_image_that_can_hold_it(self, sampler, needle):
        source = sampler(cases=[needle], share=0.5, spacing_mm=(1.0, 1.0, 1.0), batch_size=8)
        image = source.store["needle"].image
        for step in range(20):
            for patch in source.batch(step)["image"]:
                assert len(patch.unique()) == 8**3  # every voxel has its own value, and padding would repeat 0
                assert patch.min() >= image.min()

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_a_patch_larger_than_the_image_contains_the_whole_image(self, sampler, share):
        source = sampler(patch_size=(32, 32, 32), share=share, cut=(41, 40, 39), batch_size=1)
        for step in range(6):
            batch = source.batch(step)
            middle = batch["label"][0, 4:36, 4:36, 3:35]
            assert middle.shape == (32, 32, 32)
            counts = [torch.bincount(source.store[name].label.flatten().long())[1:] for name in source.cases]
            found = torch.bincount(middle.flatten().long())[1:]
            assert any(torch.equal(found, count) for count in counts)

    def test_a_case_without_foreground_is_cut_at_random(self, sampler, tmp_path, make_volume):
        paths = [
            make_volume(tmp_path / "i.nii", np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)),
            make_volume(tmp_path / "l.nii", np.zeros((9, 9, 9), np.uint8)),
        ]
        batch = sampler(cases=[Case("a", (paths[0],), paths[1], "a")], share=1.0).batch(0)
        assert batch["label"].shape == (2, 8, 8, 8)
        assert not batch["label"].any()


class TestCutting:
    @pytest.mark.parametrize(
        "corner", [(0, 0, 0), (2, 1, 3), (-2, 1, 3), (3, 4, 5), (-9, 0, 0), (9, 9, 9), (-1, -2, -3)]
    )
    @pytest.mark.parametrize("size", [(3, 4, 2), (9, 9, 9)])
    def test_it_equals_a_slice_of_the_padded_array(self, corner, size):
        array = np.arange(2 * 5 * 6 * 7, dtype=np.float32).reshape(2, 5, 6, 7) + 1
        padded = np.pad(array, [(0, 0)] + [(20, 20)] * 3)
        window = tuple(slice(low + 20, low + 20 + length) for low, length in zip(corner, size, strict=True))
        np.testing.assert_array_equal(cut_padded(torch.from_numpy(array), corner, size), padded[(slice(None), *window)])

    def test_without_spatial_augmentation_the_cut_is_the_patch(self, build_plan):
        assert cut_size(build_plan(patch_size=(8, 16, 8)), [(99, 99, 99)], spatial=False) == (8, 16, 8)

    def test_the_margin_is_a_third_but_not_more_than_the_largest_case_has(self, build_plan):
        plan = build_plan(patch_size=(10, 10, 10))
        assert cut_size(plan, [(99, 5, 5), (5, 11, 9)], spatial=True) == (13, 11, 10)

    def test_in_2d_the_margin_is_of_the_axes_of_the_slice(self, build_plan):
        plan = build_plan(**_flat(slice_axis=0, patch_size=(10, 20)))
        assert cut_size(plan, [(3, 99, 99)], spatial=True) == (13, 26)
