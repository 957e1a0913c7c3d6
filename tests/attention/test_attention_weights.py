"""Weights of other code, read into our blocks: the modules here follow its formulas and key names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segscse.attention import build_attention, load_attention_weights
from segscse.errors import InputError

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {2: (6, 7), 3: (4, 5, 6)}


class Tree(nn.Module):
    """A module with the named children and a formula over them."""

    def __init__(self, formula, **children):
        super().__init__()
        self.formula = formula
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.formula(self, x)


def mean(x):
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


def spread(z, x):
    return z.reshape(*z.shape[:2], *(1 for _ in range(x.ndim - 2)))


def aimed(dims, channels=8):
    """squeeze_and_excitation by ai-med: Linear fc1/fc2, a 1x1 convolution, joined by the maximum."""

    def channel(m, x):
        return x * spread(torch.sigmoid(m.fc2(F.relu(m.fc1(mean(x).flatten(1))))), x)

    cse = Tree(channel, fc1=nn.Linear(channels, channels // 2), fc2=nn.Linear(channels // 2, channels))
    sse = Tree(lambda m, x: x * torch.sigmoid(m.conv(x)), conv=CONV[dims](channels, 1, 1))
    return Tree(lambda m, x: torch.max(m.cSE(x), m.sSE(x)), cSE=cse, sSE=sse)


def smp(dims, channels=32):
    """SCSEModule of segmentation_models.pytorch: two Sequentials, joined by the sum."""
    layer, pool = CONV[dims], {2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    hidden = channels // 16
    cse = nn.Sequential(pool(1), layer(channels, hidden, 1), nn.ReLU(), layer(hidden, channels, 1), nn.Sigmoid())
    sse = nn.Sequential(layer(channels, 1, 1), nn.Sigmoid())
    return Tree(lambda m, x: x * m.cSE(x) + x * m.sSE(x), cSE=cse, sSE=sse)


def note_000(dims, channels=8):
    """Spatial_Channel_SE: conv1/conv2 with a bias, squeeze without one, joined by the sum."""
    layer, hidden = CONV[dims], channels // 4
    channel = Tree(
        lambda m, x: x * torch.sigmoid(m.conv2(F.relu(m.conv1(mean(x))))),
        conv1=layer(channels, hidden, 1),
        conv2=layer(hidden, channels, 1),
    )
    spatial = Tree(lambda m, x: x * torch.sigmoid(m.squeeze(x)), squeeze=layer(channels, 1, 1, bias=False))
    return Tree(lambda m, x: m.spatial_att(x) + m.channel_att(x), spatial_att=spatial, channel_att=channel)


def without_relu(dims, channels=8):
    """The scSE that circulates with Conv_Squeeze and Conv_Excitation: no bias, no ReLU."""
    layer = CONV[dims]
    channel = Tree(
        lambda m, x: x * torch.sigmoid(m.Conv_Excitation(m.Conv_Squeeze(mean(x)))),
        Conv_Squeeze=layer(channels, channels // 2, 1, bias=False),
        Conv_Excitation=layer(channels // 2, channels, 1, bias=False),
    )
    spatial = Tree(lambda m, x: x * torch.sigmoid(m.Conv1x1(x)), Conv1x1=layer(channels, 1, 1, bias=False))
    return Tree(lambda m, x: m.cSE(x) + m.sSE(x), cSE=channel, sSE=spatial)


def senet(dims, channels=32):
    """SELayer and SELayer3D: fc.0 and fc.2 without a bias."""
    fc = nn.Sequential(
        nn.Linear(channels, channels // 16, bias=False),
        nn.ReLU(),
        nn.Linear(channels // 16, channels, bias=False),
        nn.Sigmoid(),
    )
    return Tree(lambda m, x: x * spread(m.fc(mean(x).flatten(1)), x), fc=fc)


def eca(dims):
    """eca_layer: a Conv1d called conv along the channels."""

    def formula(m, x):
        return x * spread(torch.sigmoid(m.conv(mean(x).flatten(1)[:, None]))[:, 0], x)

    return Tree(formula, conv=nn.Conv1d(1, 1, 3, padding=1, bias=False))


def eca_depth(dims, channels=8):
    """eca_depth_spatial_layer3d, whose conv_depth is the global one and conv_spatial the one along depth."""

    def formula(m, x):
        along = torch.sigmoid(m.conv_spatial(x.mean(dim=(3, 4))))[..., None, None]
        return x * along * spread(torch.sigmoid(m.conv_depth(mean(x).flatten(1)[:, None]))[:, 0], x)

    return Tree(
        formula,
        conv_depth=nn.Conv1d(1, 1, 3, padding=1, bias=False),
        conv_spatial=nn.Conv1d(channels, channels, 3, padding=1, bias=False),
    )


def project_excite(dims, channels=8):
    """ProjectExciteLayer of ai-med: conv_c and conv_cT on the full-size sum."""

    def formula(m, x):
        axes = range(2, x.ndim)
        total = sum(x.mean(dim=[a for a in axes if a != axis], keepdim=True).expand_as(x) for axis in axes)
        return x * torch.sigmoid(m.conv_cT(F.relu(m.conv_c(total))))

    layer = CONV[dims]
    return Tree(formula, conv_c=layer(channels, channels // 2, 1), conv_cT=layer(channels // 2, channels, 1))


def cbam(dims, channels=32):
    """CBAM's authors: ChannelGate.mlp and SpatialGate.spatial with BatchNorm."""
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(channels, channels // 16), nn.ReLU(), nn.Linear(channels // 16, channels)
    )
    norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](1)
    spatial = Tree(
        lambda m, x: x * torch.sigmoid(m.bn(m.conv(torch.stack([x.max(1).values, x.mean(1)], 1)))),
        conv=CONV[dims](2, 1, 7, padding=3, bias=False),
        bn=norm,
    )
    channel = Tree(
        lambda m, x: x * spread(torch.sigmoid(m.mlp(mean(x)) + m.mlp(x.flatten(2).max(-1).values)), x),
        mlp=mlp,
    )
    gate = Tree(lambda m, x: m.spatial(x), spatial=spatial)
    return Tree(lambda m, x: m.SpatialGate(m.ChannelGate(x)), ChannelGate=channel, SpatialGate=gate)


