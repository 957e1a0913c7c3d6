"""Pairs to compare: label maps from arrays, files and folders, paired by name and checked for one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segscse.data.geometry import canonical_grid, from_canonical, same_grid, spacing_of, to_canonical
from segscse.data.index import check_name
from segscse.data.io import as_labels, image_stem, list_images, read_image, read_labels
from segscse.errors import InputError, choose

Missing = Literal["error", "empty"]


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A label map `(*S)` of integers, with its affine `(4, 4)` to RAS mm when that is known."""

    array: np.ndarray
    affine: np.ndarray | None
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CasePair:
    """One case to score: its name, reference, prediction (None: it is missing) and probabilities, if any."""

    case: str
    ref: Any
    pred: Any
    probabilities: Any = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Tolerances of the surface Dice in mm: one for every label, or one by label."""

    every_mm: float | None
    by_label_mm: Mapping[int, float]

    @classmethod
    def of(cls, given: float | Mapping[Any, float], labels: Sequence[int] | None) -> Tolerance:
        """Check what the user gave.

        Raises:
            InputError: not numbers from 0 up, or a label has none.
        """
        by_label = given if isinstance(given, Mapping) else {}
        try:
            every = None if isinstance(given, Mapping) else float(given)
            tolerance = cls(every, {int(label): float(value) for label, value in by_label.items()})
        except (TypeError, ValueError) as error:
            raise _bad_tolerance(given) from error
        values = [value for value in (tolerance.every_mm, *tolerance.by_label_mm.values()) if value is not None]
        if not all(0 <= value < np.inf for value in values):
            raise _bad_tolerance(given)
        for label in labels or ():
            tolerance.of_label(label)
        return tolerance

    def of_label(self, label: int) -> float:
        """Return the tolerance of a label."""
        if self.every_mm is not None:
            return self.every_mm
        if label not in self.by_label_mm:
            raise InputError(f"label {label} has no NSD tolerance", remedy="Give one number for all, or one per label")
        return self.by_label_mm[label]

    def to_json(self) -> float | dict[str, float]:
        """Return the number, or the numbers by label."""
        if self.every_mm is not None:
            return self.every_mm
        return {str(label): value for label, value in self.by_label_mm.items()}


def pair_cases(pred: Any, ref: Any, missing: Missing = "error", probabilities: Any = None) -> list[CasePair]:
    """Pair predictions with references: one pair for arrays and files, one per name for folders and mappings.

    Probabilities pair as predictions do; a case without a prediction has none.

    Raises:
        InputError: a folder against something else, no references, unmatched files.
    """
    if missing not in ("error", "empty"):
        raise choose("value of missing", missing, ("error", "empty"))
    folders = [_holds_cases(source) for source in (pred, ref)]
    if probabilities is not None and _holds_cases(probabilities) != all(folders):
        raise InputError(
            f"probabilities must be of the same kind as the predictions, got {_describe(probabilities)}",
            remedy="Give a folder with folders, a file or an array otherwise",
        )
    if all(folders):
        pairs = _pair_folders(pred, ref, missing)
        return pairs if probabilities is None else _add_probabilities(pairs, probabilities)
    if any(folders):
        raise InputError(
            f"a folder can only be compared with a folder, got {_describe(pred)} and {_describe(ref)}",
            remedy="Give two folders or two files",
        )
    case = image_stem(ref) if _is_path(ref) else image_stem(pred) if _is_path(pred) else "case"
    return [CasePair(case, ref, pred, probabilities)]


def load_pair(pair: CasePair, spacing_mm: Sequence[float] | None) -> tuple[LabelMap, LabelMap, tuple[float, ...]]:
    """Return prediction, reference and the voxel size in mm of the grid that they share.

    A prediction whose voxels lie where the reference's do, but along other axes, is brought into their order.

    Raises:
        InputError: not label maps, or not on the same grid.
    """
    ref = load_labels(pair.ref, "reference")
    if pair.pred is None:
        pred = LabelMap(np.zeros(ref.array.shape, np.uint8), ref.affine, "no prediction")
    else:
        pred = in_order_of(ref, load_labels(pair.pred, "prediction"))
    _check_grid(pred, ref)
    return pred, ref, _spacing(pred, ref, spacing_mm)


def load_labels(source: Any, role: str) -> LabelMap:
    """Return the label map of a path, an array `(*S)` or an object with `.affine` and `.array` or `.dataobj`.

    Args:
        source: the path, array or object.
        role: what to call an array in messages.

    Raises:
        InputError: not 2D or 3D, or values that are not whole numbers.
    """
    if _is_path(source):
        volume = read_labels(source)
        return LabelMap(volume.array, volume.affine, str(source), volume.notes)
    affine = getattr(source, "affine", None)
    voxels = source if affine is None else getattr(source, "array", getattr(source, "dataobj", source))
    array = _whole_numbers(np.asarray(voxels), role)
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2 and affine is not None:
        array = array[..., None]
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(
            f"the {role} must be a 2D or 3D label map, got shape {array.shape}",
            remedy="Give one integer label per voxel, without batch or channel axes",
        )
    return LabelMap(array, None if affine is None else np.asarray(affine, float), f"the {role}")


def load_probabilities(pair: CasePair, ref: LabelMap, n_channels: int) -> np.ndarray:
    """Return the probabilities `(*S, K)` of a case, on the grid of its reference.

    Raises:
        InputError: another grid or another number of channels.
    """
    wanted = (*ref.array.shape, n_channels)
    if _is_path(pair.probabilities):
        volume = read_image(pair.probabilities)
        array, affine, file = volume.array, volume.affine, pair.probabilities
    else:
        array, affine, file = np.asarray(pair.probabilities), None, None
    if array.ndim == 4:
        turned = in_order_of(ref, LabelMap(array, affine, str(file)))
        array, affine = turned.array, turned.affine
    if array.shape != wanted:
        raise InputError(
            f"probabilities must have shape {wanted}: the reference's, then background and each label, "
            f"got {array.shape}",
            file=file,
            remedy="Give labels as the model has them",
        )
    if affine is not None and ref.affine is not None:
        difference = same_grid(array.shape[:3], affine, ref.array.shape, ref.affine)
        if difference:
            raise InputError(
                f"and {ref.source} lie on different grids: {difference}", file=file, remedy="Predict this scan again"
            )
    return array


def check_labels(labels: Sequence[int]) -> list[int]:
    """Return the labels sorted, without repeats and without the background 0.

    Raises:
        InputError: a label is not a whole number above 0, or none is left.
    """
    wrong = [label for label in labels if isinstance(label, str) or not (label >= 0 and float(label).is_integer())]
    if wrong:
        raise InputError(
            f"labels must be whole numbers above 0, got {wrong[0]!r}",
            remedy="Give for example --labels 1,2 (in Python labels=[1, 2])",
        )
    known = sorted({int(label) for label in labels} - {0})
    if not known:
        raise InputError(
            "there is no label to score: only background (0)",
            remedy="Give for example --labels 1 (in Python labels=[1])",
        )
    return known


def label_names(names: Mapping[Any, str] | None) -> dict[int, str]:
    """Return the names by integer label; a JSON object's keys arrive as text.

    Raises:
        InputError: a key is not a whole number.
    """
    try:
        return {int(label): str(name) for label, name in (names or {}).items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"names must map integer labels to names ({error})", remedy="Give for example names={1: 'liver'}"
        ) from error


def cases_of(source: str | Path | Mapping[str, Path]) -> dict[str, Path]:
    """Return case to file for a folder of images, or for a mapping that says so already.

    Raises:
        InputError: a file's name cannot be a case's.
    """
    if isinstance(source, Mapping):
        return {str(case): file for case, file in source.items()}
    found = list_images(source)
    for case, file in found.items():
        check_name(case, file)
    return found


def _holds_cases(source: Any) -> bool:
    return isinstance(source, Mapping) or (_is_path(source) and Path(source).is_dir())


def _pair_folders(pred_dir: Any, ref_dir: Any, missing: Missing) -> list[CasePair]:
    preds, refs = cases_of(pred_dir), cases_of(ref_dir)
    if not refs:
        raise InputError(
            "holds no images to compare with",
            file=_where(ref_dir),
            remedy="Give the folder of the references",
        )
    absent = [case for case in refs if case not in preds]
    extra = [case for case in preds if case not in refs]
    if absent and missing == "error":
        raise InputError(
            f"{len(absent)} of {len(refs)} predictions are missing: {_listing(absent)}",
            file=_where(pred_dir),
            remedy="Predict them, or score them as empty with --missing empty (in Python missing='empty')",
        )
    if extra:
        raise InputError(
            f"{len(extra)} predictions have no reference: {_listing(extra)}",
            file=_where(pred_dir),
            remedy="Add the references or move the predictions away; files pair by name",
        )
    return [CasePair(case, path, preds.get(case)) for case, path in refs.items()]


def _add_probabilities(pairs: list[CasePair], source: Any) -> list[CasePair]:
    files = cases_of(source)
    absent = [pair.case for pair in pairs if pair.pred is not None and pair.case not in files]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(pairs)} probabilities are missing: {_listing(absent)}",
            file=_where(source),
            remedy="Predict with --probabilities, which writes them to the folder of that name",
        )
    return [replace(pair, probabilities=files.get(pair.case)) for pair in pairs]


def _bad_tolerance(given: Any) -> InputError:
    return InputError(
        f"nsd_tolerance_mm must be a number from 0 up in mm, or one per label, got {given!r}",
        remedy="Give for example 1.0 or {1: 2.0, 2: 1.5}",
    )


def _where(source: Any) -> str | None:
    return None if isinstance(source, Mapping) else str(source)


def in_order_of(ref: LabelMap, pred: LabelMap) -> LabelMap:
    """Return a prediction `(X, Y, Z)`, or its probabilities `(X, Y, Z, K)`, in the reference's order of axes.

    One that differs in anything else stays as it is.
    """
    if ref.affine is None or pred.affine is None or ref.array.ndim != 3 or pred.array.ndim not in (3, 4):
        return pred
    if not same_grid(pred.array.shape[:3], pred.affine, ref.array.shape, ref.affine):
        return pred
    canonical, affine = to_canonical(pred.array, pred.affine)
    if same_grid(canonical.shape[:3], affine, *canonical_grid(ref.array.shape, ref.affine)):
        return pred
    return replace(pred, array=np.ascontiguousarray(from_canonical(canonical, ref.affine)), affine=ref.affine)


def _check_grid(pred: LabelMap, ref: LabelMap) -> None:
    if pred.affine is not None and ref.affine is not None:
        difference = same_grid(pred.array.shape, pred.affine, ref.array.shape, ref.affine)
    elif pred.array.shape != ref.array.shape:
        difference = f"shape {pred.array.shape} against {ref.array.shape}"
    else:
        difference = None
    if difference:
        raise InputError(
            f"{pred.source} and {ref.source} lie on different grids: {difference}",
            remedy="Resample the prediction onto the reference's grid (nearest neighbour)",
        )


def _spacing(pred: LabelMap, ref: LabelMap, spacing_mm: Sequence[float] | None) -> tuple[float, ...]:
    affine = ref.affine if ref.affine is not None else pred.affine
    ndim = ref.array.ndim
    if affine is not None:
        if spacing_mm is not None:
            raise InputError("spacing_mm is for arrays; these files carry their own", remedy="Leave spacing_mm out")
        return spacing_of(affine)[:ndim]
    spacing = (1.0,) * ndim if spacing_mm is None else tuple(float(size) for size in spacing_mm)
    if len(spacing) != ndim or not all(0 < size < np.inf for size in spacing):
        raise InputError(
            f"spacing_mm must be {ndim} positive numbers, one per array axis, got {spacing}",
            remedy="Give the voxel size in mm in the order of the array's axes",
        )
    return spacing


def _whole_numbers(array: np.ndarray, role: str) -> np.ndarray:
    if array.dtype.kind == "f":
        rounded = np.rint(array)
        if not np.isfinite(array).all() or np.abs(array - rounded).max(initial=0) > 1e-3:
            raise InputError(
                f"the {role} must hold whole numbers (labels), got fractions or NaN",
                remedy="Threshold probabilities or take their arg max first",
            )
        return as_labels(rounded)
    if array.dtype.kind not in "iub":
        raise InputError(f"the {role} must be an array of integers, got {array.dtype}", remedy="Give label maps")
    return array


def _is_path(source: Any) -> bool:
    return isinstance(source, str | Path)


def _describe(source: Any) -> str:
    return str(source) if _is_path(source) else "an array"


def _listing(cases: Sequence[str], limit: int = 10) -> str:
    more = f" and {len(cases) - limit} more" if len(cases) > limit else ""
    return ", ".join(cases[:limit]) + more
