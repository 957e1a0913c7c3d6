import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from segscse.config import load_config
from segscse.data.examine import examine_dataset
from segscse.data.fingerprint import ChannelStats, Fingerprint, make_fingerprint
from segscse.data.index import open_dataset
from segscse.data.plan import Normalisation, Plan, context_note, load_plan, make_plan, plan_topology, save_plan
from segscse.errors import InputError

MR = ChannelStats("MRI", 180.0, 40.0, 90.0, 270.0, 0.0, 400.0, False)
CT = ChannelStats("CT", 80.0, 20.0, -20.0, 200.0, -1024.0, 3071.0, True)
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (35, 50, 36),
    (64, 64, 64),
    (5, 300, 300),
    (320, 320, 11),
    (512, 512, 90),
    (65, 36, 528),
]
SPACINGS = [(1, 1, 1), (0.5, 0.5, 7.5), (2.635, 5.283, 2.649), (0.15, 0.15, 0.15), (3, 0.7, 0.7), (1, 2, 4)]


def _fingerprint(
    shape=(35, 50, 36), spacing=(1.0, 1.0, 1.0), channels=(MR,), labels=None, shapes=None, spacings=None, content=None
):
    shapes, spacings = shapes or (shape,) * 3, spacings or (spacing,) * 3
    labels = labels or {0: "background", 1: "nucleus", 2: "shell"}
    cases = tuple(f"c{number}" for number in range(len(shapes)))
    return Fingerprint(cases, shapes, content or shapes, spacings, labels, {}, channels, "0")


def _plan(fingerprint, **settings):
    return make_plan(fingerprint, load_config(settings), "set")


class TestTopology:
    @pytest.mark.parametrize(("shape", "spacing"), itertools.product(SHAPES, SPACINGS))
    @pytest.mark.parametrize("limit", [4096, 100_000, 300_000])
    def test_strides_divide_the_patch_and_voxels_stay_near_the_limit(self, shape, spacing, limit):
        for axes in [(0, 1, 2), (0, 1), (1, 2)]:
            shape_now, spacing_now = [shape[axis] for axis in axes], [spacing[axis] for axis in axes]
            patch, strides, kernels = plan_topology(shape_now, spacing_now, limit)
            factor = np.prod(strides, axis=0)
            assert (np.array(patch) % factor == 0).all()
            assert np.prod(patch) <= 1.25 * limit
            assert len(strides) == len(kernels) <= 6
            assert strides[0] == (1,) * len(axes)
            assert {stride for stage in strides for stride in stage} <= {1, 2}
            assert {kernel for stage in kernels for kernel in stage} <= {1, 3}
            assert all(a <= b for fine, deep in itertools.pairwise(kernels) for a, b in zip(fine, deep, strict=True))
            assert all(edge <= max(8, np.ceil(1.5 * size)) for edge, size in zip(patch, shape_now, strict=True))

    def test_random_shapes_keep_the_promise_too(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            shape = np.exp(rng.uniform(0, np.log(700), 3)).astype(int) + 1
            spacing = np.exp(rng.uniform(np.log(0.2), np.log(8), 3)).round(3)
            patch, strides, _ = plan_topology(shape, spacing, 20_000)
            assert (np.array(patch) % np.prod(strides, axis=0) == 0).all()
            assert np.prod(patch) <= 25_000

    @pytest.mark.parametrize(
        ("shape", "spacing", "limit"),
        [((512, 512, 1), (0.001, 0.001, 1.0), 200_000), ((1, 400, 900), (5.0, 0.005, 0.005), 100_000)],
    )
    def test_an_axis_of_one_voxel_is_not_shrunk_however_long_it_is(self, shape, spacing, limit):
        patch, _, _ = plan_topology(shape, spacing, limit)
        assert np.prod(patch) <= 1.25 * limit

    def test_the_hippocampus_gets_40_56_40_and_three_poolings(self):
        patch, strides, kernels = plan_topology((35, 50, 36), (1.0, 1.0, 1.0), 300_000)
        assert patch == (40, 56, 40)
        assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
        assert kernels == ((3, 3, 3),) * 4

    def test_thick_slices_are_neither_mixed_nor_pooled_until_the_plane_is_as_coarse(self):
        patch, strides, kernels = plan_topology((512, 512, 32), (0.8, 0.8, 7.5), 300_000)
        assert strides[1:3] == ((2, 2, 1), (2, 2, 1))
        # In-plane sizes are 0.8, 1.6, 3.2, 6.4 mm: 7.5 mm is within a factor of two only of the last.
        assert kernels[:4] == ((3, 3, 1), (3, 3, 1), (3, 3, 1), (3, 3, 3))
        assert patch[0] == patch[1] > 2 * patch[2]

    @pytest.mark.parametrize(("shape", "spacing"), [((300, 150, 75), (1, 2, 4)), ((400, 200, 100), (1, 1, 1))])
    def test_the_patch_is_nearly_a_cube_in_millimetres_where_the_volume_holds_one(self, shape, spacing):
        patch, _, _ = plan_topology(shape, spacing, 20_000)
        extents = np.array(patch) * spacing
        assert extents.max() / extents.min() < 1.6

    def test_planes_are_still_looked_across_where_few_slices_stay_fine(self):
        """By the rule for each stage alone the last would be (1, 1, 3): its planes at 48 mm, its slices at 10 mm."""
        _, strides, kernels = plan_topology((216, 256, 10), (1.5, 1.5, 10.0), 300_000)
        assert strides[-1] == (2, 2, 1)
        assert kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))

    @pytest.mark.parametrize("thickness", [0.5, 1.0, 2.4, 9.0])
    def test_an_axis_of_one_voxel_has_no_neighbours_to_look_at(self, thickness):
        patch, _, kernels = plan_topology((128, 128, 1), (1.0, 1.0, thickness), 300_000)
        assert patch == (128, 128, 1)
        assert set(kernels) == {(3, 3, 1)}


