"""evaluate_folders: the four files, and none of them when a case is bad."""

import json

import pandas as pd
import pytest

from segscse.errors import InputError
from segscse.evaluation.columns import CONVENTION, recorded_beside
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.scores import summarise
from segscse.files import only_writer


def test_evaluate_folders_writes_four_files(folders, tmp_path):
    table, summary = evaluate_folders(*folders, tmp_path / "out", names={1: "left"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cases.csv",
        "conventions.txt",
        "report.html",
        "summary.json",
    ]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "cases.csv", dtype={"name": str}), table)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary == summarise(table)
    recorded = recorded_beside(tmp_path / "out" / "cases.csv")
    assert recorded["diagonal_mm"] == pytest.approx(table.attrs["diagonal_mm"])
    assert recorded["nsd_tolerance_mm"] == table.attrs["nsd_tolerance_mm"] == 1
    assert recorded["convention_version"] == table.attrs["convention_version"] == summary["convention_version"]
    assert recorded_beside(folders[0] / "cases.csv") == {}
    (tmp_path / "out" / "summary.json").write_text('{"grids": {"a": {}}}')
    with pytest.raises(InputError, match="is not a summary of evaluate"):
        recorded_beside(tmp_path / "out" / "cases.csv")
    (tmp_path / "out" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        recorded_beside(tmp_path / "out" / "cases.csv")
    words = (tmp_path / "out" / "conventions.txt").read_text()
    assert CONVENTION in words
    assert "NSD tolerance: 1 mm." in words
    assert "hd95_mm: larger of the two directed 95th percentiles" in words


def test_nothing_is_written_when_a_case_is_bad(folders, tmp_path):
    (folders[0] / "b.nii.gz").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        evaluate_folders(*folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_process_at_a_time_writes_into_a_folder(folders, tmp_path):
    with only_writer(tmp_path / "out"), pytest.raises(InputError, match="another process is writing into it"):
        evaluate_folders(*folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()
