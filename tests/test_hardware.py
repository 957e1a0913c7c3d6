import platform
import subprocess
import sys

import pytest
import torch

from segscse import hardware
from segscse.doctor import machine_findings
from segscse.errors import InputError
from segscse.hardware import PACKAGES, autocast, examine_machine, pick_device, pick_precision, versions, working_device

CPU = torch.device("cpu")


def test_auto_picks_a_device_that_is_there():
    device = pick_device("auto")
    assert float(torch.ones(2, device=device).sum()) == 2
    assert pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(InputError, match=r"device 'cuda' is not available here; available: .*cpu"):
        pick_device("cuda")


def test_a_gpu_that_torch_has_no_code_for_is_refused_before_anything_is_done(monkeypatch):
    assert working_device("cpu") == CPU

    def fails(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fails)
    for name in ("cuda", "auto"):
        with pytest.raises(InputError, match=r"'cuda' cannot be used \(CUDA error: no kernel image .* device\)\. Inst"):
            working_device(name)


def test_a_gpu_whose_driver_does_not_fit_is_counted(monkeypatch):
    def fails(number):
        raise RuntimeError("The NVIDIA driver on your system is too old")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (1, 2) if number else fails(number))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "A GPU")
    machine = examine_machine()
    assert (machine.gpu, machine.idle_gpus) == ((("A GPU", 2, 1),), 1)
    assert "torch cannot use 1 of the machine's GPUs" in [finding.problem for finding in machine_findings(machine)]


def test_bf16_is_refused_on_apples_gpu():
    with pytest.raises(InputError, match=r"bf16 cannot be used on device 'mps'\. Leave the precision at auto"):
        pick_precision("bf16", torch.device("mps"))


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_a_named_precision_is_taken(name):
    assert pick_precision(name, CPU) == name


def test_auto_precision_is_bf16_only_where_the_processor_multiplies_in_it(asks_for_bf16, monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_multiplies_bf16", asks_for_bf16)
    expected = [getattr(torch.cpu, name)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    assert pick_precision("auto", CPU) == ("bf16" if any(expected) else "fp32")
    assert pick_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_multiplies_in_the_precision(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_versions_name_what_decides_a_result():
    found = versions()
    assert set(found) == {"segscse", "python", *PACKAGES}
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_freed_memory_is_used_again_without_new_pages():
    # In a process of its own: the setting holds for the whole process. It takes some requests to settle, since an
    # aligned block does not always fit into the hole that an equal one left.
    code = (
        "import resource, torch\n"
        "from segscse.hardware import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(2**24)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "print(faults(), keep_freed_memory())\n"
        "settling = [faults() for _ in range(12)]\n"
        "print(max(faults() for _ in range(12)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    without, available, after = done.stdout.split()
    if available != "True":
        pytest.skip("this system's C library has no such setting")
    assert int(after) < 100 < int(without)
