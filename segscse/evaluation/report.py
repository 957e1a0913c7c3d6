"""The report of an evaluation: one HTML page with its tables, charts, pictures and viewer inside, without network."""

from __future__ import annotations

import base64
import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from segscse import __version__
from segscse.errors import InputError
from segscse.evaluation.bootstrap import units_in_words
from segscse.evaluation.cases import CasePair
from segscse.evaluation.charts import bland_altman, distribution
from segscse.evaluation.comparison import FEW_CASES
from segscse.evaluation.metrics import METRICS, metrics_in, subjects_of
from segscse.evaluation.pictures import VIEWS, case_pictures
from segscse.evaluation.report_tables import case_details, case_rows, label_rows, number, provenance_rows
from segscse.evaluation.scene import DISAGREEMENT, Scene, label_colour, load_scene
from segscse.evaluation.scores import foreground_dice, summarise
from segscse.evaluation.statistics import describe
from segscse.evaluation.viewer import NIIVUE_VERSION, CaseVolumes, case_volumes, niivue_base64

_CHARTED = ("dice", "nsd", "hd95_mm", "assd_mm", "sensitivity", "precision", "lesion_f1")
_MAX_VOLUME_PLOTS = 24
_STATISTICS = (
    "Intervals are 95 % intervals of the mean: BCa bootstrap over {unit}, widened for few of them (Efron 1987; "
    "Hesterberg 2015). Over all labels: the mean over labels of the mean over cases. In means with an interval, an "
    "infinite distance (a structure missed or made up) counts as the image's diagonal."
)


