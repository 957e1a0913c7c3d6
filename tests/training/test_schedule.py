import math
from typing import get_args, get_type_hints

import pytest
import torch

from segscse.config import OptimConfig
from segscse.training.muon import Muon
from segscse.training.schedule import SCHEDULES, build_optimizer, lr_factor, peak_rate


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.05, 0.5),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.5),
        ("cosine", 1.0, 0.0),
        ("poly", 0.1, 1.0),
        ("poly", 0.55, 0.5**0.9),
        ("poly", 1.0, 0.0),
        ("constant", 0.05, 0.5),
        ("constant", 1.0, 1.0),
    ],
)
def test_the_rate_rises_linearly_and_then_follows_the_schedule(schedule, progress, expected):
    config = OptimConfig(schedule=schedule, warmup=0.1)
    assert lr_factor(config, progress) == pytest.approx(expected, abs=1e-12)


def test_the_first_step_learns_something():
    assert lr_factor(OptimConfig(warmup=0.1), 0.0) == 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_warm_up_it_starts_at_the_peak(schedule):
    assert lr_factor(OptimConfig(schedule=schedule, warmup=0.0), 0.0) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_never_rises_after_the_warm_up_nor_leaves_0_to_1(schedule):
    config = OptimConfig(schedule=schedule, warmup=0.2)
    values = [lr_factor(config, 0.2 + 0.8 * k / 100) for k in range(101)]
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)
    assert not isinstance(lr_factor(config, 1.0 + 1e-12), complex)  # a base below zero to the power 0.9 would be


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("muon", Muon)])
def test_matrices_decay_and_vectors_do_not(name, kind):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = build_optimizer(network.parameters(), OptimConfig(name=name, lr=0.1, weight_decay=0.3))
    assert type(optimizer) is kind
    decayed, kept = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert [tuple(p.shape) for p in kept["params"]] == [(2,), (2,), (2,)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert (decayed.get("orthogonal"), kept.get("orthogonal")) == ((True, None) if name == "muon" else (None, None))
    assert decayed["lr"] == kept["lr"] == 0.1


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimConfig)["name"]))
def test_every_optimiser_has_a_rate_of_its_own_that_a_given_one_replaces(name):
    assert build_optimizer([torch.nn.Parameter(torch.ones(2, 2))], OptimConfig(name=name)).defaults["lr"] > 0
    assert peak_rate(OptimConfig(name=name, lr=0.25)) == 0.25
    assert peak_rate(OptimConfig(name=name)) != 0.25


@pytest.mark.parametrize(("name", "decay"), [("muon", 1e-2), ("adamw", 1e-2), ("sgd", 3e-5)])
def test_every_optimiser_has_a_weight_decay_of_its_own(name, decay):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    assert build_optimizer([weight], OptimConfig(name=name)).param_groups[0]["weight_decay"] == decay
    assert build_optimizer([weight], OptimConfig(name=name, weight_decay=0.0)).param_groups[0]["weight_decay"] == 0


def test_sgd_takes_the_nesterov_step_worked_out_by_hand():
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer([weight], OptimConfig(name="sgd", lr=0.1, weight_decay=0.0))
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    assert float(weight.detach()) == pytest.approx(2.0 - 0.1 * (1 + 0.99))


def test_adamws_first_step_is_the_rate_whatever_the_gradient():
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer([weight], OptimConfig(name="adamw", lr=0.1, weight_decay=0.0))
    weight.grad = torch.tensor([[1e-3]])
    optimizer.step()
    assert math.isclose(float(weight.detach()), 1.9, abs_tol=1e-4)
