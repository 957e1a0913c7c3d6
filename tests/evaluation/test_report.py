"""The report: self-contained, escaped, complete, the same twice."""

import base64
import gzip
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest

from segscse.errors import InputError
from segscse.evaluation import charts, report_tables
from segscse.evaluation.cases import CasePair
from segscse.evaluation.folders import evaluate_folders
from segscse.evaluation.overlays import plot_overlay
from segscse.evaluation.report import render_report
from segscse.evaluation.scores import evaluate
from segscse.evaluation.tables import load_provenance
from segscse.evaluation.viewer import niivue_base64

from .conftest import blocks

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}$x$"


def _read(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def _text(html):
    """Return a page without its embedded data, style and script."""
    html = re.sub(r"base64,[^\"]*", "", html)
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_report_needs_nothing_from_outside(folders, tmp_path, save):
    for case in "abc":
        save(tmp_path / "images" / f"{case}_0000.nii.gz", np.random.default_rng(0).random((12, 12, 8)))
    evaluate_folders(*folders, tmp_path / "out", tmp_path / "images", names={1: "left", 2: "right"})
    html = _read(tmp_path / "out")
    assert not re.search(r"https?:|//|<link|@import|url\(", _text(html))
    sources = re.findall(r'src="([^"]{23})', html)
    assert len(sources) == 27  # three cases, three views, three planes
    assert set(sources) == {"data:image/jpeg;base64,"}
    assert "no image was given" not in html
    assert html.index("Worst: c") < html.index("Median: b") < html.index("Best: a")


def test_labels_that_are_not_scored_are_not_shown(tmp_path, save):
    array = np.zeros((12, 12, 8), np.uint8)
    array[2:6, 2:6, 2:5] = 1
    array[7:11, 7:11, 5:8] = 2
    for folder in ("pred", "ref"):
        save(tmp_path / folder / "a.nii.gz", array)
    evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", labels=[1])
    assert "label 2" not in _text(_read(tmp_path / "out"))


def test_few_cases_are_said_to_make_intervals_too_narrow(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out")
    assert "With only 3 cases they are likely too narrow." in _read(tmp_path / "out")


def test_the_page_allows_its_own_script_alone(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out")
    html = _read(tmp_path / "out")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}' blob:;")
    assert html.count("<script>") == 1


def test_hostile_names_are_text(folders, tmp_path):
    table = evaluate(blocks(1), blocks(), names={1: HOSTILE, 2: "_hidden"})
    table["case"] = HOSTILE
    html = render_report(table, provenance={HOSTILE: HOSTILE, "deep": {"x": [HOSTILE]}, "list": [HOSTILE] * 9})
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;{{7*7}}$x$" in html
    details = re.search(r'id="details">(.*?)</script>', html, flags=re.DOTALL).group(1)
    assert json.loads(details)["rows"][0][0][0] == HOSTILE
    plot_overlay(None, blocks(), names={1: HOSTILE}).canvas.draw()


def test_hostile_names_are_text_in_the_viewer(folders, tmp_path):
    for folder in folders:
        (folder / "a.nii.gz").rename(folder / "<img src=x onerror=alert(1)>.nii.gz")
    evaluate_folders(*folders, tmp_path / "out", names={1: HOSTILE})
    html = _read(tmp_path / "out")
    assert "<img src=x" not in html
    assert "<script>alert" not in html


def test_report_without_images_shows_labels_only(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out")
    assert _read(tmp_path / "out").count("no image was given") == 3


def test_report_survives_an_image_on_another_grid_and_a_missing_prediction(folders, tmp_path, save):
    (folders[0] / "a.nii.gz").unlink()
    save(tmp_path / "images" / "b.nii.gz", np.zeros((5, 5, 5), np.float32))
    evaluate_folders(*folders, tmp_path / "out", tmp_path / "images", missing="empty")
    html = _read(tmp_path / "out")
    assert "lie on different grids" in html
    assert "missed: 1, 2" in html
    assert "∞" in html


def test_the_viewer_can_be_left_out(folders, tmp_path):
    evaluate_folders(*folders, tmp_path / "out", viewer=False)
    html = _read(tmp_path / "out")
    assert "Niivue" not in _text(html)
    assert 'id="niivue"' not in html
    assert len(html) < 500_000


def test_the_vendored_niivue_is_the_one_that_its_note_names(request):
    program = gzip.decompress(base64.b64decode(niivue_base64()))
    note = (request.path.parents[2] / "segscse" / "evaluation" / "vendor" / "README.md").read_text()
    assert hashlib.sha256(program).hexdigest() in note


def test_report_of_undefined_scores_shows_dashes():
    html = _text(render_report(evaluate(blocks(), blocks(), labels=[5])))
    assert not re.search(r"\bnan\b", html.lower())
    assert "–" in html  # noqa: RUF001


def test_a_mean_distance_that_counts_misses_says_so():
    both = {"a": blocks(), "b": blocks(1)}
    assert "mean HD95</span>" in render_report(evaluate(both, dict.fromkeys(both, blocks())))
    missed = render_report(evaluate({"a": blocks()}, dict.fromkeys(both, blocks()), missing="empty"))
    assert "mean HD95 (∞ as the image&#39;s diagonal)" in missed


def test_report_is_the_same_twice(folders, tmp_path):
    for out in ("one", "two"):
        evaluate_folders(*folders, tmp_path / out)
    assert _read(tmp_path / "one") == _read(tmp_path / "two")


def test_many_labels_leave_out_the_columns_per_label():
    array = np.arange(60).reshape(3, 4, 5)
    html = render_report(evaluate(array, array, names={59: "label_59"}))
    cases = html[html.index('<table id="cases">') :]
    assert "label_59" in html
    assert "label_59" not in cases[: cases.index("</table>")]
    assert "All scores:" not in html
    assert "of every other score: summary.json" in html


def test_too_many_rows_leave_the_details_to_the_csv(monkeypatch, folders):
    monkeypatch.setattr(report_tables, "MAX_DETAILS", 5)
    monkeypatch.setattr(charts, "MAX_POINTS", 4)
    html = render_report(evaluate(*folders))
    assert "too many for this page" in html
    assert 'id="details"' not in html
    assert "thinned out evenly" in html


def test_subjects_and_provenance_are_shown_and_kept(folders, tmp_path):
    record = {"step": 30, "versions": {"torch": "2.13.0"}, "training_cases": [f"case_{i}" for i in range(30)]}
    subjects = {"a": "s1", "b": "s1", "c": "s2"}
    table, _ = evaluate_folders(*folders, tmp_path / "out", subjects=subjects, provenance=record)
    assert table["subject"].tolist() == ["s1"] * 4 + ["s2"] * 2
    html = _text(_read(tmp_path / "out"))
    assert "3 cases of 2 subjects" in html
    assert "bootstrap over subjects" in html
    assert "torch 2.13.0" in html
    assert "case_29" in html
    assert pd.read_csv(tmp_path / "out" / "cases.csv")["subject"].tolist() == table["subject"].tolist()


def test_single_slices_have_one_plane_and_no_viewer(tmp_path, save):
    for name, shift in (("pred", 1), ("ref", 0)):
        save(tmp_path / name / "a.nii.gz", blocks(shift)[:, :, 3:4])
    evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    html = _read(tmp_path / "out")
    assert html.count("<figure>") == 3
    assert 'id="niivue"' not in html


def test_2d_arrays_have_no_volumes():
    pred, ref = blocks(1)[:, :, 3], blocks()[:, :, 3]
    html = render_report(evaluate(pred, ref), pairs=[CasePair("case", ref, pred)])
    assert html.count("<figure>") == 3
    assert "Bland-Altman" not in html


def test_provenance_of_a_model_folder(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    file = tmp_path / "run" / "model" / "model.json"
    file.write_text('{"provenance": {"step": 3}}')
    assert load_provenance(tmp_path / "run") == load_provenance(tmp_path / "run" / "model") == {"step": 3}
    file.write_text("[]")
    with pytest.raises(InputError, match="no record of its provenance"):
        load_provenance(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds no model\.json"):
        load_provenance(tmp_path)
