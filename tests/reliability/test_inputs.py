"""The single-fault inputs through the verbs: every pair of fault and verb is one test."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_table import FAULTS, Fault
from stand import attempt, complaints, train_models

PAIRS = [(fault, verb) for fault in FAULTS for verb in fault.expected]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return trained models; read them only."""
    return train_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("fault", "verb"), PAIRS, ids=[f"{fault.id}-{fault.what}-{verb}" for fault, verb in PAIRS])
def test_a_single_fault_ends_as_the_table_says(fault: Fault, verb: str, models: dict[str, Path], tmp_path: Path):
    ended, stand = attempt(fault, verb, tmp_path / "stand", models)
    assert complaints(fault, verb, ended, stand) == [], ended.stderr
