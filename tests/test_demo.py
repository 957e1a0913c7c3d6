from rich.console import Console

from segscse.demo import run_demo
from segscse.files import read_json


def test_the_demonstration_goes_from_phantoms_to_a_report(tmp_path):
    said = []
    summary = run_demo(
        tmp_path,
        budget="2s",
        seed=1,
        say=said.append,
        console=Console(quiet=True),
        cases=5,
        test_cases=1,
    )
    assert (tmp_path / "evaluation" / "report.html").is_file()
    assert read_json(tmp_path / "evaluation" / "summary.json")["overall"] == summary["overall"]
    assert summary["overall"]["n_cases"] == 1
    assert [label["name"] for label in summary["labels"]] == ["head", "tail"]
    assert any(str(tmp_path / "run") in line for line in said)
    assert read_json(tmp_path / "run" / "model" / "model.json")["provenance"]["config"]["train"]["seed"] == 1
