from __future__ import annotations

import pytest
import torch

from segscse.attention import build_attention, load_attention_weights


def both_ranks(name, channels, **options):
    flat = build_attention(name, channels, spatial_dims=2, **options)
    deep = build_attention(name, channels, spatial_dims=3, **options)
    load_attention_weights(deep, flat.state_dict())
    return flat, deep


def shuffled(x):
    order = torch.randperm(x[0, 0].numel())
    return x.flatten(2)[:, :, order].reshape(x.shape), order


def test_cse_by_hand():
    block = build_attention("cse", 2, spatial_dims=2, min_hidden=1)
    with torch.no_grad():
        block.mlp.fc1.weight.copy_(torch.tensor([[1.0, 1.0]]))
        block.mlp.fc1.bias.fill_(-1.0)
        block.mlp.fc2.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        block.mlp.fc2.bias.copy_(torch.tensor([0.0, 2.0]))
    x = torch.tensor([[[[0.0, 2.0]], [[1.0, 5.0]]]])  # means 1 and 3, hidden relu(4 - 1) = 3
    expected = torch.sigmoid(torch.tensor([3.0, -3.0 + 2.0])).reshape(1, 2, 1, 1)
    torch.testing.assert_close(block.gate(x), expected)
    torch.testing.assert_close(block(x), x * expected)


def test_cse_without_relu_is_linear_before_the_sigmoid():
    block = build_attention("cse", 6, spatial_dims=2, hidden_act=None, bias=False)
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(block.gate(x) + block.gate(-x), torch.ones(2, 6, 1, 1))


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(1, 2, 4), (8, 16, 4), (20, 16, 4), (64, 4, 16)])
def test_cse_counts_its_parameters(channels, reduction, hidden):
    block = build_attention("se", channels, spatial_dims=3, reduction=reduction)
    assert sum(p.numel() for p in block.parameters()) == 2 * channels * hidden + hidden + channels


def test_cse_gate_depends_on_the_input_even_with_fewer_channels_than_reduction():
    block = build_attention("cse", 3, spatial_dims=2, reduction=16)
    assert not torch.allclose(block.gate(torch.zeros(1, 3, 4, 4)), block.gate(3 * torch.ones(1, 3, 4, 4)))


def test_cse_gate_ignores_where_things_are():
    block = build_attention("cse", 5, spatial_dims=3)
    x = torch.randn(2, 5, 3, 4, 5)
    torch.testing.assert_close(block.gate(shuffled(x)[0]), block.gate(x))


def test_cse_pools_every_axis_of_a_wide_image():
    block = build_attention("cse", 2, spatial_dims=2)
    x = torch.zeros(1, 2, 4, 7)
    moved = x.clone()
    moved[..., -1] = 5.0  # a pool of only the first H columns would miss it
    assert not torch.allclose(block.gate(moved), block.gate(x))


def test_sse_is_the_pointwise_formula():
    block = build_attention("sse", 4, spatial_dims=3)
    x = torch.randn(2, 4, 3, 4, 5)
    logits = torch.einsum("c,bcdhw->bdhw", block.conv.weight.flatten(), x) + block.conv.bias
    torch.testing.assert_close(block.gate(x), torch.sigmoid(logits)[:, None])


def test_sse_moves_with_its_input_and_counts_one_weight_per_channel():
    block = build_attention("sse", 5, spatial_dims=2)
    x = torch.randn(2, 5, 6, 7)
    moved, order = shuffled(x)
    torch.testing.assert_close(block(moved).flatten(2), block(x).flatten(2)[:, :, order])
    assert sum(p.numel() for p in block.parameters()) == 6


@pytest.mark.parametrize("aggregation", ["add", "max", "mul", "concat"])
def test_scse_joins_its_two_halves(aggregation):
    block = build_attention("scse", 4, spatial_dims=2, aggregation=aggregation)
    x = torch.randn(2, 4, 5, 6)
    channel, spatial = block.cse(x), block.sse(x)
    g_channel, g_spatial = block.cse.gate(x), block.sse.gate(x)
    expected = {
        "add": channel + spatial,
        "max": torch.maximum(channel, spatial),
        "mul": x * g_channel * g_spatial,
        "concat": channel + spatial,  # what its projection starts as
    }
    torch.testing.assert_close(block(x), expected[aggregation])


def test_scse_add_gate_reaches_beyond_one_and_stays_below_two():
    block = build_attention("scse", 4, spatial_dims=2)
    torch.nn.init.constant_(block.cse.mlp.fc2.bias, 3.0)
    torch.nn.init.constant_(block.sse.conv.bias, 3.0)
    gate = block.gate(torch.randn(1, 4, 8, 8))
    assert 1 < gate.max() < 2
    assert gate.min() > 0


def test_scse_max_of_the_maps_takes_the_smaller_gate_below_zero():
    block = build_attention("scse", 4, spatial_dims=2, aggregation="max")
    x = torch.randn(2, 4, 5, 6)
    highest = torch.maximum(block.cse.gate(x), block.sse.gate(x))
    lowest = torch.minimum(block.cse.gate(x), block.sse.gate(x))
    below = x < 0
    torch.testing.assert_close(block(x)[~below], (x * highest)[~below])
    torch.testing.assert_close(block(x)[below], (x * lowest)[below])
    assert not torch.allclose(block(x)[below], (x * highest)[below])


def test_scse_concat_trains_its_projection():
    block = build_attention("scse", 3, spatial_dims=3, aggregation="concat")
    x = torch.randn(1, 3, 2, 3, 4)
    assert block.gate(x).shape == (1, 6, 2, 3, 4)
    block(x).square().sum().backward()
    assert block.project.weight.grad.abs().sum() > 0


def test_aggregations_other_than_concat_share_their_weights():
    states = [build_attention("scse", 8, spatial_dims=2, aggregation=a).state_dict() for a in ("add", "max", "mul")]
    assert [list(state) for state in states] == [list(states[0])] * 3


@pytest.mark.parametrize("name", ["cse", "sse", "scse", "eca", "danet_cam"])
def test_a_volume_one_voxel_deep_is_an_image(name):
    flat, deep = both_ranks(name, 6)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(deep(x[:, :, None]), flat(x)[:, :, None])
    torch.testing.assert_close(deep(x[..., None]), flat(x)[..., None])


def test_none_is_the_identity_without_parameters():
    block = build_attention("none", 4, spatial_dims=2)
    x = torch.randn(1, 4, 3, 3)
    assert block(x) is x
    assert not list(block.parameters())
