import json

import pytest
import torch
from tiny import tiny_plan, tiny_plan_2d

from segscse.attention import ALIASES, BLOCKS
from segscse.config import AttentionConfig, ModelConfig
from segscse.errors import InputError
from segscse.nets.build import build_unet, check_attention, network_arguments, without_axes


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3d", "2d"])
def test_the_network_fits_the_plan(plan):
    network = build_unet(network_arguments(plan, ModelConfig(spatial_dims=plan.spatial_dims, base_features=4))).eval()
    logits = network(torch.randn(1, 1, *plan.patch_size))
    assert logits.shape == (1, 3, *plan.patch_size)


def test_arguments_survive_json_and_build_the_same_network():
    arguments = network_arguments(tiny_plan(), ModelConfig(base_features=4))
    again = json.loads(json.dumps(arguments))
    assert again == arguments
    first, second = build_unet(arguments), build_unet(again)
    assert [tuple(p.shape) for p in first.parameters()] == [tuple(p.shape) for p in second.parameters()]


def test_features_double_up_to_the_limit():
    arguments = network_arguments(tiny_plan(), ModelConfig(base_features=8, max_features=20))
    assert arguments["features"] == [8, 16, 20]


def test_a_reduction_reaches_only_blocks_that_have_one():
    config = ModelConfig(attention=AttentionConfig(encoder="cse", decoder="eca", reduction=4))
    attention = network_arguments(tiny_plan(), config)["attention"]
    assert attention["encoder"] == ["cse", {"reduction": 4}]
    assert attention["decoder"] == ["eca", {}]
    assert attention["skip"] == ["none", {}]


@pytest.mark.parametrize("name", ["slice_se", "slice_eca", "depth_conv_gate", "eca_depth", "SELayer3DNew"])
@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((4.0, 0.6, 0.6), 0), ((0.6, 4.0, 0.6), 1), ((0.6, 0.6, 4.0), 2), ((1.0, 1.0, 1.0), 2), ((1.0001, 1.0, 1.0), 2)],
)
def test_a_slice_wise_gate_weighs_the_slices_of_the_data(name, spacing_mm, axis):
    config = ModelConfig(base_features=4, attention=AttentionConfig(encoder=name, decoder="none"))
    network = build_unet(network_arguments(tiny_plan(spacing_mm=spacing_mm), config))
    gate = next(module for module in network.modules() if isinstance(module, BLOCKS[ALIASES.get(name, name)]))
    x = torch.randn(1, gate.channels, 3, 4, 5)
    shape = [1, gate.channels, 1, 1, 1]
    shape[2 + axis] = x.shape[2 + axis]
    assert list(gate.gate(x).shape) == shape


def test_an_axis_that_is_asked_for_wins_over_the_data():
    blocks = AttentionConfig(encoder="slice_se:axis=0", decoder="slice_se")
    attention = network_arguments(tiny_plan(spacing_mm=(1.0, 4.0, 1.0)), ModelConfig(attention=blocks))["attention"]
    assert attention["encoder"] == ["slice_se", {"axis": 0}]
    assert attention["decoder"] == ["slice_se", {"axis": 1}]


def test_without_axes_every_gate_takes_that_of_its_name():
    blocks = AttentionConfig(encoder="slice_se", decoder="eca_layer3d", bottleneck="cse", reduction=4)
    arguments = network_arguments(tiny_plan(spacing_mm=(1.0, 4.0, 1.0)), ModelConfig(attention=blocks))
    attention = without_axes(arguments)["attention"]
    assert attention["encoder"] == ["slice_se", {"reduction": 4}]
    assert attention["decoder"] == ["eca_layer3d", {}]
    assert attention["bottleneck"] == ["cse", {"reduction": 4}]
    assert arguments["attention"]["encoder"] == ["slice_se", {"reduction": 4, "axis": 1}]


def test_a_slice_wise_gate_is_refused_in_2d():
    config = ModelConfig(spatial_dims=2, attention=AttentionConfig(encoder="slice_se"))
    with pytest.raises(InputError, match="a 2D image has none"):
        build_unet(network_arguments(tiny_plan_2d(), config))


def test_an_unknown_attention_name_fails_with_the_list_also_when_a_reduction_is_set():
    config = ModelConfig(attention=AttentionConfig(encoder="nonsense", reduction=4))
    with pytest.raises(InputError, match="unknown attention block 'nonsense'; allowed"):
        network_arguments(tiny_plan(), config)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sk", "replaces a convolution"),
        ("scze", "attention block"),
        ("scse:aggregations=max", "scse option"),
        ("scse:aggregation=mean", "aggregation"),
        ("cbam:kernel_size=4", "kernel_size must be odd"),
    ],
)
@pytest.mark.parametrize("position", ["encoder", "decoder_concat"])
def test_attention_that_no_network_can_have_is_refused_before_data_are_read(name, problem, position):
    with pytest.raises(InputError, match=problem):
        check_attention(ModelConfig(attention=AttentionConfig(**{position: name})))


def test_options_of_a_block_reach_the_network_and_win_over_the_shared_reduction():
    attention = AttentionConfig(
        encoder="scse:aggregation=max:reduction=4", decoder="cbam:kernel_size=3x3x1", reduction=2
    )
    network = build_unet(network_arguments(tiny_plan(), ModelConfig(base_features=16, attention=attention)))
    gate, last = network.encoder[0].attention, network.decoder[0].attention
    assert (gate.aggregation, gate.cse.mlp.fc1.out_features) == ("max", 4)
    assert last.spatial.conv.kernel_size == (3, 3, 1)
    assert last.channel.mlp.fc1.out_features == 8
