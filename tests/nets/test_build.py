import json

import pytest
import torch
from tiny import tiny_plan, tiny_plan_2d

from segscse.config import AttentionConfig, ModelConfig
from segscse.errors import InputError
from segscse.nets.build import build_unet, network_arguments


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


def test_an_unknown_attention_name_fails_with_the_list_also_when_a_reduction_is_set():
    config = ModelConfig(attention=AttentionConfig(encoder="nonsense", reduction=4))
    with pytest.raises(InputError, match="unknown attention block 'nonsense'; allowed"):
        network_arguments(tiny_plan(), config)
