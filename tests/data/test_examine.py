import json

import nibabel as nib
import numpy as np
import pytest
from volumes import TINY_AFFINE, TINY_SHAPE, tiny_case

from segscse.data.examine import examine_case, examine_dataset, read_channels, report_of
from segscse.data.geometry import from_canonical, to_canonical
from segscse.data.index import open_dataset
from segscse.errors import InputError


def _image(root, number):
    return root / "imagesTr" / f"case_{number}.nii.gz"


def _label(root, number):
    return root / "labelsTr" / f"case_{number}.nii.gz"


def _problems(findings, level="error"):
    return {(finding.case, finding.problem) for finding in findings if finding.level == level}


class TestFacts:
    def test_a_sound_data_set_has_no_findings_and_facts_of_every_case(self, tiny_dataset):
        calls = []
        facts, findings = examine_dataset(
            open_dataset(tiny_dataset), progress=lambda done, total: calls.append((done, total))
        )
        assert findings == ()
        assert [fact.case for fact in facts] == [f"case_{number}" for number in range(6)]
        assert calls == [(done, 6) for done in range(1, 7)]

    def test_the_facts_of_a_case_are_those_of_numpy(self, tiny_dataset):
        facts, _ = examine_dataset(open_dataset(tiny_dataset))
        image, label = tiny_case(2)
        fact = facts[2]
        assert fact.shape == TINY_SHAPE
        assert fact.spacing_mm == (1.0, 1.0, 1.5)
        assert fact.n_channels == 1
        assert fact.label_counts == {number: int((label == number).sum()) for number in range(3)}
        assert fact.extremes == ((float(image.min()), float(image.max())),)
        np.testing.assert_array_equal(np.sort(fact.samples[0]), np.sort(image[label > 0]))
        assert not any(fact.whole_numbers)

    @pytest.mark.parametrize("what", ["labels elsewhere", "labels turned over", "another place"])
    def test_facts_tell_where_image_and_labels_lie(self, make_dataset, make_volume, what):
        root = make_dataset(cases=1)
        (before,), _ = examine_dataset(open_dataset(root))
        image, label = tiny_case(0)
        affine = TINY_AFFINE @ np.diag([-1, 1, 1, 1]) if what == "another place" else TINY_AFFINE
        moved = {"labels elsewhere": np.roll(label, 1, axis=0), "labels turned over": label[::-1]}.get(what, label)
        make_volume(_image(root, 0), image, affine)
        make_volume(_label(root, 0), moved, affine)
        (after,), _ = examine_dataset(open_dataset(root))
        assert (after.content, after.label_counts) == (before.content, before.label_counts)
        assert after.placed != before.placed

    def test_shape_and_spacing_are_in_the_order_right_anterior_superior(self, make_dataset, make_volume):
        root = make_dataset(cases=1)
        affine = np.zeros((4, 4))
        affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 1.5, -1.0, 1.0, 1.0  # axes run S, L, A
        image, label = (array.transpose(2, 0, 1)[:, ::-1] for array in tiny_case(0))
        make_volume(_image(root, 0), image, affine)
        make_volume(_label(root, 0), label, affine)
        (fact,), findings = examine_dataset(open_dataset(root))
        assert findings == ()
        assert fact.shape == TINY_SHAPE
        assert fact.spacing_mm == (1.0, 1.0, 1.5)

    def test_the_shape_of_the_content_leaves_out_empty_surroundings_in_the_same_order(self, make_dataset, make_volume):
        root = make_dataset(cases=1)
        image, label = np.zeros((20, 16, 12), np.float32), np.zeros((20, 16, 12), np.uint8)
        image[5:12, 4:9, 3:6], label[6, 6, 4] = 80, 1
        image[6, 6, 4] = 90
        affine = np.array([[0, 0, 2.0, 0], [-0.5, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # P, S, R
        for path, array in ((_image(root, 0), image), (_label(root, 0), label)):
            make_volume(path, array, affine)
        facts, _ = examine_dataset(open_dataset(root))
        assert facts[0].shape == (12, 20, 16)
        assert facts[0].content_shape == (5, 9, 7)  # and a voxel on either side

    @pytest.mark.parametrize("orientation", ["RAS", "LPI", "SRA", "PIL"])
    def test_a_label_map_in_another_orientation_at_the_same_place_counts_the_same_voxels(
        self, make_dataset, make_volume, orientation
    ):
        root = make_dataset(cases=1)
        (expected,), _ = examine_dataset(open_dataset(root))
        _, label = tiny_case(0)
        target = nib.orientations.axcodes2ornt(tuple(orientation))
        turned = nib.Nifti1Image(label, TINY_AFFINE).as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(TINY_AFFINE), target)
        )
        make_volume(_label(root, 0), np.asarray(turned.dataobj), turned.affine)
        (fact,), findings = examine_dataset(open_dataset(root))
        assert findings == ()
        assert fact.label_counts == expected.label_counts
        np.testing.assert_array_equal(fact.samples, expected.samples)

    def test_a_large_foreground_is_sampled_evenly(self, make_dataset, make_volume):
        root = make_dataset(cases=1)
        array = np.arange(30**3, dtype=np.int16).reshape(30, 30, 30) % 3000
        make_volume(_image(root, 0), array)
        make_volume(_label(root, 0), np.ones((30, 30, 30), np.uint8))
        (fact,), _ = examine_dataset(open_dataset(root))
        assert fact.samples.shape == (1, 2000)
        assert fact.samples.mean() == pytest.approx(array.mean(), rel=0.05)
        assert all(fact.whole_numbers)


class TestFindings:
    def test_six_faults_in_six_cases_are_all_listed_at_once(self, make_dataset, make_volume):
        root = make_dataset(cases=8)
        image, label = tiny_case(1)
        _image(root, 0).write_bytes(_image(root, 0).read_bytes()[:-8])  # cut short
        _label(root, 1).unlink()  # missing
        make_volume(_label(root, 2), label[:-1], TINY_AFFINE)  # other shape
        make_volume(_label(root, 3), label * 3, TINY_AFFINE)  # undeclared ids
        make_volume(_image(root, 4), np.where(label == 1, np.nan, image), TINY_AFFINE)  # NaN
        make_volume(_label(root, 5), label * np.float32(0.5), TINY_AFFINE)  # interpolated
        facts, findings = examine_dataset(open_dataset(root))
        errors = dict(_problems(findings))
        assert set(errors) == {f"case_{number}" for number in range(6)}
        assert "damaged or cut short" in errors["case_0"]
        assert errors["case_1"] == "is listed but missing"
        assert errors["case_2"] == "label and image lie on different grids (shape 16x20x12 against 15x20x12)"
        assert errors["case_3"] == "holds undeclared label ids [3, 6]; declared: [0, 1, 2]"
        assert errors["case_4"].startswith("intensities hold NaN or infinity")
        assert errors["case_5"] == "label values must be whole numbers, got 0.5"
        assert [fact.case for fact in facts] == ["case_6", "case_7"]
        assert all(finding.file and finding.remedy for finding in findings)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (np.diag([1, 1, 1.001, 1]), "spacing"),
            (np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "position"),
            (np.diag([-1, 1, 1, 1]), "position"),
        ],
        ids=["spacing off by a thousandth", "shifted by a voxel", "mirrored"],
    )
    def test_a_label_map_at_another_place_is_an_error(self, make_dataset, make_volume, change, problem):
        root = make_dataset(cases=1)
        make_volume(_label(root, 0), tiny_case(0)[1], TINY_AFFINE @ change)
        _, findings = examine_dataset(open_dataset(root))
        ((_, found),) = _problems(findings)
        assert found.startswith(f"label and image lie on different grids ({problem}")

    def test_float32_rounding_of_the_affine_is_no_finding(self, make_dataset, make_volume):
        root = make_dataset(cases=1)
        make_volume(_label(root, 0), tiny_case(0)[1], TINY_AFFINE * (1 + 1e-7))
        assert examine_dataset(open_dataset(root))[1] == ()

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    def test_intensities_that_32_bits_cannot_hold_are_an_error(self, make_dataset, make_volume, value):
        root = make_dataset(cases=1)
        image = tiny_case(0)[0].astype(np.float64)
        image[3, 3, 3] = value
        make_volume(_image(root, 0), image, TINY_AFFINE)
        ((case, problem),) = _problems(examine_dataset(open_dataset(root))[1])
        assert (case, problem[:33]) == ("case_0", "intensities hold NaN or infinity,")

    def test_the_number_of_channels_is_compared_with_the_description_and_between_cases(self, make_dataset, make_volume):
        root = make_dataset(cases=2)
        make_volume(_image(root, 0), np.stack([tiny_case(0)[0]] * 2, -1), TINY_AFFINE)
        assert ("case_0", "has 2 channels, the data set declares 1") in _problems(
            examine_dataset(open_dataset(root))[1]
        )
        description = json.loads((root / "dataset.json").read_text())
        (root / "dataset.json").write_text(json.dumps({**description, "modality": {}}))
        assert ("", "cases have different numbers of channels: [1, 2]") in _problems(
            examine_dataset(open_dataset(root))[1]
        )

    def test_equal_voxels_under_two_names_are_a_warning_unless_one_subject_owns_them(self, make_dataset):
        root = make_dataset(cases=3)
        _image(root, 2).write_bytes(_image(root, 0).read_bytes())
        _, findings = examine_dataset(open_dataset(root))
        assert _problems(findings, "warning") == {("case_2", "holds the same voxels as case case_0")}
        rows = [f"case_{n},imagesTr/case_{n}.nii.gz,labelsTr/case_{n}.nii.gz,s{n % 2}" for n in range(3)]
        (root / "cases.csv").write_text("\n".join(["case,image,label,subject", *rows]))
        assert examine_dataset(open_dataset(root / "cases.csv"))[1] == ()

    def test_a_label_that_never_occurs_is_a_warning_and_an_empty_label_map_a_note(self, make_dataset, make_volume):
        root = make_dataset(cases=2)
        make_volume(_label(root, 0), np.zeros(TINY_SHAPE, np.uint8), TINY_AFFINE)
        make_volume(_label(root, 1), (tiny_case(1)[1] == 1).astype(np.uint8), TINY_AFFINE)
        facts, findings = examine_dataset(open_dataset(root))
        assert len(facts) == 2
        assert _problems(findings) == set()
        assert _problems(findings, "warning") == {
            ("", "label 2 (back) is declared but occurs in no case"),
        }
        assert _problems(findings, "note") == {("case_0", "has no foreground")}

    def test_an_orientation_that_is_a_guess_is_a_warning(self, make_dataset, make_volume):
        root = make_dataset(cases=1)
        image, label = tiny_case(0)
        make_volume(_image(root, 0), image, np.eye(4), qform=0, sform=0)
        make_volume(_label(root, 0), label, nib.load(_image(root, 0)).affine)
        _, findings = examine_dataset(open_dataset(root))
        assert _problems(findings, "warning") == {
            ("case_0", "neither qform nor sform is set, so the orientation is a guess")
        }

    def test_without_declared_labels_ids_may_be_anything_but_negative_and_not_all_empty(self, fill_folders):
        root = fill_folders(np.int16([0, -1]), np.uint8([0, 9]))
        facts, findings = examine_dataset(open_dataset(root))
        assert _problems(findings) == {("c0", "holds negative label ids [-1]")}
        assert facts[0].label_counts.keys() == {0, 9}
        root = fill_folders(np.uint8([0, 0]), np.uint8([0, 0]))
        assert ("", "no case has any foreground") in _problems(examine_dataset(open_dataset(root))[1])

    def test_the_report_counts_and_lists(self, make_dataset):
        root = make_dataset(cases=3)
        _label(root, 1).unlink()
        _image(root, 2).write_bytes(_image(root, 0).read_bytes())
        index = open_dataset(root)
        report = report_of(examine_dataset(index)[1], index)
        assert json.loads(json.dumps(report)) == report
        assert (report["n_cases"], report["n_errors"], report["n_warnings"]) == (3, 1, 1)
        assert report["findings"][0] == {
            "level": "error",
            "case": "case_1",
            "file": str(_label(root, 1)),
            "problem": "is listed but missing",
            "remedy": "Add or remove the file",
        }

    def test_examination_changes_no_file(self, make_dataset, fingerprints):
        root = make_dataset(cases=2)
        before = fingerprints(root)
        examine_dataset(open_dataset(root))
        assert fingerprints(root) == before

    @pytest.fixture
    def fill_folders(self, tmp_path, make_volume):
        def fill(*labels):
            for number, values in enumerate(labels):
                rng = np.random.default_rng(number)
                array = np.zeros((4, 4, 4), values.dtype)
                array[1, 1, 1], array[2, 2, 2] = values
                make_volume(tmp_path / "images" / f"c{number}.nii", rng.normal(size=(4, 4, 4)).astype(np.float32))
                make_volume(tmp_path / "labels" / f"c{number}.nii", array)
            return tmp_path

        return fill


