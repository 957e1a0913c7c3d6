"""Models and data for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand import train_models
from tiny import dataset, trained  # noqa: F401, fixtures


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return trained models; read them only."""
    return train_models(tmp_path_factory.mktemp("models"))
