"""Labels that lie always the same way around, such as a left and a right structure: found by where they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Enough voxels to say where a label lies.
MAX_VOXELS = 1_000_000
# Of the cases that have both labels, how many must agree; of their distance, how much must lie along the axis.
AGREEMENT = 0.9
ALONG = 0.9
# How often two labels must be seen together, and in which share of all scans.
LEAST_CASES = 3
LEAST_SHARE = 0.1
# Volumes of partners differ by no more than this factor.
LIKE_SIZE = 2.0

Centre = tuple[float, float, float]


def label_centres_mm(labels: np.ndarray, spacing_mm: Sequence[float]) -> dict[int, Centre]:
    """Return the centre of mass of every foreground label of a map `(X, Y, Z)`, in mm from its first voxel.

    Large maps are thinned out evenly; a label that is lost by it is left out.
    """
    step = max(1, int(np.ceil((labels.size / MAX_VOXELS) ** (1 / 3))))
    thin = labels[::step, ::step, ::step]
    values, place = np.unique(thin, return_inverse=True)
    place = place.reshape(thin.shape)
    counts = np.bincount(place.ravel())
    centres = np.empty((len(values), 3))
    for axis, size_mm in enumerate(spacing_mm):
        position = np.arange(thin.shape[axis]).reshape([-1 if other == axis else 1 for other in range(3)])
        weights = np.broadcast_to(position, thin.shape).ravel()
        centres[:, axis] = np.bincount(place.ravel(), weights=weights) / counts * step * size_mm
    rows = zip(values.tolist(), centres.tolist(), strict=True)
    return {int(value): (x, y, z) for value, (x, y, z) in rows if value > 0}


def find_sided(
    centres: Sequence[Mapping[int, Centre]], volumes_ml: Sequence[Mapping[int, float]]
) -> dict[int, tuple[int, int]]:
    """Return axes (0, 1, 2) along which two labels of like size lie beside each other, always the same way around.

    Mirrored along such an axis, an image shows each of the two where the other one belongs: at worst, as with left and
    right, nothing is left in it that says which is which; at best it is no image of this anatomy.

    A pair counts in a case when its volumes differ by a factor of at most 2, its distance is at least the radius of a
    ball of the larger one's volume, and 0.9 of the distance lies along the axis; 0.9 of the cases that have both must
    agree. A data set of many scans must show them together in 3, and in a tenth of all: lesions of two kinds that are
    seen together once lie beside each other by chance.

    Args:
        centres: of each case's labels, see `label_centres_mm`.
        volumes_ml: of each case's labels.

    Returns:
        For each axis found the pair most alike, the label further left, posterior or inferior first.
    """
    ids = sorted({label for case in centres for label in case})
    beside, agreeing = np.zeros((2, 3, len(ids), len(ids)))
    together = np.zeros((len(ids), len(ids)))
    for case, volumes in zip(centres, volumes_ml, strict=True):
        present = [number for number, label in enumerate(ids) if label in case]
        where = np.array([case[ids[number]] for number in present]).reshape(-1, 3)
        size = np.array([volumes[ids[number]] for number in present])
        block = np.ix_(present, present)
        together[block] += 1
        for axis in range(3):
            likeness = _likeness(where, size, axis)
            beside[axis][block] += likeness
            agreeing[axis][block] += likeness > 0
    enough = together >= max(min(LEAST_CASES, len(centres)), LEAST_SHARE * len(centres))
    found = {}
    for axis in range(3):
        always = enough & (beside[axis] > 0) & (agreeing[axis] >= AGREEMENT * together)
        if always.any():
            first, second = np.unravel_index(
                np.argmax(np.where(always, beside[axis] / np.maximum(together, 1), 0)), always.shape
            )
            found[axis] = (ids[first], ids[second])
    return found


def _likeness(where_mm: np.ndarray, volumes_ml: np.ndarray, axis: int) -> np.ndarray:
    """Return `(labels, labels)`, how alike two labels are in size and place across the axis, 1 for the same.

    It is 0 where the second does not lie beside the first, further up the axis.
    """
    apart = where_mm[None] - where_mm[:, None]
    distance = np.linalg.norm(apart, axis=-1)
    larger = np.maximum(volumes_ml[None], volumes_ml[:, None])
    ratio = np.minimum(volumes_ml[None], volumes_ml[:, None]) / larger
    radius_mm = (3 / (4 * np.pi) * 1000 * larger) ** (1 / 3)
    along = apart[..., axis] / np.maximum(distance, radius_mm)
    beside = (ratio >= 1 / LIKE_SIZE) & (distance >= radius_mm) & (along >= ALONG)
    return np.where(beside, ratio * along, 0.0)
