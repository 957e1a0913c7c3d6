from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segscse.attention import build_attention, load_attention_weights

CHANNELS, SIZE = 4, (5, 6, 7)  # no axis has as many voxels as there are channels


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize(("name", "flat_name"), [("slice_se", "cse"), ("slice_eca", "eca")])
def test_slice_gate_is_the_2d_gate_of_each_slice(name, flat_name, axis):
    block = build_attention(name, CHANNELS, spatial_dims=3, axis=axis)
    flat = build_attention(flat_name, CHANNELS, spatial_dims=2)
    flat.load_state_dict(block.state_dict())
    x = torch.randn(2, CHANNELS, *SIZE)
    dim = 2 + axis if axis >= 0 else 4
    expected = torch.stack([flat(image) for image in x.unbind(dim)], dim=dim)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["slice_se", "slice_eca", "depth_conv_gate", "eca_depth"])
def test_default_axis_is_the_last(name):
    block = build_attention(name, CHANNELS, spatial_dims=3)
    assert block.gate(torch.randn(1, CHANNELS, *SIZE)).shape == (1, CHANNELS, 1, 1, 7)
    first = build_attention(name, CHANNELS, spatial_dims=3, axis=0)
    first.load_state_dict(block.state_dict())
    x = torch.randn(1, CHANNELS, *SIZE)
    torch.testing.assert_close(first(x), block(x.movedim(2, -1)).movedim(-1, 2))


def test_depth_conv_gate_is_the_dense_sum_over_channels_and_slices():
    block = build_attention("depth_conv_gate", 3, spatial_dims=3, axis=0, bias=True)
    x = torch.randn(2, 3, *SIZE)
    z = F.pad(x.mean(dim=(3, 4)), (1, 1))  # (B, C, D + 2)
    windows = torch.stack([z[..., t : t + SIZE[0]] for t in range(3)], dim=-1)  # (B, C, D, k)
    logits = torch.einsum("oik,bidk->bod", block.conv.weight, windows) + block.conv.bias[:, None]
    torch.testing.assert_close(block.gate(x), torch.sigmoid(logits)[..., None, None])


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_depth_conv_gate_is_not_as_small_as_eca(kernel_size):
    dense = build_attention("depth_conv_gate", 16, spatial_dims=3, kernel_size=kernel_size)
    product = build_attention("eca_depth", 16, spatial_dims=3, kernel_size=kernel_size)
    assert sum(p.numel() for p in dense.parameters()) == kernel_size * 16**2
    assert sum(p.numel() for p in product.parameters()) == kernel_size * 16**2 + kernel_size


def test_eca_depth_is_the_product_of_its_two_gates():
    block = build_attention("eca_depth", CHANNELS, spatial_dims=3)
    depth = build_attention("depth_conv_gate", CHANNELS, spatial_dims=3)
    channel = build_attention("eca", CHANNELS, spatial_dims=3, kernel_size=3)
    load_attention_weights(depth, block.state_dict(), prefix="depth.")
    load_attention_weights(channel, block.state_dict(), prefix="channel.")
    x = torch.randn(1, CHANNELS, *SIZE)
    torch.testing.assert_close(block(x), x * depth.gate(x) * channel.gate(x))


def test_a_slice_far_away_does_not_change_a_depth_conv_gate():
    block = build_attention("depth_conv_gate", CHANNELS, spatial_dims=3)
    x = torch.randn(1, CHANNELS, *SIZE)
    changed = x.clone()
    changed[..., -1] += 10
    torch.testing.assert_close(block.gate(changed)[..., :5], block.gate(x)[..., :5])
    assert not torch.allclose(block.gate(changed)[..., 5:], block.gate(x)[..., 5:])


@pytest.mark.parametrize("alias", ["SELayer3DNew", "eca_layer3d", "eca_depth_spatial_layer3d"])
def test_the_aliases_take_the_first_axis_as_that_code_does(alias):
    block = build_attention(alias, CHANNELS, spatial_dims=3)
    assert block.gate(torch.randn(1, CHANNELS, *SIZE)).shape == (1, CHANNELS, 5, 1, 1)
