"""Scenes: an image with its segmentation and reference, loaded, checked for one grid and turned to RAS order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segscse.data.geometry import same_grid, spacing_of, to_canonical
from segscse.data.io import read_image
from segscse.errors import InputError, choose
from segscse.evaluation.cases import LabelMap, in_order_of, load_labels

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the canonical (RAS) axis that each plane cuts
EDGES = {"axial": ("R", "A"), "coronal": ("R", "S"), "sagittal": ("A", "S")}  # left and top of the picture
# Okabe and Ito's colours, told apart by colour-blind readers; a label keeps its colour in every figure.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#3D8BD4", "#B8E986", "#F7B7A3")
# What a voxel got wrong, by its value in `disagreement`, in colours that no label has.
DISAGREEMENT = {1: ("prediction only", "#FF4F5E"), 2: ("reference only", "#66FFF0"), 3: ("another label", "#B388FF")}


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn, `(X, Y, Z)` on one RAS grid with its `affine` `(4, 4)`.

    `oriented`: whether the affine came with the data. `flat`: a plain 2D array, drawn as rows and columns.
    """

    image: np.ndarray
    segmentation: np.ndarray
    reference: np.ndarray | None
    affine: np.ndarray
    spacing_mm: tuple[float, ...]
    oriented: bool
    flat: bool

    @property
    def labels(self) -> list[int]:
        """The labels of segmentation and reference, sorted."""
        known = labels_of(self.segmentation)
        return known if self.reference is None else sorted({*known, *labels_of(self.reference)})

    @property
    def foreground(self) -> np.ndarray:
        """Where segmentation or reference has a label, `(X, Y, Z)`."""
        mask = self.segmentation > 0
        return mask if self.reference is None else mask | (self.reference > 0)


def label_colour(label: int) -> str:
    """Return the colour of a label, the same in every figure."""
    return COLOURS[(label - 1) % len(COLOURS)]


def disagreement(segmentation: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return where two label maps `(*S)` differ: 1 prediction only, 2 reference only, 3 another label; else 0."""
    out = np.zeros(segmentation.shape, np.uint8)
    out[(segmentation > 0) & (reference == 0)] = 1
    out[(segmentation == 0) & (reference > 0)] = 2
    out[(segmentation > 0) & (reference > 0) & (segmentation != reference)] = 3
    return out


def load_scene(image: Any, segmentation: Any, reference: Any, spacing_mm: Sequence[float] | None) -> Scene:
    """Load everything, check that it lies on one grid and turn it to RAS order."""
    maps = [load_labels(segmentation, "segmentation")]
    if reference is not None:
        maps.append(load_labels(reference, "reference"))
    maps = [in_order_of(maps[-1], item) for item in maps]
    background, image_affine = _load_image(image, maps[0].array.shape)
    if image_affine is not None:
        maps = [in_order_of(LabelMap(background, image_affine, "the image"), item) for item in maps]
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
    return Scene(
        image=arrays[0],
        segmentation=arrays[1],
        reference=arrays[2] if reference is not None else None,
        affine=turned[0][1],
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


def planes_of(scene: Scene, axis: str | Sequence[str] | None) -> list[str]:
    """Return the planes asked for; by default all three, of an image one voxel thick its own.

    Raises:
        InputError: there is no such plane.
    """
    if axis is None:
        thin = [plane for plane, cut in PLANES.items() if scene.image.shape[cut] == 1]
        return thin[:1] or list(PLANES)
    planes = [axis] if isinstance(axis, str) else list(axis)
    for plane in planes:
        if plane not in PLANES:
            raise choose("plane", plane, PLANES)
    return planes


def slice_index(scene: Scene, plane: str, slices: int | Mapping[str, int] | None) -> int:
    """Return the slice asked for; by default the one with the most foreground, in the middle where there is none.

    Raises:
        InputError: there is no such slice.
    """
    cut = PLANES[plane]
    size = scene.image.shape[cut]
    asked = slices.get(plane) if isinstance(slices, Mapping) else slices
    if asked is None:
        area = scene.foreground.sum(axis=tuple(other for other in range(3) if other != cut))
        return int(area.argmax()) if area.any() else size // 2
    if not 0 <= asked < size:
        raise InputError(f"there is no {plane} slice {asked}; allowed: 0 to {size - 1}")
    return int(asked)


def picture_of(scene: Scene, array: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice as rows from the top and columns from the left of the picture."""
    cut = np.take(array, index, axis=PLANES[plane])
    return cut if scene.flat else cut[::-1, ::-1].T


def extent_mm(scene: Scene, plane: str) -> tuple[float, float]:
    """Return width and height of a picture."""
    sides = [scene.image.shape[i] * scene.spacing_mm[i] for i in range(3) if i != PLANES[plane]]
    return (sides[1], sides[0]) if scene.flat else (sides[0], sides[1])


def grey_limits(image: np.ndarray) -> tuple[float, float]:
    """Return the values shown as black and white: the 0.5th and 99.5th percentile of a sample of voxels."""
    sample = image.reshape(-1)[:: max(1, image.size // 200_000)]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(sample, [0.5, 99.5]))
    return low, high if high > low else low + 1


def labels_of(array: np.ndarray) -> list[int]:
    """Return the labels above 0 that occur in an array, sorted."""
    return [int(label) for label in np.unique(array) if label > 0]