class TestPlan:
    def test_equal_fingerprints_give_equal_plans_and_json_returns_them(self, tmp_path, tiny_dataset):
        index = open_dataset(tiny_dataset)
        config = load_config()
        plans = [make_plan(make_fingerprint(index, examine_dataset(index)[0]), config, "tiny") for _ in range(2)]
        assert plans[0] == plans[1]
        save_plan(tmp_path / "plan.json", plans[0])
        assert load_plan(tmp_path / "plan.json") == plans[0]
        assert load_plan(tmp_path / "plan.json").key == plans[0].key
        assert Plan.from_json(json.loads(json.dumps(plans[0].to_json()))) == plans[0]

    def test_the_hippocampus_plan(self):
        plan = _plan(_fingerprint())
        assert plan.patch_size == (40, 56, 40)
        assert plan.batch_size == 2
        assert plan.spacing_mm == (1.0, 1.0, 1.0)
        assert plan.slice_axis is None
        assert plan.window_axes == (0, 1, 2)
        assert plan.mirror_axes == (0, 1, 2)
        assert plan.normalisation == (Normalisation("zscore", 180.0, 40.0, 90.0, 270.0),)

    def test_label_ids_may_have_gaps(self):
        plan = _plan(_fingerprint(labels={0: "background", 3: "a", 40: "b"}))
        assert plan.labels == ((0, "background"), (3, "a"), (40, "b"))
        assert plan.label_ids == (0, 3, 40)

    def test_spacing_is_the_median_of_each_axis(self):
        spacings = ((1.0, 0.8, 2.0), (1.2, 0.9, 2.0), (5.0, 1.0, 2.5))
        assert _plan(_fingerprint(spacings=spacings)).spacing_mm == (1.2, 0.9, 2.0)

    def test_spacings_of_a_microscope_keep_their_digits(self):
        spacings = ((0.00065, 0.00002, 0.123456),)
        assert _plan(_fingerprint(shapes=((9, 9, 9),), spacings=spacings)).spacing_mm == (0.00065, 0.00002, 0.1235)

    def test_a_strongly_coarser_axis_gets_its_10th_percentile(self):
        spacings = tuple((0.8, 0.8, thickness) for thickness in (2.0, 5.0, 7.5, 7.5, 7.5))
        plan = _plan(_fingerprint(shapes=((512, 512, 32),) * 5, spacings=spacings))
        assert plan.spacing_mm == (0.8, 0.8, pytest.approx(np.percentile([2, 5, 7.5, 7.5, 7.5], 10)))
        assert any("anisotropic" in reason for reason in plan.reasons)

    def test_a_coarse_axis_with_many_voxels_keeps_its_median(self):
        spacings = tuple((0.8, 0.8, thickness) for thickness in (2.0, 5.0, 7.5, 7.5, 7.5))
        assert _plan(_fingerprint(shapes=((100, 100, 90),) * 5, spacings=spacings)).spacing_mm[2] == 7.5

    def test_a_given_spacing_and_batch_size_win(self):
        plan = _plan(_fingerprint(), data={"spacing_mm": [2.0, 2.0, 2.0], "batch_size": 9})
        assert plan.spacing_mm == (2.0, 2.0, 2.0)
        assert plan.batch_size == 9
        assert any("(18, 25, 18)" in reason for reason in plan.reasons)

    @pytest.mark.parametrize(
        ("spacing", "axis"),
        [((1.0, 1.0, 1.0), 2), ((0.5, 0.5, 7.5), 2), ((7.5, 0.5, 0.5), 0), ((1.0, 3.0, 1.0), 1), ((3.0, 3.0, 1.0), 1)],
    )
    def test_slices_are_stacked_along_the_coarsest_axis(self, spacing, axis):
        plan = _plan(_fingerprint(spacing=spacing), model={"spatial_dims": 2})
        assert plan.slice_axis == axis
        assert plan.window_axes == tuple(other for other in range(3) if other != axis)
        assert len(plan.patch_size) == len(plan.strides[0]) == len(plan.kernel_sizes[0]) == 2
        assert 2 <= plan.batch_size <= 48

    @pytest.mark.parametrize(
        ("shape", "spacing", "axis"),
        [
            ((80, 96, 1), (1.4, 1.4, 1.0), 2),
            ((128, 128, 1), (2.4, 2.4, 1.0), 2),
            ((1, 256, 256), (1.0, 1.0, 1.0), 0),
            ((181, 1, 181), (1.0, 1.0, 1.0), 1),
        ],
    )
    def test_pictures_are_seen_whole_whatever_size_their_files_give_the_missing_axis(self, shape, spacing, axis):
        plan = _plan(_fingerprint(shape=shape, spacing=spacing), model={"spatial_dims": 2})
        assert plan.slice_axis == axis
        assert min(plan.patch_size) >= 80
        assert set(plan.kernel_sizes) == {(3, 3)}
        solid = _plan(_fingerprint(shape=shape, spacing=spacing), augment={"mirror": "all"})
        assert solid.patch_size[axis] == 1
        assert axis not in solid.mirror_axes
        assert len(solid.mirror_axes) == 2

    def test_huge_slices_are_limited_to_512(self):
        plan = _plan(_fingerprint(shape=(900, 1100, 5)), model={"spatial_dims": 2})
        assert plan.patch_size == (512, 512)
        assert plan.batch_size == 2


