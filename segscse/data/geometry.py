"""Geometry: voxel grids in world millimetres (RAS), their comparison, canonical orientation and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

# A grid may differ by rounding of float32 headers, but not by what moves a voxel by a visible amount.
POSITION_TOLERANCE_VOXELS = 0.01
SHEAR_TOLERANCE = 1e-3


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Return the voxel size in mm along each array axis of a `(4, 4)` affine, rounded to 1e-6 mm."""
    return tuple(round(float(size), 6) for size in np.linalg.norm(affine[:3, :3], axis=0))


def same_grid(shape_a: Sequence[int], affine_a: np.ndarray, shape_b: Sequence[int], affine_b: np.ndarray) -> str | None:
    """Return None when two grids are the same, else one phrase that says how they differ.

    The affines may differ by as much as moves no corner of the volume by more than 1 % of a voxel.
    """
    if tuple(shape_a[:3]) != tuple(shape_b[:3]):
        return f"shape {_show(shape_a[:3])} against {_show(shape_b[:3])}"
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape_a[:3]])).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    shift_mm = np.linalg.norm((affine_a - affine_b)[:3] @ corners, axis=0).max()
    if shift_mm <= POSITION_TOLERANCE_VOXELS * min(spacing_of(affine_a)):
        return None
    spacing_a, spacing_b = spacing_of(affine_a), spacing_of(affine_b)
    if not np.allclose(spacing_a, spacing_b, rtol=1e-4):
        return f"spacing {_show(spacing_a)} mm against {_show(spacing_b)} mm"
    codes_a, codes_b = (nib.aff2axcodes(affine) for affine in (affine_a, affine_b))
    if codes_a != codes_b:
        return f"orientation {''.join(map(str, codes_a))} against {''.join(map(str, codes_b))}"
    return f"position: the voxels lie up to {shift_mm:.3g} mm apart"


def affine_problem(affine: np.ndarray) -> str | None:
    """Return what makes an affine unusable (not finite, singular, sheared), or None."""
    if not np.isfinite(affine).all():
        return "the affine holds NaN or infinite values"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        return "the affine is singular (an axis has no extent)"
    cosines = affine[:3, :3] / spacing
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > SHEAR_TOLERANCE:
        return f"the affine is sheared (axes are {np.degrees(np.arcsin(min(shear, 1))):.2g} degrees off a right angle)"
    return None


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """Return the `(4, 4)` affine with its axes at right angles: the nearest rotation, by polar decomposition.

    Headers round their direction cosines. Resampling along voxel axes, there and back, then needs no shear, and a
    label map returns to the voxels that it was made from.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    if np.allclose(u @ v * spacing, affine[:3, :3], rtol=0, atol=1e-9):
        return affine
    out = affine.copy()
    out[:3, :3] = u @ v * spacing
    return out


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute a `(X, Y, Z, ...)` array so that its axes run closest to right, anterior, superior."""
    orientation = nib.io_orientation(affine)
    shape = array.shape[:3]
    return nib.apply_orientation(array, orientation), affine @ nib.orientations.inv_ornt_aff(orientation, shape)


def canonical_grid(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and affine that `to_canonical` would give a volume, without its voxels."""
    orientation = nib.io_orientation(affine)
    canonical = [0, 0, 0]
    for axis, (target, _) in enumerate(orientation):
        canonical[int(target)] = int(shape[axis])
    return tuple(canonical), affine @ nib.orientations.inv_ornt_aff(orientation, tuple(shape[:3]))


def from_canonical(array: np.ndarray, native_affine: np.ndarray) -> np.ndarray:
    """Undo `to_canonical` for a `(X, Y, Z, ...)` array that lies on the canonical grid of `native_affine`."""
    native = nib.io_orientation(native_affine)
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    return nib.apply_orientation(array, nib.orientations.ornt_transform(canonical, native))


def axis_map(source_affine: np.ndarray, target_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `(scale, offset)` with `source_index = scale * target_index + offset` on every axis.

    Both grids must share their axes' directions, as a grid and its resampled or cropped version do.

    Raises:
        ValueError: the grids are rotated against each other.
    """
    transform = np.linalg.inv(source_affine) @ target_affine
    scale = np.diag(transform)[:3].copy()
    off_diagonal = transform[:3, :3] - np.diag(scale)
    if np.abs(off_diagonal).max() > 1e-3 * np.abs(scale).min():
        raise ValueError(f"grids are rotated against each other:\n{transform}")
    return scale, transform[:3, 3].copy()


def _show(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
