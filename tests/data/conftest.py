import numpy as np
import pytest
from tiny import dataset, trained  # noqa: F401, fixtures


@pytest.fixture
def fill(tmp_path, make_volume):
    """Return a function that writes empty volumes under the temporary folder."""

    def write(*names):
        for name in names:
            make_volume(tmp_path / name, np.zeros((3, 3, 3), np.uint8))
        return tmp_path

    return write
