import math

import pytest
import torch
from monai.losses import DiceCELoss

from segscse.training.losses import deep_supervision_loss, dice_ce_loss


def test_two_voxels_give_the_value_worked_out_by_hand():
    """Foreground probabilities 3/4 and 1/4, targets 1 and 0: both cross-entropies are ln(4/3)."""
    logits = torch.tensor([[[0.0, math.log(3)], [math.log(3), 0.0]]])  # (1, 2, 2)
    target = torch.tensor([[0, 1]])
    dice = (2 * 0.75 + 1) / (1.0 + 1.0 + 1)
    # at the first voxel the foreground has 3/4 although the target is background
    target_first = torch.tensor([[1, 0]])
    expected = math.log(4 / 3) + 1 - dice
    assert float(dice_ce_loss(logits, target_first)) == pytest.approx(expected, abs=1e-6)
    wrong = math.log(4) + 1 - (2 * 0.25 + 1) / 3
    assert float(dice_ce_loss(logits, target)) == pytest.approx(wrong, abs=1e-6)


@pytest.mark.parametrize("extent", [(6, 5), (4, 5, 3)])
@pytest.mark.parametrize("classes", [2, 4])
def test_equals_monais_with_the_same_conventions(extent, classes):
    torch.manual_seed(1)
    logits = torch.randn(2, classes, *extent)
    target = torch.randint(0, classes, (2, *extent))
    monai = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0
    )
    torch.testing.assert_close(dice_ce_loss(logits, target), monai(logits, target[:, None]))


def test_a_perfect_prediction_costs_nothing_also_where_a_class_is_absent():
    target = torch.tensor([[[0, 1], [1, 0]]])
    logits = 60.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert float(dice_ce_loss(logits, target)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("value", [0, 2], ids=["empty", "full"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_loss_and_gradient_are_finite_for_one_sided_targets(value, scale):
    torch.manual_seed(0)
    logits = (scale * torch.randn(1, 3, 4, 4, 4)).requires_grad_()
    loss = dice_ce_loss(logits, torch.full((1, 4, 4, 4), value))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_summed_in_single_precision():
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 40, 40, 40).bfloat16()
    target = torch.randint(0, 2, (1, 40, 40, 40), dtype=torch.uint8)
    loss = dice_ce_loss(logits, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, dice_ce_loss(logits.double(), target).float(), rtol=1e-4, atol=0)


def test_resolutions_weigh_1_a_half_and_a_quarter_and_sum_to_one():
    torch.manual_seed(0)
    outputs = [torch.randn(2, 3, 8 // 2**level, 8 // 2**level) for level in range(3)]
    target = torch.randint(0, 3, (2, 8, 8))
    coarse = [target, target[:, 1::2, 1::2], target[:, 2::4, 2::4]]  # nearest-exact takes the upper middle voxel
    parts = [float(dice_ce_loss(logits, t)) for logits, t in zip(outputs, coarse, strict=True)]
    expected = (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75
    assert float(deep_supervision_loss(outputs, target)) == pytest.approx(expected, rel=1e-6)


def test_anisotropic_resolutions_are_reduced_too():
    outputs = [torch.randn(1, 2, 8, 8, 5), torch.randn(1, 2, 4, 4, 5)]
    target = torch.randint(0, 2, (1, 8, 8, 5), dtype=torch.uint8)
    coarse = target[:, 1::2, 1::2]  # the voxels just beyond the middles of pairs
    expected = (dice_ce_loss(outputs[0], target) + 0.5 * dice_ce_loss(outputs[1], coarse)) / 1.5
    torch.testing.assert_close(deep_supervision_loss(outputs, target), expected)


def test_one_tensor_is_the_plain_loss():
    logits, target = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4))
    assert torch.equal(deep_supervision_loss(logits, target), dice_ce_loss(logits, target))
    assert torch.equal(deep_supervision_loss([logits], target), dice_ce_loss(logits, target))
