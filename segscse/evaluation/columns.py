"""The columns of the table of scores, what each means, and the convention in words that every output carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segscse.errors import InputError
from segscse.files import read_json

if TYPE_CHECKING:
    import pandas as pd

CONVENTION_VERSION = 3
CONVENTION = (
    "Scores come from exact voxel counts per case and label; background (0) is not scored. Both masks empty: "
    "undefined, left out of means and counted (n_both_empty). One mask empty (n_missed, n_false_positive_cases): "
    "Dice, IoU, NSD and lesion F1 are 0 and distances infinite. So they are in every label of a case without a "
    "prediction, where those are allowed (n_missing_predictions), also in labels that its reference does not have; "
    "its precision and specificity are 0, too, its volumes those of an empty mask, and it has no calibration. "
    "Distances run between border voxels (mask XOR erosion, beyond the image is outside), in mm: HD95 is the larger "
    "of the two directed 95th percentiles with linear interpolation; ASSD is the mean over both borders together; "
    "MASD is the mean of the two directed means. "
    "NSD counts border voxels within the tolerance; NSD by area weights the surface between voxels by its area "
    "(DeepMind surface-distance, Medical Segmentation Decathlon). A mean distance is undefined as soon as one "
    "distance is infinite; the penalised mean counts an infinite distance as the image's diagonal. Lesions are "
    "connected components (voxels that share a face, edge or corner); one is found when the other mask holds at "
    "least one of its voxels. Mean foreground Dice: mean over labels of the mean over cases. Axes one voxel long "
    "take no part in distances."
)

DEFINITIONS = {
    "case": "name of the case",
    "label": "label in the files",
    "name": "name of the label",
    "dice": "2 tp / (2 tp + fp + fn)",
    "iou": "tp / (tp + fp + fn)",
    "sensitivity": "tp / (tp + fn)",
    "precision": "tp / (tp + fp)",
    "specificity": "tn / (tn + fp), over the whole image",
    "hd_mm": "Hausdorff distance: the largest distance between the borders",
    "hd95_mm": "larger of the two directed 95th percentiles of the distances, linear interpolation",
    "assd_mm": "mean of the distances of both borders together",
    "masd_mm": "mean of the two directed mean distances",
    "nsd": "border voxels of both within the tolerance / border voxels of both",
    "nsd_area": "surface area of both within the tolerance / surface area of both (DeepMind surface-distance)",
    "volume_ref_ml": "volume of the reference",
    "volume_pred_ml": "volume of the prediction",
    "volume_diff_ml": "prediction - reference",
    "volume_similarity": "1 - |n_pred - n_ref| / (n_pred + n_ref)",
    "n_ref": "voxels of the reference",
    "n_pred": "voxels of the prediction",
    "n_components_ref": "connected components (26 neighbours, 8 in 2D) of the reference",
    "n_components_pred": "connected components of the prediction",
    "lesion_sensitivity": "share of the reference's components that hold a predicted voxel",
    "lesion_precision": "share of the prediction's components that hold a reference voxel",
    "lesion_f1": "harmonic mean of lesion_sensitivity and lesion_precision",
}
CALIBRATION = {
    "ece": "expected calibration error of the label against the rest, 15 bins of equal width, over every voxel",
    "brier": "mean of (probability - truth)^2 of the label against the rest, over every voxel",
}
COLUMNS = tuple(DEFINITIONS)
DISTANCES = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")
SHARES = (
    *("iou", "sensitivity", "precision", "specificity", "nsd", "nsd_area", "volume_similarity"),
    *("lesion_sensitivity", "lesion_precision", "lesion_f1", *CALIBRATION),
)


def diagonal_mm_of(table: pd.DataFrame) -> pd.Series:
    """Return the diagonal of each row's image in mm: from a column of that name, else `attrs`; NaN where not known."""
    if "diagonal_mm" in table:
        return table["diagonal_mm"].astype(float)
    return table["case"].map(table.attrs.get("diagonal_mm", {})).astype(float)


def recorded_beside(cases_csv: str | Path) -> dict[str, Any]:
    """Return what the `summary.json` beside a `cases.csv` records of how it was scored; {} without one.

    Returns:
        `diagonal_mm` of each case's image, `nsd_tolerance_mm` and `convention_version`, as in `attrs` of the table of
        `evaluate`; None, or no case, where it does not say.

    Raises:
        InputError: it cannot be read, or is not such a summary.
    """
    file = Path(cases_csv).with_name("summary.json")
    if not file.is_file():
        return {}
    record = read_json(file)
    try:
        diagonals = {case: grid["diagonal_mm"] for case, grid in record.get("grids", {}).items()}
        return {
            "diagonal_mm": {case: float(length) for case, length in diagonals.items() if length is not None},
            "nsd_tolerance_mm": record.get("nsd_tolerance_mm"),
            "convention_version": record.get("convention_version"),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("is not a summary of evaluate", file=file, remedy="Evaluate again") from error


def in_words(columns: list[str], nsd_tolerance_mm: float | dict[str, float]) -> str:
    """Return the convention, the NSD tolerance and the meaning of each column as text."""
    if isinstance(nsd_tolerance_mm, dict):
        tolerance = ", ".join(f"label {label}: {value:g} mm" for label, value in nsd_tolerance_mm.items())
    else:
        tolerance = f"{nsd_tolerance_mm:g} mm"
    known = DEFINITIONS | CALIBRATION | {"subject": "subject that the case belongs to"}
    lines = [f"{column}: {known[column]}" for column in columns]
    head = [f"Convention {CONVENTION_VERSION}", CONVENTION, f"NSD tolerance: {tolerance}.", "", "Columns of cases.csv"]
    return "\n".join([*head, *lines]) + "\n"
