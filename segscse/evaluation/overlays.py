"""Overlays: a segmentation over its image, seen as radiologists see it, with the reference as outlines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from segscse.data.geometry import same_grid, spacing_of, to_canonical
from segscse.data.io import read_image
from segscse.errors import InputError, choose
from segscse.evaluation.cases import label_names, load_labels

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the canonical (RAS) axis that each plane cuts
# Okabe and Ito's colours, told apart by colour-blind readers; a label keeps its colour in every figure.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#3D8BD4", "#B8E986", "#F7B7A3")
_EDGES = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}  # left and top of the picture
_BACKGROUND, _TEXT = "#15181C", "#D8DCE2"
_LEGEND_LABELS = 12
_OPACITY = 0.42


@dataclass(frozen=True, slots=True)
class _Scene:
    """What is drawn, `(X, Y, Z)` on one RAS grid; `flat`: a plain 2D array, drawn as rows and columns."""

    image: np.ndarray
    segmentation: np.ndarray
    reference: np.ndarray | None
    spacing_mm: tuple[float, ...]
    oriented: bool
    flat: bool

    @property
    def foreground(self) -> np.ndarray:
        mask = self.segmentation > 0
        return mask if self.reference is None else mask | (self.reference > 0)


def plot_overlay(
    image: Any,
    segmentation: Any,
    reference: Any = None,
    *,
    slices: int | Mapping[str, int] | None = None,
    axis: str | Sequence[str] | None = None,
    spacing_mm: Sequence[float] | None = None,
    names: Mapping[Any, str] | None = None,
    title: str = "",
) -> Figure:
    """Draw a segmentation as translucent colours over its image, and the reference as outlines.

    The volumes are turned to right-anterior-superior order first and shown in the radiological convention:
    the patient's right is on the left of axial and coronal pictures, anterior is on the left of sagittal
    ones.

    Args:
        image: array `(X, Y, Z)`, `(X, Y)` or `(X, Y, Z, C)` (the first channel is shown), an object with
            `.array` and `.affine`, a path, or None for a black background.
        segmentation: label map on the same grid, likewise.
        reference: label map on the same grid, or None.
        slices: slice index along the canonical axis, one for all planes or one per plane by name. Default:
            the slice with the most foreground.
        axis: plane or planes to show: "axial", "coronal", "sagittal". Default: all three, of a thin image its
            own.
        spacing_mm: voxel size in mm of plain arrays, which are taken to lie in RAS order. Default: 1 mm.
        names: names of labels for the legend.
        title: heading of the figure.

    Raises:
        InputError: the grids differ, or there is no such plane or slice.
    """
    scene = _scene(image, segmentation, reference, spacing_mm)
    planes = _planes(scene, axis)
    chosen = {plane: _slice_index(scene, plane, slices) for plane in planes}
    figure, axes = _canvas(scene, planes, title)
    limits = _grey_limits(scene.image)
    for plane, ax in zip(planes, axes, strict=True):
        _draw_plane(ax, scene, plane, chosen[plane], limits)
    _draw_legend(figure, scene, label_names(names))
    return figure


def label_colour(label: int) -> str:
    """Return the colour of a label, the same in every figure."""
    return COLOURS[(label - 1) % len(COLOURS)]


def _scene(image: Any, segmentation: Any, reference: Any, spacing_mm: Sequence[float] | None) -> _Scene:
    """Load everything, check that it lies on one grid and turn it to RAS order."""
    maps = [load_labels(segmentation, "segmentation")]
    if reference is not None:
        maps.append(load_labels(reference, "reference"))
    background, image_affine = _load_image(image, maps[0].array.shape)
    affines = [known for known in (*(item.affine for item in maps), image_affine) if known is not None]
    flat = maps[0].array.ndim == 2
    steps = [*map(float, spacing_mm or ())] + [1.0] * 3
    affine = affines[0] if affines else np.diag([*steps[:3], 1.0])
    for name, shape, other in (
        *((item.source, item.array.shape, item.affine) for item in maps[1:]),
        ("the image", background.shape, image_affine),
    ):
        known = affine if other is None else other
        if shape != maps[0].array.shape:
            difference: str | None = f"shape {shape} against {maps[0].array.shape}"
        else:
            difference = None if flat else same_grid(shape, known, maps[0].array.shape, affine)
        if difference:
            raise InputError(
                f"{name} and {maps[0].source} lie on different grids: {difference}",
                remedy="Resample one of them",
            )
    volumes = [array[..., None] if flat else array for array in (background, *(item.array for item in maps))]
    turned = [to_canonical(array, affine) for array in volumes]
    arrays = [array for array, _ in turned]
    return _Scene(
        image=arrays[0],
        segmentation=arrays[1],
        reference=arrays[2] if reference is not None else None,
        spacing_mm=spacing_of(turned[0][1]),
        oriented=bool(affines),
        flat=flat,
    )


def _load_image(image: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
    if image is None:
        return np.zeros(shape, np.uint8), None
    array: np.ndarray
    affine: np.ndarray | None
    if isinstance(image, str | Path):
        volume = read_image(image)
        array, affine = volume.array, volume.affine
    else:
        affine = getattr(image, "affine", None)
        array = np.asarray(image if affine is None else getattr(image, "array", getattr(image, "dataobj", image)))
    if array.ndim == len(shape) + 1:
        array = array[..., 0]
    return array, affine


def _planes(scene: _Scene, axis: str | Sequence[str] | None) -> list[str]:
    if axis is None:
        thin = [plane for plane, cut in PLANES.items() if scene.image.shape[cut] == 1]
        return thin[:1] or list(PLANES)
    planes = [axis] if isinstance(axis, str) else list(axis)
    for plane in planes:
        if plane not in PLANES:
            raise choose("plane", plane, PLANES)
    return planes


def _slice_index(scene: _Scene, plane: str, slices: int | Mapping[str, int] | None) -> int:
    cut = PLANES[plane]
    size = scene.image.shape[cut]
    asked = slices.get(plane) if isinstance(slices, Mapping) else slices
    if asked is None:
        area = scene.foreground.sum(axis=tuple(other for other in range(3) if other != cut))
        return int(area.argmax()) if area.any() else size // 2
    if not 0 <= asked < size:
        raise InputError(f"there is no {plane} slice {asked}; allowed: 0 to {size - 1}")
    return int(asked)


def _picture(scene: _Scene, array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice as rows from the top and columns from the left of the picture."""
    cut = np.take(array, index, axis=PLANES[plane])
    return cut if scene.flat else cut[::-1, ::-1].T


