import math
from functools import partial
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from segscse.config import OptimConfig
from segscse.training.averaging import AVERAGES, AveragedWeights, ema_share, polynomial_share, weight_average


class Line(pl.LightningModule):
    """A module whose weight is a number that gradient descent moves."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.network.weight, 5.0)

    def training_step(self, batch, batch_idx):
        return (self.network(batch) - 1.0).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Callback):
    """Notes the current weight after every step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(float(pl_module.network.weight.detach()))


def _fit(ema, steps, folder):
    recorder, module = Recorder(), Line()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[ema, recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(steps, 1), batch_size=1))
    return module, recorder.weights


def test_polynomial_counts_a_step_as_a_power_of_its_number(tmp_path):
    polynomial = AveragedWeights(polynomial_share)
    _, weights = _fit(polynomial, 12, tmp_path)
    # In a short run the power is 8: with step n counted as n (n + 1) ... (n + 7) the recurrence is exact.
    counts = [math.prod(range(n, n + 8)) for n in range(1, 13)]
    average = sum(count * weight for count, weight in zip(counts, weights, strict=True)) / sum(counts)
    torch.testing.assert_close(float(polynomial.network_state()["weight"]), average, rtol=1e-5, atol=1e-6)


def test_in_a_long_run_the_power_of_polynomial_falls_to_one():
    passed, total = 0.0, 0.0  # the average of the steps' numbers
    for n in range(40000):
        share = polynomial_share(n)
        passed, total = passed + share * (n + 1 - passed), n + 1
    assert passed / total == pytest.approx(2 / 3, abs=0.005)  # of weights that grow as n; 0.9 with a power of 8
    shares = [polynomial_share(n) for n in range(6000)]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)


def test_the_moving_average_equals_a_slow_loop(tmp_path):
    ema = AveragedWeights(partial(ema_share, decay=0.5))
    _, weights = _fit(ema, 12, tmp_path)
    average = weights[0]  # Lightning's first update copies
    for n, weight in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(float(ema.network_state()["weight"]), average, rtol=1e-5, atol=1e-6)


def test_what_is_no_fraction_is_counted_and_not_averaged():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    update = AveragedWeights(lambda n: 0.25)._kwargs["multi_avg_fn"]
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.update_parameters(network)
    before = average.module[1].running_mean.clone()
    network(torch.randn(2, 1, 4, 4))
    average.update_parameters(network)
    assert average.module[1].num_batches_tracked == 1
    expected = before.lerp(network[1].running_mean, 0.25)
    torch.testing.assert_close(average.module[1].running_mean, expected)


def test_after_training_the_module_keeps_its_own_weights(tmp_path):
    module, weights = _fit(AveragedWeights(partial(ema_share, decay=0.9)), 6, tmp_path)
    assert float(module.network.weight.detach()) == weights[-1]


def test_the_average_is_made_where_the_run_trains_and_not_where_the_module_was_made():
    average, module = AveragedWeights(polynomial_share), Line()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, module, "fit")
    assert module.network.weight.device.type == "cpu"
    assert {value.device.type for value in average.network_state().values()} == {"meta"}


def test_before_training_there_is_no_average():
    assert AveragedWeights(polynomial_share).network_state() is None


def test_a_configuration_may_ask_for_none():
    assert weight_average(OptimConfig(average="none")) is None
    assert weight_average(OptimConfig()) is not None


def test_every_average_of_the_configuration_is_there_and_ema_takes_its_decay():
    assert {*AVERAGES, "none"} == set(get_args(get_type_hints(OptimConfig)["average"]))
    share = AVERAGES["ema"](OptimConfig(average="ema", ema_decay=0.75))
    assert share(1000) == pytest.approx(0.25)
