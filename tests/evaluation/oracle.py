"""Every column of the table by its definition, slowly: the oracle of the fast code."""

import itertools
import math

import numpy as np


def border_points(mask):
    """Return the voxels of a mask that have a face neighbour outside, one by one."""
    padded = np.pad(mask, 1)
    found = []
    for voxel in np.argwhere(mask):
        for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
            other = voxel + 1
            other[axis] += step
            if not padded[tuple(other)]:
                found.append(tuple(voxel))
                break
    return np.array(found, float).reshape(-1, mask.ndim)


def directed(pred, ref, spacing):
    """Return all distances from the border of `pred` to that of `ref` and back, from every pair of voxels."""
    a, b = (border_points(mask) * spacing for mask in (pred, ref))
    table = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return table.min(axis=1), table.min(axis=0)


def components(mask):
    """Return the connected components as sets of voxels, by flood fill over all 8 or 26 neighbours."""
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    steps = [step for step in itertools.product((-1, 0, 1), repeat=mask.ndim) if any(step)]
    found = []
    while left:
        queue, component = [left.pop()], set()
        while queue:
            voxel = queue.pop()
            component.add(voxel)
            for step in steps:
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if other in left:
                    left.remove(other)
                    queue.append(other)
        found.append(component)
    return found


def ratio(part, whole):
    return part / whole if whole else math.nan


def score(pred, ref, spacing, tolerance):
    """Return the columns from `dice` on, but for `nsd_area`, of two masks without axes of one voxel."""
    tp, fp, fn, tn = (
        sum(1 for p, r in zip(pred.ravel().tolist(), ref.ravel().tolist(), strict=True) if (p, r) == kind)
        for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    row = {
        "dice": ratio(2 * tp, 2 * tp + fp + fn),
        "iou": ratio(tp, tp + fp + fn),
        "sensitivity": ratio(tp, tp + fn),
        "precision": ratio(tp, tp + fp),
        "specificity": ratio(tn, tn + fp),
        "volume_similarity": 1 - ratio(abs(fp - fn), 2 * tp + fp + fn),
        "n_ref": tp + fn,
        "n_pred": tp + fp,
    }
    voxel = math.prod(spacing) / 1000 if len(spacing) == 3 else math.nan
    row |= {"volume_ref_ml": (tp + fn) * voxel, "volume_pred_ml": (tp + fp) * voxel}
    row["volume_diff_ml"] = row["volume_pred_ml"] - row["volume_ref_ml"]
    in_ref, in_pred = components(ref), components(pred)
    found = sum(any(pred[voxel] for voxel in lesion) for lesion in in_ref)
    true = sum(any(ref[voxel] for voxel in lesion) for lesion in in_pred)
    row |= {"n_components_ref": len(in_ref), "n_components_pred": len(in_pred)}
    row |= {"lesion_sensitivity": ratio(found, len(in_ref)), "lesion_precision": ratio(true, len(in_pred))}
    both = row["lesion_sensitivity"], row["lesion_precision"]
    row["lesion_f1"] = 2 * both[0] * both[1] / sum(both) if found else (math.nan if not in_ref + in_pred else 0.0)
    return row | distances(pred, ref, spacing, tolerance)


def distances(pred, ref, spacing, tolerance):
    if not pred.any() or not ref.any():
        value = math.inf if pred.any() or ref.any() else math.nan
        names = ("hd_mm", "hd95_mm", "assd_mm", "masd_mm")
        return dict.fromkeys(names, value) | {"nsd": 0.0 if math.isinf(value) else math.nan}
    there, back = directed(pred, ref, spacing)
    both = np.concatenate([there, back])
    return {
        "hd_mm": both.max(),
        "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd_mm": both.mean(),
        "masd_mm": (there.mean() + back.mean()) / 2,
        "nsd": (both <= tolerance * (1 + 1e-6)).mean(),
    }
