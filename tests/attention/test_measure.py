import time

import pytest
import torch
from torch import nn

from segscse.attention import ATTENTION, BLOCKS, AttentionBlock, build_attention, measure
from segscse.attention.measure import MapSetting, measure_blocks, saved_bytes
from segscse.attention.papers import SOURCES, Source
from segscse.errors import InputError
from segscse.nets.dims import channels_last

SHAPE = (2, 8, 5, 6, 7)
POSITIONS = 2 * 5 * 6 * 7
SMALL = MapSetting((5, 6, 7), channels=8, repeats=1, device="cpu", precision="fp32")


class Computes(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(SHAPE))

    def forward(self, x):
        return self.function(x, self.weight)


def drop_a_graph(x):
    x.exp().exp()
    return x + 1


class TestSavedBytes:
    @pytest.mark.parametrize(
        ("function", "maps"),
        [
            (lambda x, w: x + 1, 0),
            (lambda x, w: x**2, 0),  # keeps the input alone
            (lambda x, w: x * w, 0),  # input and parameter
            (lambda x, w: x.exp(), 1),
            (lambda x, w: x * x.sigmoid(), 1),  # of which both operations keep the same
            (lambda x, w: x.exp().flatten() ** 2, 1),  # a view is no second storage
            (lambda x, w: x.exp().exp(), 2),
            (lambda x, w: x.flatten()[: x.numel() // 2] ** 2, 0),  # a part of the input
            (lambda x, w: drop_a_graph(x), 0),  # died with the graph
        ],
    )
    def test_of_operations_counted_by_hand(self, function, maps):
        x = torch.randn(SHAPE, requires_grad=True)
        assert saved_bytes(Computes(function), x) == maps * 4 * x.numel()

    def test_of_a_composed_spatial_gate_is_its_gate(self):
        x = torch.randn(SHAPE, requires_grad=True)
        assert saved_bytes(build_attention("sse", 8, spatial_dims=3), x) == 4 * POSITIONS

    def test_of_the_kernels_is_nothing_the_size_of_the_map(self):
        x = channels_last(torch.randn(SHAPE)).requires_grad_()
        assert saved_bytes(build_attention("sse", 8, spatial_dims=3), x) == 0
        assert saved_bytes(build_attention("scse", 8, spatial_dims=3), x) < 1000


class Spy(AttentionBlock):
    """Sleeps 10 ms forward and 20 ms backward, and notes how it is called."""

    def __init__(self, channels, *, spatial_dims):
        super().__init__(channels, spatial_dims=spatial_dims)
        self.weight = nn.Parameter(torch.ones(3, channels))
        self.calls = []
        made.append(self)

    def gate(self, x):
        return x.new_ones(())

    def apply_gate(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last_3d)
        autocast = torch.is_autocast_enabled("cpu")
        self.calls.append((self.training, torch.is_grad_enabled(), x.dtype, last, autocast, tuple(x.shape)))
        return Sleeps.apply(x, self.weight)


class Sleeps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        time.sleep(0.01)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.02)
        return gradient, torch.ones(3, gradient.shape[1])


made = []


@pytest.fixture
def spy(monkeypatch):
    made.clear()
    for table, value in ((ATTENTION, Spy), (BLOCKS, Spy), (SOURCES, Source(note="a spy"))):
        monkeypatch.setitem(table, "spy", value)
    return made


class TestMeasureBlocks:
    def test_every_block_has_a_row_with_the_parameters_it_has(self):
        table = measure_blocks(SMALL)
        assert [row.name for row in table.rows] == list(BLOCKS)
        for row in table.rows:
            block = build_attention(row.name, 8, spatial_dims=3)
            assert row.cost.parameters == sum(parameter.numel() for parameter in block.parameters())
            assert row.source == SOURCES[row.name]
            assert row.replaces_convolution == (row.name == "sk")
            assert row.cost.inference_ms > 0
            assert row.cost.training_ratio == pytest.approx(row.cost.training_ms / table.copy_ms)
            assert row.cost.inference_ratio == pytest.approx(row.cost.inference_ms / table.copy_ms)
        assert (table.device, table.precision, table.threads) == ("cpu", "fp32", 1)

    def test_known_counts_of_parameters(self):
        table = measure_blocks(SMALL, ["ENCAM", "cbam_channel", "eca", "sse", "ENCAM"])
        # ENCAM: 8 -> 4 -> 8 without biases, the floor of 4 hidden units; twice the same name is one row
        assert [(row.name, row.block, row.cost.parameters) for row in table.rows] == [
            ("ENCAM", "cbam_channel", 64),
            ("cbam_channel", "cbam_channel", 76),
            ("eca", "eca", 3),
            ("sse", "sse", 9),
        ]
        assert table.rows[0].aliases == ("ChannelAttentionModule", "ChannelAttention", "ENCAM")

    def test_times_hold_what_the_block_takes_forward_and_backward(self, spy):
        cost = measure_blocks(SMALL, ["spy"]).rows[0].cost
        assert cost.inference_ms >= 10
        assert cost.training_ms >= 30

    @pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
    def test_the_map_is_the_one_asked_for(self, precision, dtype, spy):
        setting = MapSetting((5, 6, 7), channels=8, batch=3, repeats=2, device="cpu", precision=precision)
        measure_blocks(setting, ["spy"])
        how = (dtype, True, precision == "bf16", (3, 8, 5, 6, 7))
        assert spy[0].calls[0] == (True, True, *how)  # for the memory
        assert spy[0].calls[1:] == [(False, False, *how), (True, True, *how)] * 3  # a round to warm up, and two

    def test_the_median_counts_and_the_first_round_does_not(self, monkeypatch):
        # copy, inference, training of every round
        seconds = iter([9, 9, 9, 0.1, 1, 10, 0.3, 2, 30, 0.2, 6, 20])

        def scripted(work, device):
            work()
            return next(seconds)

        monkeypatch.setattr(measure, "_seconds", scripted)
        table = measure_blocks(MapSetting((4, 4), channels=2, repeats=3, device="cpu"), ["eca"])
        cost = table.rows[0].cost
        assert (table.copy_ms, cost.inference_ms, cost.training_ms) == pytest.approx((200, 2000, 20_000))
        assert (cost.inference_ratio, cost.training_ratio) == pytest.approx((10, 100))

    def test_progress_counts_every_visit(self):
        seen = []
        measure_blocks(SMALL, ["cse", "eca", "sse"], progress=lambda done, total: seen.append((done, total)))
        assert seen == [(done, 6) for done in range(1, 7)]

    def test_slices_are_left_out_in_2d_with_the_reason(self):
        setting = MapSetting((6, 7), channels=8, repeats=1, device="cpu")
        rows = {row.name: row for row in measure_blocks(setting).rows}
        left_out = {name for name, row in rows.items() if row.cost is None}
        assert left_out == {"slice_se", "slice_eca", "depth_conv_gate", "eca_depth"}
        assert "2D image has none" in rows["slice_se"].skipped
        assert all(row.skipped == "" for row in rows.values() if row.cost is not None)

    def test_what_compares_all_positions_is_left_out_before_it_fills_the_memory(self):
        # three (2, N, N) matrices in fp32 of N = 64 * 128 positions
        gib = 3 * 2 * 8192**2 * 4 / 2**30
        fits = MapSetting((64, 128), channels=1, repeats=1, device="cpu", memory_gib=gib)
        assert measure._too_large(build_attention("danet_pam", 1, spatial_dims=2), fits) == ""
        setting = MapSetting((64, 128), channels=1, repeats=1, device="cpu", memory_gib=gib * 0.99)
        pam, cam = measure_blocks(setting, ["PAM", "CAM"]).rows
        assert pam.cost is None
        assert "8,192 positions against each other, which can take 1.5 GiB, more than --memory-gib 1.485" in pam.skipped
        assert cam.cost is not None

    def test_nothing_to_measure_is_an_error_with_the_reason(self):
        setting = MapSetting((6, 7), channels=8, repeats=1, device="cpu")
        with pytest.raises(InputError, match=r"none of the blocks can be measured: .*image has none"):
            measure_blocks(setting, ["slice_se", "SELayer3DNew"])

    def test_an_unknown_name_fails_with_the_list(self):
        with pytest.raises(InputError, match=r"unknown attention block 'csee'.*Did you mean 'cse'"):
            measure_blocks(SMALL, ["cse", "csee"])


class TestMapSetting:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"size": (4,)}, "--size must be two or three positive numbers"),
            ({"size": (4, 4, 4, 4)}, "--size must be two or three positive numbers"),
            ({"size": (4, 0)}, r"--size must be .*got \(4, 0\)"),
            ({"channels": 0}, "--channels must be at least 1, got 0"),
            ({"batch": -1}, "--batch must be at least 1, got -1"),
            ({"repeats": 0}, "--repeats must be at least 1, got 0"),
            ({"memory_gib": 0.0}, "--memory-gib must be above 0, got 0.0"),
            ({"memory_gib": float("nan")}, "--memory-gib must be above 0, got nan"),
            (
                {"size": (2000, 2000, 2000)},
                r"maps of \(2, 32, 2000, 2000, 2000\) would take .* GiB.*smaller --size",
            ),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_made(self, fields, expected):
        with pytest.raises(InputError, match=expected):
            MapSetting(**fields)

    def test_the_default_is_the_map_of_the_hippocampus_network(self):
        assert MapSetting().shape == (2, 32, 40, 56, 40)
        assert MapSetting().map_bytes == 2 * 32 * 40 * 56 * 40 * 4
