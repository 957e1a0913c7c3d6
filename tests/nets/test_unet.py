import pytest
import torch

from segscse import nets
from segscse.attention import ATTENTION, BLOCKS
from segscse.errors import InputError
from segscse.nets.dims import channels_last
from segscse.nets.unet import POSITIONS, UNet

GATES = [name for name, block in BLOCKS.items() if block.kind == "gate"]
OF_SLICES = ("slice_se", "slice_eca", "depth_conv_gate", "eca_depth")  # a 2D image has none
EXTENTS = {2: (16, 8), 3: (16, 8, 8)}


def _input(spatial_dims, channels=2, batch=2):
    return torch.randn(batch, channels, *EXTENTS[spatial_dims])


@pytest.mark.parametrize("block", ["plain", "residual", "selective"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
class TestShapes:
    def test_logits_have_the_images_extent(self, spatial_dims, block):
        network = UNet(spatial_dims, 2, 3, features=(4, 6, 8), block=block).eval()
        assert network(_input(spatial_dims)).shape == (2, 3, *EXTENTS[spatial_dims])

    def test_deep_supervision_gives_a_list_finest_first_in_training_only(self, spatial_dims, block):
        network = UNet(spatial_dims, 2, 3, features=(4, 6, 8, 8), block=block, deep_supervision=True)
        outputs = network(_input(spatial_dims))
        extents = [tuple(n // 2**level for n in EXTENTS[spatial_dims]) for level in range(2)]
        assert [tuple(logits.shape) for logits in outputs] == [(2, 3, *extent) for extent in extents]
        evaluated = network.eval()(_input(spatial_dims))
        assert evaluated.shape == (2, 3, *EXTENTS[spatial_dims])

    def test_training_and_evaluation_give_the_same_finest_logits(self, spatial_dims, block):
        network = UNet(spatial_dims, 2, 3, features=(4, 6, 8), block=block, deep_supervision=True)
        x = _input(spatial_dims)
        torch.testing.assert_close(network(x)[0], network.eval()(x))


def test_anisotropic_strides_and_kernels_leave_a_thin_axis_alone():
    network = UNet(
        3, 1, 2, features=(4, 4, 4), strides=(1, (2, 2, 1), (2, 2, 1)), kernel_sizes=((3, 3, 1), (3, 3, 1), 3)
    ).eval()
    assert network.divisor == (4, 4, 1)
    assert network.encoder[0].conv1[0].weight.shape == (4, 1, 3, 3, 1)
    assert network(torch.randn(1, 1, 8, 12, 5)).shape == (1, 2, 8, 12, 5)


def test_one_stage_is_a_network_too():
    network = UNet(2, 1, 3, features=(4,), deep_supervision=True)
    assert network.eval()(torch.randn(1, 1, 5, 7)).shape == (1, 3, 5, 7)


def test_a_tiny_network_has_the_parameters_counted_by_hand():
    network = UNet(2, 1, 2, features=(4, 8))
    encoder_0 = 4 * 1 * 9 + 8 + 4 * 4 * 9 + 8  # two convolutions without bias, each with weight and bias of the norm
    encoder_1 = 8 * 4 * 9 + 16 + 8 * 8 * 9 + 16
    up = 8 * 4 * 4
    decoder = 4 * 8 * 9 + 8 + 4 * 4 * 9 + 8
    head = 2 * 4 + 2
    assert sum(p.numel() for p in network.parameters()) == encoder_0 + encoder_1 + up + decoder + head


def test_flat_volumes_give_what_the_2d_network_gives():
    """With kernels of one across the last axis, 3D on depth 1 is 2D."""
    flat = UNet(2, 2, 3, features=(4, 6, 8), attention="scse").eval()
    deep = UNet(
        3, 2, 3, features=(4, 6, 8), attention="scse", kernel_sizes=[(3, 3, 1)] * 3, strides=(1, (2, 2, 1), (2, 2, 1))
    ).eval()
    weights = flat.state_dict()
    shapes = {name: value.shape for name, value in deep.state_dict().items()}
    deep.load_state_dict({name: value.reshape(shapes[name]) for name, value in weights.items()})
    x = torch.randn(1, 2, 16, 8)
    torch.testing.assert_close(deep(x[..., None])[..., 0], flat(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(
    ("spatial_dims", "name"), [(dims, name) for dims in (2, 3) for name in GATES if dims == 3 or name not in OF_SLICES]
)
def test_every_parameter_gets_a_gradient(spatial_dims, name, position, deep_supervision):
    torch.manual_seed(0)
    network = UNet(
        spatial_dims, 2, 3, features=(4, 8, 8), attention={position: name}, deep_supervision=deep_supervision
    )
    outputs = network(_input(spatial_dims))
    outputs = outputs if deep_supervision else [outputs]
    sum(logits.square().mean() for logits in outputs).backward()
    unused = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("position", "calls"),
    [("encoder", 2), ("bottleneck", 1), ("decoder", 2), ("decoder_concat", 2), ("skip", 2)],
    ids=lambda v: str(v),
)
def test_the_gate_is_called_once_for_every_stage_of_its_position(position, calls):
    network = UNet(3, 2, 3, features=(4, 6, 8), attention={position: "scse"})
    called = []
    for module in network.modules():
        if type(module) is BLOCKS["scse"]:
            module.register_forward_hook(lambda module, inputs, output: called.append(module.channels))
    network(_input(3))
    assert len(called) == calls
    assert (
        sorted(called)
        == {"encoder": [4, 6], "bottleneck": [8], "decoder": [4, 6], "decoder_concat": [8, 12], "skip": [4, 6]}[
            position
        ]
    )


def test_one_name_stands_for_encoder_and_decoder():
    network = UNet(2, 1, 2, features=(4, 4, 4), attention="scse")
    named = UNet(2, 1, 2, features=(4, 4, 4), attention={"encoder": "scse", "decoder": "scse"})
    assert list(network.state_dict()) == list(named.state_dict())
    assert sum(type(module) is BLOCKS["scse"] for module in network.modules()) == 4


def test_options_reach_the_block():
    wide = UNet(2, 1, 2, features=(16, 16), attention={"encoder": ("cse", {"reduction": 2})})
    narrow = UNet(2, 1, 2, features=(16, 16), attention={"encoder": ("cse", {"reduction": 4})})
    assert wide.encoder[0].attention.mlp.fc1.out_features == 8
    assert narrow.encoder[0].attention.mlp.fc1.out_features == 4


def test_the_initialisation_of_attention_is_its_own():
    """Kaiming weights would be small multiples of noise; ECA's and scSE's start as their papers have them."""
    torch.manual_seed(0)
    network = UNet(2, 1, 2, features=(4, 4), attention={"encoder": ("scse", {"aggregation": "concat"})})
    eye = torch.eye(4)
    torch.testing.assert_close(network.encoder[0].attention.project.weight[..., 0, 0], torch.cat([eye, eye], dim=1))


def test_convolutions_start_with_the_spread_of_he():
    torch.manual_seed(0)
    weight = UNet(3, 32, 2, features=(32, 32)).encoder[0].conv1[0].weight
    expected = (2 / (1 + 0.01**2) / (32 * 27)) ** 0.5
    assert abs(float(weight.detach().std()) - expected) < 0.02 * expected


class TestRefusals:
    def test_an_unknown_attention_block_fails_with_the_list(self):
        with pytest.raises(InputError, match=r"unknown attention block 'scsee'; allowed: .*cbam.*Did you mean 'scse'"):
            UNet(2, 1, 2, attention="scsee")

    def test_an_unknown_position_fails_with_the_list(self):
        with pytest.raises(InputError, match="unknown attention position 'encode'; allowed: bottleneck, decoder"):
            UNet(2, 1, 2, attention={"encode": "scse"})

    def test_an_unknown_block_fails_with_the_list(self):
        with pytest.raises(InputError, match="unknown block 'resnet'; allowed: plain, residual, selective"):
            UNet(2, 1, 2, block="resnet")

    @pytest.mark.parametrize("name", OF_SLICES)
    def test_a_gate_over_slices_is_refused_in_2d(self, name):
        with pytest.raises(InputError, match="2D image has none"):
            UNet(2, 1, 2, attention=name)

    @pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.kind != "gate"] + ["SKConv"])
    def test_a_block_that_replaces_a_convolution_is_no_gate(self, name):
        with pytest.raises(InputError, match="cannot gate a U-Net stage"):
            UNet(2, 1, 2, attention=name)

    def test_lengths_that_differ_are_refused(self):
        with pytest.raises(InputError, match=r"strides must have one entry per stage \(2\), got 3"):
            UNet(2, 1, 2, features=(4, 4), strides=(1, 2, 2))

    @pytest.mark.parametrize(
        "shape", [(1, 2, 8, 8), (1, 2, 8, 8, 7), (1, 3, 8, 8, 8), (8, 8, 8)], ids=["rank", "odd", "channels", "few"]
    )
    def test_an_input_that_does_not_fit_is_refused_with_both_shapes(self, shape):
        network = UNet(3, 2, 2, features=(4, 4))
        with pytest.raises(InputError, match=r"divisible by \(2, 2, 2\), got \(") as caught:
            network(torch.zeros(shape))
        assert str(tuple(shape)) in str(caught.value)


def test_the_package_exports_the_unet():
    assert nets.UNet is UNet


def test_aliases_build_the_same_network_as_their_canonical_name():
    first = UNet(2, 1, 2, features=(4, 4), attention="scSE")
    second = UNet(2, 1, 2, features=(4, 4), attention="scse")
    assert "scSE" in ATTENTION
    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]


def test_half_precision_activations_pass_through():
    network = UNet(2, 1, 2, features=(4, 8), attention="scse").eval()
    x = torch.randn(2, 1, 8, 8)
    for given in (x, channels_last(x)):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            half = network(given)
        assert half.dtype == torch.bfloat16
        expected = network(x).detach()
        torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_a_gate_of_the_concatenation_gates_what_a_decoder_stage_takes():
    network = UNet(2, 1, 2, features=(4, 8), attention={"decoder_concat": "scse"}).eval()
    taken = []
    network.decoder[0].register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    x = torch.randn(1, 1, 8, 8)
    network(x)
    fine = network.encoder[0](x)
    both = torch.cat([fine, network.up[0](network.encoder[1](fine))], dim=1)
    torch.testing.assert_close(taken[0], both * network.concat[0].gate(both))
