from pathlib import Path

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


@pytest.fixture
def lock(monkeypatch):
    """Return a function that makes a method of `Path` fail for paths of a name, or for what lies in a folder of it."""

    def refuse(method, name, *, inside=False):
        whole = getattr(Path, method)

        def ask(path):
            if (path.parent if inside else path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return whole(path)

        monkeypatch.setattr(Path, method, ask)

    return refuse