def _extent_mm(scene: _Scene, plane: str) -> tuple[float, float]:
    """Return width and height of a picture."""
    sides = [scene.image.shape[i] * scene.spacing_mm[i] for i in range(3) if i != PLANES[plane]]
    return (sides[1], sides[0]) if scene.flat else (sides[0], sides[1])


def _canvas(scene: _Scene, planes: list[str], title: str) -> tuple[Figure, list[Axes]]:
    """Make a figure whose panels share one scale in mm."""
    extents = [_extent_mm(scene, plane) for plane in planes]
    widths = [width for width, _ in extents]
    height = max(height for _, height in extents)
    inches = min(3.6, 11.0 * height / sum(widths))
    above, below = 0.34 if title else 0.1, 0.5  # inches for the title, and for slice numbers and legend
    total = max(inches, 1.5) + above + below
    figure = Figure(figsize=(max(sum(widths) / height * inches, 3.0), total), facecolor=_BACKGROUND)
    grid = figure.add_gridspec(
        1,
        len(planes),
        width_ratios=widths,
        wspace=0.03,
        left=0.01,
        right=0.99,
        top=1 - above / total,
        bottom=below / total,
    )
    if title:
        figure.text(0.012, 1 - 0.06 / total, title, color=_TEXT, fontsize=10, va="top", parse_math=False)
    return figure, [figure.add_subplot(grid[0, column]) for column in range(len(planes))]


