"""What the report's viewer (NiiVue, vendored) needs: its program, and small volumes of a case as NIfTI."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass
from importlib import resources

import nibabel as nib
import numpy as np

from segscse.evaluation.scene import PLANES, Scene, disagreement, grey_limits, slice_index

NIIVUE_VERSION = "0.69.0"
MAX_VOXELS = 3_000_000  # of one volume in the report: about 2 MB compressed
_MARGIN_MM = 15.0


@dataclass(frozen=True, slots=True)
class CaseVolumes:
    """A case's volumes as base64 of gzipped NIfTI, on one grid.

    `labels` holds the label id of values 1, 2, ... of `prediction` and `reference`; `centre_mm` is where to look first;
    `note` says what was left out.
    """

    image: str
    prediction: str
    reference: str
    disagreement: str
    labels: tuple[int, ...]
    centre_mm: tuple[float, ...]
    note: str


def niivue_base64() -> str:
    """Return NiiVue's program, gzipped, as base64."""
    file = resources.files("segscse.evaluation").joinpath("vendor/niivue.umd.js.gz")
    return base64.b64encode(file.read_bytes()).decode("ascii")


def case_volumes(scene: Scene, max_voxels: int = MAX_VOXELS) -> CaseVolumes:
    """Return the volumes of a 3D scene, cropped to the foreground and thinned out where they hold too many voxels.

    The image is shown in 256 greys between its 0.5th and 99.5th percentile.
    """
    low, high = grey_limits(scene.image)
    box, note = _box(scene, max_voxels)
    origin = [part.start for part in box]
    steps = [part.step or 1 for part in box]
    affine = scene.affine @ np.vstack([np.column_stack([np.diag(steps), origin]), [0, 0, 0, 1]]).astype(float)
    image = np.nan_to_num(scene.image[box].astype(np.float32), nan=low, posinf=high, neginf=low)
    grey = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    segmentation = np.maximum(scene.segmentation[box], 0)  # a label below 0, such as one to ignore, is not drawn
    reference = np.zeros_like(segmentation) if scene.reference is None else np.maximum(scene.reference[box], 0)
    labels = sorted((set(np.unique(segmentation).tolist()) | set(np.unique(reference).tolist())) - {0})
    kind = np.uint8 if len(labels) < 256 else np.int16
    ids = np.array([0, *labels])
    return CaseVolumes(
        image=_nifti(grey, affine),
        prediction=_nifti(np.searchsorted(ids, segmentation).astype(kind), affine),
        reference=_nifti(np.searchsorted(ids, reference).astype(kind), affine),
        disagreement=_nifti(disagreement(segmentation, reference), affine),
        labels=tuple(int(label) for label in labels),
        centre_mm=tuple((scene.affine @ [*_fullest(scene), 1])[:3].tolist()),
        note=note,
    )


def _fullest(scene: Scene) -> list[int]:
    """Return the voxel where the slices with the most foreground meet."""
    return [slice_index(scene, plane, None) for plane in sorted(PLANES, key=PLANES.__getitem__)]


def _box(scene: Scene, max_voxels: int) -> tuple[tuple[slice, ...], str]:
    """Return the part of the volume to keep: all, or around the foreground, every n-th voxel."""
    shape = scene.image.shape
    box = tuple(slice(0, size) for size in shape)
    if scene.image.size <= max_voxels:
        return box, ""
    foreground = scene.foreground
    if foreground.any():
        parts = []
        for axis, size in enumerate(shape):
            used = np.flatnonzero(foreground.any(axis=tuple(other for other in range(3) if other != axis)))
            margin = round(_MARGIN_MM / scene.spacing_mm[axis])
            parts.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
        box = tuple(parts)
    steps = [1, 1, 1]
    while np.prod([_length(part, step) for part, step in zip(box, steps, strict=True)]) > max_voxels:
        spacing = [size * step for size, step in zip(scene.spacing_mm, steps, strict=True)]
        steps[int(np.argmin(spacing))] += 1  # the finest axis loses first
    note = "Cropped to the labels" if foreground.any() else "Shown whole"
    if max(steps) > 1:
        note += f", every {' x '.join(map(str, steps))}th voxel"
    return tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps, strict=True)), f"{note}."


def _length(part: slice, step: int) -> int:
    return -(-(part.stop - part.start) // step)


def _nifti(array: np.ndarray, affine: np.ndarray) -> str:
    image = nib.Nifti1Image(array, affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")
