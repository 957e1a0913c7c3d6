import pytest
import torch
from torch import nn

from segscse.nets.norm import InstanceNorm

LAYERS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def _pair(spatial_dims, channels):
    ours = InstanceNorm(channels)
    theirs = LAYERS[spatial_dims](channels, affine=True)
    with torch.no_grad():
        for parameter in (ours.weight, ours.bias):
            parameter.copy_(torch.randn(channels))
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
    return ours, theirs


def test_a_map_of_one_voxel_becomes_the_bias_on_any_device(monkeypatch):
    norm, _ = _pair(3, 5)
    x = torch.randn(2, 5, 1, 1, 1)
    monkeypatch.setattr("segscse.nets.norm.runs_here", lambda x: False)
    torch.testing.assert_close(norm(x).flatten(1), norm.bias.expand(2, 5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
class TestInstanceNorm:
    def _input(self, spatial_dims, last, batch):
        x = 3 * torch.randn(batch, 5, *(6, 4, 7)[:spatial_dims]) + 2
        return x.contiguous(memory_format=LAYOUTS[spatial_dims]) if last else x

    def test_equals_the_norm_of_torch_forward_and_backward(self, spatial_dims, last, batch):
        ours, theirs = _pair(spatial_dims, 5)
        x = self._input(spatial_dims, last, batch)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = ours(a), theirs(b)
        torch.testing.assert_close(y, z)
        upstream = torch.randn_like(z)
        y.backward(upstream)
        z.backward(upstream)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)

    def test_keeps_the_memory_layout(self, spatial_dims, last, batch):
        x = self._input(spatial_dims, last, batch).requires_grad_()
        y = InstanceNorm(5)(x)
        layout = LAYOUTS[spatial_dims] if last else torch.contiguous_format
        assert y.is_contiguous(memory_format=layout)
        grad = torch.autograd.grad(y, x, torch.randn_like(y))[0]
        assert grad.is_contiguous(memory_format=layout)

    def test_has_the_gradients_that_finite_differences_give(self, spatial_dims, last, batch):
        norm = InstanceNorm(2).double()
        x = torch.randn(batch, 2, *(3, 2, 2)[:spatial_dims], dtype=torch.float64)
        x = x.contiguous(memory_format=LAYOUTS[spatial_dims]) if last else x

        def apply(value, weight, bias):
            return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, value)

        weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
        bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(apply, (x.requires_grad_(), weight, bias))


def test_a_constant_channel_becomes_the_bias():
    norm = InstanceNorm(2)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, -2.0]))
    y = norm(torch.full((1, 2, 4, 4), 7.0))
    torch.testing.assert_close(y[0, 0], torch.full((4, 4), 1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(y[0, 1], torch.full((4, 4), -2.0), atol=1e-3, rtol=0)


def test_works_without_gradients():
    with torch.inference_mode():
        assert InstanceNorm(3)(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_off_the_cpu_it_calls_torch():
    y = InstanceNorm(3).to("meta")(torch.empty(2, 3, 4, 4, device="meta"))
    assert y.shape == (2, 3, 4, 4)