def _grey_limits(image: np.ndarray) -> tuple[float, float]:
    """Return the values shown as black and white: the 0.5th and 99.5th percentile of a sample of voxels."""
    sample = image.reshape(-1)[:: max(1, image.size // 200_000)]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(sample, [0.5, 99.5]))
    return low, high if high > low else low + 1


def _draw_plane(ax: Axes, scene: _Scene, plane: str, index: int, limits: tuple[float, float]) -> None:
    grey = np.clip(_picture(scene, scene.image, plane, index).astype(np.float32), *limits)
    width_mm, height_mm = _extent_mm(scene, plane)
    aspect = (height_mm / grey.shape[0]) / (width_mm / grey.shape[1])
    shared = {"aspect": aspect, "interpolation": "nearest"}
    ax.imshow(grey, cmap="gray", vmin=limits[0], vmax=limits[1], **shared)
    ax.imshow(_tint(_picture(scene, scene.segmentation, plane, index)), **shared)
    if scene.reference is not None:
        _draw_outlines(ax, _picture(scene, scene.reference, plane, index))
    ax.set_axis_off()
    if not scene.flat:
        ax.text(
            0.5,
            -0.02,
            f"{plane} {index}",
            color=_TEXT,
            fontsize=8,
            ha="center",
            va="top",
            transform=ax.transAxes,
        )
    if scene.oriented:
        left, top = _EDGES[plane]
        style: dict[str, Any] = {"color": _TEXT, "fontsize": 8, "alpha": 0.8, "transform": ax.transAxes}
        ax.text(0.015, 0.5, left, va="center", **style)
        ax.text(0.5, 0.985, top, ha="center", va="top", **style)


def _tint(labels: np.ndarray) -> np.ndarray:
    """Return labels `(H, W)` as RGBA `(H, W, 4)`, transparent where there is none."""
    tint = np.zeros((*labels.shape, 4), np.float32)
    for label in _labels(labels):
        tint[labels == label] = to_rgba(label_colour(label), _OPACITY)
    return tint


def _draw_outlines(ax: Axes, labels: np.ndarray) -> None:
    """Outline every label of `(H, W)`; a rim of background closes those that touch the edge."""
    rows, columns = (np.arange(-1, size + 1) for size in labels.shape)
    for label in _labels(labels):
        mask = np.pad(labels == label, 1).astype(float)
        ax.contour(columns, rows, mask, levels=[0.5], colors=[label_colour(label)], linewidths=1.3)
    ax.set_xlim(-0.5, labels.shape[1] - 0.5)
    ax.set_ylim(labels.shape[0] - 0.5, -0.5)


def _draw_legend(figure: Figure, scene: _Scene, names: Mapping[int, str]) -> None:
    known = _labels(scene.segmentation)
    if scene.reference is not None:
        known = sorted({*known, *_labels(scene.reference)})
    entries: list[Any] = [
        Patch(facecolor=label_colour(label), label=_plain(names.get(label, f"label {label}")))
        for label in known[:_LEGEND_LABELS]
    ]
    if len(known) > _LEGEND_LABELS:
        entries.append(Patch(facecolor="none", label=f"and {len(known) - _LEGEND_LABELS} more"))
    if scene.reference is not None:
        entries.append(Line2D([], [], color=_TEXT, linewidth=1.3, label="reference (outline)"))
    if entries:
        figure.legend(
            handles=entries, loc="lower left", ncols=len(entries), frameon=False, fontsize=8,
            labelcolor=_TEXT, handlelength=1.2, columnspacing=1.4, borderaxespad=0.3,
        )  # fmt: skip


def _labels(array: np.ndarray) -> list[int]:
    return [int(label) for label in np.unique(array) if label > 0]


def _plain(text: str) -> str:
    """Return text in which matplotlib sees no formula and no hidden legend entry."""
    return text.replace("$", r"\$").lstrip("_") or "?"
