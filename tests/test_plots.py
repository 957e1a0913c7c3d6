"""Figures for notebooks, and what notebooks show of runs and comparisons."""

import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import dataset, trained  # noqa: F401, fixtures

import segscse as ss
from segscse.errors import InputError
from segscse.plots import plot_metrics, plot_training

# ruff: noqa: F811


def _table(n=12, **columns):
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "case": [f"c{i}" for i in range(n)] * 2,
        "label": [1] * n + [4] * n,
        "name": ["liver"] * n + ["$_hidden"] * n,
        "dice": rng.uniform(0.6, 0.9, 2 * n),
        "hd95_mm": [math.inf, *rng.uniform(1, 5, 2 * n - 1)],
        "diagonal_mm": 200.0,
        **columns,
    })  # fmt: skip


def _is_png(figure):
    return figure._repr_png_().startswith(b"\x89PNG")


def test_metrics_have_a_panel_each_and_a_point_per_case():
    figure = ss.plot_metrics(_table(), title="a_b$")
    assert [ax.get_xlabel() for ax in figure.axes] == ["Dice", "HD95 in mm"]
    points = figure.axes[0].collections
    offsets = [len(part.get_offsets()) for part in points if len(part.get_offsets()) > 1]
    assert offsets == [12, 12]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["liver", r"\$_hidden"]
    assert any(text.get_text() == "∞" for text in figure.axes[1].texts)
    assert _is_png(figure)


def test_means_and_intervals_are_drawn_where_describe_puts_them():
    from segscse.evaluation.statistics import describe

    table = _table()
    row = describe(table, ["dice"]).set_index("label").loc[4]
    lines = [line.get_xdata().tolist() for line in plot_metrics(table, ["dice"]).axes[0].lines]
    assert [row["low"], row["high"]] in [pytest.approx(line) for line in lines]
    assert [row["mean"]] in [pytest.approx(line) for line in lines]


def test_differences_are_drawn_by_their_size_as_their_mean_is():
    table = _table(volume_diff_ml=np.tile([-2.0, 1.0], 12))
    (ax,) = plot_metrics(table, ["volume_diff_ml"]).axes
    drawn = {x for part in ax.collections for x in part.get_offsets()[:, 0] if len(part.get_offsets()) > 1}
    assert drawn == {1.0, 2.0}
    assert [1.5] in [line.get_xdata().tolist() for line in ax.lines]


def test_labels_without_values_and_few_cases():
    figure = plot_metrics(_table(dice=[math.nan] * 12 + [0.5] * 12), ["dice"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["no case"]
    assert _is_png(figure)
    assert _is_png(plot_metrics(_table(dice=math.nan), ["dice"]))
    with pytest.raises(InputError, match="unknown metric 'dcie'"):
        plot_metrics(_table(), ["dcie"])
    with pytest.raises(InputError, match="no metric to draw"):
        plot_metrics(_table(), [])


def test_curves_hold_the_log(trained):
    figure = ss.plot_training(trained)
    log = pd.read_csv(trained.folder / "metrics.csv")
    loss, scores, rate = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), log["train_loss"].dropna())
    np.testing.assert_allclose(rate.lines[0].get_ydata(), log["lr"])
    assert [text.get_text() for text in scores.get_legend().get_texts()] == ["block", "ball", "mean"]
    np.testing.assert_allclose(scores.lines[-1].get_ydata(), log["val_dice"].dropna())
    assert _is_png(figure)


def test_a_log_without_validation_or_plan(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr,train_loss\n20,0.01,1.5\n40,0.005,1.2\n")
    figure = plot_training(tmp_path)
    assert "no validation" in [text.get_text() for text in figure.axes[1].texts]


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n"])
def test_other_folders_are_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.csv") as caught:
        plot_training(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_run_shows_itself(trained, tmp_path):
    shown = trained._repr_html_()
    assert "<td>30</td>" in shown
    assert "block, ball" in shown
    assert 'src="data:image/png;base64,' in shown
    bare = replace(trained, folder=tmp_path / "<b>x</b>", dice=None)._repr_html_()
    assert "<img" not in bare
    assert "&lt;b&gt;x&lt;/b&gt;" in bare
    assert "<th>report</th>" not in bare
    (tmp_path / "run" / "validation").mkdir(parents=True)
    (tmp_path / "run" / "validation" / "report.html").touch()
    assert re.search("<th>report</th><td>.*report.html", replace(trained, folder=tmp_path / "run")._repr_html_())


def test_figures_need_neither_torch_nor_pyplot():
    script = (
        "import sys, segscse as ss\nss.plot_metrics, ss.plot_overlay, ss.plot_training, ss.compare\n"
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
