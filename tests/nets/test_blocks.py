import pytest
import torch

from segscse.attention import build_attention
from segscse.nets.blocks import BLOCKS, ConvNormAct


def _block(name, spatial_dims=3, c_in=4, c_out=8, *, kernel_size=3, stride=1, attention="none"):
    gate = build_attention(attention, c_out, spatial_dims=spatial_dims)
    return BLOCKS[name](spatial_dims, c_in, c_out, kernel_size=kernel_size, stride=stride, attention=gate)


def test_conv_norm_act_has_zero_mean_before_the_leaky_relu_and_its_slope_after():
    layer = ConvNormAct(3, 2, 3)
    x = torch.randn(2, 2, 6, 6, 6)
    normalised = layer[1](layer[0](x))
    torch.testing.assert_close(normalised.mean(dim=(2, 3, 4)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    expected = torch.where(normalised >= 0, normalised, 0.01 * normalised)
    torch.testing.assert_close(layer(x), expected)
    assert layer[0].bias is None


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    ("spatial_dims", "kernel_size", "stride", "size", "expected"),
    [
        (2, 3, 1, (8, 6), (8, 6)),
        (2, 3, 2, (8, 6), (4, 3)),
        (3, 3, 2, (8, 6, 4), (4, 3, 2)),
        (3, (3, 3, 1), (2, 2, 1), (8, 6, 5), (4, 3, 5)),
        (3, (1, 3, 5), (1, 1, 2), (3, 5, 8), (3, 5, 4)),
    ],
)
def test_a_block_divides_the_space_by_its_stride(name, spatial_dims, kernel_size, stride, size, expected):
    block = _block(name, spatial_dims, kernel_size=kernel_size, stride=stride)
    assert block(torch.randn(2, 4, *size)).shape == (2, 8, *expected)


def test_an_equal_sized_residual_block_adds_its_input_itself():
    block = _block("residual", c_in=8)
    x = torch.randn(1, 8, 4, 4, 4)
    torch.testing.assert_close(block(x), x + block.conv2(block.conv1(x)))
    assert list(block.shortcut.parameters()) == []


@pytest.mark.parametrize(("c_in", "stride"), [(4, 1), (8, 2)])
def test_a_residual_block_projects_its_input_when_channels_or_size_change(c_in, stride):
    block = _block("residual", c_in=c_in, stride=stride)
    assert block.shortcut[0].weight.shape == (8, c_in, 1, 1, 1)
    assert block.shortcut[0].stride == (stride,) * 3


def test_the_gate_of_a_residual_block_acts_on_the_branch_alone():
    block = _block("residual", c_in=8, attention="cse")
    x = torch.randn(1, 8, 4, 4, 4)
    branch = block.conv2(block.conv1(x))
    torch.testing.assert_close(block(x), x + branch * block.attention.gate(branch))


def test_a_selective_block_has_a_selective_kernel_in_place_of_its_second_convolution():
    block = _block("selective", attention="scse")
    x = torch.randn(2, 4, 4, 4, 4)
    first = block.conv1(x)
    one, two = (branch(first) for branch in block.select.branches)
    weights = block.select.gate(first)
    mixed = one * weights[:, 0] + two * weights[:, 1]
    torch.testing.assert_close(block(x), block.attention(mixed))


def test_a_selective_block_has_its_stages_kernel():
    block = _block("selective", kernel_size=(1, 3, 3))
    assert [tuple(branch[0].kernel_size) for branch in block.select.branches] == [(1, 3, 3)] * 2


def test_the_gate_sees_a_map_whose_channel_means_differ():
    """Straight after an instance normalisation they would all be the same, and a squeeze would see nothing."""
    block = _block("plain", attention="cse")
    seen = []
    block.attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    block(torch.randn(1, 4, 6, 6, 6))
    assert seen[0].mean(dim=(2, 3, 4)).std() > 1e-3
