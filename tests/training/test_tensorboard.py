"""What TensorBoard gets: the example picture, the gates' statistics, and nothing that changes a run."""

import numpy as np
import pandas as pd
import pytest
import torch
from apple import OnMps
from matplotlib.colors import to_rgb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_plan, tiny_plan_2d

from segscse.attention import build_attention
from segscse.attention.danet import PositionAffinity
from segscse.evaluation.scene import label_colour
from segscse.nets import UNet
from segscse.training.tensorboard import (
    example_picture,
    example_window,
    foreground_centre,
    gate_statistics,
    gate_weights,
)


@pytest.fixture(scope="module")
def board(trained):
    loaded = EventAccumulator(str(trained.folder / "tensorboard"))
    loaded.Reload()
    return loaded


def test_every_validation_has_a_picture_and_gates(board, trained):
    tags = board.Tags()
    assert tags["images"] == ["example: image, prediction, reference"]
    steps = pd.read_csv(trained.folder / "metrics.csv").dropna(subset=["val_dice"])["step"].tolist()
    assert [event.step for event in board.Images(tags["images"][0])] == steps
    gates = [tag for tag in tags["scalars"] if tag.startswith("gate_mean/")]
    assert len(gates) == len(tags["histograms"]) == 4  # two encoder and two decoder blocks; the bottleneck has none
    for tag in gates:
        assert all(0 < event.value < 2 for event in board.Scalars(tag))  # the sum of two sigmoids


@pytest.mark.parametrize(("plan", "shape", "axis"), [(tiny_plan(), (16, 16, 8), 2), (tiny_plan_2d(), (16, 16, 1), 2)])
def test_the_window_lies_around_the_foreground_and_within_the_image(plan, shape, axis):
    label = torch.zeros(40, 50, 30)
    label[37:40, 20:23, 10:13] = 1
    image, window, cut = example_window(torch.stack([label, label]), label, plan)
    assert (tuple(window.shape), cut) == (shape, axis)
    assert image.shape == (2, *shape)
    assert window.sum() > 0
    torch.testing.assert_close(image[0], window)


def test_small_and_empty_images_are_shown_whole_or_in_the_middle():
    _, window, _ = example_window(torch.zeros(1, 9, 10, 7), torch.zeros(9, 10, 7), tiny_plan())
    assert window.shape == (9, 10, 7)


def test_the_picture_by_hand():
    image, label = torch.zeros(3, 4, 2), torch.zeros(3, 4, 2, dtype=torch.long)
    image[..., 1] = torch.arange(12.0).reshape(3, 4)
    label[2, 3, 1] = 2
    predicted = torch.zeros_like(label)
    predicted[0, 0, 1] = 1
    picture = example_picture(image, predicted, label, 2, (0, 2, 5))
    assert picture.shape == (3, 12, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[2, 3].tolist() == [255, 255, 255]
    np.testing.assert_allclose(picture[0, 4], 0.45 * 255 * np.array(to_rgb(label_colour(2))), atol=1)
    expected = 255 * (0.55 + 0.45 * np.array(to_rgb(label_colour(5))))
    np.testing.assert_allclose(picture[2, 11], expected, atol=1)


def test_gates_are_those_of_the_blocks_and_the_hooks_go_away():
    torch.manual_seed(0)
    network = UNet(
        spatial_dims=2, in_channels=1, out_channels=2, features=(4, 8), strides=(1, 2), attention="se"
    ).eval()
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = network(x)
        with gate_weights(network) as gates:
            torch.testing.assert_close(network(x), expected)
    assert sorted(len(gate.sample) for gate in gates.values()) == [4, 4]  # encoder and decoder, none at the bottleneck
    with gate_weights(network) as later, torch.no_grad():
        pass
    network(x)
    assert later == {}


@pytest.mark.parametrize("name", ["none", "danet_pam"])
def test_what_multiplies_nothing_is_no_gate(name):
    block = torch.nn.Sequential(build_attention(name, 16, spatial_dims=2))
    with gate_weights(block) as gates, torch.no_grad():
        block(torch.randn(1, 16, 4, 4))
    assert gates == {}


def test_no_affinity_matrix_is_made_to_be_thrown_away(monkeypatch):
    made = []
    monkeypatch.setattr(PositionAffinity, "gate", lambda block, x: made.append(x))
    block = torch.nn.Sequential(build_attention("danet_pam", 16, spatial_dims=2))
    with gate_weights(block), torch.no_grad():
        block(torch.randn(1, 16, 4, 4))
    assert made == []


def test_parts_of_a_block_are_not_listed_on_their_own():
    block = torch.nn.Sequential(build_attention("scse", 8, spatial_dims=3))
    with gate_weights(block) as gates, torch.no_grad():
        block(torch.randn(1, 8, 40, 40, 40))
    assert list(gates) == ["0"]
    assert len(gates["0"].sample) == 10_000


def test_gate_statistics_are_of_all_weights_and_the_sample_is_of_every_column():
    weights = torch.arange(64.0).repeat(1, 1, 64, 640, 1) + torch.arange(640.0)[:, None]
    found = gate_statistics(weights)
    values = weights.double().numpy()
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()), rel=1e-5)
    assert found.sample.mean() == pytest.approx(values.mean(), rel=0.02)
    assert found.sample.std() == pytest.approx(values.std(), rel=0.02)
    before = torch.random.get_rng_state()
    again = gate_statistics(torch.arange(64.0).repeat(64 * 640))
    assert torch.equal(torch.random.get_rng_state(), before)  # a run's own draws are left alone
    assert len(np.unique(again.sample)) == 64
    np.testing.assert_array_equal(gate_statistics(weights).sample, found.sample)


def test_small_gates_are_sampled_whole():
    weights = torch.tensor([[0.25], [0.75]])
    found = gate_statistics(weights)
    assert (found.mean, found.std) == (0.5, 0.25)
    np.testing.assert_array_equal(found.sample, [0.25, 0.75])


def test_the_centre_is_that_of_a_list_of_all_foreground_voxels():
    label = (torch.rand(20, 30, 25, generator=torch.Generator().manual_seed(3)) < 0.02).long() * 4
    expected = torch.nonzero(label).double().mean(dim=0).round().long().tolist()
    assert foreground_centre(label) == expected
    assert foreground_centre(label.as_subclass(OnMps)) == expected
    assert foreground_centre(torch.zeros(4, 5, 6)) == [2, 2, 3]
