import nibabel as nib
import numpy as np
import pytest
import torch
from naive import naive_restore
from scipy.ndimage import map_coordinates
from scipy.stats import entropy
from tiny import tiny_plan

from segscse.data.geometry import to_canonical
from segscse.data.network_grid import preprocess_array
from segscse.inference import restore as module
from segscse.inference.restore import Canvas, draw, output_grid
from segscse.inference.sliding_window import Rows

IDS = (0, 2, 5)


def _steps(logits, axis, step):
    """Yield logits in steps of so many rows, as `stream_logits` does: in one buffer, the last row carried over."""
    for start in range(0, logits.shape[axis + 1], step):
        stop = min(start + step, logits.shape[axis + 1])
        first = max(0, start - 1)
        yield Rows(logits.narrow(axis + 1, first, stop - first).clone(), first, stop)


def _drawn(members, prepared, axis=0, step=3, ids=IDS, **maps):
    """Draw the logits of one case by several members; return the canvas with arrays in the scan's own order."""
    affine, shape = prepared[0].source.affine, prepared[0].source.array.shape
    own = {"labels": np.zeros(shape, np.uint8)}
    own |= {name: np.zeros((*shape, *extra), dtype) for name, (extra, dtype) in maps.items()}
    none = dict.fromkeys({"probabilities", "uncertainty", "disagreement"} - set(own))
    turned = {name: to_canonical(array, affine)[0] for name, array in own.items()}
    canvas = Canvas(**turned, **none, counts=np.zeros(len(ids), np.int64))
    streams = [_steps(logits, axis, step) for logits in members]
    draw(streams, [output_grid(case) for case in prepared], axis, np.array(ids, np.uint8), canvas)
    return Canvas(**own, **none, counts=canvas.counts, disputed=canvas.disputed)


def restore(logits, prepared, ids, axis=0, step=3):
    return _drawn([logits], [prepared], axis, step, ids).labels


def restore_probabilities(logits, prepared):
    drawn = _drawn([logits], [prepared], probabilities=((len(logits),), np.float32))
    return np.searchsorted(IDS, drawn.labels), drawn.probabilities


def _image(shape, *, empty=0):
    """Return noise, with `empty` voxels of constant background on every side."""
    rng = np.random.default_rng(0)
    image = rng.uniform(10, 20, shape).astype(np.float32)
    if empty:
        inner = tuple(slice(empty, -empty) for _ in range(3))
        padded = np.zeros(shape, np.float32)
        padded[inner] = image[inner]
        return padded
    return image


def _native_coordinates(prepared):
    """Return the place of every voxel of the file on the network's grid, `(3, X, Y, Z)`, by the affines alone."""
    source = prepared.source
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in source.array.shape[:3]), indexing="ij"))
    transform = np.linalg.inv(prepared.affine) @ source.affine
    flat = transform[:3, :3] @ voxels.reshape(3, -1) + transform[:3, 3:]
    return flat.reshape(voxels.shape)


def _expected_logits(logits, prepared):
    places = _native_coordinates(prepared)
    values = np.stack([map_coordinates(channel, places, order=1, mode="nearest") for channel in logits.numpy()])
    inside = np.all([(p >= -0.5) & (p <= n - 0.5) for p, n in zip(places, logits.shape[1:], strict=True)], axis=0)
    return values, inside


def _oblique(spacing):
    rotation = nib.eulerangles.euler2mat(0.1, -0.2, 0.15)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing)
    affine[:3, 3] = (-30.0, 12.0, 7.0)
    return affine


def test_on_the_same_grid_the_largest_logit_wins_voxel_by_voxel():
    prepared = preprocess_array(_image((6, 7, 8)), np.eye(4), tiny_plan())
    logits = torch.randn(3, 6, 7, 8)
    np.testing.assert_array_equal(restore(logits, prepared, IDS), np.array(IDS)[logits.argmax(dim=0).numpy()])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.6, 2.5), (1.9, 0.8, 0.8)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA"])
