"""The parts of the benchmarks that results rest on: what is timed beside a block computes what the block does."""

import importlib
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from segscse.attention import build_attention


@pytest.fixture
def bench_attention(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    return importlib.import_module("bench_attention")


@pytest.mark.parametrize("name", ["scse", "sse", "se", "eca"])
def test_textbook_gates_are_the_blocks(bench_attention, name):
    block = build_attention(name, 16, spatial_dims=3)
    x = torch.randn(2, 16, 4, 5, 6)
    torch.testing.assert_close(bench_attention.Textbook(block)(x), block(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["textbook_scse", "scse", "eca"])
def test_networks_with_them_take_a_step(bench_attention, variant):
    network = bench_attention.network(variant, (4, 8))
    bench_attention.training_step(network, torch.randn(2, 1, 8, 8, 8), nullcontext)
    assert all(weight.grad is not None for weight in network.parameters())
