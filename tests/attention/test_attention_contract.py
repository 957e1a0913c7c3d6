"""What every block promises, whatever its name."""

from __future__ import annotations

import copy

import pytest
import torch

from segscse.attention import (
    ALIASES,
    ATTENTION,
    BLOCKS,
    PRESETS,
    AttentionBlock,
    block_options,
    build_attention,
)
from segscse.errors import InputError

ONLY_3D = {"slice_se", "slice_eca", "depth_conv_gate", "eca_depth"}
SIZES = {2: (7, 9), 3: (5, 6, 7)}
CASES = [(name, dims) for name in BLOCKS for dims in (2, 3) if dims == 3 or name not in ONLY_3D]
NOT_A_FACTOR = {"sk", "danet_cam", "danet_pam"}
RANGES = {"none": (1, 1), "scse": (0, 2), "bam": (1, 2)}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

each_block = pytest.mark.parametrize(("name", "dims"), CASES)


def lively(name, channels, dims, **options):
    """Return a block with random weights, so that nothing hides behind a zero initialisation."""
    block = build_attention(name, channels, spatial_dims=dims, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
    return block


@each_block
@pytest.mark.parametrize("channels", [1, 3, 8, 20])
def test_shape_is_kept_at_batch_size_one_in_training(name, dims, channels):
    block = lively(name, channels, dims).train()
    x = torch.randn(1, channels, *SIZES[dims])
    y = block(x)
    assert y.shape == x.shape
    assert block.out_channels == channels
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(("name", "dims"), [case for case in CASES if case[0] not in NOT_A_FACTOR])
def test_forward_is_the_input_times_the_gate(name, dims):
    block = lively(name, 8, dims)
    x = torch.randn(2, 8, *SIZES[dims])
    torch.testing.assert_close(block(x), x * block.gate(x))


@each_block
def test_gate_is_in_its_range_and_in_fp32(name, dims):
    gate = lively(name, 8, dims).gate(torch.randn(2, 8, *SIZES[dims]))
    low, high = RANGES.get(name, (0, 1))
    assert gate.dtype == torch.float32
    assert gate.min() >= low
    assert gate.max() <= high


@each_block
def test_memory_format_changes_nothing(name, dims):
    block = lively(name, 8, dims).double()  # sums in another order differ by more than 1e-6 in 32 bits
    x = torch.randn(2, 8, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(block(x.contiguous(memory_format=CHANNELS_LAST[dims])), block(x))


@each_block
def test_every_parameter_gets_a_gradient(name, dims):
    block = lively(name, 8, dims)
    x = torch.randn(2, 8, *SIZES[dims], requires_grad=True)
    (block(x) * torch.randn_like(x)).sum().backward()
    assert x.grad is not None
    for key, parameter in block.named_parameters():
        assert parameter.grad is not None, key
        if key != "key.bias":  # a bias of PAM's keys shifts all energies of a row alike
            assert parameter.grad.abs().sum() > 0, key


@each_block
def test_bf16_autocast_stays_close_and_keeps_the_gate_in_fp32(name, dims):
    block = lively(name, 8, dims).eval()
    x = torch.rand(2, 8, *SIZES[dims])
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual, gate = block(x), block.gate(x)
    assert gate.dtype == torch.float32
    assert (actual.float() - expected).abs().max() < 0.02 * expected.abs().max()


@each_block
def test_half_precision_weights_work(name, dims):
    block = lively(name, 8, dims).bfloat16()
    y = block(torch.randn(1, 8, *SIZES[dims], dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert torch.isfinite(y).all()


@each_block
def test_double_precision_is_not_lowered(name, dims):
    block = lively(name, 8, dims).double()
    x = torch.randn(1, 8, *SIZES[dims], dtype=torch.float64)
    assert block(x).dtype == torch.float64
    assert block.gate(x).dtype == torch.float64


@each_block
def test_runs_on_the_meta_device(name, dims):
    block = build_attention(name, 8, spatial_dims=dims).to("meta")
    assert block(torch.empty(1, 8, *SIZES[dims], device="meta")).shape == (1, 8, *SIZES[dims])


@each_block
def test_state_round_trip_gives_the_same_output(name, dims):
    block, other = lively(name, 8, dims), build_attention(name, 8, spatial_dims=dims)
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 8, *SIZES[dims])
    torch.testing.assert_close(other(x), block(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(block)(x), block(x), rtol=0, atol=0)


@each_block
def test_input_of_another_rank_is_refused(name, dims):
    block = build_attention(name, 8, spatial_dims=dims)
    with pytest.raises(InputError, match=r"takes an input of . axes \(B, C, \*S\), got"):
        block(torch.randn(1, 8, *SIZES[5 - dims]))


@pytest.mark.parametrize("name", sorted(ONLY_3D))
def test_slice_blocks_refuse_2d_with_the_reason(name):
    with pytest.raises(InputError, match="2D image has none"):
        build_attention(name, 8, spatial_dims=2)


@pytest.mark.parametrize("dims", [1, 4, "3"])
@pytest.mark.parametrize("name", BLOCKS)
def test_other_ranks_are_refused(name, dims):
    with pytest.raises(InputError, match="spatial_dims must be 2 or 3"):
        build_attention(name, 8, spatial_dims=dims)


@pytest.mark.parametrize("channels", [0, -1, 2.0, True])
def test_channels_must_be_a_positive_integer(channels):
    with pytest.raises(InputError, match="channels must be an integer of at least 1"):
        build_attention("scse", channels, spatial_dims=2)


def test_unknown_name_lists_the_names_and_the_closest():
    with pytest.raises(InputError, match=r"unknown attention block 'scze'; allowed: .*eca.*Did you mean 'scse'"):
        build_attention("scze", 8, spatial_dims=2)


def test_options_of_an_unknown_name_are_refused_alike():
    with pytest.raises(InputError, match=r"unknown attention block 'ecca'.*Did you mean 'eca'"):
        block_options("ecca")


def test_unknown_option_lists_the_options_and_the_closest():
    message = r"unknown scse option 'reducton'; allowed: aggregation, bias.*Did you mean 'reduction'"
    with pytest.raises(InputError, match=message):
        build_attention("scse", 8, spatial_dims=2, reducton=4)


def test_option_of_another_block_is_refused():
    with pytest.raises(InputError, match="unknown eca option 'reduction'"):
        build_attention("eca", 8, spatial_dims=2, reduction=4)


def test_option_for_none_says_that_there_are_none():
    with pytest.raises(InputError, match="'none' takes no options, got 'reduction'"):
        build_attention("none", 8, spatial_dims=2, reduction=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scse", {"reduction": 0}, "reduction must be an integer of at least 1, got 0"),
        ("scse", {"reduction": "2"}, "reduction must be an integer"),
        ("scse", {"min_hidden": 0}, "min_hidden must be"),
        ("scse", {"aggregation": "sum"}, "unknown aggregation 'sum'; allowed: add, concat, max, mul"),
        ("cse", {"bias": "yes"}, "bias must be true or false, got 'yes'"),
        ("cse", {"hidden_act": "rellu"}, "unknown hidden_act 'rellu'.*Did you mean 'relu'"),
        ("eca", {"kernel_size": 4}, "kernel_size must be odd, got 4. Use 3 or 5"),
        ("eca", {"kernel_size": 19, "circular": True}, "wraps more than once"),
        ("slice_se", {"axis": 3}, "axis must be from -3 to 2, got 3"),
        ("cbam", {"kernel_size": (3, 7)}, "expected 3 values"),
        ("cbam", {"kernel_size": (3, 7, 2)}, "kernel_size must be odd"),
        ("cbam", {"norm": "layer"}, "unknown norm 'layer'"),
        ("bam", {"form": "sum"}, "unknown form 'sum'"),
        ("bam", {"min_hidden": 1}, "norm over 1 hidden unit is constant"),
        ("sk", {"branches": 1}, "branches must be an integer of at least 2"),
        ("sk", {"groups": 3}, "groups must divide the 8 channels, got 3"),
        ("danet_cam", {"similarity": "cosine"}, "unknown similarity 'cosine'"),
    ],
)
def test_bad_option_value_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        build_attention(name, 8, spatial_dims=3, **options)


def test_every_name_builds_the_block_it_stands_for():
    assert set(ATTENTION) == {*BLOCKS, *ALIASES}
    for alias, name in ALIASES.items():
        assert type(build_attention(alias, 8, spatial_dims=3)) is BLOCKS[name]


def test_every_block_is_an_attention_block_and_only_sk_replaces_a_convolution():
    assert {name for name, block in BLOCKS.items() if block.kind == "conv"} == {"sk"}
    assert all(issubclass(block, AttentionBlock) for block in BLOCKS.values())


def test_presets_change_defaults_and_can_be_overridden():
    assert block_options("ENCAM")["reduction"] == 8
    assert block_options("cbam_channel")["reduction"] == 16
    assert build_attention("ENCAM", 64, spatial_dims=2).mlp.fc1.out_features == 8
    assert build_attention("ENCAM", 64, spatial_dims=2, reduction=4).mlp.fc1.out_features == 16
    assert all(block_options(alias).keys() >= preset.keys() for alias, preset in PRESETS.items())
