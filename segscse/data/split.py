"""Cross-validation folds by subject, equal to nnU-Net's where every case is its own subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segscse.data.index import Case
from segscse.errors import InputError


@dataclass(frozen=True, slots=True)
class Split:
    """Case ids to train and to validate on."""

    fold: int | None
    training: tuple[str, ...]
    validation: tuple[str, ...]


def make_split(cases: Sequence[Case], fold: int | None, *, folds: int = 5, seed: int = 12345) -> Split:
    """Return one fold of `KFold(folds, shuffle=True, random_state=seed)` over the sorted subjects.

    All cases of a subject stay together. With fewer subjects than folds, each subject is a fold.

    Args:
        cases: the data set.
        fold: number from 0, or None to train on every case and validate on none.
        folds: number of folds.
        seed: of the shuffle.

    Raises:
        InputError: no such fold, or fewer than two subjects.
    """
    ids = sorted(case.id for case in cases)
    if fold is None:
        return Split(None, tuple(ids), ())
    subjects = np.array(sorted({case.subject for case in cases}))
    folds = n_folds(cases, folds)
    if not 0 <= fold < folds:
        raise InputError(f"fold must be between 0 and {folds - 1}, got {fold}")
    order = np.arange(len(subjects))
    np.random.RandomState(seed).shuffle(order)
    held_out = set(subjects[np.array_split(order, folds)[fold]])
    validation = sorted(case.id for case in cases if case.subject in held_out)
    return Split(fold, tuple(sorted(set(ids) - set(validation))), tuple(validation))


def join_twins(cases: Sequence[Case], twins: Sequence[tuple[str, str]]) -> tuple[Case, ...]:
    """Return the cases with one subject for all that are chained by twins, so that no split parts them.

    Args:
        cases: the data set.
        twins: pairs of case ids that hold the same content.
    """
    subject = {case.id: case.subject for case in cases}
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := leader.get(name, name)) != name:
            name = above
        return name

    for one, other in twins:
        first, second = sorted((find(subject[one]), find(subject[other])))
        if first != second:
            leader[second] = first
    return tuple(replace(case, subject=find(case.subject)) for case in cases)


def n_folds(cases: Sequence[Case], folds: int) -> int:
    """Return how many folds there are: as many as wanted, or one a subject where there are fewer.

    Raises:
        InputError: fewer than two subjects.
    """
    folds = min(folds, len({case.subject for case in cases}))
    if folds < 2:
        raise InputError("one subject cannot be split into folds", remedy="Train on all cases with --fold all")
    return folds
