from __future__ import annotations

import pytest
import torch

from segscse.attention import build_attention, load_attention_weights


def direct(block, x):
    """The gate as the paper writes it: both layers on the full-size sum of the projections."""
    axes = range(2, x.ndim)
    total = sum(x.mean(dim=[a for a in axes if a != axis], keepdim=True).expand_as(x) for axis in axes)
    hidden = torch.einsum("hc,bc...->bh...", block.fc1.weight, total)
    if block.fc1.bias is not None:
        hidden = hidden + block.fc1.bias.reshape(-1, *(1 for _ in axes))
    return torch.sigmoid(block.fc2(hidden.relu()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 8, 20])
@pytest.mark.parametrize("size", [(5, 7), (4, 5, 6)])
def test_projecting_before_the_first_layer_gives_the_same_gate(size, channels, bias):
    block = build_attention("pe", channels, spatial_dims=len(size), bias=bias)
    x = torch.randn(2, channels, *size)
    torch.testing.assert_close(block.gate(x), direct(block, x))
    torch.testing.assert_close(block(x), x * direct(block, x))


def test_a_volume_one_voxel_deep_adds_the_global_mean_as_its_third_profile():
    flat, deep = (build_attention("pe", 4, spatial_dims=dims) for dims in (2, 3))
    load_attention_weights(deep, flat.state_dict())
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(deep(x[:, :, None])[:, :, 0], x * direct_with_mean(flat, x))
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(deep(centred[:, :, None])[:, :, 0], flat(centred))


def direct_with_mean(block, x):
    total = x.mean(dim=2, keepdim=True) + x.mean(dim=3, keepdim=True) + x.mean(dim=(2, 3), keepdim=True)
    hidden = torch.einsum("hc,bcyx->bhyx", block.fc1.weight, total) + block.fc1.bias[:, None, None]
    return torch.sigmoid(block.fc2(hidden.relu()))


def test_pe_has_the_parameters_of_cse():
    pe, cse = (build_attention(name, 16, spatial_dims=3) for name in ("pe", "cse"))
    assert sum(p.numel() for p in pe.parameters()) == sum(p.numel() for p in cse.parameters())


def test_pe_keeps_where_along_an_axis_where_cse_does_not():
    x = torch.zeros(1, 4, 6, 6, 6)
    x[:, :, 2] = 5.0
    gate = build_attention("pe", 4, spatial_dims=3).gate(x)
    assert not torch.allclose(gate[:, :, 2], gate[:, :, 3])
    torch.testing.assert_close(gate[:, :, 3], gate[:, :, 4])
