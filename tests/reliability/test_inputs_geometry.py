"""Geometry there and back through files and the command: 48 orders of axes, 3 obliques at 4 spacings.

That all 48 orders give one segmentation of arrays, with resampling, is in tests/inference/test_predictor.py; that the
canonical order and back returns every voxel in tests/data/test_geometry.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import broken_files as broken
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny import tiny_plan
from volumes import TINY_AFFINE, tiny_case

from segscse.cli import run
from segscse.data.plan import Normalisation
from segscse.inference.predictor import Predictor

ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
EDGE_MM = 27.0
OBLIQUE = ((30, 0, 0), (0, 25, 15), (20, -15, 40))
SPACINGS = ((1.0, 1.0, 1.0), (0.5, 0.5, 12.0), (0.7, 1.3, 3.0), (2.0, 2.0, 2.0))


def _name(turn: np.ndarray) -> str:
    return "".join(f"{'-' if flip < 0 else ''}{'xyz'[int(axis)]}" for axis, flip in turn)


class TestPredictingIsTurningInvariant:
    """predict(reorient(x)) == reorient(predict(x)) for a trained network, by files."""

    @pytest.fixture(scope="class")
    def predicted(self, models, tmp_path_factory) -> tuple[Path, dict[str, nib.Nifti1Image]]:
        root = tmp_path_factory.mktemp("orientations")
        image, _ = tiny_case(1)
        (root / "in").mkdir()
        for turn in ORIENTATIONS:
            affine = TINY_AFFINE @ nib.orientations.inv_ornt_aff(turn, image.shape)
            turned = np.ascontiguousarray(nib.apply_orientation(image, turn))
            broken.healthy(root / "in" / _name(turn), turned, affine, np.random.default_rng(0))
        command = ["predict", str(models["plain"]), str(root / "in"), "--out", str(root / "out"), "--device", "cpu"]
        assert run(command) == 0
        found = {_name(turn): nib.load(root / "out" / f"{_name(turn)}.nii.gz") for turn in ORIENTATIONS}
        return root / "in", found

    def test_the_network_finds_something(self, predicted):
        assert len(predicted[1]) == 48
        assert len(np.unique(np.asarray(predicted[1]["xyz"].dataobj))) > 1

    @pytest.mark.parametrize("turn", ORIENTATIONS, ids=_name)
    def test_the_label_map_turns_with_the_scan_and_lies_where_it_lies(self, turn, predicted):
        folder, found = predicted
        straight = np.asarray(found["xyz"].dataobj)
        np.testing.assert_array_equal(np.asarray(found[_name(turn)].dataobj), nib.apply_orientation(straight, turn))
        scan, labels = nib.load(folder / f"{_name(turn)}.nii.gz"), found[_name(turn)]
        np.testing.assert_array_equal(labels.affine, scan.affine)  # bit for bit
        for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "qform_code", "sform_code", "xyzt_units"):
            np.testing.assert_array_equal(labels.header[field], scan.header[field])


class Intensity(torch.nn.Module):
    """An identity: label 1 where the normalised intensity is above zero."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([-image, image], dim=1)


def _threshold_at_half(spacing_mm: tuple[float, ...]) -> Predictor:
    plan = tiny_plan(
        spacing_mm=spacing_mm,
        normalisation=(Normalisation("ct", 0.5, 1.0, 0.0, 1.0),),
        labels=((0, "background"), (1, "cube")),
    )
    return Predictor(Intensity(), plan, provenance={}, device=torch.device("cpu"))


@pytest.mark.parametrize("turn", ORIENTATIONS, ids=_name)
def test_an_identity_returns_the_phantom_voxel_for_voxel_with_the_affine_bit_for_bit(turn, tmp_path):
    """The phantom is asymmetric: every one of the 48 orders of axes of its mask is another array."""
    phantom = (tiny_case(0)[1] == 1) | (tiny_case(0)[1] == 2)
    affine = TINY_AFFINE @ nib.orientations.inv_ornt_aff(turn, phantom.shape)
    mask = np.ascontiguousarray(nib.apply_orientation(phantom.astype(np.float32), turn))
    path = broken.healthy(tmp_path / "scan", mask, affine, np.random.default_rng(0))
    found = _threshold_at_half((1.0, 1.0, 1.5)).predict(path)
    np.testing.assert_array_equal(found.array, mask)
    found.save(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "labels.nii.gz").affine, nib.load(path).affine)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("angles", OBLIQUE)
def test_a_cube_keeps_its_volume_within_a_layer_of_voxels(angles, spacing_mm):
    """A cube with an edge of 27 mm, on a grid that stands oblique in the world, through a grid of 1 mm and back."""
    half = EDGE_MM / 2
    shape = [int(np.ceil((EDGE_MM + 16) / step)) | 1 for step in spacing_mm]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing_mm
    centre = (np.array(shape) - 1) / 2
    affine[:3, 3] = np.array([12.0, -30.0, 7.5]) - affine[:3, :3] @ centre
    sizes = zip(shape, spacing_mm, strict=True)
    axes = [np.abs((np.arange(size) - (size - 1) / 2) * step) <= half for size, step in sizes]
    cube = axes[0][:, None, None] & axes[1][None, :, None] & axes[2][None, None, :]

    found = _threshold_at_half((1.0, 1.0, 1.0)).predict((cube.astype(np.float32), affine))
    np.testing.assert_array_equal(found.affine, affine)
    voxel = float(np.prod(spacing_mm))
    layer = sum(2 * EDGE_MM**2 * step for step in spacing_mm)
    assert abs(np.count_nonzero(found.array) * voxel - EDGE_MM**3) <= layer
    # Not only its size: what differs from the cube lies in its surface.
    outer = np.zeros_like(cube)
    inner = cube.copy()
    for axis in range(3):
        for step in (-1, 1):
            outer |= np.roll(cube, step, axis)
            inner &= np.roll(cube, step, axis)
    assert not (found.array.astype(bool) & ~(outer | cube)).any()
    assert (found.array.astype(bool) | ~inner).all()