class TestMirroring:
    @pytest.mark.parametrize("name", ["kidney_left", "Left Kidney", "RIGHT-lung", "right", "kidney_L", "L"])
    def test_labels_that_name_a_side_stop_mirroring_right_left(self, name):
        plan = _plan(_fingerprint(labels={0: "background", 1: name}))
        assert plan.mirror_axes == (1, 2)
        assert any("no mirroring" in reason and name in reason for reason in plan.reasons)

    @pytest.mark.parametrize("name", ["cleft", "bright spot", "leftover", "L1", "vertebra_R2"])
    def test_words_that_only_contain_a_side_do_not(self, name):
        assert _plan(_fingerprint(labels={0: "background", 1: name})).mirror_axes == (0, 1, 2)

    @pytest.mark.parametrize(
        ("name", "axes"),
        [
            ("Anterior", (0, 2)),
            ("posterior limb", (0, 2)),
            ("lobe_upper", (0, 1)),
            ("lh", (1, 2)),
            ("interior", (0, 1, 2)),
        ],
    )
    def test_each_pair_of_directions_stops_mirroring_along_its_own_axis(self, name, axes):
        assert _plan(_fingerprint(labels={0: "background", 1: name})).mirror_axes == axes

    def test_scans_that_show_one_way_around_stop_mirroring(self):
        plan = _plan(dataclasses.replace(_fingerprint(), directed={1: 2.5, 2: 100.0}))
        assert plan.mirror_axes == (0,)
        assert (
            sum("the scans show it one way around, mirrored they lie 2.5 times" in text for text in plan.reasons) == 1
        )

    def test_all_and_none_do_not_ask_the_data(self):
        fingerprint = dataclasses.replace(_fingerprint(labels={0: "background", 1: "left"}), directed={1: 2.5})
        assert _plan(fingerprint, augment={"mirror": "all"}).mirror_axes == (0, 1, 2)
        assert _plan(fingerprint, augment={"mirror": "none"}).mirror_axes == ()

    def test_in_2d_the_slice_axis_is_never_mirrored(self):
        fingerprint = _fingerprint(spacing=(5.0, 1.0, 1.0))
        assert _plan(fingerprint, model={"spatial_dims": 2}).mirror_axes == (1, 2)


