"""What `predict` takes for cases: files, folders and CSV files."""

import pickle

import pytest

from segscse.data.inputs import find_inputs, list_inputs
from segscse.data.io import list_images, read_image
from segscse.errors import InputError


class TestInputs:
    def test_single_files_are_cases_of_their_own(self, fill):
        root = fill("a_0000.nii.gz", "b.nii")
        found = find_inputs([root / "a_0000.nii.gz", root / "b.nii"], 1)
        assert found == {"a_0000": (root / "a_0000.nii.gz",), "b": (root / "b.nii",)}

    def test_numbered_channels_of_a_folder_are_one_case(self, fill):
        root = fill("a_0000.nii", "a_0001.nii", "b_0001.nii", "b_0000.nii")
        assert {name: [path.name for path in files] for name, files in find_inputs([root], 2).items()} == {
            "a": ["a_0000.nii", "a_0001.nii"],
            "b": ["b_0000.nii", "b_0001.nii"],
        }

    def test_one_channel_named_as_nnunet_does_loses_its_number(self, fill):
        assert set(find_inputs([fill("a_0000.nii", "b_0000.nii")], 1)) == {"a", "b"}

    def test_four_digits_that_number_patients_stay_in_the_name(self, fill):
        assert set(find_inputs([fill("scan_0001.nii", "scan_0002.nii")], 1)) == {"scan_0001", "scan_0002"}

    def test_other_names_stay_as_they_are(self, fill):
        assert set(find_inputs([fill("a_0000.nii", "b.nii")], 1)) == {"a_0000", "b"}

    @pytest.mark.parametrize("names", [("a_0000.nii", "a_0001.nii"), ("a_0000.nii", "a_0002.nii", "a_0001.nii")])
    def test_channels_that_do_not_fit_the_model_are_refused(self, fill, names):
        with pytest.raises(InputError, match=r"case 'a' has the channel files .*, the model takes"):
            find_inputs([fill(*names)], 2 if len(names) == 3 else 1)

    def test_a_stray_file_beside_channel_files_is_a_case_of_its_own(self, fill):
        root = fill("a_0000.nii", "a_0001.nii", "localizer.nii")
        found = find_inputs([root], 2)
        assert found == {"a": (root / "a_0000.nii", root / "a_0001.nii"), "localizer": (root / "localizer.nii",)}

    def test_a_gap_in_the_channels_is_refused(self, fill):
        with pytest.raises(InputError, match=r"case 'a' has the channel files \[0, 2\], the model takes \[0, 1\]"):
            find_inputs([fill("a_0000.nii", "a_0002.nii")], 2)

    def test_a_gap_is_of_its_case_where_others_are_whole(self, fill):
        root = fill("a_0000.nii", "a_0002.nii", "b_0000.nii", "b_0001.nii")
        cases, faults = list_inputs([root], 2)
        assert set(cases) == {"a", "b"}
        assert list(faults) == ["a"]
        for error in (faults["a"], pickle.loads(pickle.dumps(faults["a"]))):  # the first process tells the others
            assert str(error).startswith(f"{root / 'a_0000.nii'}: case 'a' has the channel files [0, 2], the model")
        with pytest.raises(InputError, match="case 'a' has"):
            find_inputs([root], 2)

    def test_two_inputs_of_one_name_are_refused(self, fill):
        root = fill("x/a.nii", "y/a.nii")
        with pytest.raises(InputError, match="two inputs are named 'a'"):
            find_inputs([root / "x", root / "y" / "a.nii"], 1)

    def test_nothing_to_predict_is_an_error(self, tmp_path):
        (tmp_path / "note.txt").write_text("x")
        for paths, problem in (
            ([tmp_path], "no images found"),
            ([], "no images found"),
            ([tmp_path / "none.nii"], "is no image file"),
            ([tmp_path / "note.txt"], "is no image file"),
        ):
            with pytest.raises(InputError, match=problem):
                find_inputs(paths, 1)

    def test_a_folder_without_images_is_an_error_that_names_those_within_that_have_some(self, fill):
        root = fill("scans/a.nii.gz", "set/imagesTr/a.nii", "set/imagesTs/b.nii")
        (root / "set" / "notes").mkdir()
        (root / "set" / "dataset.json").write_text("{}")
        with pytest.raises(InputError, match=r"set: no images found; there are some in imagesTr, imagesTs\. Give"):
            find_inputs([root / "scans", root / "set"], 1)
        many = fill(*(f"many/{name}/x.nii" for name in "abcdef"))
        with pytest.raises(InputError, match=r"some in a, b, c, d, \.\.\. Give"):
            find_inputs([many / "many"], 1)

    def test_a_csv_names_the_channel_files_of_a_case(self, tmp_path, fill):
        fill("t1.nii.gz", "t2.nii.gz")
        (tmp_path / "new.csv").write_text("case,image,image2\nanna,t1.nii.gz,t2.nii.gz\n")
        found = find_inputs([tmp_path / "new.csv"], 2)
        assert found == {"anna": (tmp_path / "t1.nii.gz", tmp_path / "t2.nii.gz")}

    def test_a_csv_may_be_named_in_capitals(self, tmp_path):
        (tmp_path / "NEW.CSV").write_text("case,image\nanna,t1.nii.gz\n")
        assert find_inputs([tmp_path / "NEW.CSV"], 1) == {"anna": (tmp_path / "t1.nii.gz",)}

    def test_a_case_that_a_csv_names_twice_is_refused(self, tmp_path):
        (tmp_path / "new.csv").write_text("case,image\nanna,a.nii\nben,b.nii\nanna,c.nii\n")
        with pytest.raises(InputError, match=r"new\.csv: case ids occur more than once: anna\. Give each its own id"):
            find_inputs([tmp_path / "new.csv"], 1)

    def test_numbered_files_are_grouped_as_in_their_folder(self, fill):
        root = fill("a_0000.nii.gz", "a_0001.nii.gz")
        paths = (root / "a_0000.nii.gz", root / "a_0001.nii.gz")
        assert find_inputs(list(paths), 2) == find_inputs([root], 2) == {"a": paths}

    def test_two_files_of_one_name_are_refused(self, fill):
        root = fill("x/a.nii.gz", "y/a.nii.gz")
        with pytest.raises(InputError, match="two inputs are named 'a'"):
            find_inputs([root / "x" / "a.nii.gz", root / "y" / "a.nii.gz"], 1)


def test_a_folder_that_cannot_be_read_is_named(fill, lock):
    root = fill("scans/a.nii", "other/b.nii")
    lock("iterdir", "scans")
    found = list_images(root)  # one inside a folder is a case that fails by itself
    asks = (list_images, lambda folder: find_inputs([folder], 1), lambda folder: read_image(found[folder.name]))
    for ask in asks:
        with pytest.raises(InputError, match=r"scans: cannot be read \(Permission denied\)"):
            ask(root / "scans")


def test_a_locked_folder_beside_images_is_a_case_that_fails_by_itself(fill, lock):
    root = fill("a.nii", "lost+found/b.nii")
    lock("iterdir", "lost+found")
    lock("is_file", "lost+found", inside=True)
    assert set(find_inputs([root], 1)) == {"a", "lost+found"}
    (root / "a.nii").unlink()
    with pytest.raises(InputError, match=r"lost\+found: cannot be read"):
        read_image(find_inputs([root], 1)["lost+found"][0])


def test_a_linked_folder_has_the_links_name(fill):
    root = fill("store/a.nii")
    (root / "link").symlink_to(root / "store")
    assert list(find_inputs([root / "link" / "a.nii"], 1)) == ["a"]
