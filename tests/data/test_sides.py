import numpy as np
import pytest
from scipy import ndimage

from segscse.data.sides import find_sided, label_centres_mm

ONE = {1: 1.0, 2: 1.0, 3: 1.0}


def _cases(first, second, n=5, jitter=0.5, volumes=ONE):
    rng = np.random.default_rng(0)
    centres = [
        {1: tuple(first + rng.normal(0, jitter, 3)), 2: tuple(second + rng.normal(0, jitter, 3))} for _ in range(n)
    ]
    return centres, [volumes] * n


@pytest.mark.parametrize("shape", [(12, 9, 7), (150, 130, 120)], ids=["whole", "thinned"])
def test_centres_are_scipys(shape):
    labels = np.zeros(shape, np.int16)
    labels[: shape[0] // 2, 2:8] = 3
    labels[shape[0] // 3 :, :, shape[2] // 2 :] = 7
    spacing = (0.5, 1.0, 2.0)
    found = label_centres_mm(labels, spacing)
    assert sorted(found) == [3, 7]
    for label, centre in found.items():
        expected = np.array(ndimage.center_of_mass(labels == label)) * spacing
        np.testing.assert_allclose(centre, expected, atol=1e-9 if labels.size < 1e6 else 2.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_left_and_a_right_structure_are_found_on_their_axis_alone(axis):
    far = np.zeros(3)
    far[axis] = 20.0
    assert find_sided(*_cases(far, np.zeros(3))) == {axis: (2, 1)}


def test_structures_across_an_axis_or_inside_one_another_are_not():
    assert find_sided(*_cases(np.array([10.0, 10.0, 10.0]), np.zeros(3))) == {}
    assert find_sided(*_cases(np.array([1.0, 0.0, 0.0]), np.zeros(3))) == {}  # closer than the radius, 6 mm


def test_structures_of_other_sizes_are_not():
    assert find_sided(*_cases(np.array([20.0, 0.0, 0.0]), np.zeros(3), volumes={1: 1.0, 2: 2.1})) == {}


def test_nine_cases_of_ten_must_agree():
    centres, volumes = _cases(np.array([20.0, 0.0, 0.0]), np.zeros(3), n=10)
    turned = [{1: case[2], 2: case[1]} for case in centres]
    assert find_sided([*centres[:9], turned[9]], volumes) == {0: (2, 1)}
    assert find_sided([*centres[:8], *turned[8:]], volumes) == {}


def test_the_pair_most_alike_is_named_and_cases_without_it_do_not_count():
    centres, _ = _cases(np.array([20.0, 0.0, 0.0]), np.zeros(3), n=3, jitter=0.0)
    for case in centres:
        case[3] = (40.0, 0.0, 0.0)
    volumes = [{1: 1.0, 2: 1.7, 3: 1.0}] * 3
    assert find_sided([*centres, {1: (0.0, 0.0, 0.0)}], [*volumes, ONE]) == {0: (1, 3)}


@pytest.mark.parametrize(("together", "scans", "found"), [(2, 2, True), (2, 3, False), (3, 30, True), (3, 31, False)])
def test_labels_seldom_seen_together_are_beside_each_other_by_chance(together, scans, found):
    centres, volumes = _cases(np.array([20.0, 0.0, 0.0]), np.zeros(3), n=scans)
    centres = [*centres[:together], *({1: case[1]} for case in centres[together:])]
    assert find_sided(centres, volumes) == ({0: (2, 1)} if found else {})


def test_without_labels_there_is_nothing_to_find():
    assert find_sided([{}, {}], [{}, {}]) == {}
    assert label_centres_mm(np.zeros((3, 3, 3), np.uint8), (1.0, 1.0, 1.0)) == {}