class TestNormalisation:
    @pytest.mark.parametrize(
        ("channel", "scheme"),
        [
            (CT, "ct"),
            (MR, "zscore"),
            (dataclasses.replace(CT, name="hu"), "ct"),
            (dataclasses.replace(CT, name="channel_0"), "ct"),
            (dataclasses.replace(CT, name="T1"), "zscore"),
            (dataclasses.replace(CT, name="channel_0", whole_numbers=False), "zscore"),
            (dataclasses.replace(CT, name="channel_0", minimum=0.0), "zscore"),
            (dataclasses.replace(CT, name="channel_0", maximum=150.0), "zscore"),
            (dataclasses.replace(CT, name="channel_0", minimum=-32768.0), "zscore"),
        ],
    )
    def test_ct_is_known_by_its_name_or_by_hounsfield_units(self, channel, scheme):
        plan = _plan(_fingerprint(channels=(channel,)))
        assert plan.normalisation[0].scheme == scheme
        assert any("judged by" in reason for reason in plan.reasons)

    @pytest.mark.parametrize(("modality", "scheme"), [("ct", "ct"), ("mr", "zscore")])
    def test_a_given_modality_wins(self, modality, scheme):
        plan = _plan(_fingerprint(channels=(MR, CT)), data={"modality": modality})
        assert [item.scheme for item in plan.normalisation] == [scheme, scheme]

    @pytest.mark.parametrize(
        ("content", "schemes"),
        [
            (((36, 40, 40), (38, 40, 40), (40, 40, 40)), ["zscore", "ct"]),
            (((20, 30, 40), (29, 40, 40), (40, 40, 40)), ["zscore_nonzero", "ct"]),
        ],
    )
    def test_mr_scans_that_are_mostly_empty_surroundings_are_normalised_within_what_is_not_zero(self, content, schemes):
        plan = _plan(_fingerprint(shape=(40, 40, 40), channels=(MR, CT), content=content))
        assert [item.scheme for item in plan.normalisation] == schemes
        assert any("that are not zero" in reason for reason in plan.reasons) == ("zscore_nonzero" in schemes)

    def test_a_patch_that_sees_little_of_the_scan_says_which_spacing_would_see_more(self):
        large = _fingerprint(shape=(512, 512, 400), spacing=(0.8, 0.8, 1.0), channels=(CT,))
        note = context_note(_plan(large), large)
        assert _plan(large).reasons[-1] == note
        spacing = [float(size) for size in re.search(r"--data.spacing-mm ([\d. ]+)", note)[1].split()]
        coarser = _plan(large, data={"spacing_mm": spacing})
        seen = np.prod(coarser.patch_size) / np.prod(np.array((512, 512, 400)) * (0.8, 0.8, 1.0) / spacing)
        assert 0.08 < seen < 0.13
        assert context_note(coarser, large) is None

    def test_thick_slices_stay_until_the_plane_is_half_as_coarse(self):
        flat = _fingerprint(shape=(512, 512, 90), spacing=(0.7, 0.7, 5.0), channels=(CT,))
        note = context_note(_plan(flat), flat)
        first, second, third = (float(size) for size in re.search(r"-mm ([\d. ]+)", note)[1].split())
        assert first == second > 0.7
        assert third == 5.0
        assert context_note(_plan(flat, model={"spatial_dims": 2}), flat) is None

    def test_small_scans_need_no_other_spacing(self):
        fingerprint = _fingerprint(shape=(91, 109, 91))
        assert context_note(_plan(fingerprint), fingerprint) is None

    def test_the_patch_covers_the_content_and_not_its_empty_surroundings(self):
        around, without = _fingerprint(shape=(160, 160, 160), content=((40, 56, 40),) * 3), _fingerprint((40, 56, 40))
        assert _plan(around).patch_size == _plan(without).patch_size == (40, 56, 40)

    def test_a_constant_channel_is_divided_by_one(self):
        assert _plan(_fingerprint(channels=(dataclasses.replace(MR, std=0.0),))).normalisation[0].std == 1.0


