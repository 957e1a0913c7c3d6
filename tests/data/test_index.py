import json
import os
from pathlib import Path

import numpy as np
import pytest

from segscse.data.index import open_dataset, subject_of
from segscse.data.io import list_images, read_image
from segscse.errors import InputError

VOLUME = np.zeros((3, 3, 3), np.uint8)


def _describe(root, **changes):
    """Change the data set's description; None removes a key."""
    description = json.loads((root / "dataset.json").read_text())
    description.update(changes)
    description = {key: value for key, value in description.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def nnunet(fill):
    """Return a data set in the nnU-Net layout with two channels and two cases."""
    root = fill(*[f"imagesTr/{case}_000{channel}.nii.gz" for case in "ab" for channel in (0, 1)])
    fill("labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    description = {"channel_names": {"1": "T2", "0": "T1"}, "labels": {"background": 0, "tumour": 3}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


class TestMsd:
    def test_cases_labels_and_channels_are_read(self, tiny_dataset):
        index = open_dataset(tiny_dataset)
        assert (index.layout, index.root, index.problems) == ("msd", tiny_dataset, ())
        assert [case.id for case in index.cases] == [f"case_{number}" for number in range(6)]
        assert index.cases[0].images == (tiny_dataset / "imagesTr" / "case_0.nii.gz",)
        assert index.cases[0].label == tiny_dataset / "labelsTr" / "case_0.nii.gz"
        assert index.cases[0].subject == "case_0"
        assert index.labels == {0: "background", 1: "front", 2: "back"}
        assert index.channels == ("MRI",)

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ({"0": "background", "5": "liver"}, {0: "background", 5: "liver"}),
            ({"background": 0, "liver": 5}, {0: "background", 5: "liver"}),
            (["background", "liver"], {0: "background", 1: "liver"}),
        ],
    )
    def test_labels_may_be_written_either_way_round(self, make_dataset, labels, expected):
        root = make_dataset()
        _describe(root, labels=labels)
        assert open_dataset(root).labels == expected

    @pytest.mark.parametrize("labels", ["liver", {"liver": "five"}, {"liver": None}, 3])
    def test_labels_that_cannot_be_read_are_refused(self, make_dataset, labels):
        root = make_dataset()
        _describe(root, labels=labels)
        with pytest.raises(InputError, match=r"dataset\.json: cannot read the labels"):
            open_dataset(root)

    def test_region_labels_are_refused_by_name(self, make_dataset):
        root = make_dataset()
        _describe(root, labels={"background": 0, "whole": [1, 2]})
        with pytest.raises(InputError, match=r"region labels .* are not supported"):
            open_dataset(root)

    def test_more_than_ten_channels_keep_their_order(self, make_dataset):
        root = make_dataset()
        _describe(root, modality={str(number): f"c{number}" for number in reversed(range(12))})
        assert open_dataset(root).channels == tuple(f"c{number}" for number in range(12))

    @pytest.mark.parametrize("modality", ["MRI", ["MRI"], {"first": "MRI"}])
    def test_channel_names_must_be_numbered(self, make_dataset, modality):
        root = make_dataset()
        _describe(root, modality=modality)
        with pytest.raises(InputError, match=r"dataset\.json: 'modality' must map numbers to names"):
            open_dataset(root)

    def test_listed_files_that_are_missing_and_unlisted_ones_that_are_there_are_problems(self, make_dataset):
        root = make_dataset()
        (root / "imagesTr" / "case_1.nii.gz").unlink()
        (root / "labelsTr" / "case_2.nii.gz").rename(root / "imagesTr" / "extra.nii.gz")
        problems = open_dataset(root).problems
        assert problems == (
            ("case_1", str(root / "imagesTr" / "case_1.nii.gz"), "is listed but missing"),
            ("case_2", str(root / "labelsTr" / "case_2.nii.gz"), "is listed but missing"),
            ("extra", str(root / "imagesTr" / "extra.nii.gz"), "lies in imagesTr but dataset.json does not list it"),
        )

    def test_listed_files_out_of_reach_are_missing_and_the_others_are_read(self, make_dataset, lock):
        root = make_dataset()
        for name in ("case_1", "case_2"):
            (root / "imagesTr" / f"{name}.nii.gz").unlink()
        (root / "imagesTr" / "case_1.nii.gz").symlink_to(root / "imagesTr" / "case_1.nii.gz")
        lock("exists", "case_2.nii.gz")
        found = {(case, Path(file).parent.name) for case, file, _ in open_dataset(root).problems}
        assert found == {("case_1", "imagesTr"), ("case_2", "imagesTr"), ("case_2", "labelsTr")}

    @pytest.mark.parametrize("item", ["../secret.nii.gz", "/etc/passwd", "imagesTr/../../secret.nii.gz"])
    @pytest.mark.parametrize("key", ["image", "label"])
    def test_a_path_that_leads_out_of_the_data_set_is_refused(self, make_dataset, key, item):
        root = make_dataset()
        entry = {"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz", key: item}
        _describe(root, training=[entry])
        with pytest.raises(InputError, match=r"dataset\.json: names a file outside the data set"):
            open_dataset(root)

    def test_a_link_that_leads_out_of_the_data_set_is_refused(self, make_dataset, tmp_path):
        root = make_dataset()
        os.symlink(tmp_path, root / "away")
        _describe(root, training=[{"image": "away/x.nii.gz", "label": "labelsTr/case_0.nii.gz"}])
        with pytest.raises(InputError, match="outside the data set"):
            open_dataset(root)

    @pytest.mark.parametrize(
        ("training", "problem"),
        [
            ({"image": "a"}, "'training' must be a list"),
            (["a.nii.gz"], "a training entry needs 'image' and 'label'"),
            ([{"image": "imagesTr/case_0.nii.gz"}], "a training entry needs 'image' and 'label'"),
            ([{"image": 3, "label": "labelsTr/case_0.nii.gz"}], "a file must be named by text, got 3"),
            ([{"image": "a\0b", "label": "labelsTr/case_0.nii.gz"}], "a file must be named by text"),
            ([], "holds no labelled cases"),
        ],
    )
    def test_entries_that_describe_no_case_are_refused(self, make_dataset, training, problem):
        root = make_dataset()
        _describe(root, training=training)
        with pytest.raises(InputError, match=problem):
            open_dataset(root)

    def test_a_case_listed_twice_is_refused(self, make_dataset):
        root = make_dataset()
        entry = {"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz"}
        _describe(root, training=[entry, entry])
        with pytest.raises(InputError, match="case ids occur more than once: case_0"):
            open_dataset(root)

    def test_subjects_may_be_named(self, make_dataset):
        root = make_dataset()
        entry = {"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz", "subject": 7}
        _describe(root, training=[entry])
        assert open_dataset(root).cases[0].subject == "7"

    @pytest.mark.parametrize("subject", [None, ""])
    def test_a_subject_without_a_name_is_the_cases_own(self, make_dataset, subject):
        root = make_dataset()
        entry = {"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz", "subject": subject}
        _describe(root, training=[entry])
        assert open_dataset(root).cases[0].subject == "case_0"

    def test_a_subject_that_is_no_name_is_refused(self, make_dataset):
        root = make_dataset()
        entry = {"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz", "subject": ["7"]}
        _describe(root, training=[entry])
        with pytest.raises(InputError, match="a subject must be text or a number"):
            open_dataset(root)

    @pytest.mark.parametrize("content", ["[]", "{}", "3"])
    def test_a_description_without_labels_is_refused(self, make_dataset, content):
        root = make_dataset()
        (root / "dataset.json").write_text(content)
        with pytest.raises(InputError, match="has no 'labels'"):
            open_dataset(root)


