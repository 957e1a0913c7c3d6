from __future__ import annotations

import pytest
import torch

from segscse.attention import build_attention
from segscse.attention.eca import adaptive_kernel


def direct(x, taps, *, circular):
    """ECA channel by channel, as the paper's sum over neighbours."""
    z = x.flatten(2).mean(-1)
    count, reach = z.shape[1], len(taps) // 2
    gate = torch.zeros_like(z)
    for c in range(count):
        for j, tap in enumerate(taps):
            neighbour = c + j - reach
            if circular or 0 <= neighbour < count:
                gate[:, c] += tap * z[:, neighbour % count]
    return torch.sigmoid(gate)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 3), (3, 3), (8, 5), (20, None)])
def test_eca_is_the_sum_over_neighbouring_channels(channels, kernel_size, circular):
    block = build_attention("eca", channels, spatial_dims=3, kernel_size=kernel_size, circular=circular)
    x = torch.randn(2, channels, 3, 4, 5)
    expected = direct(x, block.conv.weight.flatten().tolist(), circular=circular)
    torch.testing.assert_close(block.gate(x).flatten(1), expected)


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(1, 3), (4, 3), (8, 3), (32, 3), (96, 3), (128, 5), (320, 5), (1024, 5), (2048, 7)],
)
def test_adaptive_kernel_at_known_widths(channels, kernel):
    assert adaptive_kernel(channels) == kernel
    block = build_attention("eca", channels, spatial_dims=2)
    assert sum(p.numel() for p in block.parameters()) == kernel


def test_gamma_and_b_shape_the_kernel():
    assert build_attention("eca", 64, spatial_dims=2, gamma=1, b=0).conv.kernel_size == (7,)


def test_eca_gate_ignores_where_things_are():
    block = build_attention("eca", 6, spatial_dims=2)
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(block.gate(x.flip(2, 3)), block.gate(x))


def test_circular_eca_turns_with_the_channels():
    block = build_attention("eca", 6, spatial_dims=2, circular=True)
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(block(x.roll(2, dims=1)), block(x).roll(2, dims=1))
