"""What a notebook shows of a run."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segscse.training.run import Run


def run_html(run: Run) -> str:
    """Return a run as a small table, with its curves below where it has a log."""
    from segscse.plots import plot_training

    plan = run.planned.plan
    dice = "none" if run.dice is None else f"{run.dice:.4f}"
    rows = {
        "folder": str(run.folder),
        "network": f"{plan.spatial_dims}D, patch {plan.patch_size}, spacing {plan.spacing_mm} mm",
        "labels": ", ".join(name for _, name in plan.labels[1:]),
        "cases": f"{len(run.split.training)} for training, {len(run.split.validation)} for validation",
        "steps": str(run.steps),
        "validation Dice": dice,
    }
    if (run.folder / "validation" / "report.html").is_file():
        rows["report"] = str(run.folder / "validation" / "report.html")
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    picture = ""
    if (run.folder / "metrics.csv").is_file():
        data = base64.b64encode(plot_training(run)._repr_png_()).decode("ascii")
        picture = f'<img alt="training curves" style="max-width: 100%" src="data:image/png;base64,{data}">'
    return f"<table><tbody>{body}</tbody></table>{picture}"
