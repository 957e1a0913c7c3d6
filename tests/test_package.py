import gc
import importlib.metadata
import subprocess
import sys

import pytest

import segscse
from segscse.cli.models import _no_collection

HEAVY = ("torch", "monai", "pytorch_lightning", "nibabel", "SimpleITK", "scipy", "pandas", "matplotlib")


def _modules_after(code):
    """Run code in a fresh interpreter and return the heavy modules that it imported."""
    script = f"{code}\nimport sys\nprint('\\nHEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1].split()[1:]


@pytest.mark.parametrize("name", segscse.__all__)
def test_every_public_name_is_there(name):
    assert getattr(segscse, name) is not None


def test_collection_of_garbage_goes_on_after_imports():
    with _no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        _ = segscse.tain
    assert dir(segscse) == segscse.__all__


def test_an_unknown_name_of_the_networks_is_an_attribute_error():
    import segscse.nets

    with pytest.raises(AttributeError, match=r"'segscse.nets' has no attribute 'Unet'"):
        _ = segscse.nets.Unet


def test_the_version_is_the_installed_one():
    assert segscse.__version__ == importlib.metadata.version("segscse")


def test_importing_the_package_costs_nothing_heavy():
    assert _modules_after("import segscse") == []


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], ["nonsense"]])
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    assert _modules_after(f"from segscse.cli import run\nrun({arguments!r})") == []


def test_evaluation_imports_no_torch():
    every = "[import_module(found.name) for found in walk_packages(evaluation.__path__, 'segscse.evaluation.')]"
    imports = "from importlib import import_module\nfrom pkgutil import walk_packages\nfrom segscse import evaluation"
    assert "torch" not in _modules_after(f"{imports}\n{every}")
    assert "torch" not in _modules_after("from segscse.data import io, geometry")
