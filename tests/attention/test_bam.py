from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segscse.attention import build_attention


@pytest.mark.parametrize("form", ["add", "mul"])
def test_bam_is_the_formula(form):
    block = build_attention("bam", 6, spatial_dims=2, form=form, norm=None, dilation=2, reduction=3)
    x = torch.randn(2, 6, 7, 8)
    z = x.flatten(2).mean(-1)
    channel = F.relu(z @ block.fc1.weight.T + block.fc1.bias) @ block.fc2.weight.T + block.fc2.bias
    first, second, third, last = (layer for layer in block.spatial if isinstance(layer, torch.nn.Conv2d))
    h = F.conv2d(x, first.weight, first.bias)
    h = F.conv2d(h.relu(), second.weight, second.bias, padding=2, dilation=2)
    h = F.conv2d(h.relu(), third.weight, third.bias, padding=2, dilation=2)
    spatial = F.conv2d(h.relu(), last.weight, last.bias)
    channel = channel[..., None, None]
    joint = channel + spatial if form == "add" else channel * spatial
    torch.testing.assert_close(block(x), x + x * torch.sigmoid(joint))


def test_bam_normalises_before_every_non_linearity():
    block = build_attention("bam", 16, spatial_dims=2, reduction=2)
    kinds = [type(layer) for layer in block.spatial]
    assert kinds[:6] == [torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.ReLU] * 2
    x = torch.randn(2, 16, 7, 8)
    hidden = F.layer_norm(F.linear(x.flatten(2).mean(-1), block.fc1.weight, block.fc1.bias), (8,))
    channel = F.linear(hidden.relu(), block.fc2.weight, block.fc2.bias)[..., None, None]
    torch.testing.assert_close(block.gate(x), 1 + torch.sigmoid(channel + block.spatial(x)))


@pytest.mark.parametrize("norm", ["group", "instance", "batch", None])
@pytest.mark.parametrize("dims", [2, 3])
def test_bam_trains_at_batch_size_one_with_every_norm(norm, dims):
    block = build_attention("bam", 8, spatial_dims=dims, norm=norm).train()
    x = torch.randn(1, 8, *(6, 9, 5)[:dims])
    assert torch.isfinite(block(x)).all()


def test_bam_pools_a_wide_image_whole():
    block = build_attention("bam", 4, spatial_dims=2)
    x = torch.zeros(1, 4, 3, 40)
    moved = x.clone()
    moved[..., -1] = 5.0
    assert not torch.allclose(block.gate(moved)[..., 0], block.gate(x)[..., 0])


def test_bam_never_suppresses():
    gate = build_attention("bam", 8, spatial_dims=2).gate(10 * torch.randn(2, 8, 9, 9))
    assert gate.min() >= 1
    assert gate.max() <= 2