class TestKeyAndFiles:
    def test_the_key_changes_with_what_decides_the_arrays_and_with_nothing_else(self, build_plan):
        plan = build_plan()
        for changed in (
            {"spacing_mm": (1.0, 1.0, 2.0)},
            {"slice_axis": 2},
            {"labels": ((0, "background"), (5, "front"))},
            {"normalisation": (Normalisation("ct", 0.0, 1.0, 0.0, 1.0),)},
        ):
            assert build_plan(**changed).key != plan.key
        assert build_plan(patch_size=(16, 16, 16), batch_size=7, reasons=("why",)).key == plan.key

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"patch": (1, 2, 3)}, r"is no plan; missing or unknown: \['patch'\]"),
            ({"version": 0}, r"is of version 0, this segscse reads 1 and 2\. Plan again"),
            ({"normalisation": [{"scheme": "ct"}]}, "is no plan"),
            ({"normalisation": 3}, "is no plan"),
        ],
    )
    def test_a_file_that_is_no_plan_is_named(self, tmp_path, build_plan, change, problem):
        (tmp_path / "plan.json").write_text(json.dumps({**build_plan().to_json(), **change}))
        with pytest.raises(InputError, match=rf"plan\.json: {problem}"):
            load_plan(tmp_path / "plan.json")

    @pytest.mark.parametrize("content", ["[]", "{}", "3"])
    def test_other_json_is_no_plan(self, tmp_path, content):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(InputError, match=r"plan\.json: is no plan; missing or unknown"):
            load_plan(tmp_path / "plan.json")


@pytest.mark.real
def test_the_real_hippocampus_gets_the_patch_that_nnunet_gives_it(shared_data):
    index = open_dataset(shared_data / "Task04_Hippocampus")
    few = type(index)(index.root, index.layout, index.cases[:40], index.labels, index.channels)
    plan = make_plan(make_fingerprint(few, examine_dataset(few)[0]), load_config(), "Task04")
    assert plan.patch_size == (40, 56, 40)
    assert plan.spacing_mm == (1.0, 1.0, 1.0)
