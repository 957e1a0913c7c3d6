import tracemalloc
from itertools import product

import numpy as np
import pytest

from segscse.inference.postprocess import BYTES_TO_FIND_PIECES, apply_steps, keep_largest, label_of_step, largest_step


def _pieces(mask):
    """Return the pieces of a mask as sets of places, by walking from voxel to neighbouring voxel."""
    left, found = {tuple(place) for place in np.argwhere(mask)}, []
    while left:
        piece, edge = set(), [min(left)]
        while edge:
            place = edge.pop()
            if place in left:
                left.remove(place)
                piece.add(place)
                edge += [tuple(np.add(place, step)) for step in product((-1, 0, 1), repeat=mask.ndim)]
        found.append(piece)
    return found


def test_finding_pieces_takes_the_memory_that_is_expected():
    labels = np.zeros((96, 96, 96), np.uint8)
    labels[0, 0, 0] = labels[-1, -1, -1] = 1
    labels[10:80, 10:80, 10:80] = 1
    keep_largest(labels.copy(), 1)  # imports
    tracemalloc.start()
    keep_largest(labels, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * BYTES_TO_FIND_PIECES * labels.size


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_the_largest_piece_stays_and_nothing_else_changes(density, kind, order):
    rng = np.random.default_rng(3)
    labels = np.asarray(rng.random((9, 8, 7)) < density, kind, order=order) * kind(7)
    labels[rng.random(labels.shape) < 0.1] = 5
    pieces = _pieces(labels == 7)
    largest = max(len(piece) for piece in pieces)
    before = labels.copy()
    lost = keep_largest(labels, 7)
    kept = {tuple(place) for place in np.argwhere(labels == 7)}
    assert kept in pieces
    assert len(kept) == largest
    assert lost == sum(map(len, pieces)) - largest
    assert (labels[before != 7] == before[before != 7]).all()
    assert set(np.unique(labels[(before == 7) & (labels != 7)])) <= {0}


def test_voxels_that_touch_at_a_corner_are_one_piece_and_of_equal_ones_the_first_stays():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 2
    assert keep_largest(labels, 2) == 0
    labels[3, 3, 2:] = 2
    assert keep_largest(labels, 2) == 2
    assert labels[0, 0, 0] == labels[1, 1, 1] == 2
    assert labels.sum() == 4


def test_a_label_that_is_not_there_loses_nothing():
    assert keep_largest(np.zeros((3, 3, 3), np.uint8), 1) == 0


def test_steps_are_taken_label_by_label():
    labels = np.zeros((9, 3, 3), np.uint8)
    labels[[0, 1, 4], 0, 0] = 1
    labels[[0, 4, 5], 2, 2] = 3
    assert apply_steps(labels, [largest_step(1), largest_step(3), largest_step(4)]) == {1: 1, 3: 1, 4: 0}
    assert np.argwhere(labels == 1)[:, 0].tolist() == [0, 1]
    assert np.argwhere(labels == 3)[:, 0].tolist() == [4, 5]


@pytest.mark.parametrize("step", ["largest_component", "largest_component:0", "largest_component:-1", "x:1", 3, None])
def test_what_is_no_step_has_no_label(step):
    assert label_of_step(step) is None
    assert [label_of_step(largest_step(label)) for label in (12, 2**63 - 1)] == [12, 2**63 - 1]
