"""Phantom: synthetic MR-like volumes with two labelled structures, for demonstrations and tests.

The anatomy is a handful of continuous functions of world coordinates (RAS, mm): a head, a bent tube whose
thick anterior part is label 1 and whose thin posterior part is label 2, and blobs of the same brightness that
are neither. A case samples them on its own anisotropic, oblique grid, so labels mean the same at any spacing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from segscse.data.io import Volume, write_image
from segscse.errors import InputError
from segscse.files import read_json, write_json

Array = NDArray[np.floating[Any]]

LABELS = {"0": "background", "1": "head", "2": "tail"}
STORAGE_ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR", "SLA")  # the last three are left-handed
TISSUE, RIM, HEAD, TAIL, FLUID = 0.45, 0.85, 0.92, 0.74, 0.18  # brightness before bias, noise and scale
PARTIAL_VOLUME_MM = 0.3  # width of the soft edge between two tissues
NOISE_SIGMA = 0.025  # Rician, relative to a brightness of 1
BLUR_VOX = 0.35  # on every axis, so in mm the slices blur most


@dataclass(frozen=True)
class Blob:
    """An axis-aligned ellipsoid of one brightness, in the head's frame (mm)."""

    centre_mm: Array
    radii_mm: Array
    brightness: float


@dataclass(frozen=True)
class Anatomy:
    """One subject: the numbers behind the continuous functions below; all lengths in mm, the axes are RAS."""

    centre_mm: Array  # the head's centre in world coordinates
    radii_mm: Array  # the head's ellipsoid
    tube_offset_mm: Array  # the middle of the tube in the head's frame
    half_length_mm: float
    bend_mm: float
    rise_mm: float
    head_radius_mm: float
    tail_radius_mm: float
    split_mm: float  # where head and tail meet along the tube
    split_tilt: Array  # slope of that border towards right and up
    wave_mm: Array  # (K, 3) amplitudes of the smooth deformation
    wave_vectors: Array  # (K, 3) radians per mm
    wave_phases: Array  # (K,)
    blobs: tuple[Blob, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The voxel grid of one case: `shape` voxels, and the affine from voxel (I, J, K) to world (RAS, mm)."""

    shape: tuple[int, int, int]
    affine: Array


def make_phantom_dataset(out: Path, *, cases: int = 20, test_cases: int = 4, seed: int = 0) -> Path:
    """Write a phantom data set in the MSD layout, with held-out cases in `imagesTs` and `labelsTs`.

    `dataset.json` is written last: where it is present the data set is complete, and the same request returns
    at once.

    Args:
        out: the data set's folder; made when missing.
        cases: number of labelled training cases.
        test_cases: number of held-out cases.
        seed: case `i` depends on `(seed, i)` only.

    Returns:
        The folder.

    Raises:
        InputError: a number is out of range, the folder holds another data set, or it cannot be written to.
    """
    for name, value, least in (("cases", cases, 1), ("test_cases", test_cases, 0), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    out = Path(out)
    content = _dataset_json(cases, test_cases, seed)
    description = out / "dataset.json"
    if description.exists():
        if read_json(description) != content:
            raise InputError("the folder holds another data set", file=out, remedy="Choose an empty folder")
        return out
    for index in range(cases + test_cases):
        image, label, affine = phantom_case(seed, index)
        section = "Tr" if index < cases else "Ts"
        on_disk = np.rint(image).astype(np.int16) if index % 2 == 0 else image
        for kind, array in (("images", on_disk), ("labels", label)):
            write_image(out / f"{kind}{section}" / f"{case_name(index)}.nii.gz", array, Volume(array, affine))
    write_json(description, content)
    return out


def phantom_case(seed: int, index: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], Array]:
    """Return one case: image and labels {0, 1, 2}, both `(I, J, K)`, and the affine from voxels to RAS mm."""
    rng = np.random.default_rng([seed, index])
    anatomy = draw_anatomy(rng)
    grid = _draw_grid(rng, anatomy.centre_mm)
    points_mm = _voxel_centres_mm(grid)  # (I, J, K, 3)
    label = label_at(anatomy, points_mm)
    image = _acquire(_brightness(anatomy, points_mm, rng), rng)
    codes = STORAGE_ORIENTATIONS[index % len(STORAGE_ORIENTATIONS)]
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = grid.affine @ inv_ornt_aff(change, grid.shape)
    stored = [np.ascontiguousarray(apply_orientation(array, change)) for array in (image, label)]
    return stored[0].astype(np.float32), stored[1].astype(np.uint8), affine


def case_name(index: int) -> str:
    """Return the file name (without suffix) of case `index`."""
    return f"phantom_{index:03d}"


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one subject: positions vary by a few mm, sizes by about a tenth."""
    bare = Anatomy(
        centre_mm=rng.uniform(-40.0, 40.0, size=3),
        radii_mm=np.array([22.0, 23.0, 24.0]) + rng.uniform(-1.0, 1.0, size=3),
        tube_offset_mm=np.array([5.0, 0.0, -3.0]) + rng.uniform(-2.0, 2.0, size=3),
        half_length_mm=rng.uniform(15.5, 17.5),
        bend_mm=rng.uniform(-6.0, -3.0),
        rise_mm=rng.uniform(-3.0, 3.0),
        head_radius_mm=rng.uniform(7.6, 8.6),
        tail_radius_mm=rng.uniform(6.0, 6.8),
        split_mm=rng.uniform(-0.5, 2.5),
        split_tilt=rng.uniform(-0.15, 0.15, size=2),
        wave_mm=rng.uniform(-0.6, 0.6, size=(4, 3)),
        wave_vectors=rng.uniform(-0.25, 0.25, size=(4, 3)),
        wave_phases=rng.uniform(0.0, 2.0 * np.pi, size=4),
    )
    return Anatomy(**{**vars(bare), "blobs": _draw_blobs(bare, rng)})


def tube_level_mm(anatomy: Anatomy, points_mm: Array) -> Array:
    """Return how far `points_mm (..., 3)` lie outside the tube; negative inside. Shape `(...)`."""
    return _tube_level_mm(anatomy, _deformed_mm(anatomy, points_mm))


def label_at(anatomy: Anatomy, points_mm: Array) -> NDArray[np.uint8]:
    """Return the label (0, 1 head, 2 tail) at world points `(..., 3)`, on whatever grid they lie."""
    local_mm = _deformed_mm(anatomy, points_mm)
    head = _ahead_of_split_mm(anatomy, local_mm) > 0
    inside = _tube_level_mm(anatomy, local_mm) < 0
    return np.where(inside, np.where(head, 1, 2), 0).astype(np.uint8)


def _deformed_mm(anatomy: Anatomy, points_mm: Array) -> Array:
    """Return the points in the head's frame, moved by a sum of slow sine waves: no two subjects are alike."""
    local_mm = points_mm - anatomy.centre_mm
    angle = local_mm @ anatomy.wave_vectors.T + anatomy.wave_phases  # (..., K)
    return local_mm + np.sin(angle) @ anatomy.wave_mm


def _tube_level_mm(anatomy: Anatomy, local_mm: Array) -> Array:
    x, y, z = np.moveaxis(local_mm - anatomy.tube_offset_mm, -1, 0)
    t = y / anatomy.half_length_mm  # -1 at the tail's tip, 1 at the head's
    distance = np.hypot(x - anatomy.bend_mm * (t**2 - 0.4), z - anatomy.rise_mm * t)
    share = _sigmoid((y - anatomy.split_mm) / 1.5)  # from the tail's radius to the head's
    radius = anatomy.tail_radius_mm + share * (anatomy.head_radius_mm - anatomy.tail_radius_mm)
    beyond = np.maximum(np.abs(t) - 1.0, 0.0) * anatomy.half_length_mm
    return distance - radius * np.sqrt(np.clip(1.0 - t**4, 0.0, None)) + beyond


def _ahead_of_split_mm(anatomy: Anatomy, local_mm: Array) -> Array:
    x, y, z = np.moveaxis(local_mm - anatomy.tube_offset_mm, -1, 0)
    return y - anatomy.split_mm - anatomy.split_tilt[0] * x - anatomy.split_tilt[1] * z


def _ellipsoid_level_mm(local_mm: Array, centre_mm: Array, radii_mm: Array) -> Array:
    return (np.linalg.norm((local_mm - centre_mm) / radii_mm, axis=-1) - 1.0) * radii_mm.min()


def _draw_blobs(anatomy: Anatomy, rng: np.random.Generator, *, count: int = 8, gap_mm: float = 1.5) -> tuple[Blob, ...]:
    """Draw blobs that touch neither the tube nor each other: as bright as the tube, every fourth fluid."""
    blobs: list[Blob] = []
    for _ in range(2000):  # rejection; a crowded head gets fewer blobs
        if len(blobs) == count:
            break
        radii_mm = rng.uniform(3.0, 4.8, size=3)
        reach_mm = float(radii_mm.max()) + gap_mm
        centre_mm = rng.uniform(-1.0, 1.0, size=3) * anatomy.radii_mm
        brightness = FLUID if len(blobs) % 4 == 3 else float(rng.choice([HEAD, TAIL]) + rng.uniform(-0.03, 0.03))
        apart = all(np.linalg.norm(centre_mm - other.centre_mm) > reach_mm + other.radii_mm.max() for other in blobs)
        in_head = np.linalg.norm(centre_mm / (anatomy.radii_mm - 3.0 - radii_mm)) < 1.0
        if apart and in_head and _tube_level_mm(anatomy, centre_mm) > reach_mm:
            blobs.append(Blob(centre_mm, radii_mm, brightness))
    return tuple(blobs)


def _draw_grid(rng: np.random.Generator, centre_mm: Array) -> Grid:
    """Draw an anisotropic grid (about 1 x 1 x 2.5 mm), tilted against the head and roughly centred on it."""
    in_plane_mm = rng.uniform(0.95, 1.05)
    slice_mm = rng.uniform(2.2, 2.8)
    shape = (int(rng.integers(50, 65)), int(rng.integers(52, 59)), int(rng.integers(24, 29)))
    rotation = Rotation.from_euler("xyz", rng.uniform(-10.0, 10.0, size=3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([in_plane_mm, in_plane_mm, slice_mm])
    middle_mm = centre_mm + rng.uniform(-1.0, 1.0, size=3)
    affine[:3, 3] = middle_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def _voxel_centres_mm(grid: Grid) -> Array:
    voxels = np.stack(np.meshgrid(*(np.arange(size) for size in grid.shape), indexing="ij"), axis=-1)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _brightness(anatomy: Anatomy, points_mm: Array, rng: np.random.Generator) -> Array:
    """Paint the tissues in order, each over the last with a soft edge, and the tissue's own slow texture."""
    local_mm = _deformed_mm(anatomy, points_mm)
    outer_mm = _ellipsoid_level_mm(local_mm, np.zeros(3), anatomy.radii_mm)
    tube_mm = _tube_level_mm(anatomy, local_mm)
    texture = gaussian_filter(rng.standard_normal(points_mm.shape[:3]), (2.0, 2.0, 0.8))
    image: Array = np.zeros(points_mm.shape[:3])
    image = _paint(image, RIM, outer_mm)
    image = _paint(image, TISSUE + 0.04 * texture / texture.std(), outer_mm + 2.0)
    for blob in anatomy.blobs:
        image = _paint(image, blob.brightness, _ellipsoid_level_mm(local_mm, blob.centre_mm, blob.radii_mm))
    image = _paint(image, TAIL, tube_mm)
    behind_mm = -_ahead_of_split_mm(anatomy, local_mm)
    return _paint(image, HEAD, np.maximum(tube_mm, behind_mm))


def _acquire(clean: Array, rng: np.random.Generator) -> Array:
    """Do to a clean image what a scanner does: blur, a bias field, Rician noise and an arbitrary scale."""
    blurred = gaussian_filter(clean, BLUR_VOX)
    x, y, z = np.meshgrid(*(np.linspace(-1.0, 1.0, size) for size in clean.shape), indexing="ij")
    terms = np.stack([x, y, z, x * y, y * z, z * x, x**2 - y**2, z**2 - x**2])
    bias = np.exp(np.tensordot(rng.uniform(-0.08, 0.08, size=len(terms)), terms, axes=1))
    real, imaginary = rng.normal(0.0, NOISE_SIGMA, size=(2, *clean.shape))
    return np.hypot(blurred * bias + real, imaginary) * 10.0 ** rng.uniform(2.3, 3.5)


def _paint(image: Array, brightness: Array | float, level_mm: Array) -> Array:
    share = _sigmoid(-level_mm / PARTIAL_VOLUME_MM)
    return image + share * (brightness - image)


def _sigmoid(value: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * value))  # the form that does not overflow


def _dataset_json(cases: int, test_cases: int, seed: int) -> dict[str, Any]:
    files = [f"{case_name(index)}.nii.gz" for index in range(cases + test_cases)]
    return {
        "name": "Phantom",
        "description": f"Synthetic MR-like volumes with a bent two-part structure (seed {seed})",
        "reference": "segscse",
        "licence": "CC0-1.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "numTest": test_cases,
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in files[:cases]],
        "test": [f"./imagesTs/{file}" for file in files[cases:]],
    }
