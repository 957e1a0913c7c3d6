import pytest
import torch
from monai.networks.utils import one_hot
from tiny import tiny_plan, tiny_plan_2d

from segscse.config import OptimConfig
from segscse.ranks import Group, Ranks
from segscse.training.clock import RunClock
from segscse.training.module import SegModule


class Threshold(torch.nn.Module):
    """Labels 0, 1, 2 below 0, up to 1, above 1."""

    def forward(self, x):
        return one_hot((x >= 0).float() + (x >= 1).float(), 3)


class Logged(SegModule):
    """Keeps what it logs, in place of a trainer's loggers."""

    def log(self, name, value, *args, **kwargs):
        self.__dict__.setdefault("logged", {})[name] = float(value)


def _volumes(plan):
    torch.manual_seed(0)
    batches = []
    for _ in range(2):
        image = torch.randn(1, 18, 17, 9)
        label = Threshold()(image[None])[0].argmax(dim=0).to(torch.uint8)
        label[:3] = 0
        batches.append({"image": image, "label": label, "case": str(len(batches))})
    return batches


def _dice_by_hand(batches, number):
    values = []
    for batch in batches:
        predicted = Threshold()(batch["image"][None])[0].argmax(dim=0) == number
        reference = batch["label"] == number
        values.append(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))
    return float(torch.stack(values).mean())


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_plan_2d()], ids=["3d", "2d"])
def test_validation_is_the_mean_dice_of_whole_volumes(plan):
    module = Logged(Threshold(), plan, OptimConfig(), RunClock(1.0, 1, 1))
    batches = _volumes(plan)
    for index, batch in enumerate(batches):
        module.validation_step(batch, index)
    module.on_validation_epoch_end()
    expected = [_dice_by_hand(batches, number) for number in (1, 2)]
    assert module.logged["val_dice_2"] == pytest.approx(expected[0], abs=1e-5)
    assert module.logged["val_dice_5"] == pytest.approx(expected[1], abs=1e-5)
    assert module.logged["val_dice"] == pytest.approx(sum(expected) / 2, abs=1e-5)


def test_a_label_without_voxels_does_not_count():
    module = Logged(Threshold(), tiny_plan(), OptimConfig(), RunClock(1.0, 1, 1))
    image = torch.full((1, 16, 16, 8), 0.5)
    module.validation_step({"image": image, "label": torch.ones(16, 16, 8, dtype=torch.uint8), "case": "a"}, 0)
    module.on_validation_epoch_end()
    assert module.logged["val_dice_5"] != module.logged["val_dice_5"]
    assert module.logged["val_dice"] == 1.0


def test_a_structure_that_is_made_up_counts_as_a_miss():
    module = Logged(Threshold(), tiny_plan(), OptimConfig(), RunClock(1.0, 1, 1))
    image = torch.full((1, 16, 16, 8), -1.0)
    image[0, :4] = 0.5  # predicted as the first label
    empty = torch.zeros(16, 16, 8, dtype=torch.uint8)
    full = empty.clone()
    full[:4] = 1
    module.validation_step({"image": image, "label": empty, "case": "a"}, 0)
    module.validation_step({"image": image, "label": full, "case": "b"}, 1)
    module.on_validation_epoch_end()
    assert module.logged["val_dice_2"] == 0.5  # 0 where it is made up, 1 where it is found
    assert module.logged["val_dice"] == 0.5  # the other label occurs nowhere and is no part of the mean


class Gathering(Group):
    """A process whose fellow has found given scores."""

    def __init__(self, others):
        super().__init__(Ranks(0, 2, 0, 2))
        self.others = others

    def gather(self, value):
        return [value, self.others]


def _validated(group, batches):
    module = Logged(Threshold(), tiny_plan(), OptimConfig(), RunClock(1.0, 1, 1), group)
    for index, batch in enumerate(batches):
        module.validation_step(batch, index)
    return module


def test_the_scores_of_all_processes_make_the_mean_of_one_process():
    batches = _volumes(tiny_plan())
    alone = _validated(Group(Ranks()), batches)
    elsewhere = dict(_validated(Group(Ranks()), batches[1:]).scores)
    shared = _validated(Gathering(elsewhere), [batches[0], {}])  # with an empty item, which is no case
    for module in (alone, shared):
        module.on_validation_epoch_end()
    assert shared.logged == alone.logged
    assert shared.scores == {}


def test_a_case_that_two_processes_have_is_an_error():
    batches = _volumes(tiny_plan())
    module = _validated(Gathering(_validated(Group(Ranks()), batches[:1]).scores), batches[:1])
    with pytest.raises(RuntimeError, match="given to two processes"):
        module.on_validation_epoch_end()
