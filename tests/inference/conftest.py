import numpy as np
import pytest
from tiny import dataset, learned, tiny_case, trained  # noqa: F401, fixtures
from volumes import write_volume


@pytest.fixture
def scans(tmp_path):
    """Return a folder of three scans."""
    for index in range(3):
        write_volume(tmp_path / "scans" / f"scan_{index}.nii.gz", tiny_case(index)[0], np.eye(4))
    return tmp_path / "scans"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
