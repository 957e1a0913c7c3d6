from __future__ import annotations

import pytest
import torch

from segscse.attention import build_attention


def build(name, channels, dims, *, gamma=0.7, **options):
    block = build_attention(name, channels, spatial_dims=dims, **options)
    torch.nn.init.constant_(block.gamma, gamma)
    return block


@pytest.mark.parametrize("similarity", ["released", "paper"])
def test_cam_is_the_formula(similarity):
    block = build("danet_cam", 5, 2, similarity=similarity)
    x = 0.3 * torch.randn(2, 5, 4, 6)
    energy = torch.einsum("bjhw,bihw->bji", x, x)
    if similarity == "released":
        energy = energy.max(dim=-1, keepdim=True).values - energy
    affinity = energy.exp() / energy.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(block.gate(x), affinity)
    torch.testing.assert_close(block(x), 0.7 * torch.einsum("bji,bihw->bjhw", affinity, x) + x)


def test_cam_scaled_divides_the_energies_by_the_root_of_the_number_of_positions():
    x = torch.randn(2, 5, 4, 6)
    energy = torch.einsum("bjhw,bihw->bji", x, x) / 24**0.5
    scaled = build("danet_cam", 5, 2, similarity="paper", scale=True)
    torch.testing.assert_close(scaled.gate(x), energy.softmax(dim=-1))


def test_cam_as_released_prefers_the_least_similar_channel():
    x = torch.randn(1, 1, 4, 4) * torch.tensor([1.0, 0.9, -1.0]).reshape(1, 3, 1, 1)
    released = build("danet_cam", 3, 2).gate(x)
    paper = build("danet_cam", 3, 2, similarity="paper").gate(x)
    assert released[0, 0].argmax() == 2
    assert paper[0, 0].argmax() == 0


@pytest.mark.parametrize("similarity", ["released", "paper"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cam_is_finite_and_right_where_the_energy_overflows_fp16(dtype, similarity):
    block = build("danet_cam", 2, 3, similarity=similarity)
    x = (3 * torch.randn(1, 2, 64, 64, 64)).to(dtype)
    assert x.float().square().sum(dim=(2, 3, 4)).max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", dtype):
        y = block(x)
    assert y.dtype == dtype
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y.double(), block.double()(x.double()), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_pam_is_the_formula(dims):
    block = build("danet_pam", 6, dims)
    x = torch.randn(2, 6, *(3, 4, 5)[:dims])
    flat = x.flatten(2)
    query, key, value = (
        torch.einsum("oc,bcn->bon", part.weight, flat) + part.bias[:, None]
        for part in (block.query, block.key, block.value)
    )
    affinity = torch.einsum("bcj,bci->bji", query, key).softmax(dim=-1)
    torch.testing.assert_close(block.gate(x), affinity)
    torch.testing.assert_close(block(x), 0.7 * torch.einsum("bji,bci->bcj", affinity, value).reshape(x.shape) + x)


@pytest.mark.parametrize("name", ["danet_cam", "danet_pam"])
def test_both_start_as_the_identity_and_their_weights_sum_to_one(name):
    block = build_attention(name, 8, spatial_dims=2)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x)
    gate = block.gate(x)
    torch.testing.assert_close(gate.sum(dim=-1), torch.ones(gate.shape[:2]))


def test_pam_moves_with_its_input():
    block = build("danet_pam", 4, 2)
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(block(x.flip(2)), block(x).flip(2))


def test_cam_counts_one_parameter():
    assert sum(p.numel() for p in build("danet_cam", 64, 3).parameters()) == 1
