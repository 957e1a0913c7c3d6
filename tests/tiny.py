"""A tiny data set, a tiny configuration and one trained run, made once per session and shared by several folders."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from volumes import write_msd

from segscse.config import ExperimentConfig, load_config
from segscse.data.plan import Normalisation, Plan
from segscse.training.run import Run, train_run

LABELS = {0: "background", 2: "block", 5: "ball"}
"""Ids with gaps."""
SHAPE = (16, 20, 12)
SETTINGS = {
    "model": {"base_features": 4, "max_features": 8},
    "data": {"max_patch_voxels": 4096, "batch_size": 2},
    "train": {"max_steps": 30, "validations": 2, "device": "cpu", "precision": "fp32"},
}


def tiny_config(**sections: dict[str, object]) -> ExperimentConfig:
    """Return the tiny configuration, with settings by section on top."""
    return load_config(SETTINGS, overrides=sections)


def tiny_case(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and its label map: a dark block (2) and a bright ball (5) at places that vary by case."""
    rng = np.random.default_rng([7, index])
    x, y, z = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    shift = rng.integers(0, 3, size=3)
    label = np.zeros(SHAPE, np.uint8)
    label[2 + shift[0] : 7 + shift[0], 2 + shift[1] : 8 + shift[1], 2:7] = 2
    centre = np.array([11, 14, 6]) + rng.integers(-1, 2, size=3)
    label[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= 9] = 5
    means = np.array([100.0, 0.0, 180.0, 0.0, 0.0, 260.0])
    return (means[label] + rng.normal(0, 8, SHAPE)).astype(np.float32), label


def write_dataset(folder: Path, *, cases: int = 6, affine: np.ndarray | None = None) -> Path:
    """Write a data set in the MSD layout and return its folder."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    return write_msd(folder, [tiny_case(index) for index in range(cases)], LABELS, affine)


def tiny_plan(**changes: object) -> Plan:
    """Return a plan for one z-scored channel and the tiny labels: 3D, patch 16 x 16 x 8, two halvings."""
    values: dict[str, object] = {
        "dataset": "tiny",
        "spatial_dims": 3,
        "spacing_mm": (1.0, 1.0, 1.0),
        "slice_axis": None,
        "patch_size": (16, 16, 8),
        "batch_size": 2,
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 1)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        "channels": ("MRI",),
        "normalisation": (Normalisation("zscore", 0.0, 1.0, -1.0, 1.0),),
        "labels": tuple(LABELS.items()),
        "mirror_axes": (0, 1, 2),
        "reasons": (),
    }
    return Plan(**(values | changes))


def tiny_plan_2d(**changes: object) -> Plan:
    """Return the same in 2D, slices stacked along the last axis."""
    flat = {
        "spatial_dims": 2,
        "slice_axis": 2,
        "patch_size": (16, 16),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernel_sizes": ((3, 3), (3, 3), (3, 3)),
        "mirror_axes": (0, 1),
    }
    return tiny_plan(**(flat | changes))


@cache
def _dataset(base: Path) -> Path:
    return write_dataset(base / "tiny_dataset")


@cache
def _trained(base: Path) -> Run:
    return train_run(_dataset(base), base / "tiny_run", tiny_config())


@cache
def _learned(base: Path) -> Run:
    config = tiny_config(model={"base_features": 8, "max_features": 16}, train={"max_steps": 200})
    return train_run(_dataset(base), base / "learned_run", config)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny data set; read it only."""
    return _dataset(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run of 30 steps on fold 0 of the tiny data set; read it only."""
    return _trained(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run that is long enough to segment well; read it only."""
    return _learned(tmp_path_factory.getbasetemp())
