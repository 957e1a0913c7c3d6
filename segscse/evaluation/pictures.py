"""Pictures for the report: slices of a scene as small images, with prediction, reference or disagreement painted on."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image
from scipy import ndimage

from segscse.evaluation.scene import (
    DISAGREEMENT,
    EDGES,
    Scene,
    disagreement,
    extent_mm,
    grey_limits,
    label_colour,
    labels_of,
    picture_of,
    planes_of,
    slice_index,
)

VIEWS = ("prediction", "reference", "disagreement")
_SIDE = 360  # pixels along the longer side of the largest plane
_FILL, _ERROR_FILL = 0.4, 0.85


@dataclass(frozen=True, slots=True)
class Picture:
    """One slice: what it shows and its JPEG as a data URI.

    `left` and `top` are the directions of the body there; empty when the orientation is unknown.
    """

    view: str
    plane: str
    index: int
    left: str
    top: str
    width: int
    height: int
    uri: str


def case_pictures(scene: Scene) -> list[Picture]:
    """Return the slices with the most foreground, every plane of every view, in the order of `VIEWS`."""
    planes = planes_of(scene, None)
    limits = grey_limits(scene.image)
    per_pixel_mm = max(max(extent_mm(scene, plane)) for plane in planes) / _SIDE
    pictures = []
    for view in VIEWS:
        for plane in planes:
            index = slice_index(scene, plane, None)
            pixels = paint(scene, plane, index, view, limits, per_pixel_mm)
            left, top = EDGES[plane] if scene.oriented else ("", "")
            pictures.append(Picture(view, plane, index, left, top, pixels.shape[1], pixels.shape[0], jpeg_uri(pixels)))
    return pictures


def paint(
    scene: Scene, plane: str, index: int, view: str, limits: tuple[float, float], per_pixel_mm: float
) -> np.ndarray:
    """Return one slice as RGB `(H, W, 3)`, uint8, with square pixels of `per_pixel_mm`, nearest neighbour.

    Labels are filled translucently and outlined in their colours; disagreement is filled in its own three colours.
    """
    low, high = limits
    grey = picture_of(scene, scene.image, plane, index).astype(np.float32)
    grey = np.clip((np.nan_to_num(grey, nan=low, posinf=high, neginf=low) - low) / (high - low), 0, 1)
    width_mm, height_mm = extent_mm(scene, plane)
    rows = _nearest(grey.shape[0], height_mm / per_pixel_mm)
    columns = _nearest(grey.shape[1], width_mm / per_pixel_mm)
    segmentation = picture_of(scene, scene.segmentation, plane, index)
    reference = np.zeros_like(segmentation) if scene.reference is None else scene.reference
    if scene.reference is not None:
        reference = picture_of(scene, scene.reference, plane, index)
    pixels = np.repeat(grey[np.ix_(rows, columns)][..., None], 3, axis=2)
    if view == "disagreement":
        errors = disagreement(segmentation, reference)[np.ix_(rows, columns)]
        for value, (_, colour) in DISAGREEMENT.items():
            _blend(pixels, errors == value, colour, _ERROR_FILL)
    else:
        labels = (segmentation if view == "prediction" else reference)[np.ix_(rows, columns)]
        for label in labels_of(labels):
            mask = labels == label
            _blend(pixels, mask, label_colour(label), _FILL)
            _blend(pixels, mask & ~ndimage.binary_erosion(mask, iterations=2), label_colour(label), 1.0)
    return np.rint(pixels * 255).astype(np.uint8)


def jpeg_uri(pixels: np.ndarray) -> str:
    """Return RGB `(H, W, 3)` as a data URI, the same bytes for the same pixels."""
    buffer = io.BytesIO()
    # Not with `optimize`, for which Pillow has a byte a pixel: outlines of many small pieces take more, and it fails.
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _nearest(size: int, pixels: float) -> np.ndarray:
    """Return for each output pixel the voxel under its centre."""
    count = max(1, round(pixels))
    return ((np.arange(count) + 0.5) * size / count).astype(int)


def _blend(pixels: np.ndarray, mask: np.ndarray, colour: str, opacity: float) -> None:
    pixels[mask] = (1 - opacity) * pixels[mask] + opacity * np.array(to_rgb(colour), np.float32)
