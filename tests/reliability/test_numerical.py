"""Numbers at the edges. Elsewhere, not repeated here:

counts and Dice beyond 2**24 voxels: tests/evaluation/test_reference_values.py; constant images and sums in 64 bits:
tests/data/test_transforms.py; single voxels: tests/evaluation/test_reference_values.py; windows of constant logits for
six shapes, and one window equal to one pass: tests/inference/test_sliding_window.py; a rate that makes the loss
overflow: tests/training/test_run.py.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_config, tiny_plan

from segscse.config import ExperimentConfig, OptimConfig
from segscse.data import fingerprint
from segscse.data.sampling import PatchSampler
from segscse.errors import InputError, SegscseError
from segscse.files import is_temporary
from segscse.inference.predictor import load
from segscse.training.clock import RunClock
from segscse.training.losses import dice_ce_loss
from segscse.training.module import SegModule
from segscse.training.run import train_run

CLASSES, SHAPE = 3, (6, 7, 5)
SHORT = {"max_steps": 8, "validations": 2, "checkpoint_every": "0.000001s"}


def _targets(kind):
    some = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    some[:, 1:4, 2:5, 1:3] = 2
    return {"none": torch.zeros_like(some), "some": some, "all": torch.full_like(some, 2)}[kind]


def _loss_in_64_bits(logits, target):
    """Return cross-entropy plus one minus Dice, by loops over classes in NumPy."""
    logits = logits.double().numpy()
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    picked = np.take_along_axis(p, target.numpy()[:, None].astype(int), axis=1)
    dice = []
    for channel in range(1, CLASSES):
        mask = target.numpy() == channel
        dice.append((2 * p[:, channel][mask].sum() + 1) / (p[:, channel].sum() + mask.sum() + 1))
    return -np.log(picked).mean() + 1 - np.mean(dice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("target", "favoured"),
    [("none", None), ("some", 0), ("none", 0), ("all", 2)],
    ids=["empty", "missed", "both", "full"],
)
def test_loss_and_gradient_are_finite_and_right_whatever_is_empty(target, favoured, dtype):
    """Target empty; prediction empty; both; target and prediction full of foreground."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, CLASSES, 3, padding=1)
    if favoured is not None:
        with torch.no_grad():
            network.bias[favoured] = 12.0
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = network(torch.randn(2, 1, *SHAPE))
        loss = dice_ce_loss(logits, _targets(target))
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert loss.item() == pytest.approx(_loss_in_64_bits(logits.detach().float(), _targets(target)), rel=1e-5, abs=1e-6)


def test_an_object_of_one_voxel_pulls_its_own_voxel():
    target = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    target[0, 3, 3, 2] = 1
    logits = torch.zeros(1, CLASSES, *SHAPE, requires_grad=True)
    dice_ce_loss(logits, target).backward()
    pull = logits.grad[0, 1]
    assert pull[3, 3, 2] < 0
    assert (pull.flatten() < 0).sum() == 1


def test_logits_beyond_what_fp16_holds_have_a_loss_in_bf16():
    logits = torch.tensor([[[1e5, -1e5]], [[-1e5, 1e5]]], dtype=torch.bfloat16).movedim(0, 1).requires_grad_()
    loss = dice_ce_loss(logits, torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.isfinite().all()


def test_fp16_is_not_offered_so_that_no_step_can_overflow_unseen():
    with pytest.raises(InputError, match="fp16"):
        tiny_config(train={"precision": "fp16"})


def test_percentiles_of_more_than_2_to_24_intensities_are_exact(monkeypatch):
    """`torch.quantile` refuses so many; the data set's percentiles must not be made by it."""
    n = 2**24 + 9
    values = (np.arange(n, dtype=np.float64) % 1000).astype(np.float32)
    monkeypatch.setattr(fingerprint, "POOLED_SAMPLES", n)
    fact = type(
        "Fact", (), {"samples": [values], "extremes": [(0.0, 999.0)], "whole_numbers": (True,), "label_counts": {}}
    )
    stats = fingerprint._channel_stats(0, "CT", [fact])
    counts = np.bincount(np.arange(n) % 1000)
    below = np.searchsorted(np.cumsum(counts), [0.005 * (n - 1), 0.995 * (n - 1)], side="right")
    assert (stats.percentile_00_5, stats.percentile_99_5) == tuple(below)
    assert stats.mean == pytest.approx((counts * np.arange(1000)).sum() / n, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, -1024.0, 3e4])
