import json

import numpy as np
import pytest
from volumes import TINY_SHAPE, tiny_case

from segscse.data import fingerprint as fingerprint_module
from segscse.data.examine import CaseFacts, examine_dataset
from segscse.data.fingerprint import make_fingerprint, same_content
from segscse.data.index import DatasetIndex, open_dataset


def _fact(case, samples, counts, content="00", **changes):
    fields = {
        "case": case,
        "shape": (4, 5, 6),
        "content_shape": (4, 4, 5),
        "spacing_mm": (1.0, 1.0, 2.0),
        "n_channels": len(samples),
        "label_counts": counts,
        "label_pieces": {},
        "label_centres_mm": {},
        "coarse": np.zeros((len(samples), 8, 8, 8)),
        "samples": np.array(samples, float),
        "extremes": tuple((min(channel), max(channel)) for channel in samples),
        "whole_numbers": (True,) * len(samples),
        "content": content,
        "placed": "",
        "turned": content,
    }
    return CaseFacts(**{**fields, **changes})


def _index(tmp_path, labels=None, channels=()):
    return DatasetIndex(tmp_path, "msd", (), labels or {}, channels)


def test_the_statistics_are_those_of_numpy_over_the_foreground(tiny_dataset):
    index = open_dataset(tiny_dataset)
    facts, _ = examine_dataset(index)
    fingerprint = make_fingerprint(index, facts)
    cases = [tiny_case(number) for number in range(6)]
    pooled = np.concatenate([image[label > 0] for image, label in cases]).astype(np.float64)
    (channel,) = fingerprint.channels
    assert channel.name == "MRI"
    assert channel.mean == pytest.approx(pooled.mean())
    assert channel.std == pytest.approx(pooled.std())
    assert [channel.percentile_00_5, channel.percentile_99_5] == pytest.approx(np.percentile(pooled, [0.5, 99.5]))
    assert channel.minimum == min(float(image.min()) for image, _ in cases)
    assert channel.maximum == max(float(image.max()) for image, _ in cases)
    assert not channel.whole_numbers
    assert fingerprint.shapes == fingerprint.content_shapes == (TINY_SHAPE,) * 6
    assert fingerprint.spacings_mm == ((1.0, 1.0, 1.5),) * 6
    assert fingerprint.label_voxels == {n: sum(int((label == n).sum()) for _, label in cases) for n in range(3)}
    assert fingerprint.labels == {0: "background", 1: "front", 2: "back"}


def test_the_order_of_the_facts_does_not_matter(tiny_dataset):
    index = open_dataset(tiny_dataset)
    facts, _ = examine_dataset(index)
    again, _ = examine_dataset(index, workers=1)
    assert make_fingerprint(index, facts) == make_fingerprint(index, tuple(reversed(again)))


def test_it_can_be_written_as_json(tiny_dataset):
    index = open_dataset(tiny_dataset)
    value = make_fingerprint(index, examine_dataset(index)[0]).to_json()
    assert json.loads(json.dumps(value, allow_nan=False))["cases"] == [f"case_{number}" for number in range(6)]


def test_labels_and_channels_that_are_not_declared_are_named_by_number(tmp_path):
    facts = [_fact("a", [[1, 2], [3, 4]], {0: 9, 7: 2}), _fact("b", [[1, 2], [3, 4]], {0: 5, 3: 1})]
    fingerprint = make_fingerprint(_index(tmp_path), facts)
    assert fingerprint.labels == {0: "background", 3: "label_3", 7: "label_7"}
    assert fingerprint.label_voxels == {0: 14, 3: 1, 7: 2}
    assert [channel.name for channel in fingerprint.channels] == ["channel_0", "channel_1"]


def test_background_comes_first_whether_declared_or_not(tmp_path):
    declared = make_fingerprint(_index(tmp_path, {5: "liver", 0: "air"}), [_fact("a", [[1, 2]], {0: 1, 5: 1})])
    assert list(declared.labels.items()) == [(0, "air"), (5, "liver")]
    without = make_fingerprint(_index(tmp_path, {5: "liver"}), [_fact("a", [[1, 2]], {5: 1})])
    assert list(without.labels.items()) == [(0, "background"), (5, "liver")]