def pam(dims, channels=16):
    """PositionAttentionModule of DANet's authors: query_conv, key_conv and value_conv."""

    def formula(m, x):
        query, key, value = (layer(x).flatten(2) for layer in (m.query_conv, m.key_conv, m.value_conv))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        return m.gamma * (value @ weights.transpose(1, 2)).reshape(x.shape) + x

    layers = {name: CONV[dims](channels, channels // 8, 1) for name in ("query_conv", "key_conv")}
    tree = Tree(formula, **layers, value_conv=CONV[dims](channels, channels, 1))
    tree.gamma = nn.Parameter(torch.tensor([0.7]))
    return tree


def trained(module):
    """Move everything that a module saves away from where it begins, running statistics among it."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn_like(tensor) + (tensor.ndim == 1))
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_var.uniform_(0.5, 2.0)
    return module


FOREIGN = [
    (aimed, "scse", 8, {"aggregation": "max"}, (2, 3)),
    (smp, "scse", 32, {"reduction": 16, "min_hidden": 1}, (2,)),
    (note_000, "Spatial_Channel_SE", 8, {"reduction": 4, "min_hidden": 1}, (2,)),
    (without_relu, "scSE", 8, {"bias": False, "hidden_act": None}, (2, 3)),
    (senet, "SELayer", 32, {"reduction": 16, "bias": False, "min_hidden": 1}, (2, 3)),
    (senet, "SELayer3D", 32, {"reduction": 16, "min_hidden": 1}, (3,)),  # the absent biases become 0
    (eca, "eca_layer", 8, {}, (2, 3)),
    (eca_depth, "eca_depth_spatial_layer3d", 8, {}, (3,)),
    (project_excite, "pe", 8, {}, (2, 3)),
    (cbam, "cbam", 32, {"norm": "batch", "min_hidden": 1}, (2, 3)),
    (pam, "PAM", 16, {"reduction": 8, "min_hidden": 1}, (2, 3)),
]


@pytest.mark.parametrize(
    ("make", "name", "channels", "options", "dims"),
    [pytest.param(*row[:4], d, id=f"{row[1]}-{d}d-{i}") for i, row in enumerate(FOREIGN) for d in row[4]],
)
def test_foreign_weights_compute_the_same_here(make, name, channels, options, dims):
    foreign = trained(make(dims)).eval()
    block = build_attention(name, channels, spatial_dims=dims, **options).eval()
    load_attention_weights(block, foreign.state_dict())
    x = torch.randn(2, channels, *SIZES[dims])
    torch.testing.assert_close(block(x), foreign(x))


@pytest.mark.parametrize("key", ["gamma", "gamma.scale"])
def test_cam_reads_both_spellings_of_its_factor(key):
    block = build_attention("CAM", 4, spatial_dims=2)
    load_attention_weights(block, {key: torch.tensor(0.3)})
    assert block.gamma.item() == pytest.approx(0.3)


def test_prefix_picks_one_block_out_of_a_network():
    network = nn.ModuleDict({"up": nn.ModuleDict({"att": smp(2)}), "head": nn.Conv2d(32, 2, 1)})
    block = build_attention("scse", 32, spatial_dims=2, reduction=16, min_hidden=1)
    load_attention_weights(block, network.state_dict(), prefix="up.att.")
    x = torch.randn(1, 32, 5, 6)
    torch.testing.assert_close(block(x), network["up"]["att"](x))


def test_image_weights_go_into_a_volume_block():
    block = build_attention("scse", 8, spatial_dims=3, aggregation="max")
    load_attention_weights(block, aimed(2).state_dict())
    assert block.sse.conv.weight.shape == (1, 8, 1, 1, 1)


def test_nothing_matching_names_the_keys_and_leaves_the_block_alone():
    block = build_attention("scse", 8, spatial_dims=2)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    with pytest.raises(InputError, match=r"no known layout of ChannelSpatialSE fits the keys left\.weight"):
        load_attention_weights(block, {"left.weight": torch.zeros(8, 8)})
    torch.testing.assert_close(dict(block.state_dict()), before, rtol=0, atol=0)


def test_left_over_keys_are_refused():
    with pytest.raises(InputError, match="no known layout"):
        load_attention_weights(build_attention("cse", 8, spatial_dims=2), aimed(2).state_dict())


def test_weights_that_act_on_slices_are_not_taken_for_those_of_channels():
    block = build_attention("SELayer3DNew", 32, spatial_dims=3, reduction=16, min_hidden=1, bias=False)
    with pytest.raises(InputError, match="no known layout of SliceSE"):
        load_attention_weights(block, senet(3).state_dict())


def test_a_prefix_without_keys_says_so():
    with pytest.raises(InputError, match=r"\(none\) under the prefix 'nowhere\.'"):
        load_attention_weights(build_attention("eca", 8, spatial_dims=2), eca(2).state_dict(), prefix="nowhere.")


def test_a_bias_without_a_place_is_refused():
    block = build_attention("scse", 8, spatial_dims=2, bias=False)
    with pytest.raises(InputError, match="bias=True"):
        load_attention_weights(block, aimed(2).state_dict())


def test_another_reduction_is_named_with_both_shapes_and_leaves_the_block_alone():
    block = build_attention("scse", 8, spatial_dims=2, reduction=1)
    before = {key: value.clone() for key, value in block.state_dict().items()}
    with pytest.raises(InputError, match=r"cSE\.fc1\.weight has shape \(4, 8\), expected \(8, 8\).*reduction"):
        load_attention_weights(block, aimed(2).state_dict())
    torch.testing.assert_close(dict(block.state_dict()), before, rtol=0, atol=0)
