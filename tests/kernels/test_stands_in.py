"""Where a kernel stands in for layers: what torch would call, and what stands in a layer's place, still counts."""

import pytest
import torch
from torch import nn

from segscse.attention import build_attention
from segscse.attention.squeeze import ChannelSE, ChannelSpatialSE
from segscse.errors import InputError
from segscse.kernels.single import convolve
from segscse.nets.blocks import ConvNormAct
from segscse.nets.dims import channels_last
from segscse.nets.norm import InstanceNorm
from segscse.nets.unet import UNet
from segscse.training.losses import dice_ce_loss


def _lively(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    return block


def _both(function, shape=(2, 8, 6, 5)):
    """Return what a function makes of a map in channels-last and in contiguous memory."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    return function(channels_last(x)), function(x)


@pytest.mark.parametrize("name", ["none", "cse", "sse", "scse", "eca", "cbam", "bam", "project_excite"])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_of_every_block_are_torchs(name, dims):
    block = _lively(build_attention(name, 8, spatial_dims=dims)).double()
    layer = _lively(ConvNormAct(dims, 8, 8)).double()
    slope = torch.randn(2, 8, *(6, 5, 4)[:dims], dtype=torch.float64)

    def gradients(x):
        x = x.double().requires_grad_()
        return torch.autograd.grad((layer(x, block) * slope).sum(), [x, *layer.parameters(), *block.parameters()])

    fused, plain = _both(gradients, slope.shape)
    for got, expected in zip(fused, plain, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["cse", "sse", "scse", "eca"])
def test_a_hook_of_a_parameter_is_called_once(name):
    block, layer = _lively(build_attention(name, 8, spatial_dims=2)), ConvNormAct(2, 8, 8)

    def gradients(x):
        return torch.autograd.grad(layer(x, block).square().sum(), list(block.parameters()))

    expected, _ = _both(gradients)
    for parameter in block.parameters():
        parameter.register_hook(lambda gradient: 2 * gradient)
    for got, once in zip(_both(gradients)[0], expected, strict=True):
        torch.testing.assert_close(got, 2 * once, rtol=1e-4, atol=1e-4)


def test_hooks_on_all_modules_are_called():
    network = UNet(2, 1, 2, features=(8, 8), attention="scse").eval()
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(type(layer)))
    try:
        network(channels_last(torch.randn(2, 1, 8, 8)))
    finally:
        handle.remove()
    assert called.count(ChannelSpatialSE) == 2
    assert called.count(InstanceNorm) == 6


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 8), nn.BatchNorm2d(8)], ids=["group", "batch"])
def test_a_replaced_normalisation_normalises(norm):
    layer = ConvNormAct(2, 8, 8)
    layer[1] = norm
    torch.testing.assert_close(*_both(layer), rtol=1e-4, atol=1e-5)


def test_a_replaced_non_linearity_is_applied():
    layer = ConvNormAct(2, 8, 8)
    layer[2] = nn.ReLU()
    fused, plain = _both(layer)
    assert plain.min() == 0
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_a_convolution_of_another_class_convolves():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)

    torch.manual_seed(0)
    layer, x = Standardised(8, 8, 3, padding=1), channels_last(torch.randn(2, 8, 6, 5))
    torch.testing.assert_close(convolve(layer, x[:1]), convolve(layer, x)[:1], rtol=1e-4, atol=1e-5)


class HardGate(ChannelSE):
    def gate(self, x):
        return super().gate(x).round()


class HardMean(ChannelSE):
    def gate_of_mean(self, z):
        return super().gate_of_mean(z).round()


@pytest.mark.parametrize("kind", [HardGate, HardMean])
def test_a_subclass_with_another_gate_has_its_own(kind):
    layer, block = ConvNormAct(2, 8, 8), _lively(kind(8, spatial_dims=2))
    assert not torch.equal(block.gate(torch.randn(2, 8, 6, 5)), ChannelSE.gate_of_mean(block, torch.randn(2, 8)))
    torch.testing.assert_close(*_both(lambda x: layer(x, block)), rtol=1e-4, atol=1e-5)
    joint = ChannelSpatialSE(8, spatial_dims=2)
    joint.cse = block
    torch.testing.assert_close(*_both(joint), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: _lively(build_attention("scse", 8, spatial_dims=2))(x).sum(),
        lambda x: convolve(nn.Conv2d(8, 8, 3), x[:1]).sum(),
        lambda x: dice_ce_loss(x.repeat(1, 2, 1, 1), torch.zeros(2, 6, 5, dtype=torch.uint8)),
    ],
    ids=["gate", "convolution", "loss"],
)
def test_a_second_derivative_is_refused_and_not_left_out(function):
    x = channels_last(torch.randn(2, 8, 6, 5)).requires_grad_()
    with pytest.raises(InputError, match="no second derivative"):
        torch.autograd.grad(function(x), x, create_graph=True)


@pytest.mark.parametrize("layer", [InstanceNorm(1), build_attention("sse", 1, spatial_dims=2)])
def test_a_layer_for_other_channels_is_refused(layer):
    for x in (torch.randn(2, 8, 5, 5), channels_last(torch.randn(2, 8, 5, 5))):
        with pytest.raises((InputError, RuntimeError)):
            layer(x)


@pytest.mark.parametrize("name", ["eca", "cbam_spatial", "danet_cam", "slice_eca"])
def test_a_block_for_other_channels_is_refused(name):
    with pytest.raises(InputError, match=r"takes 8 channels, got \(2, 6, 4, 5, 6\)"):
        build_attention(name, 8, spatial_dims=3)(torch.randn(2, 6, 4, 5, 6))
