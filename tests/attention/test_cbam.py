from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segscse.attention import build_attention


def test_channel_gate_is_the_formula():
    block = build_attention("cbam_channel", 6, spatial_dims=3, reduction=2)
    x = torch.randn(2, 6, 3, 4, 5)

    def mlp(z):
        return F.relu(z @ block.mlp.fc1.weight.T + block.mlp.fc1.bias) @ block.mlp.fc2.weight.T + block.mlp.fc2.bias

    flat = x.flatten(2)
    torch.testing.assert_close(block.gate(x).flatten(1), torch.sigmoid(mlp(flat.mean(-1)) + mlp(flat.max(-1).values)))


def test_spatial_gate_is_the_windowed_sum_of_maximum_then_mean():
    block = build_attention("cbam_spatial", 5, spatial_dims=2, kernel_size=(3, 5), norm=None)
    x = torch.randn(2, 5, 6, 7)
    pooled = torch.stack([x.max(dim=1).values, x.mean(dim=1)], dim=1)
    windows = F.unfold(pooled, (3, 5), padding=(1, 2))  # (B, 2 * 3 * 5, H * W)
    logits = block.conv.weight.flatten() @ windows + block.conv.bias
    torch.testing.assert_close(block.gate(x), torch.sigmoid(logits).reshape(2, 1, 6, 7))


def test_centre_plane_of_a_volume_kernel_is_the_image_kernel():
    flat = build_attention("cbam", 4, spatial_dims=2, kernel_size=3)
    deep = build_attention("cbam", 4, spatial_dims=3, kernel_size=3)
    state = flat.state_dict()
    kernel = torch.randn(1, 2, 3, 3, 3)
    kernel[:, :, 1] = state["spatial.conv.weight"]
    deep.load_state_dict(state | {"spatial.conv.weight": kernel})
    x = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(deep(x[:, :, None]), flat(x)[:, :, None])


def test_the_spatial_gate_sees_the_channel_gates_result():
    block = build_attention("cbam", 4, spatial_dims=2)
    x = torch.randn(2, 4, 8, 9)
    torch.testing.assert_close(block(x), block.spatial(block.channel(x)))


@pytest.mark.parametrize(("norm", "kernel_size", "count"), [("group", 7, 686 + 2), (None, (3, 7, 7), 294 + 1)])
def test_spatial_gate_counts_its_parameters(norm, kernel_size, count):
    block = build_attention("cbam_spatial", 8, spatial_dims=3, norm=norm, kernel_size=kernel_size)
    assert sum(p.numel() for p in block.parameters()) == count


@pytest.mark.parametrize("norm", ["group", "instance", None])
def test_images_of_a_batch_do_not_see_each_other(norm):
    block = build_attention("cbam", 4, spatial_dims=2, norm=norm).train()
    x = torch.randn(3, 4, 8, 9)
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


def test_batch_norm_is_there_for_those_who_want_the_authors_form():
    block = build_attention("cbam_spatial", 4, spatial_dims=3, norm="batch")
    assert isinstance(block.norm, torch.nn.BatchNorm3d)
