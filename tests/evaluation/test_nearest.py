"""Nearest distances: every way of finding them against all pairs of voxels."""

import math

import numpy as np
import pytest

from segscse.evaluation import nearest
from segscse.evaluation.nearest import by_transform, by_tree, indices_of, margin, nearest_mm, steps_for

SPACINGS = [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (0.5, 0.7, 3.0), (0.1, 9.0, 0.3), (1.0, 1.0), (0.3, 2.0), (1.5,)]


def _sets(rng, shape, density, spacing, limit=None):
    """Return flat indices of the sources and the map of the targets, with their margin."""
    frames = []
    for _ in range(2):
        mask = rng.random(shape) < density
        mask.flat[rng.integers(mask.size)] = True
        frames.append(np.pad(mask, [(width, width) for width in margin(spacing, limit)]))
    return np.flatnonzero(frames[0]), frames[1]


def _all_pairs(source, target, spacing):
    a, b = (np.argwhere(target) * spacing, np.stack(np.unravel_index(source, target.shape), 1) * spacing)
    return np.sqrt(((a[None] - b[:, None]) ** 2).sum(-1)).min(axis=1)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("density", [0.0005, 0.02, 0.4])
def test_all_ways_agree_with_all_pairs(spacing, density):
    rng = np.random.default_rng(int(sum(spacing) * 10))
    source, target = _sets(rng, (19, 17, 12)[: len(spacing)], density, spacing)
    expected = _all_pairs(source, target, spacing)
    for way in (nearest_mm, by_tree, by_transform):
        np.testing.assert_allclose(way(source, target, spacing), expected, rtol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("limit", [0.0, 0.7, 3.0, 40.0])
def test_a_limit_keeps_every_distance_up_to_it(spacing, limit):
    rng = np.random.default_rng(5)
    source, target = _sets(rng, (15, 9, 11)[: len(spacing)], 0.02, spacing, limit)
    expected = _all_pairs(source, target, spacing)
    got = nearest_mm(source, target, spacing, limit)
    inside = expected <= limit
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-12)
    assert (got[~inside] > limit).all()


def test_both_searches_of_what_is_far_are_taken(monkeypatch):
    rng = np.random.default_rng(1)
    source, target = _sets(rng, (60, 10, 10), 0.0, (1.0, 1.0, 1.0))
    called = []
    for name in ("by_tree", "by_transform"):
        way = getattr(nearest, name)
        monkeypatch.setattr(nearest, name, lambda *given, way=way, name=name: called.append(name) or way(*given))
    few = nearest_mm(source, target, (1.0, 1.0, 1.0))
    monkeypatch.setattr(nearest, "_TREE_NS", 10**12)
    assert nearest_mm(source, target, (1.0, 1.0, 1.0)) == pytest.approx(few)
    assert called == ["by_tree", "by_transform"]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_steps_rise_and_leave_none_out_below_the_longest(spacing):
    steps = steps_for(spacing)
    lengths = [length for length, _ in steps.groups]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    tried = {tuple(offset) for _, group in steps.groups for offset in group.tolist()}
    far = [math.ceil(lengths[-1] / step) + 1 for step in spacing]
    for offset in np.ndindex(*(2 * size + 1 for size in far)):
        offset = tuple(place - size for place, size in zip(offset, far, strict=True))
        if math.hypot(*(a * b for a, b in zip(offset, spacing, strict=True))) < lengths[-1] * (1 - 1e-9):
            assert offset in tried


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (4, 6, 8), (5, 5, 5)])
@pytest.mark.parametrize("density", [0, 0.1, 0.9])
def test_indices_are_those_of_numpy(shape, density):
    mask = np.random.default_rng(0).random(shape) < density
    np.testing.assert_array_equal(indices_of(mask), np.flatnonzero(mask))