@pytest.mark.parametrize("empty", [0, 3])
def test_another_grid_is_interpolated_as_scipy_does(spacing, codes, empty):
    shape = (15, 13, 14)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    image = nib.orientations.apply_orientation(_image(shape, empty=empty), change)
    affine = _oblique(spacing) @ nib.orientations.inv_ornt_aff(change, shape)
    prepared = preprocess_array(image, affine, tiny_plan())
    torch.manual_seed(0)
    logits = torch.randn(3, *prepared.image.shape[1:])
    values, inside = _expected_logits(logits, prepared)
    expected = np.where(inside, np.array(IDS)[values.argmax(axis=0)], 0)
    top = np.sort(values, axis=0)
    clear = (top[-1] - top[-2] > 1e-3) | ~inside  # a tie may fall either way
    places = _native_coordinates(prepared)
    edge = np.any(
        [np.abs(p - b) < 1e-4 for p, n in zip(places, logits.shape[1:], strict=True) for b in (-0.5, n - 0.5)], 0
    )
    found = restore(logits, prepared, IDS)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear & ~edge], expected[clear & ~edge])
    numbers, probabilities = restore_probabilities(logits, prepared)
    np.testing.assert_array_equal(np.array(IDS)[numbers], found)
    softmax = np.exp(values - values.max(axis=0)) / np.exp(values - values.max(axis=0)).sum(axis=0)
    softmax = np.where(inside, softmax, np.eye(3)[0][:, None, None, None])
    np.testing.assert_allclose(np.moveaxis(probabilities, -1, 0)[:, ~edge], softmax[:, ~edge], atol=1e-4)


def test_what_was_cropped_as_empty_is_background_whatever_the_logits():
    image = np.zeros((20, 20, 20), np.float32)
    image[8:12, 8:12, 8:12] = 5.0
    prepared = preprocess_array(image, np.eye(4), tiny_plan())
    logits = torch.zeros(3, *prepared.image.shape[1:])
    logits[2] = 9.0
    found = restore(logits, prepared, IDS)
    assert (found[:6] == 0).all()
    assert (found[14:] == 0).all()
    assert (found[8:12, 8:12, 8:12] == 5).all()
    assert (found == 5).sum() == np.prod(prepared.image.shape[1:])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 2, 50])
@pytest.mark.parametrize("tile", [1, 2, 5, 32])
def test_neither_steps_nor_tiles_make_a_difference(monkeypatch, axis, step, tile):
    monkeypatch.setitem(module.TILE, "cpu", tile)
    prepared = preprocess_array(_image((9, 8, 7)), np.diag([1.4, 0.8, 1.0, 1.0]), tiny_plan())
    torch.manual_seed(0)
    logits = torch.randn(3, *prepared.image.shape[1:])
    labels, probabilities = naive_restore(logits, prepared, IDS)
    np.testing.assert_array_equal(restore(logits, prepared, IDS, axis, step), labels)
    drawn = _drawn([logits], [prepared], axis, step, probabilities=((3,), np.float32))
    np.testing.assert_array_equal(drawn.labels, labels)
    np.testing.assert_allclose(drawn.probabilities, probabilities, atol=1e-6)


@pytest.mark.parametrize("spacing", [(0.5, 0.6, 0.7), (1.0, 1.0, 1.0), (2.3, 0.8, 1.7)])
def test_classes_left_out_of_a_tile_change_nothing(spacing):
    """Smooth logits with many classes, so that few classes can win in a tile."""
    prepared = preprocess_array(_image((40, 36, 30)), np.diag([*spacing, 1.0]), tiny_plan())
    torch.manual_seed(0)
    coarse = torch.randn(1, 20, 5, 4, 6)
    logits = torch.nn.functional.interpolate(coarse, tuple(prepared.image.shape[1:]), mode="trilinear")[0]
    ids = tuple(range(20))
    labels, _ = naive_restore(logits, prepared, ids)
    drawn = _drawn([logits], [prepared], 2, 4, ids)
    np.testing.assert_array_equal(drawn.labels, labels)
    np.testing.assert_array_equal(drawn.counts, np.bincount(labels.ravel(), minlength=20))


def test_equal_logits_go_to_the_first_class():
    prepared = preprocess_array(_image((6, 6, 6)), np.diag([0.7, 0.7, 0.7, 1.0]), tiny_plan())
    assert (restore(torch.ones(3, *prepared.image.shape[1:]), prepared, IDS) == 0).all()