@pytest.mark.parametrize(
    "change",
    [{"content": "11"}, {"counts": {0: 5, 1: 4}}, {"case": "z"}, {"placed": "1"}],
    ids=["voxels", "labels", "name", "place"],
)
def test_the_digest_changes_with_voxels_labels_names_and_places(tmp_path, change):
    fields = {"case": "a", "samples": [[1, 2]], "counts": {0: 5, 1: 3}, "content": "00"}
    first = make_fingerprint(_index(tmp_path), [_fact(**fields)])
    assert make_fingerprint(_index(tmp_path), [_fact(**fields)]).content == first.content
    assert make_fingerprint(_index(tmp_path), [_fact(**{**fields, **change})]).content != first.content


def test_records_of_versions_that_knew_no_places_are_of_the_same_content(tmp_path):
    here, there = (make_fingerprint(_index(tmp_path), [_fact("a", [[1]], {1: 1}, placed=place)]) for place in "xy")
    earlier = here.content.split("-")[0]
    assert same_content(here.content, here.content)
    assert same_content(earlier, here.content)
    assert not same_content(there.content, here.content)
    assert not same_content(None, here.content)


def test_intensities_are_of_cases_with_foreground_where_there_are_any(tmp_path):
    labelled, empty = _fact("a", [[60.0, 80.0]], {0: 9, 1: 2}), _fact("b", [[-1000.0, 0.0]], {0: 9})
    assert make_fingerprint(_index(tmp_path), [labelled, empty]).channels[0].mean == 70
    assert make_fingerprint(_index(tmp_path), [empty]).channels[0].mean == -500


def test_each_channel_is_whole_numbered_for_itself(tmp_path):
    facts = [_fact("a", [[1, 2], [1, 2]], {1: 2}, whole_numbers=(True, False))]
    assert [channel.whole_numbers for channel in make_fingerprint(_index(tmp_path), facts).channels] == [True, False]


def test_a_channel_is_whole_numbered_when_all_cases_are(tmp_path):
    facts = [_fact("a", [[1, 2]], {1: 2}), _fact("b", [[1, 2]], {1: 2}, whole_numbers=(False,))]
    assert make_fingerprint(_index(tmp_path), facts[:1]).channels[0].whole_numbers
    assert not make_fingerprint(_index(tmp_path), facts).channels[0].whole_numbers


def test_very_many_intensities_are_thinned_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint_module, "POOLED_SAMPLES", 100)
    channel = make_fingerprint(_index(tmp_path), [_fact("a", [np.arange(1000.0)], {1: 1000})]).channels[0]
    assert channel.mean == pytest.approx(np.arange(0, 1000, 10).mean())


def test_the_range_of_volumes_is_over_the_cases_that_have_the_label(tmp_path):
    facts = [_fact("a", [[1, 2]], {0: 9, 1: 4}), _fact("b", [[1, 2]], {0: 1, 1: 10, 2: 3}), _fact("c", [[1]], {0: 3})]
    voxel_ml = np.prod(facts[0].spacing_mm) / 1000
    volumes = make_fingerprint(_index(tmp_path), facts).label_volumes_ml
    assert volumes == {1: pytest.approx((4 * voxel_ml, 10 * voxel_ml)), 2: pytest.approx((3 * voxel_ml, 3 * voxel_ml))}


def test_the_most_pieces_of_a_label_are_those_of_the_case_with_most(tmp_path):
    facts = [_fact("a", [[1]], {1: 4}, label_pieces={1: 2}), _fact("b", [[1]], {1: 9}, label_pieces={1: 7, 2: 1})]
    assert make_fingerprint(_index(tmp_path), facts).label_pieces == {1: 7, 2: 1}
