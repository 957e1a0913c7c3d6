from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from segscse.attention import build_attention
from segscse.errors import InputError

CONV = {2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("branches", [2, 3])
def test_sk_is_the_softmax_mixture_of_dilated_branches(dims, branches):
    block = build_attention("sk", 4, spatial_dims=dims, branches=branches, norm=None, groups=2)
    x = torch.randn(2, 4, *(7, 8, 5)[:dims])
    maps = []
    for m, branch in enumerate(block.branches, start=1):
        conv = branch[0]
        maps.append(F.relu(CONV[dims](x, conv.weight, conv.bias, padding=m, dilation=m, groups=2)))
    stacked = torch.stack(maps, dim=1)  # (B, M, C, *S)
    z = F.relu(stacked.sum(1).flatten(2).mean(-1) @ block.fc.weight.T)
    weights = (z @ block.select.weight.T).reshape(2, branches, 4).softmax(dim=1)
    torch.testing.assert_close(block(x), torch.einsum("bmc,bmc...->bc...", weights, stacked))
    torch.testing.assert_close(block.gate(x).flatten(2), weights)


def test_sk_weights_sum_to_one_over_the_branches():
    gate = build_attention("sk", 8, spatial_dims=2, branches=3).gate(torch.randn(2, 8, 6, 7))
    assert gate.shape == (2, 3, 8, 1, 1)
    torch.testing.assert_close(gate.sum(dim=1), torch.ones(2, 8, 1, 1))


def test_sk_reach_grows_with_the_branch():
    block = build_attention("sk", 1, spatial_dims=2, norm=None)
    spot = torch.zeros(1, 1, 9, 9)
    spot[..., 4, 4] = 1.0
    reach = []
    for branch in block.branches:
        response = branch[0](spot) - branch[0](torch.zeros_like(spot))
        reach.append(int(response[0, 0].abs().gt(0).nonzero().sub(4).abs().max()))
    assert reach == [1, 2]


def test_sk_reaches_over_no_axis_of_a_flat_kernel():
    block = build_attention("sk", 1, spatial_dims=3, norm=None, kernel_size=(5, 3, 1))
    spot = torch.zeros(1, 1, 11, 11, 11)
    spot[..., 5, 5, 5] = 1.0
    assert block(spot).shape == spot.shape
    reach = []
    for branch in block.branches:
        response = branch[0](spot) - branch[0](torch.zeros_like(spot))
        reach.append(response[0, 0].abs().gt(0).nonzero().sub(5).abs().amax(0).tolist())
    assert reach == [[2, 1, 0], [4, 2, 0]]
    with pytest.raises(InputError, match="kernel_size must be odd, got 4"):
        build_attention("sk", 1, spatial_dims=3, kernel_size=4)


@pytest.mark.parametrize("norm", ["group", "instance", "batch", None])
def test_sk_trains_at_batch_size_one_with_every_norm(norm):
    block = build_attention("sk", 8, spatial_dims=3, norm=norm).train()
    assert torch.isfinite(block(torch.randn(1, 8, 4, 5, 6))).all()


def test_sk_hidden_width_has_the_papers_floor():
    assert build_attention("sk", 64, spatial_dims=2).fc.out_features == 32
    assert build_attention("sk", 64, spatial_dims=2, reduction=1).fc.out_features == 64