class TestMembers:
    def _case(self):
        """Return logits of two members whose grids differ, and the case on both."""
        image, affine = _image((12, 10, 14), empty=2), _oblique((1.2, 0.9, 1.5))
        plans = [tiny_plan(), tiny_plan(spacing_mm=(1.7, 1.1, 0.8))]
        prepared = [preprocess_array(image, affine, plan) for plan in plans]
        torch.manual_seed(3)
        return [2 * torch.randn(3, *case.image.shape[1:]) for case in prepared], prepared

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_probabilities_are_averaged_on_the_scans_grid(self, axis):
        logits, prepared = self._case()
        single = [naive_restore(item, case, IDS) for item, case in zip(logits, prepared, strict=True)]
        mean = (single[0][1] + single[1][1]) / 2
        labels = np.array(IDS)[mean.argmax(axis=-1)]
        plain = _drawn(logits, prepared, axis)
        dense = _drawn(logits, prepared, axis, 2, probabilities=((3,), np.float32))
        np.testing.assert_allclose(dense.probabilities, mean, atol=1e-5)
        top = np.sort(mean, axis=-1)
        clear = top[..., -1] - top[..., -2] > 1e-4
        for found in (plain, dense):
            np.testing.assert_array_equal(found.labels[clear], labels[clear])
            differ = (single[0][0] != found.labels) | (single[1][0] != found.labels)
            assert found.disputed == pytest.approx(differ.sum(), abs=int((~clear).sum()))

    def test_alike_give_what_one_gives(self):
        logits, prepared = self._case()
        once, twice = _drawn(logits[:1], prepared[:1]), _drawn(logits[:1] * 2, prepared[:1] * 2)
        np.testing.assert_array_equal(once.labels, twice.labels)
        assert twice.disputed == 0

    def test_uncertainty_is_the_entropy_and_disagreement_its_part_between_the_members(self):
        logits, prepared = self._case()
        single = [naive_restore(item, case, IDS)[1] for item, case in zip(logits, prepared, strict=True)]
        mean = (single[0] + single[1]) / 2
        maps = {"uncertainty": ((), np.float32), "disagreement": ((), np.float32)}
        found = _drawn(logits, prepared, **maps)
        whole = entropy(mean, axis=-1) / np.log(3)
        np.testing.assert_allclose(found.uncertainty, whole, atol=1e-5)
        own = np.mean([entropy(item, axis=-1) for item in single], axis=0) / np.log(3)
        np.testing.assert_allclose(found.disagreement, whole - own, atol=1e-5)
        assert found.disagreement.max() > 0.1
        assert (found.uncertainty[0, 0, 0], found.disagreement[0, 0, 0]) == (0, 0)  # cropped as empty

    def test_bytes_are_within_half_a_step_of_the_values(self):
        logits, prepared = self._case()
        exact = _drawn(logits, prepared, probabilities=((3,), np.float32))
        coarse = _drawn(logits, prepared, probabilities=((3,), np.uint8))
        np.testing.assert_array_equal(exact.labels, coarse.labels)
        assert np.abs(exact.probabilities - coarse.probabilities / 255.0).max() <= 0.5 / 255 + 1e-6


def test_an_axis_of_one_voxel_is_repeated():
    prepared = preprocess_array(_image((6, 6, 1)), np.diag([1.0, 1.0, 5.0, 1.0]), tiny_plan())
    found = restore(torch.randn(3, *prepared.image.shape[1:]), prepared, IDS)
    assert found.shape == (6, 6, 1)


def test_rounded_direction_cosines_bring_labels_back_to_their_own_voxels():
    image = _image((12, 14, 10))
    affine = np.diag([0.7, 0.7, 5.0, 1.0])
    affine[0, 1], affine[1, 2] = 0.0005, 0.004  # what three decimals leave of a right angle
    prepared = preprocess_array(image, affine, tiny_plan(spacing_mm=(0.7, 0.7, 5.0)))
    numbers = torch.from_numpy((prepared.image[0].numpy() > 0).astype(np.int64))
    logits = torch.nn.functional.one_hot(numbers, 3).movedim(-1, 0).float()
    np.testing.assert_array_equal(restore(logits, prepared, IDS), np.where(image > image.mean(), 2, 0))