class TestNnunet:
    def test_channel_files_are_joined_in_the_order_of_their_numbers(self, nnunet):
        index = open_dataset(nnunet)
        assert (index.layout, index.channels, index.problems) == ("nnunet", ("T1", "T2"), ())
        assert index.labels == {0: "background", 3: "tumour"}
        assert [case.id for case in index.cases] == ["a", "b"]
        assert [path.name for path in index.cases[1].images] == ["b_0000.nii.gz", "b_0001.nii.gz"]

    def test_missing_channels_and_label_maps_are_problems(self, nnunet):
        (nnunet / "imagesTr" / "a_0001.nii.gz").unlink()
        (nnunet / "labelsTr" / "b.nii.gz").unlink()
        assert [(case, problem) for case, _, problem in open_dataset(nnunet).problems] == [
            ("a", "channel file is missing"),
            ("b", "has no label map in labelsTr"),
            ("b", "has no label map in labelsTr"),
        ]

    def test_channel_names_must_be_numbered(self, nnunet):
        _describe(nnunet, channel_names={"T1": 0})
        with pytest.raises(InputError, match="'channel_names' must map numbers to names"):
            open_dataset(nnunet)

    def test_without_channel_names_there_is_one_channel(self, nnunet):
        _describe(nnunet, channel_names=None)
        index = open_dataset(nnunet)
        assert index.channels == ()
        assert [len(case.images) for case in index.cases] == [1, 1]
        assert [(case, path[-13:], problem) for case, path, problem in index.problems] == [
            ("a", "a_0001.nii.gz", "is none of the 1 channels that are declared"),
            ("b", "b_0001.nii.gz", "is none of the 1 channels that are declared"),
        ]

    def test_cases_may_be_listed_with_their_paths(self, nnunet):
        fill_in = {"images": ["imagesTr/b_0001.nii.gz", "imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
        _describe(nnunet, dataset={"z": fill_in, "sub-1_y": {**fill_in, "images": ["imagesTr/none.nii.gz"]}})
        index = open_dataset(nnunet)
        assert (index.layout, index.channels) == ("nnunet", ("T1", "T2"))
        assert [(case.id, case.subject) for case in index.cases] == [("sub-1_y", "sub-1"), ("z", "z")]
        assert [path.name for path in index.cases[1].images] == ["b_0001.nii.gz", "a_0000.nii.gz"]
        assert index.cases[1].label == nnunet / "labelsTr" / "a.nii.gz"
        assert [(case, problem) for case, _, problem in index.problems] == [
            ("sub-1_y", "is listed but missing"),
            ("a_0001", "lies in imagesTr but dataset.json does not list it"),
            ("b_0000", "lies in imagesTr but dataset.json does not list it"),
        ]

    @pytest.mark.parametrize(
        ("dataset", "problem"),
        [
            ([], "'dataset' must map case ids to files"),
            ({"a": {"images": "imagesTr/a_0000.nii.gz", "label": "l.nii"}}, "case 'a' needs a list 'images' and"),
            ({"a": {"images": ["imagesTr/a_0000.nii.gz"]}}, "case 'a' needs a list 'images' and a 'label'"),
            ({"a": {"images": ["../a.nii.gz"], "label": "l.nii"}}, r"names a file outside .*, or a CSV"),
            ({"a": {"images": [], "label": "labelsTr/a.nii.gz"}}, "case 'a' needs a list 'images' and a 'label'"),
            ({"a": ["imagesTr/a_0000.nii.gz"]}, "case 'a' needs a list 'images' and a 'label'"),
            ({"a": {"images": ["imagesTr/a_0000.nii.gz"], "label": 3}}, "a file must be named by text, got 3"),
            ({}, "holds no labelled cases"),
        ],
    )
    def test_a_list_of_cases_that_is_none_is_refused(self, nnunet, dataset, problem):
        _describe(nnunet, dataset=dataset)
        with pytest.raises(InputError, match=problem):
            open_dataset(nnunet)

    def test_files_of_an_unread_format_are_named(self, nnunet, tmp_path):
        for path in list(tmp_path.rglob("*.nii.gz")):
            path.rename(path.with_name(path.name.replace(".nii.gz", ".png")))
        with pytest.raises(InputError, match=r"holds no labelled cases; most of its files end in \.png, which is not"):
            open_dataset(nnunet)

    def test_a_missing_folder_is_named(self, nnunet):
        (nnunet / "labelsTr").rename(nnunet / "elsewhere")
        with pytest.raises(InputError, match="labelsTr: is not a folder"):
            open_dataset(nnunet)


class TestCsv:
    def _open(self, tmp_path, text, encoding="utf-8"):
        (tmp_path / "cases.csv").write_text(text, encoding=encoding)
        return open_dataset(tmp_path / "cases.csv")

    def test_paths_are_relative_to_the_csv_and_subjects_optional(self, fill):
        root = fill("x/a1.nii", "x/a2.nii", "y/la.nii")
        index = self._open(root, "case,image,image2,label,subject\nb,x/a1.nii,x/a2.nii,y/la.nii,\n", "utf-8-sig")
        assert (index.layout, index.root, index.labels, index.problems) == ("csv", root, {}, ())
        assert index.cases[0].images == (root / "x" / "a1.nii", root / "x" / "a2.nii")
        assert index.cases[0].subject == "b"
        index = self._open(root, "subject,case,label,image\ns1,b,y/la.nii,x/a1.nii\ns1,a,y/la.nii,x/a1.nii\n")
        assert [(case.id, case.subject) for case in index.cases] == [("a", "s1"), ("b", "s1")]

    def test_the_subject_of_a_bids_file_counts_where_the_case_names_none(self, fill):
        root = fill("sub-1_ses-1_T1w.nii", "sub-2_T1w.nii", "l.nii")
        lines = (
            "x,sub-1_ses-1_T1w.nii,l.nii,",
            "sub-9_y,sub-2_T1w.nii,l.nii,",
            "z,sub-2_T1w.nii,l.nii,me",
            "w,l.nii,l.nii,",
        )
        index = self._open(root, "\n".join(("case,image,label,subject", *lines)))
        assert {case.id: case.subject for case in index.cases} == {
            "x": "sub-1",
            "sub-9_y": "sub-9",
            "z": "me",
            "w": "w",
        }

    def test_missing_files_are_problems_with_their_line(self, fill):
        index = self._open(fill("a.nii"), "case,image,label\na,a.nii,none.nii\n")
        assert [(case, problem) for case, _, problem in index.problems] == [("a", "is listed in line 2 but missing")]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("case,image,image,label\na,a.nii,b.nii,l.nii\n", "has the column 'image' more than once"),
            ("case,image\na,a.nii\n", r"missing: \['label'\], unknown: \[\]"),
            ("case,image,label,age\na,a.nii,l.nii,3\n", r"missing: \[\], unknown: \['age'\]"),
            ("", "missing: "),
            ("case,image,label\na,,l.nii\n", "line 2 has an empty field"),
            ("case,image,label\na,a.nii\n", "line 2 has an empty field"),
            (",image,label\n", "missing: "),
            ("case,image,label\na,a.nii,l.nii\nb,a,1.nii,l.nii\n", "line 3 has more fields than the header"),
            ("case,image,label\na,a.nii,l.nii\na,b.nii,l.nii\n", "case ids occur more than once: a"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path, text, problem):
        with pytest.raises(InputError, match=rf"cases\.csv: .*{problem}"):
            self._open(tmp_path, text)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path):
        (tmp_path / "cases.csv").write_bytes(b"\xff\xfe\x00case")
        with pytest.raises(InputError, match="cannot be read as CSV"):
            open_dataset(tmp_path / "cases.csv")


class TestFolders:
    @pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("images", "masks"), ("image", "label")])
    def test_a_pair_of_folders_is_found_and_paired_by_name(self, fill, images, labels):
        root = fill(f"{images}/a.nii.gz", f"{images}/b.mha.nii", f"{labels}/a.nii", f"{labels}/b.mha.nii")
        index = open_dataset(root)
        assert (index.layout, index.root, index.labels, index.problems) == ("folders", root, {}, ())
        assert [(case.id, case.label.name) for case in index.cases] == [("a", "a.nii"), ("b.mha", "b.mha.nii")]

    @pytest.mark.parametrize("ending", ["_seg", "-label", ".mask", "_GT", "_dseg"])
    def test_usual_endings_of_label_maps_are_understood(self, fill, ending):
        root = fill("images/a.nii.gz", f"labels/a{ending}.nii.gz")
        assert open_dataset(root).cases[0].label == root / "labels" / f"a{ending}.nii.gz"

    def test_the_exact_name_wins_over_an_ending(self, fill):
        root = fill("images/a.nii.gz", "labels/a.nii.gz", "labels/a_seg.nii.gz")
        index = open_dataset(root)
        assert index.cases[0].label.name == "a.nii.gz"
        assert [(case, problem.split(" in ")[0]) for case, _, problem in index.problems] == [
            ("a_seg", "has no image of that name")
        ]

    def test_files_without_a_partner_are_problems(self, fill):
        root = fill("scans/a.nii", "scans/b.nii", "truth/b.nii", "truth/c.nii")
        index = open_dataset(root / "scans", root / "truth")
        assert [case.id for case in index.cases] == ["b"]
        assert [(case, problem.split(" in ")[0]) for case, _, problem in index.problems] == [
            ("a", "has no label map of that name"),
            ("c", "has no image of that name"),
        ]

    def test_a_folder_that_is_no_data_set_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"no dataset\.json and no pair of folders"):
            open_dataset(tmp_path)

    def test_a_missing_data_set_is_named(self, tmp_path):
        with pytest.raises(InputError, match="none: no such data set"):
            open_dataset(tmp_path / "none")


