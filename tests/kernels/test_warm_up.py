import errno
import os
import subprocess
import sys
import threading

import pytest
import torch

from segscse.kernels import parts, rows, warm_up
from segscse.kernels.warm_up import cache_folder, compiling, difference_from_torch
from segscse.nets.dims import channels_last, network_to_channels_last
from segscse.nets.unet import UNet

KERNELS = ("moments", "activation_sums", "forward_rows", "backward_sums", "backward_rows")


def _signatures():
    return {name: list(getattr(rows, name).signatures) for name in KERNELS}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_after_it_a_training_step_compiles_nothing(precision, dtype):
    with compiling(dtype) as thread:
        assert thread is not threading.current_thread()
    before = _signatures()
    assert all(before.values())
    network = network_to_channels_last(UNet(3, 1, 3, features=(4, 8), attention="scse"), 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = network(channels_last(torch.randn(2, 1, 8, 8, 8))).float().sum()
    loss.backward()
    assert _signatures() == before


def _sum_of(a, b):
    return a + b


def test_a_full_disk_keeps_no_machine_code_and_stops_nothing(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    compiled = rows._compiled(_sum_of)
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    assert compiled(1, 2) == 3
    assert not list(tmp_path.rglob("*.nbc"))


def test_it_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    with compiling(torch.float32):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_a_body_that_raises_does_not_wait_for_all_kernels(monkeypatch):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def recalibrate(x, *, norm, slope, gate):
        begun.set()
        go_on.wait(20)
        made.append("forward")
        return parts.recalibrate(x, norm=norm, slope=slope, gate=gate)

    monkeypatch.setattr(warm_up, "recalibrate", recalibrate)
    monkeypatch.setattr(torch.Tensor, "backward", lambda tensor: made.append("backward"))

    def fail():
        with compiling(torch.float32):
            begun.wait(20)
            threading.Timer(0.2, go_on.set).start()
            raise ValueError("bad data")

    with pytest.raises(ValueError, match="bad data"):
        fail()
    assert made == ["forward"]  # the gate saw that it is time to stop
    assert not any(thread.name == "segscse-compile" for thread in threading.enumerate())


def test_the_kernels_agree_with_torch():
    assert difference_from_torch() < 5e-5  # of values up to 4, in 32 bits


@pytest.mark.parametrize("given", [True, False])
def test_the_cache_is_where_numba_was_told_to_put_it(tmp_path, given):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    if not given:
        del environment["NUMBA_CACHE_DIR"]
    code = "from segscse.kernels.warm_up import cache_folder; print(cache_folder())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().startswith(str(tmp_path)) == given


def test_without_a_place_for_it_there_is_no_cache(monkeypatch):
    monkeypatch.setattr(rows, "moments", _Uncached())
    assert cache_folder() is None


class _Uncached:
    class stats:  # noqa: N801, numba's name
        cache_path = None
