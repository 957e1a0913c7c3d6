"""The kernels against the same arithmetic written down plainly, and finite differences."""

from itertools import permutations

import numpy as np
import pytest
import torch

from segscse.attention import build_attention
from segscse.kernels import function
from segscse.kernels.parts import GateParts, recalibrate, runs_here, watched
from segscse.nets.blocks import ConvNormAct
from segscse.nets.dims import channels_last

CASES = {
    "norm": (True, 1.0, False, False),
    "norm_act": (True, 0.01, False, False),
    "channel": (False, 1.0, True, False),
    "spatial": (False, 1.0, False, True),
    "both": (False, 1.0, True, True),
    "norm_act_channel": (True, 0.01, True, False),
    "norm_act_spatial": (True, 0.01, False, True),
    "all": (True, 0.2, True, True),
}
each_case = pytest.mark.parametrize("case", CASES)


def plain(x, gamma, beta, mix, weight, bias, case, eps=1e-5):
    """Return the result by the formulas, on any layout and type."""
    normed, slope, channel, spatial = CASES[case]
    space = tuple(range(2, x.ndim))
    shape = (1, -1, *[1] * len(space))
    t = x
    if normed:
        mean = x.mean(space, keepdim=True)
        variance = ((x - mean) ** 2).mean(space, keepdim=True)
        t = (x - mean) / torch.sqrt(variance + eps) * gamma.reshape(shape) + beta.reshape(shape)
    t = torch.where(t > 0, t, slope * t)
    if not channel and not spatial:
        return t
    gate = 0.0
    if channel:
        gate = gate + torch.sigmoid(t.mean(space) @ mix).reshape(*t.shape[:2], *[1] * len(space))
    if spatial:
        gate = gate + torch.sigmoid((t * weight.reshape(shape)).sum(1, keepdim=True) + bias)
    return t * gate


def fused(x, gamma, beta, mix, weight, bias, case, eps=1e-5):
    normed, slope, channel, spatial = CASES[case]
    gate = GateParts(
        channel=(lambda z: torch.sigmoid(z @ mix)) if channel else None,
        parameters=(mix,) if channel else (),
        weight=weight.reshape(1, -1, *[1] * (x.ndim - 2)) if spatial else None,
        bias=bias if spatial else None,
    )
    return recalibrate(x, norm=(gamma, beta, eps) if normed else None, slope=slope, gate=gate)


def make(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c = shape[1]
    x = channels_last((2 * torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype))
    sizes = ((c,), (c,), (c, c), (c,), (1,))
    return [x, *(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)]


def gradients(function, values, case, upstream):
    leaves = [value.clone(memory_format=torch.preserve_format).requires_grad_() for value in values]
    out = function(*leaves, case)
    used = torch.autograd.grad(out, leaves, upstream.to(out.dtype), allow_unused=True)
    return out.detach(), used


@each_case
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 20, 33])
@pytest.mark.parametrize("size", [(5, 7), (6, 3, 5)], ids=["2d", "3d"])
def test_result_and_gradients_are_those_of_the_formulas(case, channels, size):
    values = make((3, channels, *size))
    upstream = torch.randn(values[0].shape)
    out, ours = gradients(fused, values, case, upstream)
    expected, theirs = gradients(plain, [value.double() for value in values], case, upstream)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-6)
    for got, wanted in zip(ours, theirs, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-5 * (1 + float(wanted.abs().max())))


@each_case
@pytest.mark.parametrize("channels", [320, 1000])
def test_wide_maps_are_those_of_the_formulas(case, channels):
    values = make((2, channels, 2, 3, 2))
    upstream = torch.randn(values[0].shape)
    out, ours = gradients(fused, values, case, upstream)
    expected, theirs = gradients(plain, [value.double() for value in values], case, upstream)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=2e-5)
    for got, wanted in zip(ours, theirs, strict=True):
        if got is not None:
            torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4 * (1 + float(wanted.abs().max())))


@each_case
def test_gradients_are_those_of_finite_differences(case):
    values = [value.requires_grad_() for value in make((2, 3, 2, 3, 2), torch.float64)]
    assert torch.autograd.gradcheck(lambda *leaves: fused(*leaves, case), values)