@pytest.mark.real
class TestRealData:
    def test_the_hippocampus_data_set_holds_its_208_cases(self, shared_data):
        index = open_dataset(shared_data / "Task04_Hippocampus")
        assert len(index.cases) == 208
        assert index.labels == {0: "background", 1: "Anterior", 2: "Posterior"}

    def test_the_mouse_data_set_is_a_pair_of_folders(self, shared_data):
        index = open_dataset(shared_data / "mouse_fvb_invivo")
        assert index.layout == "folders"
        assert len(index.cases) == 8


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "..", "a\vb", "x" * 249, "\u00e4" * 125])
def test_a_case_id_that_is_no_plain_file_name_is_refused(tmp_path, name):
    table = tmp_path / "cases.csv"
    table.write_text(f"case,image,label\n{name},a.nii.gz,b.nii.gz\n")
    with pytest.raises(InputError, match="case ids become file names"):
        open_dataset(table)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"background": 0, "organ": 1, "ignore": 2}, "ignore label is not supported"),
        ({"0": "background", "2": "Ignore"}, "ignore label is not supported"),
        ({"background": 0, "a": 1, "b": 1}, "two labels have one id"),
        ({"0": "background", "1": "a", "01": "b"}, "two labels have one id"),
        ({"background": 0, "outside": -1}, "declares the negative label id -1"),
        ({"0": "background", "-1": "outside"}, "declares the negative label id -1"),
        ({"background": 0, "a": 1.9}, "cannot read the labels"),
    ],
)
def test_labels_that_would_be_misread_are_refused(make_dataset, labels, problem):
    folder = make_dataset(cases=1)
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**description, "labels": labels}))
    with pytest.raises(InputError, match=problem):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("case", "subject"),
    [
        ("sub-01_ses-1_T1w", "sub-01"),
        ("sub-ab12_T1w", "sub-ab12"),
        ("sub-01", "sub-01"),
        ("hippocampus_001", "hippocampus_001"),
        ("sub_01_a", "sub_01_a"),
        ("xsub-01_a", "xsub-01_a"),
    ],
)
def test_the_subject_of_a_bids_name_is_its_first_part_and_of_others_the_case(case, subject):
    assert subject_of(case) == subject


def test_half_of_a_pair_is_listed_so_that_it_is_not_passed_over(tmp_path):
    (tmp_path / "a.img").write_bytes(b"\0" * 10)
    assert list(list_images(tmp_path)) == ["a"]
    with pytest.raises(InputError, match=r"a\.img: is half of a NIfTI or Analyze pair"):
        read_image(tmp_path / "a.img")
