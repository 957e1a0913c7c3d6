"""The footprint of a network: bytes counted by hand, and what must and must not change them."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config, tiny_plan, tiny_plan_2d

from segscse.errors import InputError
from segscse.nets.build import build_unet, network_arguments
from segscse.training.footprint import measure_footprint


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3d", "2d"])
def test_it_grows_with_batch_and_attention_and_leaves_the_seed_alone(plan):
    config = tiny_config(model={"attention": {"encoder": "none", "decoder": "none"}})
    state = torch.random.get_rng_state()
    bare = measure_footprint(plan, config)
    assert torch.equal(state, torch.random.get_rng_state())
    assert bare == measure_footprint(plan, config)
    expected = sum(parameter.numel() for parameter in build_unet(network_arguments(plan, config.model)).parameters())
    assert bare.parameters == expected
    image_bytes = 4 * plan.batch_size * torch.Size(plan.patch_size).numel()
    assert bare.peak_bytes > 3 * 4 * bare.parameters + 4 * image_bytes
    larger = measure_footprint(replace(plan, batch_size=2 * plan.batch_size), config)
    assert 1.4 * bare.peak_bytes < larger.peak_bytes < 2 * bare.peak_bytes  # all but the weights doubles
    cbam = measure_footprint(plan, tiny_config(model={"attention": {"encoder": "cbam", "decoder": "cbam"}}))
    assert cbam.peak_bytes > bare.peak_bytes
    assert cbam.parameters > bare.parameters


def test_an_unknown_block_is_refused():
    with pytest.raises(InputError, match="unknown attention block 'x'"):
        measure_footprint(tiny_plan(), tiny_config(model={"attention": {"skip": "x"}}))
