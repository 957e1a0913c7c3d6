"""Fixtures for every test folder: volumes and a tiny data set on disk, plans, and the real data where they are."""

import hashlib
import os
import signal
from pathlib import Path

import pytest
from volumes import write_tiny_dataset, write_volume

from segscse import hardware
from segscse.data.plan import Normalisation, Plan


@pytest.fixture(autouse=True, scope="session")
def _sigint_interrupts():
    """Give SIGINT its usual effect, which a process started in the background by a script has lost."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True, scope="session")
def asks_for_bf16():
    """Let `auto` mean fp32 here on every CPU: values are compared with oracles, and bf16 has 8 bits.

    The value is the function that asks the processor.
    """
    own = hardware._cpu_multiplies_bf16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "_cpu_multiplies_bf16", lambda: False)
        yield own


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch):
    """Let help and tables look the same wherever the tests run: CI services ask for colours, terminals have widths."""
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep what is remembered between commands out of the user's cache, and out of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def make_volume():
    """Return a function that writes an array as NIfTI."""
    return write_volume


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that writes a tiny MSD data set of its own, for tests that damage it."""
    return lambda name="dataset", cases=6: write_tiny_dataset(tmp_path / name, cases)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Return the folder of a tiny MSD data set; read it only."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny") / "Task99_Tiny")


@pytest.fixture(scope="session")
def build_plan():
    """Return a function that makes a small 3D plan; arguments replace its fields."""

    def build(**fields):
        defaults = {
            "dataset": "tiny",
            "spatial_dims": 3,
            "spacing_mm": (1.0, 1.0, 1.5),
            "slice_axis": None,
            "patch_size": (8, 8, 8),
            "batch_size": 2,
            "strides": ((1, 1, 1), (2, 2, 2)),
            "kernel_sizes": ((3, 3, 3), (3, 3, 3)),
            "channels": ("MRI",),
            "normalisation": (Normalisation("zscore", 0.0, 1.0, 0.0, 1.0),),
            "labels": ((0, "background"), (1, "front"), (2, "back")),
            "mirror_axes": (0, 1, 2),
            "reasons": (),
        }
        return Plan(**{**defaults, **fields})

    return build


@pytest.fixture
def fingerprints():
    """Return a function from a folder or file to its files' SHA-256, to show that nothing was changed."""

    def sums(path):
        files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
        return {str(item): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}

    return sums


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real data, from SEGSCSE_SHARED or beside the checkout; skip where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    base = Path(os.environ.get("SEGSCSE_SHARED") or beside)
    for folder in (base / "data", base):
        if (folder / "Task04_Hippocampus").is_dir() or (folder / "odd_headers").is_dir():
            return folder
    pytest.skip(f"no real data in {base}: set SEGSCSE_SHARED to the folder that holds data/")
