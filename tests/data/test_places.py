import numpy as np
import pytest

from segscse.data import places as module
from segscse.data.places import PLACES_PER_CLASS, find_places, nth_voxels


def _list_of_all(label, case_id):
    """Choose from the list of all foreground voxels: what `find_places` must equal without having that list."""
    generator = np.random.default_rng(list(case_id.encode()))
    foreground = np.flatnonzero(label)
    found = {}
    for number in np.unique(label.reshape(-1)[foreground]):
        candidates = foreground[label.reshape(-1)[foreground] == number]
        chosen = generator.choice(candidates, min(PLACES_PER_CLASS, len(candidates)), replace=False)
        found[int(number)] = np.stack(np.unravel_index(np.sort(chosen), label.shape), axis=1)
    return found


@pytest.fixture(params=[7, 1000, 2**22])
def slab(request, monkeypatch):
    monkeypatch.setattr(module, "_SLAB", request.param)


@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_the_places_are_those_of_a_draw_from_the_list_of_all_voxels(dtype):
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 1, 2, 5], dtype), size=(31, 17, 23), p=[0.5, 0.4, 0.099, 0.001])
    found, expected = find_places(label, "case"), _list_of_all(label, "case")
    assert found.keys() == expected.keys() == {1, 2, 5}
    assert len(found[1]) == PLACES_PER_CLASS
    for number, voxels in found.items():
        np.testing.assert_array_equal(voxels, expected[number])
        assert voxels.dtype == np.int32


@pytest.mark.usefixtures("slab")
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_the_nth_voxels_are_those_of_the_list(share):
    mask = np.random.default_rng(1).random((20, 30, 11)) < share
    everything = np.flatnonzero(mask)
    ranks = np.linspace(0, len(everything) - 1, min(50, len(everything))).astype(np.int64)
    np.testing.assert_array_equal(nth_voxels(mask, ranks), everything[ranks])


def test_a_large_class_keeps_2000_distinct_places_that_depend_on_the_case_alone():
    label = np.zeros((30, 30, 30), np.uint8)
    label[5:25, 5:25, 5:25] = 2
    label[0, 0, :4] = 1
    places = find_places(label, "a")
    assert places[2].shape == (PLACES_PER_CLASS, 3)
    assert len(np.unique(places[2], axis=0)) == PLACES_PER_CLASS
    assert (label[tuple(places[2].T)] == 2).all()
    np.testing.assert_array_equal(places[1], [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])
    np.testing.assert_array_equal(find_places(label, "a")[2], places[2])
    assert not np.array_equal(find_places(label, "b")[2], places[2])
