from collections import OrderedDict

import pytest
import torch
from monai.networks.blocks import Convolution
from test_attention_contract import CASES, CHANNELS_LAST, SIZES, lively
from torch import nn

from segscse.attention import BLOCKS, block_options, build_attention, check_placement
from segscse.errors import InputError
from segscse.nets import unet
from segscse.nets.blocks import ConvNormAct
from segscse.nets.norm import InstanceNorm

BLIND = {"cse", "scse", "eca", "bam", "eca_depth"}
NORMS = {
    "ours": lambda dims: InstanceNorm(8),
    "torch": lambda dims: {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](8, affine=True),
    "torch without bias": lambda dims: {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](8),
    "a group a channel": lambda dims: nn.GroupNorm(8, 8),
}


def linear(name, dims):
    """Return a block with random weights and without the ReLU that could make its gate a constant by chance."""
    options = {"hidden_act": None} if "hidden_act" in block_options(name) else {}
    return lively(name, 8, dims, **options)


def gate(name="cse"):
    return build_attention(name, 8, spatial_dims=3)


def halves_of_channels(block, x):
    """Return what the gate, or that half of it which pools, gives for a map."""
    if hasattr(block, "cse"):
        return block.cse.gate(x)
    if hasattr(block, "_channel_logits"):
        return block._channel_logits(x)
    return block.channel.gate(x) if hasattr(block, "channel") else block.gate(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "dims"), [case for case in CASES if case[0] not in ("none", "sk")])
def test_what_is_refused_is_what_gives_two_images_the_same_gate(name, dims, norm):
    layer, block = NORMS[norm](dims), linear(name, dims)
    if getattr(layer, "bias", None) is not None:
        nn.init.normal_(layer.bias)
    first, second = (layer(scale * torch.rand(1, 8, *SIZES[dims]) ** 3) for scale in (1.0, 30.0))
    with torch.no_grad():
        blind = torch.allclose(halves_of_channels(block, first), halves_of_channels(block, second), atol=1e-5)
    assert blind == (name in BLIND)
    network = nn.Sequential(layer, block)
    if name in BLIND:
        with pytest.raises(InputError, match=f"{type(block).__name__} at '1' directly follows .* at '0'"):
            check_placement(network)
    else:
        check_placement(network)


def test_after_the_non_linearity_the_same_gate_sees_the_image():
    layers = nn.Sequential(InstanceNorm(8), nn.LeakyReLU(0.01))
    block = linear("cse", 3)
    check_placement(nn.Sequential(*layers, block))
    first, second = (layers(torch.rand(1, 8, 5, 6, 7) ** power) for power in (1, 6))
    assert (block.gate(first) - block.gate(second)).abs().max() > 0.01


def test_the_message_is_one_line_with_position_reason_and_remedy():
    network = nn.ModuleDict({"stage": nn.Sequential(nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8), gate())})
    with pytest.raises(InputError) as caught:
        check_placement(network)
    message = str(caught.value)
    assert "\n" not in message
    assert "ChannelSE at 'stage.2' directly follows the InstanceNorm3d at 'stage.1'" in message
    assert "the same for every image" in message
    assert message.endswith("Place the gate after the non-linearity.")


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Sequential(nn.Conv3d(8, 8, 3), InstanceNorm(8)), gate()),
        nn.Sequential(nn.InstanceNorm3d(8), nn.Sequential(nn.Sequential(), nn.Sequential(gate("scse"), nn.ReLU()))),
        nn.Sequential(nn.InstanceNorm3d(8), nn.Identity(), nn.Dropout3d(0.1), gate("none"), gate()),
        nn.Sequential(OrderedDict(norm=nn.GroupNorm(8, 8), gate=gate("eca"))),
        nn.ModuleList([nn.ReLU(), nn.Sequential(nn.InstanceNorm3d(8), gate("eca_depth"))]),
        nn.Sequential(Convolution(3, 8, 8, adn_ordering="AN", norm="instance", act="relu"), gate()),
    ],
    ids=["norm nested", "gate nested", "nothing between", "named", "in a list", "in MONAI's"],
)
def test_it_is_found_wherever_it_stands(network):
    with pytest.raises(InputError, match="directly follows"):
        check_placement(network)


def test_a_normalisation_that_is_used_twice_is_seen_the_second_time():
    norm = nn.InstanceNorm3d(8)
    with pytest.raises(InputError, match=r"at '3' directly follows the InstanceNorm3d at '2'"):
        check_placement(nn.Sequential(norm, nn.ReLU(), norm, gate()))


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.InstanceNorm3d(8), nn.ReLU(), gate("scse")),
        nn.Sequential(nn.BatchNorm3d(8), gate()),
        nn.Sequential(nn.GroupNorm(4, 8), gate()),
        nn.Sequential(gate(), nn.InstanceNorm3d(8)),
        nn.Sequential(ConvNormAct(3, 8, 8), gate()),
        nn.Sequential(Convolution(3, 8, 8, norm="instance"), gate()),
        nn.ModuleList([nn.InstanceNorm3d(8), gate()]),
        gate("bam"),
        nn.InstanceNorm3d(8),
    ],
    ids=["activated", "batch", "groups", "before", "block", "MONAI's", "a list is no order", "alone", "no gate"],
)
def test_what_sees_the_image_passes(network):
    check_placement(network)


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_network_of_ours_passes(name):
    if BLOCKS[name].kind == "gate":
        for block in ("plain", "residual"):
            check_placement(unet.UNet(3, 1, 2, features=(8, 8), attention=name, block=block))


def test_a_unet_of_blocks_that_gate_the_normalised_map_is_refused(monkeypatch):
    class Normalised(nn.Sequential):
        def __init__(self, spatial_dims, c_in, c_out, *, kernel_size, stride, attention):
            convolution = nn.Conv3d(c_in, c_out, kernel_size, stride, padding=1)
            super().__init__(convolution, InstanceNorm(c_out), attention, nn.ReLU())

    monkeypatch.setitem(unet.BLOCKS, "normalised", Normalised)
    unet.UNet(3, 1, 2, features=(8, 8), attention="sse", block="normalised")
    with pytest.raises(InputError, match=r"at 'encoder\.0\.2' directly follows the InstanceNorm at 'encoder\.0\.1'"):
        unet.UNet(3, 1, 2, features=(8, 8), attention="scse", block="normalised")


def test_the_kernels_gate_of_a_normalised_map_is_constant_too():
    norm, block = InstanceNorm(8), linear("cse", 3)
    x = torch.rand(2, 8, 5, 6, 7).contiguous(memory_format=CHANNELS_LAST[3])
    x[1] = x[1] ** 5
    normalised = norm(x)
    factor = (block(normalised) / normalised).mean(dim=(2, 3, 4))
    torch.testing.assert_close(factor[0], factor[1], atol=1e-4, rtol=0)