@each_case
def test_maps_shared_by_threads_give_what_one_thread_gives(case, monkeypatch):
    values = make((3, 6, 9, 8, 7))
    upstream = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(1))
    alone = gradients(fused, values, case, upstream)
    monkeypatch.setattr("segscse.kernels.function.SHARE", 100)
    for threads in (2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            shared = gradients(fused, values, case, upstream)
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(shared, alone, rtol=1e-5, atol=5e-5)  # both are that far from the exact sums


def test_sums_do_not_depend_on_which_thread_is_the_first(monkeypatch):
    generator = np.random.default_rng(0)
    source = generator.normal(size=(1, 7, 3)) * 10.0 ** generator.integers(-8, 8, (1, 7, 3))
    monkeypatch.setattr(function, "SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)

    def kernel(values, low, high, total):
        total += values[0, low:high].sum(axis=0)

    found = set()
    for order in permutations(range(5)):
        monkeypatch.setattr(function, "run_in_parallel", lambda job, number, order=order: [job(i) for i in order])
        found.add(function._add_up(kernel, (source,), (3,)).tobytes())
    assert len(found) == 1


@each_case
def test_bfloat16_is_rounded_once_at_the_end(case):
    values = make((2, 16, 6, 5, 4))
    values[0] = values[0].bfloat16()
    upstream = torch.randn(values[0].shape).bfloat16()
    out, ours = gradients(fused, values, case, upstream)
    expected, theirs = gradients(plain, [value.double() for value in values], case, upstream)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-5)
    for got, wanted in zip(ours, theirs, strict=True):
        if got is not None:
            scale = float(wanted.abs().max())
            torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=2**-9 * (0.01 + scale) + 1e-4)


def test_bfloat16_rounds_to_even_as_torch_does():
    x = channels_last(torch.randn(1, 8, 16, 16, 4).bfloat16())
    out = recalibrate(x, slope=0.3)
    assert torch.equal(out, torch.where(x > 0, x, (x.float() * torch.tensor(0.3)).bfloat16()))


def test_a_mean_far_from_zero_does_not_cancel():
    x = channels_last(torch.randn(1, 4, 12, 12, 12) + 3000)
    ones, zeros = torch.ones(4), torch.zeros(4)
    out = recalibrate(x, norm=(ones, zeros, 1e-5))
    expected = torch.nn.functional.instance_norm(x.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-3)  # x itself has steps of 2.4e-4
    assert abs(float(out.std()) - 1) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    for dtype in (torch.float32, torch.bfloat16):
        values = make((1, 4, 3, 3, 3))
        values[0] = values[0].to(dtype)
        values[0][0, 1, 1, 1, 1] = value
        assert not torch.isfinite(fused(*values, "all")).all()
        assert not torch.isfinite(fused(*values, "both")[0, 1, 1, 1, 1])


