import numpy as np
import pytest

from segscse.data.pieces import count_pieces


@pytest.mark.parametrize("ids", [(1, 2, 3), (7, 9, 70000)])
def test_pieces_that_touch_at_a_corner_are_one(ids):
    numbers = np.zeros((5, 5, 5), np.uint8)
    numbers[0, 0, 0] = numbers[1, 1, 1] = 1
    numbers[0, 4, 0] = numbers[2, 4, 0] = numbers[3:, 0, 3:] = 3
    assert count_pieces(np.array([0, *ids])[numbers], ids) == dict(zip(ids, (1, 0, 3), strict=True))


def test_ids_that_floats_cannot_tell_apart_are_told_apart():
    labels = np.zeros((3, 3, 3), np.uint64)
    labels[0, 0, 0], labels[2, 2, 2] = 2**53, 2**53 + 1
    assert count_pieces(labels, (2**53, 2**53 + 1)) == {2**53: 1, 2**53 + 1: 1}


def test_labels_that_lie_all_over_each_other_are_not_counted_beyond_a_limit():
    labels = np.random.default_rng(0).integers(0, 50, (10, 10, 10))  # every label's box is about all of it
    ids = range(1, 50)
    assert count_pieces(labels, ids, most=20) == {}
    assert count_pieces(labels, ids, most=50).keys() == set(ids)


def test_a_map_without_labels_has_no_pieces():
    assert count_pieces(np.zeros((3, 3, 3), np.uint8), ()) == {}
    assert count_pieces(np.zeros((3, 3, 3), np.uint8), (2,)) == {2: 0}
