"""Bytes of tensors beside what hand counts say."""

import torch

from segscse.tensor_bytes import TensorBytes


def test_bytes_live_as_long_as_their_tensors():
    with TensorBytes() as counter:
        weight = torch.ones(1000, requires_grad=True)
        result = (weight * 2).exp()  # the product is freed, the exponential is kept for the backward pass
        assert counter.peak == 12_000
        view = result[:500]
        total = result.sum()
        assert counter.peak == 12_000  # views are no memory of their own, the sum fits where the product was
        del result, view
        total.backward()  # of 4 bytes and one: the gradients of exponential, product and weight, one after the other
        assert 12_000 < counter.peak <= 20_008
        assert weight.grad is not None


def test_tensors_made_elsewhere_are_not_counted():
    torch.ones(1000)
    with TensorBytes() as counter:
        torch.ones(10)
    torch.ones(1000)
    assert counter.peak == 40
