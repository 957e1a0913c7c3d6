import math

import pytest
import torch
from apple import OnMps

from segscse.training.soft_counts import MANY_CLASSES, _SoftCounts, dense_counts, soft_counts


def _batch(classes, extent, dtype=torch.float32):
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(2, classes, *extent, generator=generator, dtype=dtype)
    return logits, torch.randint(0, classes, (2, *extent), generator=generator)


def test_one_voxel_is_worked_out_by_hand():
    """Probabilities 1/6, 2/6 and 3/6 at a voxel of class 1, and again at one of class 0."""
    logits = torch.tensor([1.0, 2.0, 3.0]).log().view(1, 3, 1).expand(1, 3, 2)
    entropy = (math.log(3) + math.log(6)) / 2
    expected = torch.tensor([entropy, 1 / 3, 0.0, 2 / 3 + 1, 1.0])
    for count in (soft_counts, _SoftCounts.apply):
        torch.testing.assert_close(count(logits, torch.tensor([[1, 0]])), expected)


@pytest.mark.parametrize("extent", [(7, 5), (4, 5, 3)], ids=["2D", "3D"])
@pytest.mark.parametrize("classes", [2, MANY_CLASSES - 1, MANY_CLASSES, 41])
def test_values_and_gradients_are_those_of_separate_operations(classes, extent):
    logits, target = _batch(classes, extent, torch.float64)
    weights = torch.randn(2 * classes - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for count in (soft_counts, dense_counts, _SoftCounts.apply):
        leaf = logits.clone().requires_grad_()
        counts = count(leaf, target)
        (counts * weights).sum().backward()
        found.append((counts.detach(), leaf.grad))
    for counts, gradient in found[1:]:
        torch.testing.assert_close(counts, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


def test_gradients_are_those_of_finite_differences():
    logits, target = _batch(4, (3, 2), torch.float64)
    assert torch.autograd.gradcheck(lambda x: _SoftCounts.apply(x, target), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_classes_in_channels_last_memory_and_low_precision(dtype):
    logits, target = _batch(MANY_CLASSES, (6, 5, 4))
    exact = logits.to(dtype).double().requires_grad_()
    dense_counts(exact, target).sum().backward()
    low = logits.to(dtype).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    counts = soft_counts(low, target)
    counts.sum().backward()
    assert (counts.dtype, low.grad.dtype) == (torch.float32, dtype)
    assert low.grad.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(low.grad.double(), exact.grad, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_autocast_does_not_touch_them():
    logits, target = _batch(MANY_CLASSES, (16, 15, 14))
    expected = dense_counts(logits.double(), target)
    with torch.autocast("cpu", torch.bfloat16):
        counts = soft_counts(logits, target)
    torch.testing.assert_close(counts.double(), expected, rtol=1e-6, atol=1e-6)


def test_a_device_without_float64_counts_in_float32():
    logits, target = _batch(MANY_CLASSES, (6, 5, 4))
    counts = _SoftCounts.apply(logits.as_subclass(OnMps), target.as_subclass(OnMps))
    torch.testing.assert_close(counts.cpu(), dense_counts(logits, target))


def test_hundreds_of_thousands_of_voxels_of_a_class_are_counted_exactly():
    target = torch.full((1, 128, 128, 64), 1)
    logits = torch.zeros(1, MANY_CLASSES, 128, 128, 64)
    logits[:, 1] = 100
    counts = soft_counts(logits, target)
    assert float(counts[1]) == target.numel()
    assert float(counts[MANY_CLASSES]) == 2 * target.numel()


@pytest.mark.parametrize("count", [soft_counts, _SoftCounts.apply])
def test_certain_mistakes_cost_finitely_much(count):
    logits = torch.full((1, MANY_CLASSES, 2), -1e4)
    logits[:, 3] = 1e4
    logits.requires_grad_()
    counts = count(logits, torch.tensor([[3, 5]]))
    assert float(counts[0].detach()) == pytest.approx(1e4)
    counts[0].backward()
    assert logits.grad.isfinite().all()