def test_a_constant_scan_is_segmented(trained, value):
    found = load(trained.folder, device="cpu").predict(
        (np.full((16, 20, 12), value, np.float32), np.eye(4)), probabilities=True
    )
    assert np.isfinite(found.probabilities).all()
    assert set(np.unique(found.array)) <= {0, 2, 5}


class TestALossThatIsNoNumber:
    @pytest.fixture
    def cases(self, monkeypatch):
        """Return the cases of every batch by step."""
        seen, whole = {}, PatchSampler.batch

        def batch(self, step, *share):
            made = whole(self, step, *share)
            seen[step] = made["cases"]
            return made

        monkeypatch.setattr(PatchSampler, "batch", batch)
        return seen

    @pytest.fixture
    def break_at(self, monkeypatch):
        whole = SegModule.training_step

        def arm(step, spoil):
            def training_step(self, batch, batch_idx):
                loss = whole(self, batch, batch_idx)
                return spoil(self, loss) if self.clock.step == step - 1 else loss

            monkeypatch.setattr(SegModule, "training_step", training_step)
            return lambda: monkeypatch.setattr(SegModule, "training_step", whole)

        return arm

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_stops_the_run_and_the_last_good_checkpoint_goes_on(self, value, dataset, tmp_path, cases, break_at):
        mend = break_at(4, lambda self, loss: loss * value)
        with pytest.raises(SegscseError, match=rf"the loss became {value} at step 4, on patches of") as caught:
            train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
        named = re.search(r"patches of ([^;]+);", str(caught.value))[1]
        assert named == ", ".join(sorted(set(cases[3])))
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["clock"]["step"] == 3
        assert all(weights.isfinite().all() for weights in state["current_model_state"].values())
        mend()
        run = train_run(dataset, tmp_path / "run", ExperimentConfig(), resume=True)
        whole = train_run(dataset, tmp_path / "whole", tiny_config(train=SHORT))
        assert (run.steps, run.dice) == (whole.steps, whole.dice)

    def test_a_gradient_that_is_none_spoils_nothing_on_disk(self, dataset, tmp_path, break_at):
        """The loss of that step is finite; its weights are not, and neither checkpoint nor model may have them."""

        def spoil(self, loss):
            weights = next(self.network.parameters())
            return loss + (weights.sum() * 0.0).clamp(min=0.0).sqrt()  # the slope of a root at 0 is infinite, times 0

        break_at(5, spoil)  # a validation comes next, which exports and saves
        with pytest.raises(
            SegscseError, match=r"the weights are not finite after step 5, on patches of case_.*; there is no"
        ):
            train_run(dataset, tmp_path / "run", tiny_config(train=SHORT))
        state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["clock"]["step"] == 4
        assert not (tmp_path / "run" / "model").exists()
        assert not [path for path in (tmp_path / "run").rglob("*") if is_temporary(path)]


def test_the_loss_of_the_run_is_the_one_that_is_tested_here():
    logits, target = torch.randn(2, CLASSES, *SHAPE), _targets("some")
    module = SegModule(torch.nn.Identity(), tiny_plan(), OptimConfig(), RunClock(1.0, 1, 1))
    module.trainer = trainer = SimpleNamespace(optimizers=[SimpleNamespace(param_groups=[])])
    loss = module.training_step({"image": logits, "label": target}, 0)
    assert len(trainer.optimizers) == 1  # the module keeps it by a weak reference
    assert float(loss) == pytest.approx(_loss_in_64_bits(logits, target), rel=1e-5)
