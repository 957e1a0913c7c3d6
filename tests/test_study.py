"""Which process does which run of an ablation."""

import pytest
from tiny import tiny_config

from segscse.files import write_json
from segscse.study import Study

CONFIG = tiny_config(train={"max_steps": 4}, data={"folds": 4})


@pytest.mark.parametrize(("world", "variants"), [(1, 4), (2, 2), (2, 3), (2, 4), (3, 4), (4, 4), (5, 2)])
def test_runs_are_dealt_out_evenly_and_no_variant_stays_with_one_process(tmp_path, world, variants):
    names = ("none", "se", "scse", "eca")[:variants]
    study = Study(tmp_path, names, (0, 1, 2, 3), 1, CONFIG)
    parts = study.parts(world)
    assert sorted(number for part in parts for number in part) == list(range(1, 1 + len(study.runs)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for name in names:
        owners = {rank for rank, part in enumerate(parts) for number in part if study.runs[number - 1][0] == name}
        assert len(owners) > 1 or world == 1


def test_a_variant_with_options_has_a_folder_of_a_name_that_all_systems_take(tmp_path):
    study = Study(tmp_path, ("none", "scse:aggregation=max"), (0,), 1, CONFIG)
    assert study.run_folder("ECA-3D", 0, 1) == tmp_path / "ECA-3D" / "seed0_fold1"
    assert study.run_folder("scse:aggregation=max", 0, 1) == tmp_path / "scse_aggregation_max" / "seed0_fold1"


def test_only_unfinished_runs_are_dealt_out(tmp_path):
    study = Study(tmp_path, ("none", "se", "scse", "eca"), (0, 1, 2), 1, CONFIG)
    for variant, seed, fold in study.runs:
        if variant != "eca":
            write_json(study.run_folder(variant, seed, fold) / "outcome.json", {})
    assert sorted(map(len, study.parts(2))) == [1, 2]
    assert study.parts(1) == [list(range(1, 13))]
