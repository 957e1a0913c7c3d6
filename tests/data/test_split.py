from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from segscse.data.index import Case
from segscse.data.split import join_twins, make_split
from segscse.errors import InputError


def _cases(n, cases_of_a_subject=1):
    return [Case(f"case_{i:03d}", (), Path("l"), f"subject_{i // cases_of_a_subject:03d}") for i in range(n)]


@pytest.mark.parametrize("n", [5, 6, 11, 64, 208, 260])
@pytest.mark.parametrize(("folds", "seed"), [(5, 12345), (3, 0)])
def test_folds_are_those_of_scikit_learn(n, folds, seed):
    cases = _cases(n)
    ids = np.array([case.id for case in cases])
    expected = KFold(folds, shuffle=True, random_state=seed).split(ids)
    for fold, (training, validation) in enumerate(expected):
        split = make_split(cases[::-1], fold, folds=folds, seed=seed)
        assert split.training == tuple(ids[training])
        assert split.validation == tuple(ids[validation])


@pytest.mark.parametrize(("n", "per_subject"), [(10, 1), (23, 2), (7, 3)])
def test_every_case_is_validated_exactly_once_and_never_trained_on_then(n, per_subject):
    cases = _cases(n, per_subject)
    validated = []
    folds = min(5, len({case.subject for case in cases}))
    for fold in range(folds):
        split = make_split(cases, fold)
        assert not set(split.training) & set(split.validation)
        assert sorted(split.training + split.validation) == [case.id for case in cases]
        validated += split.validation
    assert sorted(validated) == [case.id for case in cases]


def test_cases_of_a_subject_stay_together():
    cases = _cases(24, 3)
    subject = {case.id: case.subject for case in cases}
    for fold in range(5):
        split = make_split(cases, fold)
        assert not {subject[name] for name in split.training} & {subject[name] for name in split.validation}


def test_without_a_fold_every_case_is_trained_on():
    split = make_split(_cases(3), None)
    assert split.training == ("case_000", "case_001", "case_002")
    assert split.validation == ()


def test_fewer_subjects_than_folds_make_a_fold_each():
    assert [len(make_split(_cases(3), fold).validation) for fold in range(3)] == [1, 1, 1]
    with pytest.raises(InputError, match="fold must be between 0 and 2, got 3"):
        make_split(_cases(3), 3)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_out_of_range_is_refused(fold):
    with pytest.raises(InputError, match=f"fold must be between 0 and 4, got {fold}"):
        make_split(_cases(20), fold)


def test_one_subject_cannot_be_split():
    with pytest.raises(InputError, match=r"one subject cannot be split into folds. .*--fold all"):
        make_split(_cases(4, 4), 0)


class TestTwins:
    def test_share_a_subject_and_chain(self):
        cases = [Case(name, (), None, subject) for name, subject in zip("abcdef", "124456", strict=True)]
        joined = join_twins(cases, [("a", "c"), ("e", "d")])
        subjects = {case.id: case.subject for case in joined}
        assert subjects["a"] == subjects["c"] == subjects["d"] == subjects["e"] == "1"
        assert (subjects["b"], subjects["f"]) == ("2", "6")

    def test_change_nothing_where_there_are_none(self):
        cases = tuple(_cases(4, 2))
        assert join_twins(cases, []) == cases

    def test_of_one_subject_change_nothing(self):
        cases = tuple(_cases(4, 2))
        assert join_twins(cases, [("case_000", "case_001")]) == cases