def render_report(
    table: pd.DataFrame,
    *,
    summary: Mapping[str, Any] | None = None,
    described: pd.DataFrame | None = None,
    pairs: Sequence[CasePair] = (),
    images: Mapping[str, Path] | None = None,
    subjects: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    viewer: bool = True,
) -> str:
    """Return the report of the table of `evaluate` as HTML.

    The page forbids itself every connection (Content-Security-Policy) and runs no script but its own.

    Args:
        table: as `evaluate` returns it.
        summary: what `summarise` says of the table, when it is known already.
        described: what `describe` says of it, likewise.
        pairs: where predictions and references lie; without them there are no pictures.
        images: images by case, to show under the labels; a case without one is drawn over black.
        subjects: the subject of every case. Default: the table's column `subject`, if it has one.
        provenance: how the predictions came about, such as the record of a run; shown as it is.
        viewer: embed NiiVue (about 1 MB) and the volumes of the worst, the median and the best case.
    """
    subjects = subjects_of(table, subjects)
    described = describe(table, subjects=subjects) if described is None else described
    summary = summary or summarise(table, described)
    table = table.copy()
    table.attrs = {}  # with entries for every case, which pandas would copy at every step
    names: dict[int, str] = dict(zip(table["label"].tolist(), table["name"].astype(str), strict=True))
    rows = case_rows(table, names)
    places = {row["case"]: place for place, row in enumerate(rows)}
    shown = _shown_cases(table, pairs, images or {}, places, names, viewer=viewer)
    script = _page_file("report.js")
    context = {
        "version": __version__,
        "versions": _versions(),
        "summary": summary,
        "statistics": _statistics(table, subjects),
        "n_subjects": None if subjects is None else len(set(subjects.values())),
        "facts": _facts(described),
        "labels": label_rows(described, summary),
        "colours": {label: label_colour(label) for label in names},
        "names": names,
        "described": described.to_dict("records"),
        "metrics": METRICS,
        "distributions": _distributions(table, described, places),
        "volumes": _volume_plots(table, places, subjects),
        "overlays": shown,
        "views": VIEWS,
        "errors": DISAGREEMENT,
        "cases": rows,
        "details": case_details(table, [row["case"] for row in rows]),
        "provenance": provenance_rows(provenance or {}),
        "niivue": niivue_base64() if any(item["volumes"] for item in shown) else "",
        "niivue_version": NIIVUE_VERSION,
        "style": Markup(_page_file("report.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    }
    return _fill_template(context)


def _statistics(table: pd.DataFrame, subjects: Mapping[str, str] | None) -> str:
    """Return how the intervals are made, and that they are too narrow where there are few cases."""
    text = _STATISTICS.format(unit="cases" if subjects is None else "subjects")
    n_cases = table["case"].nunique()
    n_units = n_cases if subjects is None else len(set(subjects.values()))
    few = f" With only {units_in_words(n_cases, n_units)} they are likely too narrow." if n_units < FEW_CASES else ""
    return text + few


def _fill_template(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segscse.evaluation", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2").render(context)


def _page_file(name: str) -> str:
    return resources.files("segscse.evaluation").joinpath("page", name).read_text(encoding="utf-8")


def _versions() -> dict[str, str]:
    packages = ("numpy", "scipy", "pandas", "nibabel", "SimpleITK")
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _facts(described: pd.DataFrame) -> list[dict[str, str]]:
    """Return the headline means over labels, with their intervals."""
    facts = []
    for column in ("dice", "nsd", "hd95_mm"):
        rows = described[described["metric"] == column]
        if len(rows):
            row, metric = rows.iloc[0], METRICS[column]  # the row over all labels comes first
            interval = f"{metric.text(row['low'])} to {metric.text(row['high'])}" if row["method"] != "none" else ""
            what = f"mean {metric.title}" + (" (∞ as the image's diagonal)" if row["n_infinite"] else "")
            facts.append({"value": metric.text(row["mean"]), "what": what, "interval": interval})
    return facts


def _distributions(table: pd.DataFrame, described: pd.DataFrame, places: Mapping[str, int]) -> list[Any]:
    known = [metric for metric in metrics_in(table) if metric.column in _CHARTED]
    known.sort(key=lambda metric: _CHARTED.index(metric.column))
    return [distribution(table, metric, described[described["metric"] == metric.column], places) for metric in known]


def _volume_plots(table: pd.DataFrame, places: Mapping[str, int], subjects: Mapping[str, str] | None) -> list[Any]:
    """Return the Bland-Altman plots of the labels with the largest reference volumes, in the order of labels."""
    if not {"volume_ref_ml", "volume_pred_ml"} <= set(table) or table["volume_ref_ml"].isna().all():
        return []
    largest = table.groupby("label")["volume_ref_ml"].sum().nlargest(_MAX_VOLUME_PLOTS).index
    plots = []
    for label, rows in table.groupby("label", sort=True):
        groups = None if subjects is None else [subjects[str(case)] for case in rows["case"]]
        plot = bland_altman(rows, places, groups) if label in largest else None
        if plot is not None:
            plots.append(plot)
    return plots


def _shown_cases(
    table: pd.DataFrame,
    pairs: Sequence[CasePair],
    images: Mapping[str, Path],
    places: Mapping[str, int],
    names: Mapping[int, str],
    *,
    viewer: bool,
) -> list[dict[str, Any]]:
    """Return what the page shows of the worst, the median and the best case."""
    ranked = foreground_dice(table).dropna().sort_values(kind="stable")
    if ranked.empty:
        return []
    chosen: dict[Any, str] = {}
    for role, place in (("Worst", 0), ("Best", len(ranked) - 1), ("Median", (len(ranked) - 1) // 2)):
        chosen.setdefault(ranked.index[place], role)
    by_case = {pair.case: pair for pair in pairs}
    shown = []
    for case in (case for case in ranked.index if case in chosen and case in by_case):
        scene, note = _scene_of(by_case[case], images)
        scene = _of_labels(scene, list(names))
        with_volumes = viewer and not scene.flat and min(scene.image.shape) > 1
        shown.append({
            "role": chosen[case],
            "case": case,
            "place": places[str(case)],
            "dice": number(float(ranked[case])),
            "note": note,
            "pictures": case_pictures(scene),
            "labels": scene.labels,
            "volumes": _viewer_data(str(case), case_volumes(scene), names) if with_volumes else None,
        })  # fmt: skip
    return shown


def _viewer_data(case: str, volumes: CaseVolumes, names: Mapping[int, str]) -> dict[str, Any]:
    """Return what the page's script hands to the viewer."""
    return {
        **asdict(volumes),
        "case": case,
        "colours": [label_colour(label) for label in volumes.labels],
        "names": [names.get(label, f"label {label}") for label in volumes.labels],
        "errors": [[colour for _, colour in DISAGREEMENT.values()], [text for text, _ in DISAGREEMENT.values()]],
    }


def _scene_of(pair: CasePair, images: Mapping[str, Path]) -> tuple[Scene, str]:
    """Load a case and say what is missing: a picture must not cost the report."""
    image = images.get(pair.case, images.get(f"{pair.case}_0000"))
    segmentation = pair.pred if pair.pred is not None else _nothing_like(pair.ref)
    note = "" if image is not None else "Labels only: no image was given for this case."
    try:
        return load_scene(image, segmentation, pair.ref, None), note
    except InputError as error:
        return load_scene(None, segmentation, pair.ref, None), f"Labels only: {error}"


def _of_labels(scene: Scene, labels: Sequence[int]) -> Scene:
    """Return a scene of nothing but the labels that are scored."""

    def chosen(array: np.ndarray) -> np.ndarray:
        return np.where(np.isin(array, labels), array, 0).astype(array.dtype)

    reference = None if scene.reference is None else chosen(scene.reference)
    return replace(scene, segmentation=chosen(scene.segmentation), reference=reference)


def _nothing_like(reference: Path) -> Any:
    """Return a segmentation without any label on the grid of a reference file."""
    from segscse.data.io import read_labels

    volume = read_labels(reference)
    return replace(volume, array=np.zeros_like(volume.array))
