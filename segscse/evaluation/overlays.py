"""Overlays: a segmentation over its image, seen as radiologists see it, with the reference as outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from segscse.errors import InputError, choose
from segscse.evaluation.cases import label_names
from segscse.evaluation.scene import (
    DISAGREEMENT,
    EDGES,
    Scene,
    disagreement,
    extent_mm,
    grey_limits,
    label_colour,
    labels_of,
    load_scene,
    picture_of,
    planes_of,
    slice_index,
)
from segscse.figures import NotebookFigure, as_text

Show = Literal["overlay", "disagreement"]
_BACKGROUND, _TEXT = "#15181C", "#D8DCE2"
_LEGEND_LABELS = 12
_LEGEND_POINTS = 8
_OPACITY = 0.42


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
    show: Show = "overlay",
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
        show: "overlay", or "disagreement": only the voxels where segmentation and reference differ, coloured by how.

    Raises:
        InputError: the grids differ, there is no such plane or slice, or there is no reference to disagree with.
    """
    if show not in ("overlay", "disagreement"):
        raise choose("value of show", show, ("overlay", "disagreement"))
    if show == "disagreement" and reference is None:
        raise InputError("a disagreement needs a reference", remedy="Give one, or leave out show='disagreement'")
    scene = load_scene(image, segmentation, reference, spacing_mm)
    planes = planes_of(scene, axis)
    chosen = {plane: slice_index(scene, plane, slices) for plane in planes}
    entries = _legend_of_errors() if show == "disagreement" else _legend(scene, label_names(names))
    figure, axes = _canvas(scene, planes, title, entries)
    limits = grey_limits(scene.image)
    for plane, ax in zip(planes, axes, strict=True):
        _draw_plane(ax, scene, plane, chosen[plane], limits, show)
    return figure


def _canvas(scene: Scene, planes: list[str], title: str, entries: list[Any]) -> tuple[Figure, list[Axes]]:
    """Make a figure with a legend, whose panels share one scale in mm."""
    extents = [extent_mm(scene, plane) for plane in planes]
    widths = [width for width, _ in extents]
    height = max(height for _, height in extents)
    inches = min(3.6, 11.0 * height / sum(widths))
    wide = max(sum(widths) / height * inches, 3.0)
    columns = _legend_columns(entries, wide)
    # Inches for the title, and for slice numbers and the lines of the legend.
    above, below = 0.34 if title else 0.1, 0.5 + 0.17 * (math.ceil(len(entries) / columns) - 1)
    total = max(inches, 1.5) + above + below
    figure = NotebookFigure(figsize=(wide, total), facecolor=_BACKGROUND)
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
    if entries:
        figure.legend(
            handles=entries, loc="lower left", ncols=columns, frameon=False, fontsize=_LEGEND_POINTS,
            labelcolor=_TEXT, handlelength=1.2, columnspacing=1.4, borderaxespad=0.3,
        )  # fmt: skip
    return figure, [figure.add_subplot(grid[0, column]) for column in range(len(planes))]


def _draw_plane(ax: Axes, scene: Scene, plane: str, index: int, limits: tuple[float, float], show: Show) -> None:
    grey = np.clip(picture_of(scene, scene.image, plane, index).astype(np.float32), *limits)
    width_mm, height_mm = extent_mm(scene, plane)
    aspect = (height_mm / grey.shape[0]) / (width_mm / grey.shape[1])
    shared = {"aspect": aspect, "interpolation": "nearest"}
    ax.imshow(grey, cmap="gray", vmin=limits[0], vmax=limits[1], **shared)
    labels = picture_of(scene, scene.segmentation, plane, index)
    reference = None if scene.reference is None else picture_of(scene, scene.reference, plane, index)
    if show == "disagreement" and reference is not None:
        ax.imshow(_tint_errors(disagreement(labels, reference)), **shared)
    else:
        ax.imshow(_tint(labels), **shared)
        if reference is not None:
            _draw_outlines(ax, reference)
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
        left, top = EDGES[plane]
        style: dict[str, Any] = {"color": _TEXT, "fontsize": 8, "alpha": 0.8, "transform": ax.transAxes}
        ax.text(0.015, 0.5, left, va="center", **style)
        ax.text(0.5, 0.985, top, ha="center", va="top", **style)


def _tint(labels: np.ndarray) -> np.ndarray:
    """Return labels `(H, W)` as RGBA `(H, W, 4)`, transparent where there is none."""
    tint = np.zeros((*labels.shape, 4), np.float32)
    for label in labels_of(labels):
        tint[labels == label] = to_rgba(label_colour(label), _OPACITY)
    return tint


def _tint_errors(errors: np.ndarray) -> np.ndarray:
    """Return the values of `disagreement` `(H, W)` as RGBA `(H, W, 4)`."""
    colours = np.array([(0, 0, 0, 0), *(to_rgba(colour, 0.85) for _, colour in DISAGREEMENT.values())], np.float32)
    return colours[errors]


def _draw_outlines(ax: Axes, labels: np.ndarray) -> None:
    """Outline every label of `(H, W)`; a rim of background closes those that touch the edge."""
    rows, columns = (np.arange(-1, size + 1) for size in labels.shape)
    for label in labels_of(labels):
        mask = np.pad(labels == label, 1).astype(float)
        ax.contour(columns, rows, mask, levels=[0.5], colors=[label_colour(label)], linewidths=1.3)
    ax.set_xlim(-0.5, labels.shape[1] - 0.5)
    ax.set_ylim(labels.shape[0] - 0.5, -0.5)


def _legend(scene: Scene, names: Mapping[int, str]) -> list[Any]:
    known = scene.labels
    entries: list[Any] = [
        Patch(facecolor=label_colour(label), label=as_text(names.get(label, f"label {label}")))
        for label in known[:_LEGEND_LABELS]
    ]
    if len(known) > _LEGEND_LABELS:
        entries.append(Patch(facecolor="none", label=f"and {len(known) - _LEGEND_LABELS} more"))
    if scene.reference is not None:
        entries.append(Line2D([], [], color=_TEXT, linewidth=1.3, label="reference (outline)"))
    return entries


def _legend_of_errors() -> list[Any]:
    return [Patch(facecolor=colour, label=text) for text, colour in DISAGREEMENT.values()]


def _legend_columns(entries: list[Any], inches: float) -> int:
    """Return how many columns of a legend fit into a figure's width, one at least."""
    # The outlines of a text tell its width before there is a canvas; a handle and the space around take 3.6 em.
    texts = [TextPath((0, 0), entry.get_label().replace("$", "S"), size=_LEGEND_POINTS) for entry in entries]
    each = [text.get_extents().width + 3.6 * _LEGEND_POINTS for text in texts]
    room = 72 * inches - _LEGEND_POINTS
    return max(1, len(entries) if sum(each) <= room else int(room / max(each)))
