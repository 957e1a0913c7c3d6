import pytest
import torch

from segscse.training.muon import MOMENTUM, Muon, as_matrix, orthogonal


@pytest.mark.parametrize("shapes", [[(16, 16)], [(8, 200), (200, 8), (8, 8)], [(1, 27)]])
def test_updates_have_the_singular_vectors_of_their_matrices_and_values_near_one(shapes):
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        rotated = u.T @ found @ v.T  # diagonal when the vectors are the same
        off = rotated - torch.diag(rotated.diagonal())
        assert off.abs().max() < 1e-4
        large = values > 0.02 * matrix.norm()
        assert rotated.diagonal()[large].min() > 0.6
        assert rotated.diagonal().max() < 1.3


def test_orthogonal_does_not_depend_on_the_size_of_the_matrix():
    matrix = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    large, small = orthogonal([1000 * matrix, matrix])
    torch.testing.assert_close(large, small, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(orthogonal([torch.zeros(3, 4)])[0]).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_step_is_the_formula(layout):
    generator = torch.Generator().manual_seed(0)
    start, first, second = (torch.randn(4, 3, 3, 3, 3, generator=generator).to(memory_format=layout) for _ in range(3))
    weights = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    optimizer = Muon([{"params": [weights], "weight_decay": 0.1, "orthogonal": True}], lr=0.02)
    expected, momentum = start.clone(), torch.zeros(4, 3, 3, 3, 3)
    for gradient in (first, second):
        weights.grad = gradient
        optimizer.step()
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        nesterov = (1 - MOMENTUM) * gradient + MOMENTUM * momentum
        update = orthogonal([nesterov.movedim(1, -1).reshape(4, -1)])[0].reshape(4, 3, 3, 3, 3).movedim(-1, 1)
        expected = (1 - 0.02 * 0.1) * expected - 0.02 * 0.2 * 81**0.5 * update
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-5, atol=1e-5)


def test_parameters_of_several_sizes_are_stepped_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((4, 3, 3, 3), (9, 4, 1, 1), (6, 50), (4, 7))]
    gradients = [torch.randn(start.shape, generator=generator) for start in starts]

    def stepped(numbers):
        weights = [torch.nn.Parameter(starts[number].clone()) for number in numbers]
        for weight, number in zip(weights, numbers, strict=True):
            weight.grad = gradients[number]
        Muon([{"params": weights, "weight_decay": 0.1, "orthogonal": True}], lr=0.05).step()
        return [weight.detach() for weight in weights]

    for number, together in enumerate(stepped(range(4))):
        torch.testing.assert_close(together, stepped([number])[0])


def test_vectors_are_left_to_adamw():
    parameters = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    ours = Muon([{"params": [], "orthogonal": True}, {"params": [parameters[0]], "weight_decay": 0.0}], lr=0.01)
    theirs = torch.optim.AdamW([parameters[1]], lr=0.01, weight_decay=0.0)
    for step in range(3):
        for parameter, optimizer in zip(parameters, (ours, theirs), strict=True):
            parameter.grad = torch.arange(5.0) - step
            optimizer.step()
    assert torch.equal(*parameters)


def test_a_closure_is_called_and_parameters_without_gradient_stay():
    used, unused = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [used, unused], "weight_decay": 0.0, "orthogonal": True}], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 4.0
    assert not torch.equal(used, torch.ones(2, 2))
    assert torch.equal(unused, torch.ones(2, 2))


def test_a_stopped_optimiser_goes_on_as_if_it_had_not_been():
    def run(restart):
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(4, 6))
        groups = [{"params": [weights], "weight_decay": 0.01, "orthogonal": True}]
        optimizer = Muon(groups, lr=0.05)
        for step in range(4):
            if restart and step == 2:
                state = optimizer.state_dict()
                optimizer = Muon([{"params": [weights], "weight_decay": 0.01, "orthogonal": True}], lr=0.05)
                optimizer.load_state_dict(state)
            weights.grad = torch.randn(4, 6)
            optimizer.step()
        return weights.detach()

    assert torch.equal(run(restart=True), run(restart=False))


def test_as_matrix_shares_the_memory_of_channels_last_weights():
    weights = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    as_matrix(weights).zero_()
    assert not weights.any()
