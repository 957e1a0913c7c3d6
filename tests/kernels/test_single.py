"""A batch of one beside torch's own convolutions, in double precision where torch takes its own kernels for both."""

import pytest
import torch
from torch import nn

from segscse.kernels import single
from segscse.kernels.single import convolve, upsample
from segscse.nets.dims import CHANNELS_LAST, channels_last, conv, conv_transpose
from segscse.nets.unet import UNet

# (channels in, out, spatial shape, kernel, stride): even and odd sizes, one row, what a stride does not reach
CONVOLUTIONS = [
    (32, 32, (20, 28, 20), 3, 1),
    (16, 24, (10, 14, 10), 3, 2),
    (3, 5, (11, 8, 9), (3, 1, 5), (2, 1, 3)),
    (3, 5, (12, 8, 9), (1, 1, 5), (2, 1, 3)),
    (4, 4, (1, 8, 9), 3, 1),
    (4, 4, (2, 2, 2), 5, 1),
    (8, 8, (13, 20), 3, 2),
    (8, 6, (1, 1), 3, 1),
]
TRANSPOSED = [(8, 4, (10, 14, 10), 2), (8, 4, (5, 7, 5), (1, 2, 3)), (7, 3, (9, 5), 2)]


def _results(work, layer, x, slope):
    """Return what `work(layer, x)` gives, and the gradients of its product with `slope`."""
    x = x.clone().requires_grad_()
    y = work(layer, x)
    return [y.detach(), *torch.autograd.grad((y * slope).sum(), [x, *layer.parameters()])]


def _layer(table, channels, shape, **options):
    torch.manual_seed(0)
    layer = table(len(shape))(channels[0], channels[1], **options).to(memory_format=CHANNELS_LAST[len(shape)])
    return layer, channels_last(torch.randn(1, channels[0], *shape))


def _compare(work, layer, x):
    assert single._slow(layer, x)
    with torch.no_grad():
        y = layer.double()(x.double())
    slope = torch.randn_like(y)
    expected = _results(nn.Module.__call__, layer, x.double(), slope)
    for got, want in zip(_results(work, layer.float(), x, slope.float()), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want.float(), rtol=1e-4, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inside", "outside", "shape", "kernel", "stride"), CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_torchs(inside, outside, shape, kernel, stride, bias):
    sizes = (kernel,) * len(shape) if isinstance(kernel, int) else kernel
    padding = tuple(size // 2 for size in sizes)
    layer, x = _layer(conv, (inside, outside), shape, kernel_size=sizes, stride=stride, padding=padding, bias=bias)
    _compare(convolve, layer, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inside", "outside", "shape", "step"), TRANSPOSED)
def test_a_transposed_convolution_and_its_gradients_are_torchs(inside, outside, shape, step, bias):
    layer, x = _layer(conv_transpose, (inside, outside), shape, kernel_size=step, stride=step, bias=bias)
    _compare(upsample, layer, x)


def test_the_results_stay_in_channels_last_memory_where_torchs_do_not():
    layer, x = _layer(conv, (32, 32), (20, 28, 20), kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        assert convolve(layer, x).is_contiguous(memory_format=torch.channels_last_3d)
    layer, x = _layer(conv_transpose, (8, 4), (10, 14, 10), kernel_size=2, stride=2, bias=False)
    with torch.no_grad():
        assert upsample(layer, x).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "options",
    [{"padding_mode": "circular"}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}],
    ids=["circular", "dilated", "grouped", "same"],
)
def test_other_convolutions_are_left_to_torch(options):
    layer, x = _layer(conv, (4, 4), (6, 6, 6), **{"kernel_size": 3, "padding": 1, **options})
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"kernel_size": 4, "padding": 1}, {"kernel_size": 2, "output_padding": 1}])
def test_other_transposed_convolutions_are_left_to_torch(options):
    layer, x = _layer(conv_transpose, (4, 4), (6, 6, 6), **{"stride": 2, **options})
    torch.testing.assert_close(upsample(layer, x), layer(x), rtol=0, atol=0)


def test_a_backward_hook_is_called():
    layer, x = _layer(conv, (4, 4), (6, 6, 6), kernel_size=3, padding=1)
    seen = []
    layer.register_full_backward_hook(lambda *_: seen.append(1))
    convolve(layer, x.requires_grad_()).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_the_gradients_that_are_asked_for_are_made(which):
    layer, x = _layer(conv, (4, 4), (6, 6, 6), kernel_size=3, padding=1)
    wanted = [x, layer.weight, layer.bias]
    for place, tensor in enumerate(wanted):
        tensor.requires_grad_(place == which)
    convolve(layer, x).square().sum().backward()
    assert [tensor.grad is not None for tensor in wanted] == [place == which for place in range(3)]


def test_a_hook_is_called_and_other_precisions_and_batches_are_left_to_torch():
    layer, x = _layer(conv, (4, 4), (6, 6, 6), kernel_size=3, padding=1)
    seen = []
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    convolve(layer, x)
    handle.remove()
    assert seen == [1]
    for other in (x.expand(2, -1, -1, -1, -1), x[:0]):
        assert not single._slow(layer, other)
        torch.testing.assert_close(convolve(layer, other), layer(other), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(layer, x).dtype == torch.bfloat16
    torch.testing.assert_close(convolve(layer.double(), x.double()), layer(x.double()), rtol=0, atol=0)


@pytest.mark.parametrize(("dims", "shape"), [(2, (32, 48)), (3, (16, 24, 16))])
def test_a_unet_gives_a_sample_alone_what_it_gives_it_in_a_batch(dims, shape):
    torch.manual_seed(0)
    network = UNet(dims, 1, 3, features=(8, 16, 32), attention="scse", deep_supervision=True).eval()
    network = network.to(memory_format=CHANNELS_LAST[dims])
    x = channels_last(torch.randn(2, 1, *shape))
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(x[:1]), network(x[1:])])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    network.train()
    gradients = []
    for parts in ([x], [x[:1], x[1:]]):
        network.zero_grad()
        for part in parts:
            sum(level.square().sum() for level in network(part)).backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, two in zip(*gradients, strict=True):
        # A voxel at the kink of a non-linearity may fall to either side, so single values differ by more.
        assert (one - two).norm() <= 0.01 * one.norm() + 1e-5
