import numpy as np
import pytest

from segscse.data.pieces import count_pieces


@pytest.mark.parametrize("ids", [(1, 2, 3), (7, 9, 70000)])
def test_pieces_that_touch_at_a_corner_are_one(ids):
    numbers = np.zeros((5, 5, 5), np.uint8)
    numbers[0, 0, 0] = numbers[1, 1, 1] = 1
    numbers[0, 4, 0] = numbers[2, 4, 0] = numbers[3:, 0, 3:] = 3
    assert count_pieces(np.array([0, *ids])[numbers], ids) == dict(zip(ids, (1, 0, 3), strict=True))


def test_a_map_without_labels_has_no_pieces():
    assert count_pieces(np.zeros((3, 3, 3), np.uint8), ()) == {}
    assert count_pieces(np.zeros((3, 3, 3), np.uint8), (2,)) == {2: 0}