class TestChannels:
    def test_files_are_stacked_in_the_given_order(self, tmp_path, make_volume):
        arrays = [np.full((3, 4, 5), number, np.int16) for number in range(3)]
        paths = [make_volume(tmp_path / f"{n}.nii", array, TINY_AFFINE) for n, array in enumerate(arrays)]
        channels, first = read_channels([paths[2], paths[0], paths[1]])
        assert channels.shape == (3, 3, 4, 5)
        assert [int(channel.max()) for channel in channels] == [2, 0, 1]
        assert first.path == paths[2]

    def test_a_channel_on_another_grid_is_refused(self, tmp_path, make_volume):
        first = make_volume(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16))
        second = make_volume(tmp_path / "b.nii", np.zeros((3, 4, 5), np.int16), np.diag([2, 1, 1, 1]))
        with pytest.raises(InputError, match=r"b\.nii: lies on another grid than .*a\.nii \(spacing"):
            read_channels([first, second])

    def test_a_case_without_a_label_map_is_all_background(self, tiny_dataset):
        index = open_dataset(tiny_dataset)
        case = index.cases[0]
        fact, findings = examine_case(type(case)(case.id, case.images, None, case.subject), index)
        assert findings == []
        assert fact.label_counts == {0: int(np.prod(TINY_SHAPE))}


def test_reorienting_a_label_map_onto_an_image_is_what_the_facts_rely_on():
    other = np.diag([-1.0, 1.0, -1.0, 1.0])
    array = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(from_canonical(to_canonical(array, np.eye(4))[0], other), array[::-1, :, ::-1])


@pytest.mark.real
def test_the_small_real_data_sets_have_no_errors(shared_data):
    index = open_dataset(shared_data / "Task04_Hippocampus")
    few = type(index)(index.root, index.layout, index.cases[:12], index.labels, index.channels)
    facts, findings = examine_dataset(few)
    assert _problems(findings) == set()
    assert len(facts) == 12
    assert all(fact.spacing_mm == (1.0, 1.0, 1.0) for fact in facts)