def test_nothing_but_the_input_and_numbers_per_channel_is_kept():
    values = [value.requires_grad_() for value in make((2, 8, 10, 10, 10))]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fused(*values, "all")
    large = [tensor for tensor in kept if tensor.numel() >= values[0].numel() // 8]
    assert [tensor.data_ptr() for tensor in large] == [values[0].data_ptr()]


def test_a_second_backward_pass_gives_the_same():
    values = [value.requires_grad_() for value in make((2, 4, 3, 4, 5))]
    out = fused(*values, "all")
    upstream = torch.randn_like(out)
    first = torch.autograd.grad(out, values, upstream, retain_graph=True)
    second = torch.autograd.grad(out, values, upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_layout_of_the_input_is_kept_and_any_upstream_layout_taken():
    values = [value.requires_grad_() for value in make((2, 4, 3, 4, 5))]
    out = fused(*values, "all")
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    upstream = torch.randn(out.shape)
    wanted = torch.autograd.grad(out, values[0], channels_last(upstream), retain_graph=True)[0]
    assert wanted.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(torch.autograd.grad(out, values[0], upstream, retain_graph=True)[0], wanted)
    expanded = torch.autograd.grad(out.sum(), values[0], retain_graph=True)[0]
    assert torch.equal(expanded, torch.autograd.grad(out, values[0], torch.ones_like(out))[0])


class TestRunsHere:
    def test_takes_channels_last_maps_of_the_cpu(self):
        assert runs_here(channels_last(torch.randn(2, 3, 4, 5)))
        assert runs_here(channels_last(torch.randn(2, 3, 4, 5, 6)).bfloat16())

    @pytest.mark.parametrize(
        "x",
        [
            torch.randn(2, 3, 4, 5),  # contiguous: its layout is kept, too, by torch's own operations
            channels_last(torch.randn(2, 3, 4, 5)).half(),
            channels_last(torch.randn(1, 1025, 2, 2)),
            torch.empty(0, 3, 4, 5),
            torch.randn(2, 3, 4),
            torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last),
        ],
        ids=["contiguous", "half", "wide", "empty", "1d", "meta"],
    )
    def test_leaves_the_rest_to_torch(self, x):
        assert not runs_here(x)

    def test_leaves_traced_maps_to_torch(self):
        seen = []

        class Layer(torch.nn.Module):
            def forward(self, x):
                seen.append(runs_here(x))
                return x + 1

        x = channels_last(torch.randn(1, 2, 3, 3))
        torch.jit.trace(Layer(), x, check_trace=False)
        torch.export.export(Layer(), (x,))
        assert seen
        assert not any(seen)


@pytest.mark.parametrize("name", ["none", "cse", "sse", "scse", "eca"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_block_is_its_layers_one_after_the_other(name, dims):
    torch.manual_seed(0)
    block = ConvNormAct(dims, 3, 12)
    attention = build_attention(name, 12, spatial_dims=dims)
    with torch.no_grad():
        block.norm.weight.normal_()
        block.norm.bias.normal_()
    x = torch.randn(2, 3, *(6, 5, 4)[:dims])
    layered = attention(block.act(block.norm(block[0](x))))  # contiguous: torch's operations
    out = block.to(memory_format={2: torch.channels_last, 3: torch.channels_last_3d}[dims])(channels_last(x), attention)
    torch.testing.assert_close(out, layered, rtol=1e-5, atol=1e-5)


def test_a_hook_on_a_layer_is_called():
    block, attention = ConvNormAct(2, 3, 8), build_attention("scse", 8, spatial_dims=2)
    x = channels_last(torch.randn(1, 3, 6, 6))
    expected = block(x, attention)
    for layer in (block.norm, block.act, attention, attention.sse.conv):
        seen = []
        handle = layer.register_forward_hook(lambda *given, seen=seen: seen.append(given))
        assert watched(block, attention)
        torch.testing.assert_close(block(x, attention), expected, rtol=1e-5, atol=1e-6)
        handle.remove()
        assert len(seen) == 1
    assert not watched(block, attention, None)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_on_a_layer_is_called(register):
    block, attention = ConvNormAct(2, 3, 8), build_attention("scse", 8, spatial_dims=2)
    x = channels_last(torch.randn(1, 3, 6, 6))
    (expected,) = torch.autograd.grad(block(x, attention).square().sum(), block[0].weight)
    for layer in (block.norm, block.act, attention, attention.sse.conv):
        seen = []
        handle = getattr(layer, register)(lambda *given, seen=seen: seen.append(given))
        (found,) = torch.autograd.grad(block(x, attention).square().sum(), block[0].weight)
        handle.remove()
        assert len(seen) == 1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_hook_on_the_normalisation_sees_its_map():
    block = ConvNormAct(2, 3, 8)
    seen = []
    block.norm.register_forward_hook(lambda layer, given, out: seen.append(out))
    block(channels_last(torch.randn(1, 3, 6, 6)))
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), torch.zeros(1, 8), rtol=0, atol=1e-6)


def test_parameters_that_need_no_gradient_get_none():
    values = make((1, 4, 3, 3))
    out = fused(*values, "all")
    assert not out.requires_grad
    values[0].requires_grad_()
    out = fused(*values, "all")
    out.sum().backward()
    assert values[0].grad is not None
    assert all(value.grad is None for value in values[1:])


def test_half_precision_weights_are_read_in_full():
    attention = build_attention("scse", 8, spatial_dims=2).bfloat16()
    x = channels_last(torch.randn(1, 8, 5, 5).bfloat16())
    expected = attention(x.contiguous())
    torch.testing.assert_close(attention(x).float(), expected.float(), rtol=2**-6, atol=2**-6)
    assert np.isfinite(attention(x).float().detach().numpy()).all()
