import os

import numpy as np
import pytest
import torch
from volumes import TINY_AFFINE, TINY_SHAPE, tiny_case

from segscse.data.index import Case, open_dataset
from segscse.data.plan import Normalisation
from segscse.data.store import PLACES_PER_CLASS, CaseStore, find_places
from segscse.data.transforms import preprocess
from segscse.errors import InputError


def _assert_equal(first, second):
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.label, second.label)
    assert first.image.dtype == second.image.dtype == torch.float32
    assert first.label.dtype == second.label.dtype == torch.uint8
    assert first.places.keys() == second.places.keys()
    for number, places in first.places.items():
        np.testing.assert_array_equal(places, second.places[number])
        assert places.dtype == second.places[number].dtype == np.int32


def _folders(path):
    return sorted(item.name for item in path.iterdir()) if path.exists() else []


@pytest.fixture
def cases(tiny_dataset):
    return open_dataset(tiny_dataset).cases[:3]


def test_memory_and_disk_give_identical_arrays(tmp_path, cases, build_plan):
    in_memory = CaseStore(cases, build_plan(), tmp_path / "none", memory_gb=1.0)
    on_disk = CaseStore(cases, build_plan(), tmp_path / "disk", memory_gb=0.0)
    reopened = CaseStore(cases, build_plan(), tmp_path / "disk", memory_gb=1.0)
    for store in (in_memory, on_disk, reopened):
        store.prepare()
    for case in cases:
        _assert_equal(in_memory[case.id], on_disk[case.id])
        _assert_equal(in_memory[case.id], reopened[case.id])
    assert _folders(tmp_path / "none") == []
    assert len(_folders(tmp_path / "disk")) == 3
    assert not list((tmp_path / "disk").rglob("*.tmp*"))


def test_a_stored_case_is_the_preprocessed_one(tmp_path, cases, build_plan):
    stored = CaseStore(cases, build_plan(), tmp_path, 1.0)[cases[0].id]
    prepared = preprocess(cases[0].images, cases[0].label, build_plan())
    assert torch.equal(stored.image, prepared.image)
    assert torch.equal(stored.label, prepared.label)


def test_memory_is_filled_up_to_its_limit_and_the_rest_goes_to_disk(tmp_path, cases, build_plan):
    size = CaseStore(cases, build_plan(), tmp_path / "a", 1.0)[cases[0].id].nbytes
    store = CaseStore(cases, build_plan(), tmp_path / "b", memory_gb=2.5 * size / 1e9)
    calls = []
    store.prepare(progress=lambda done, total: calls.append((done, total)))
    store.prepare()
    assert len(_folders(tmp_path / "b")) == 1
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert set(store.shapes()) == {case.id for case in cases}
    assert all(shape == tuple(store[name].label.shape) for name, shape in store.shapes().items())


def test_a_saved_case_is_not_prepared_again_and_a_half_saved_one_is(tmp_path, cases, build_plan):
    CaseStore(cases[:1], build_plan(), tmp_path, 0.0).prepare()
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "image.npy").stat().st_mtime_ns
    CaseStore(cases[:1], build_plan(), tmp_path, 0.0).prepare()
    assert (folder / "image.npy").stat().st_mtime_ns == stamp
    (folder / "label.npy").unlink()  # killed before the last array
    (folder / "image.npy").write_bytes(b"half")
    expected = CaseStore(cases[:1], build_plan(), tmp_path / "new", 1.0)[cases[0].id]
    _assert_equal(CaseStore(cases[:1], build_plan(), tmp_path, 0.0)[cases[0].id], expected)


def test_another_file_or_another_plan_is_another_entry(tmp_path, make_dataset, make_volume, build_plan):
    root = make_dataset(cases=1)
    case = open_dataset(root).cases[0]
    CaseStore([case], build_plan(), tmp_path / "store", 0.0).prepare()
    CaseStore([case], build_plan(batch_size=9), tmp_path / "store", 0.0).prepare()
    assert len(_folders(tmp_path / "store")) == 1
    CaseStore([case], build_plan(spacing_mm=(2.0, 2.0, 2.0)), tmp_path / "store", 0.0).prepare()
    assert len(_folders(tmp_path / "store")) == 2
    image, label = tiny_case(0)
    make_volume(case.images[0], image + 1, TINY_AFFINE)
    stored = CaseStore([case], build_plan(), tmp_path / "store", 0.0)[case.id]
    assert len(_folders(tmp_path / "store")) == 3
    assert torch.equal(stored.image, preprocess(case.images, case.label, build_plan()).image)
    make_volume(case.label, label, TINY_AFFINE)
    os.utime(case.label, ns=(1, 1))
    CaseStore([case], build_plan(), tmp_path / "store", 0.0).prepare()
    assert len(_folders(tmp_path / "store")) == 4


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_label_ids_with_gaps_become_channels_with_their_own_places(tmp_path, make_volume, build_plan, memory_gb):
    image, label = tiny_case(0)
    paths = (
        make_volume(tmp_path / "i.nii.gz", image, np.diag([1, 1, 1.5, 1])),
        make_volume(tmp_path / "l.nii.gz", (label * 20).astype(np.float32), np.diag([1, 1, 1.5, 1])),
    )
    plan = build_plan(labels=((0, "background"), (20, "front"), (31, "absent"), (40, "back")))
    case = Case("a", paths[:1], paths[1], "a")
    stored = CaseStore([case], plan, tmp_path / "store", memory_gb)["a"]
    assert tuple(stored.label.shape) == TINY_SHAPE
    np.testing.assert_array_equal(stored.label, np.choose(label, [0, 1, 3]))
    assert set(stored.places) == {1, 3}
    for number, value in ((1, 1), (3, 2)):
        np.testing.assert_array_equal(stored.places[number], np.argwhere(label == value))


def test_a_label_map_without_foreground_has_no_places(tmp_path, make_volume, build_plan):
    paths = (
        make_volume(tmp_path / "i.nii.gz", tiny_case(0)[0]),
        make_volume(tmp_path / "l.nii.gz", np.zeros(TINY_SHAPE, np.uint8)),
    )
    for memory_gb in (0.0, 1.0):
        store = CaseStore([Case("a", paths[:1], paths[1], "a")], build_plan(), tmp_path / "store", memory_gb)
        assert store["a"].places == {}


def test_an_error_in_a_file_comes_out_as_an_input_error(tmp_path, make_dataset, build_plan):
    root = make_dataset(cases=1)
    case = open_dataset(root).cases[0]
    case.label.write_bytes(b"")
    with pytest.raises(InputError, match=r"case_0\.nii\.gz: is empty"):
        CaseStore([case], build_plan(), tmp_path / "store", 0.0).prepare()
    assert _folders(tmp_path / "store") == []


def test_a_case_without_a_label_map_cannot_be_trained_on(tmp_path, cases, build_plan):
    case = Case("a", cases[0].images, None, "a")
    with pytest.raises(ValueError, match="case a has no label"):
        CaseStore([case], build_plan(), tmp_path, 1.0)["a"]


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


def test_the_plan_of_two_channels_needs_two_channels(tmp_path, cases, build_plan):
    plan = build_plan(normalisation=(Normalisation("zscore", 0.0, 1.0, 0.0, 1.0),) * 2)
    with pytest.raises(InputError, match=r"case_0\.nii\.gz: the image has 1 channels, the plan has 2"):
        CaseStore(cases, plan, tmp_path, 1.0).prepare()
