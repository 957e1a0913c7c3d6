"""T6, dataset files and file names: eight paths that lead elsewhere and four names that a shell would run."""

import json
import os
import shutil
import subprocess
from pathlib import PureWindowsPath

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from tiny import dataset, trained  # noqa: F401, fixtures
from volumes import write_tiny_dataset, write_volume
from watch import watched

from segscse.cli import run
from segscse.data.index import open_dataset
from segscse.data.inputs import find_inputs
from segscse.errors import InputError

ENTRIES = {
    "parent folder": "../secret.nii.gz",
    "absolute path": "{place}/secret.nii.gz",
    "symbolic link": "imagesTr/link.nii.gz",
    "NUL byte": "imagesTr/case_0.nii.gz\0.txt",
    "home folder": "~/secret.nii.gz",
    "share of another machine": "\\\\server\\share\\secret.nii.gz",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with a scan that is no business of the data set in `set`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_volume(tmp_path / "secret.nii.gz", np.zeros((8, 8, 8), np.uint8))
    write_tiny_dataset(tmp_path / "set", cases=3)
    (tmp_path / "set" / "imagesTr" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    return tmp_path


def _name_in(place, key, entry):
    file = place / "set" / "dataset.json"
    description = json.loads(file.read_text())
    description["training"][0][key] = entry.format(place=place) if "{place}" in entry else entry
    file.write_text(json.dumps(description))
    return description["training"][0][key]


@pytest.mark.parametrize("name", ["parent folder", "absolute path", "symbolic link"])
def test_the_path_works_on_a_reader_that_trusts(name, place):
    _name_in(place, "image", ENTRIES[name])
    read = load_decathlon_datalist(place / "set" / "dataset.json", base_dir=place / "set")[0]["image"]
    assert os.path.realpath(read) == str(place / "secret.nii.gz")


def test_the_other_paths_work_on_readers_that_trust(place):
    with pytest.raises(ValueError, match="null byte"):  # no error that a user can act on
        nib.load(ENTRIES["NUL byte"])
    assert os.path.expanduser(ENTRIES["home folder"]) == str(place / "secret.nii.gz")
    assert (PureWindowsPath("C:/set") / ENTRIES["share of another machine"]).drive == r"\\server\share"


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("name", ENTRIES)
def test_a_description_that_leads_elsewhere_is_refused(name, key, place, capsys):
    entry = _name_in(place, key, ENTRIES[name])
    with watched(place / "out") as seen:
        codes = [
            run(["check", str(place / "set")]),
            run(["plan", str(place / "set"), "--out", str(place / "out" / "plan.json")]),
            run(["train", str(place / "set"), "--out", str(place / "out" / "run")]),
        ]
    said = capsys.readouterr()
    assert codes == [2, 2, 2]
    assert seen.events == []
    assert not (place / "out").exists()
    if name == "home folder":  # a folder that is called so, as for any program that a shell has not helped
        assert "missing" in said.out + said.err
    else:
        assert said.err.count("outside the data set") + said.err.count("named by text") == 3
        assert said.err.count("\n") == 3
        assert said.err.count(repr(entry)) == 3


class TestNamesOfOutputs:
    NAMES = ("../../canary", "..", ".", "/tmp/canary", "a/b", ".hidden", "", "\udcff")

    @pytest.mark.parametrize("name", ["../../canary", "{place}/canary"])
    def test_the_name_works_on_a_writer_that_trusts(self, name, tmp_path):
        out = tmp_path / "deep" / "out"
        out.mkdir(parents=True)
        (out / f"{name.format(place=tmp_path)}.nii.gz").write_bytes(b"")
        assert (tmp_path / "canary.nii.gz").exists()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_table_of_cases_is_refused(self, name, place, trained, capsys):  # noqa: F811
        image, label = (f"set/{folder}/case_0.nii.gz" for folder in ("imagesTr", "labelsTr"))
        table = place / "cases.csv"
        text = f'case,image,label\n"{name}",{image},{label}\nb,{image.replace("0", "1")},{label.replace("0", "1")}\n'
        table.write_bytes(text.encode("utf-8", "surrogateescape"))
        with watched(place / "out") as seen:
            codes = [
                run(["check", str(table)]),
                run(["predict", str(trained.folder), str(table), "--out", str(place / "out"), "--device", "cpu"]),
            ]
        assert codes == [2, 2]
        said = capsys.readouterr().err
        assert said.count("\n") == 2
        assert "internal error" not in said
        assert seen.events == []
        assert not (place / "out").exists()

    @pytest.mark.parametrize("name", ["...nii.gz", "..nii.gz", ".hidden.nii.gz"])
    def test_a_case_called_dot_dot(self, name, place):
        shutil.copyfile(place / "secret.nii.gz", place / "set" / "imagesTr" / name)
        _name_in(place, "image", f"imagesTr/{name}")
        with pytest.raises(InputError, match="case ids become file names"):
            open_dataset(place / "set")
        with pytest.raises(InputError, match="case ids become file names"):
            find_inputs([place / "set" / "imagesTr" / name], 1)

    def test_a_file_whose_name_is_no_text_is_named(self, place):
        odd = os.fsdecode(os.fsencode(place / "set" / "imagesTr") + b"/odd\xff.nii.gz")
        shutil.copyfile(place / "secret.nii.gz", odd)
        with pytest.raises(InputError, match=r"got 'odd\\udcff'"):
            find_inputs([place / "set" / "imagesTr"], 1)


SHELL = {
    "semicolon": "a;touch canary",
    "substitution": "a$(touch canary)",
    "back-ticks": "a`touch canary`",
    "newline": "a\ntouch canary",
}


@pytest.mark.parametrize("name", SHELL)
class TestNamesToAShell:
    def test_the_name_works_on_a_program_that_uses_a_shell(self, name, tmp_path):
        subprocess.run(f"ls {SHELL[name]}.nii.gz", shell=True, cwd=tmp_path, capture_output=True, check=False)
        assert any("canary" in item.name for item in tmp_path.iterdir())

    def test_every_verb_takes_it_for_a_name(self, name, tmp_path, trained, dataset, monkeypatch, capsys):  # noqa: F811
        monkeypatch.chdir(tmp_path)
        case = SHELL[name]
        shutil.copytree(dataset, tmp_path / "set")
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / "set" / folder / "case_0.nii.gz").rename(tmp_path / "set" / folder / f"{case}.nii.gz")
        file = tmp_path / "set" / "dataset.json"
        description = json.loads(file.read_text())
        description["training"][0] = {"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"}
        file.write_text(json.dumps(description))
        before = sorted(item.name for item in tmp_path.iterdir())
        with watched(tmp_path / "out", tmp_path / "scores") as seen:
            codes = [
                run(["check", "set"]),
                run(["predict", str(trained.folder), f"set/imagesTr/{case}.nii.gz", "--out", "out", "--device", "cpu"]),
                run(["evaluate", "--pred", "out", "--ref", "set/labelsTr", "--out", "scores", "--missing", "empty"]),
            ]
        said = capsys.readouterr()
        assert codes == [0, 0, 0], said.err
        assert seen.events == []
        assert (tmp_path / "out" / f"{case}.nii.gz").is_file()
        assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*before, "out", "scores"])


def test_there_are_eight_and_four_attacks():
    assert len({*ENTRIES, "name of an output with a slash", "case id dot dot"}) == 8
    assert len(SHELL) == 4
