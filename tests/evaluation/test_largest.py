import json

import numpy as np
import pytest
from volumes import write_volume

from segscse.evaluation.largest import better_alone, compare_largest, decision, dice_of_largest
from segscse.evaluation.scores import evaluate

NAMES = {1: "liver", 4: "lesion"}


@pytest.fixture
def folders(tmp_path):
    """Return twelve predictions: a liver with specks beside it, and lesions in two true pieces."""
    rng = np.random.default_rng(0)
    predictions, references = {}, {}
    for number in range(12):
        reference = np.zeros((14, 14, 14), np.uint8)
        reference[2:9, 2:9, 2:9] = 1
        reference[11:13, 2:6, 2:4] = 4
        reference[11:13, 9:12, 10:12] = 4
        prediction = reference.copy()
        prediction[2, 2:9, 2 : 3 + number % 4] = 0
        for place in rng.integers(2, 12, (1 + number % 3, 2)):
            prediction[0, *place] = 1
        name = f"case_{number}"
        references[name] = write_volume(tmp_path / "ref" / f"{name}.nii.gz", reference)
        predictions[name] = write_volume(tmp_path / "pred" / f"{name}.nii.gz", prediction)
    return predictions, references


def _compare(predictions, references, subjects=None, labels=tuple(NAMES)):
    table = evaluate(predictions, references, labels, names=NAMES)
    return compare_largest(table, predictions, references, subjects)


def test_specks_are_worth_removing_and_true_pieces_are_not(folders):
    found = _compare(*folders)
    assert better_alone(found) == [1]
    assert found[1].n == found[1].wins == 12
    assert found[4].losses == 12
    assert found[4].mean_a == 1.0
    assert found[4].mean_b == pytest.approx(2 * 16 / (16 + 28))
    report = json.loads(json.dumps(decision(found), allow_nan=False))
    assert report["steps"] == ["largest_component:1"]
    assert [(row["name"], row["cases_changed"], row["taken"]) for row in report["labels"]] == [
        ("liver", 12, True),
        ("lesion", 12, False),
    ]


def test_specks_of_one_case_show_nothing(folders):
    predictions, references = folders
    few = {name: predictions[name] if name == "case_3" else references[name] for name in references}
    found = _compare(few, references)
    assert found[1].difference > 0
    assert better_alone(found) == []


def test_cases_of_one_subject_count_once(folders):
    found = _compare(*folders, dict.fromkeys(folders[0], "one"))
    assert found[1].n_units == 1
    assert better_alone(found) == []


def test_a_label_that_occurs_nowhere_cannot_be_judged(folders):
    found = _compare(*folders, labels=[9])
    assert found[9].n == 0
    assert decision(found)["labels"][0]["difference"] is None


def test_the_dice_by_hand():
    reference = np.zeros((6, 1, 1), bool)
    reference[:3] = True
    predicted = np.array([1, 1, 0, 0, 1, 0], bool).reshape(6, 1, 1)
    assert dice_of_largest(predicted, reference) == 2 * 2 / 5
    assert predicted.sum() == 3
    assert dice_of_largest(predicted, np.zeros_like(reference)) == 0
