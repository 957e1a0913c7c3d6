"""What `--resume` takes for the same inputs: every file of a case, in the order of its channels."""

import json

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom
from nearest import nearest_predictor
from tiny import tiny_case, tiny_plan
from volumes import write_volume

from segscse.errors import InputError
from segscse.files import sha256_of
from segscse.inference.manifest import folder_digest
from segscse.inference.pipeline import predict_files


def _again(inputs, out, model=None):
    """Return the numbers of cases that are made and that are verified."""
    outcome = predict_files(model or nearest_predictor(), [inputs], out, resume=True)
    assert outcome.failures == []
    return len(outcome.written), len(outcome.verified)


def test_a_manifest_of_an_earlier_version_verifies_nothing(scans, out):
    predict_files(nearest_predictor(), [scans], out)
    manifest = json.loads((out / "predictions.json").read_text())
    for entry in manifest["cases"].values():
        entry["inputs"] = dict(entry["inputs"])
    (out / "predictions.json").write_text(json.dumps(manifest | {"version": 1}))
    assert _again(scans, out) == (3, 0)
    assert _again(scans, out) == (0, 3)


def test_channels_of_one_name_are_told_apart_and_so_is_their_order(tmp_path, out):
    for index, name in enumerate(("t1/p", "t2/p", "t3/p", "q")):
        write_volume(tmp_path / f"{name}.nii.gz", tiny_case(index)[0], np.eye(4))
    model = nearest_predictor(tiny_plan(channels=("T1", "T2"), normalisation=2 * tiny_plan().normalisation))

    def again(first, second):
        (tmp_path / "cases.csv").write_text(f"case,image,image2\np,{first}.nii.gz,{second}.nii.gz\n")
        return _again(tmp_path / "cases.csv", out, model)

    assert [again("t1/p", "t2/p"), again("t1/p", "t2/p")] == [(1, 0), (0, 1)]
    assert again("t3/p", "t2/p") == (1, 0)  # of the same two names, the first is another file
    assert [again("q", "t2/p"), again("t2/p", "q"), again("t2/p", "q")] == [(1, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_beside_their_header_count(tmp_path, out, suffix):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"scan_0{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(tiny_case(0)[0]), str(path))
    predict_files(nearest_predictor(), [path.parent], out)
    assert _again(path.parent, out) == (0, 1)
    path.with_suffix(".raw").write_bytes(tiny_case(7)[0].tobytes())
    assert _again(path.parent, out) == (1, 0)
    assert _again(path.parent, out) == (0, 1)


def test_the_digest_of_a_folder_is_that_of_names_and_contents(tmp_path):
    found = set()
    for name, content in (("a", "1"), ("b", "1"), ("a", "2")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        found.add(folder_digest(folder))
    assert len(found) == 3
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a").write_text("1")
    assert folder_digest(tmp_path / "copy") in found


def test_what_lies_below_a_series_is_none_of_it(tmp_path):
    (tmp_path / "a").write_bytes(b"slice")
    before = folder_digest(tmp_path, deep=False)
    assert before == folder_digest(tmp_path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b").write_bytes(b"prediction")
    assert folder_digest(tmp_path, deep=False) == before != folder_digest(tmp_path)


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        sha256_of(tmp_path / "none")
