import os
from dataclasses import replace
from pathlib import Path
from time import time

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom
import torch
from volumes import TINY_AFFINE, TINY_SHAPE, tiny_case

from segscse.data.index import Case, open_dataset
from segscse.data.plan import Normalisation
from segscse.data.store import DAY_S, CaseStore
from segscse.data.transforms import preprocess
from segscse.errors import InputError
from segscse.files import temporary_path


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


def _flat(build_plan, axis):
    return build_plan(spatial_dims=2, slice_axis=axis, patch_size=(8, 8), mirror_axes=(0, 1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_on_disk_a_slice_of_a_2d_network_lies_in_one_piece(tmp_path, cases, build_plan, axis):
    plan = _flat(build_plan, axis)
    on_disk, in_memory = (CaseStore(cases, plan, tmp_path, gb)[cases[0].id] for gb in (0.0, 1.0))
    CaseStore(cases[:1], plan, tmp_path / "memory", 1.0).prepare()
    expected = preprocess(cases[0].images, cases[0].label, plan)
    assert torch.equal(on_disk.image, expected.image)
    assert torch.equal(on_disk.label, expected.label)
    assert in_memory.mapped  # it was on disk already
    assert on_disk.image.select(axis + 1, 3).is_contiguous()
    assert on_disk.label.select(axis, 3).is_contiguous()


def test_many_cases_on_disk_stay_closed_until_they_are_asked_for(tmp_path, cases, build_plan):
    store = CaseStore(cases, build_plan(), tmp_path, 0.0)
    store.prepare()
    held = store[cases[0].id]
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(str(tmp_path)) == 3  # image, label and places of the one that is held
    before = len(os.listdir("/proc/self/fd"))
    patches = [store[case.id].image[:, :2].clone() for case in cases for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before
    del held
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert len(patches) == 60


@pytest.mark.parametrize("name", ["image", "label", "places"])
@pytest.mark.parametrize("damage", ["gone", "cut short", "empty"])
def test_a_file_that_is_damaged_during_the_run_is_named_and_made_again_by_the_next(
    tmp_path, cases, build_plan, name, damage
):
    store = CaseStore(cases[:1], build_plan(), tmp_path, 0.0)
    expected = store[cases[0].id].image.clone()
    (path,) = tmp_path.rglob(f"{name}.npy")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.raises(InputError, match=rf"{name}\.npy: cannot be read .* Delete its folder"):
        store[cases[0].id]
    assert torch.equal(CaseStore(cases[:1], build_plan(), tmp_path, 0.0)[cases[0].id].image, expected)


def test_preprocessing_that_was_stopped_goes_on_where_it_was(tmp_path, cases, build_plan, monkeypatch):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CaseStore(cases, build_plan(), tmp_path, 0.0).prepare(stop)
    made = []
    monkeypatch.setattr(
        "segscse.data.store.preprocess", lambda images, *rest: made.append(images) or preprocess(images, *rest)
    )
    CaseStore(cases, build_plan(), tmp_path, 0.0).prepare()
    assert made == [cases[2].images]


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


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path, cases, build_plan):
    CaseStore(cases[:1], build_plan(), tmp_path, 0.0).prepare()
    (folder,) = tmp_path.iterdir()
    (folder / "label.npy").unlink()
    killed, at_work = (temporary_path(folder / "image.npy") for _ in range(2))
    for path in (killed, at_work):
        path.write_bytes(b"half")
    os.utime(killed, (time() - 1.1 * DAY_S,) * 2)
    CaseStore(cases[:1], build_plan(), tmp_path, 0.0).prepare()
    assert {path.name for path in folder.iterdir()} == {"image.npy", "label.npy", "places.npy", at_work.name}
    os.utime(at_work, (time() - 1.1 * DAY_S,) * 2)  # it was killed, too, and the case has been saved meanwhile
    CaseStore(cases[:1], build_plan(), tmp_path, 0.0).prepare()
    assert {path.name for path in folder.iterdir()} == {"image.npy", "label.npy", "places.npy"}


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


def test_a_changed_file_of_voxels_beside_its_header_is_another_entry(tmp_path, make_dataset, build_plan):
    case = open_dataset(make_dataset(cases=1)).cases[0]
    header = tmp_path / "label.mhd"
    sitk.WriteImage(sitk.ReadImage(str(case.label)), str(header))
    case = replace(case, label=header)
    assert CaseStore([case], build_plan(), tmp_path / "store", 0.0)[case.id].places
    voxels = tmp_path / "label.raw"
    voxels.write_bytes(bytes(voxels.stat().st_size))
    assert not CaseStore([case], build_plan(), tmp_path / "store", 0.0)[case.id].places


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


def test_the_plan_of_two_channels_needs_two_channels(tmp_path, cases, build_plan):
    plan = build_plan(normalisation=(Normalisation("zscore", 0.0, 1.0, 0.0, 1.0),) * 2)
    with pytest.raises(InputError, match=r"case_0\.nii\.gz: the image has 1 channels, the plan has 2"):
        CaseStore(cases, plan, tmp_path, 1.0).prepare()
