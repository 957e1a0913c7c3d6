import pytest

from segscse.config import load_config
from segscse.data.examine import examine_dataset
from segscse.data.fingerprint import make_fingerprint
from segscse.data.index import open_dataset
from segscse.data.plan import make_plan
from segscse.data.prepare import plan_dataset
from segscse.errors import InputError


def test_the_parts_are_those_of_the_single_steps(tiny_dataset):
    calls = []
    planned = plan_dataset(tiny_dataset, load_config(), progress=lambda done, total: calls.append((done, total)))
    index = open_dataset(tiny_dataset)
    fingerprint = make_fingerprint(index, examine_dataset(index)[0])
    assert planned.index == index
    assert planned.fingerprint == fingerprint
    assert planned.plan == make_plan(fingerprint, load_config(), "Task99_Tiny")
    assert planned.warnings == ()
    assert calls[-1] == (6, 6)


def test_folders_of_images_and_labels_are_named_after_the_folder_that_holds_them(make_dataset):
    root = make_dataset("liver", cases=2)
    (root / "dataset.json").unlink()
    planned = plan_dataset(root, load_config())
    assert planned.plan.dataset == "liver"
    assert planned.plan.labels == ((0, "background"), (1, "label_1"), (2, "label_2"))
    assert plan_dataset(root / "imagesTr", load_config(), labels=root / "labelsTr").plan.dataset == "imagesTr"


def test_one_error_is_named_with_its_remedy(make_dataset):
    root = make_dataset(cases=3)
    (root / "labelsTr" / "case_1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"case_1\.nii\.gz: is empty\. Copy or download it again\.$"):
        plan_dataset(root, load_config())


def test_of_several_errors_the_first_is_named_and_the_rest_counted(make_dataset):
    root = make_dataset(cases=3)
    for number in range(3):
        (root / "labelsTr" / f"case_{number}.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"case_0\.nii\.gz: is empty.*; 2 more: see `segscse check`"):
        plan_dataset(root, load_config())


def test_warnings_come_with_the_plan(make_dataset):
    root = make_dataset(cases=3)
    (root / "imagesTr" / "case_2.nii.gz").write_bytes((root / "imagesTr" / "case_1.nii.gz").read_bytes())
    planned = plan_dataset(root, load_config())
    assert [(warning.case, warning.problem) for warning in planned.warnings] == [
        ("case_2", "holds the same voxels as case case_1")
    ]
