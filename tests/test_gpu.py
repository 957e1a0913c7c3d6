"""Training, prediction and blocks on a stand-in for a GPU, against the same on the CPU."""

from pathlib import Path

import numpy as np
import pytest
from processes import finish, start

from segscse.attention import BLOCKS
from segscse.attention.slicewise import ECADepth, SliceGate
from segscse.files import read_json

WHOLE = [f"{what} {dims}D" for what in ("train", "predict") for dims in (3, 2)]
GATES = [
    f"{name} {dims}D"
    for name, block in BLOCKS.items()
    for dims in (2, 3)
    if dims == 3 or not issubclass(block, SliceGate | ECADepth)
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return per job what the CPU and the stand-in have given."""
    folder = tmp_path_factory.mktemp("gpu")
    [(code, said)] = finish([start(Path(__file__).with_name("gpu_jobs.py"), folder)], seconds=600)
    assert code == 0, said
    return read_json(folder / "found.json")


@pytest.mark.parametrize("job", [*WHOLE, *GATES, "many classes"])
def test_gives_what_the_cpu_gives(job, found):
    cpu, gpu = found[job]["cpu"], found[job]["gpu"]
    assert not isinstance(gpu, str), gpu
    np.testing.assert_allclose(gpu, cpu, rtol=5e-3)


def test_tensors_of_two_devices_do_not_mix(found):
    assert found["mixed"]["cpu"] == [2.0, 2.0, 2.0]
    assert "aten.add.Tensor: tensors on two devices, [('gpu:0', 3), ('cpu', 3)]" in found["mixed"]["gpu"]
