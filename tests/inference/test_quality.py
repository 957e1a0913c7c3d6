import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny import tiny_plan

from segscse.inference import quality
from segscse.inference.quality import Confidence, case_quality, write_quality
from segscse.inference.sliding_window import Rows


def _logits(numbers, sureness=4.0):
    return sureness * torch.nn.functional.one_hot(torch.from_numpy(numbers).long(), 3).movedim(-1, 0).float()


def _confidence(logits, axis=0, step=2):
    found = Confidence(axis, np.zeros(logits.shape[1:], np.uint8))
    for start in range(0, logits.shape[axis + 1], step):
        stop = min(start + step, logits.shape[axis + 1])
        first = max(0, start - 1)
        found.add(Rows(logits.narrow(axis + 1, first, stop - first), first, stop))
    return found


@pytest.fixture
def numbers():
    found = np.zeros((8, 7, 6), np.uint8)
    found[1:4, 2:5, 1:4] = 1
    found[6, 5, 4] = 2
    return found


def _row(numbers, *, sureness=4.0, disputed=None, known=None, most=None, counts=None):
    counts = np.bincount(numbers.ravel(), minlength=3) if counts is None else counts
    confidences = [_confidence(_logits(numbers, sureness))]
    provenance = {"label_volumes_ml": known or {}, "label_pieces": most or {}}
    return case_quality(confidences, counts, disputed, tiny_plan(), np.diag([2.0, 5.0, 10.0, 1.0]), provenance)


def _at_a_border(classes):
    """Return where a neighbour differs: the largest or the smallest class of the cross around the voxel is another."""
    cross = ndimage.generate_binary_structure(3, 1)
    largest, smallest = (find(classes, footprint=cross) for find in (ndimage.maximum_filter, ndimage.minimum_filter))
    return largest != smallest


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_sums_over_steps_are_those_of_the_whole(numbers, axis, step):
    torch.manual_seed(0)
    logits = _logits(numbers) + torch.randn(3, 8, 7, 6)
    found = _confidence(logits, axis, step)
    classes = logits.argmax(dim=0).numpy()
    np.testing.assert_array_equal(found.numbers, classes)
    largest = logits.softmax(dim=0).amax(dim=0).numpy()
    assert found.foreground == [(classes > 0).sum(), pytest.approx(largest[classes > 0].sum(), rel=1e-5)]
    border = _at_a_border(classes)
    shares = logits.softmax(dim=0).numpy().astype(np.float64)
    entropy = -(shares * np.log(shares)).sum(axis=0) / np.log(2)
    assert found.border == [border.sum(), pytest.approx(entropy[border].sum(), rel=1e-5)]


@pytest.mark.parametrize("step", [1, 2, 3, 8])
def test_the_border_is_what_lies_beside_another_class(numbers, step):
    found = _confidence(_logits(numbers), step=step)
    block, around = 27 - 1, 6 * 9  # all of the block but its centre, and its six faces
    point, beside = 1, 6
    assert found.border[0] == block + around + point + beside


def test_numbers_of_a_case_are_worked_out_by_hand(numbers):
    row = _row(numbers)
    sure = np.exp(4) / (np.exp(4) + 2)
    entropy = -(sure * np.log(sure) + (1 - sure) * np.log((1 - sure) / 2)) / np.log(2)
    assert row["mean_confidence"] == pytest.approx(sure, rel=1e-5)
    assert row["border_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert row["disagreement"] is None
    assert (row["volume_ml_2"], row["volume_ml_5"]) == (pytest.approx(2.7), pytest.approx(0.1))
    assert (row["components_2"], row["components_5"]) == (1, 1)
    assert (row["look"], row["reasons"]) == ("no", "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sureness": 0.5}, "the network is unsure of its labels"),
        ({"sureness": 0.5}, "the borders are uncertain"),
        ({"disputed": 14}, "the members disagree (0.50)"),
        ({"known": {"2": [4.0, 9.0]}}, "block has 2.7 ml, training cases 4 to 9"),
        ({"known": {"5": [0.01, 0.05]}}, "ball has 0.1 ml, training cases 0.01 to 0.05"),
        ({"counts": np.array([336, 0, 0])}, "nothing was found"),
    ],
)
def test_a_case_to_look_at_says_why(numbers, change, reason):
    row = _row(numbers, **change)
    assert row["look"] == "yes"
    assert reason in row["reasons"]


def test_many_pieces_are_a_reason():
    scattered = np.zeros((12, 3, 3), np.uint8)
    scattered[::2, 1, 1] = 1
    assert _row(scattered)["reasons"] == "block is in 6 pieces"
    assert _row(scattered, most={"2": 4})["reasons"] == "block is in 6 pieces, training cases in up to 4"


def test_scattered_labels_may_have_as_many_pieces_as_in_training_and_a_quarter_more(numbers):
    scattered = np.zeros((12, 3, 3), np.uint8)
    scattered[::2, 1, 1] = 1
    assert _row(scattered, most={"2": 5})["look"] == "no"


def test_volumes_inside_the_range_and_a_quarter_beyond_are_none(numbers):
    assert _row(numbers, known={"2": [3.0, 4.0], "5": [0.02, 0.09]})["look"] == "no"


class _OnMps:
    """Numbers on a device that refuses 64 bits, as MPS does."""

    device = SimpleNamespace(type="mps")

    def __init__(self, values):
        self._values = values

    def cpu(self):
        return self._values

    def sum(self, dtype=None):
        if dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return self._values.sum(dtype=dtype)


def test_sums_are_in_64_bits_and_taken_elsewhere_than_on_mps():
    values = torch.tensor([2.0**24, 1.0, 1.0])  # of which 32 bits keep the first
    assert quality._sum(values) == quality._sum(_OnMps(values)) == 2.0**24 + 2


def test_the_table_begins_with_the_cases_to_look_at(tmp_path):
    rows = {"a": {"look": "no", "x": 0.123456, "y": None}, "b": {"look": "yes", "x": 1, "z": "one, two"}}
    write_quality(tmp_path / "quality.csv", rows)
    with (tmp_path / "quality.csv").open() as stream:
        table = list(csv.reader(stream))
    assert table == [["case", "look", "x", "z", "y"], ["b", "yes", "1", "one, two", ""], ["a", "no", "0.1235", "", ""]]
