import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from segscse.config import (
    AttentionConfig,
    AugmentConfig,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    load_config,
    parse_duration,
    save_config,
    to_builtin,
)
from segscse.errors import InputError, one_line
from segscse.yaml_file import read_yaml

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
WRONG = [
    ("model.attention.reduction", 0, ">= 1"),
    ("model.base_features", 3, ">= 4"),
    ("model.max_features", 8, ">= base_features"),
    ("data.max_patch_voxels", 4095, ">= 4096"),
    ("data.batch_size", 0, ">= 1"),
    ("data.folds", 1, ">= 2"),
    ("data.split_seed", -1, "between 0 and"),
    ("data.split_seed", 2**32, "between 0 and"),
    ("data.foreground_share", 1.01, "between 0 and 1"),
    ("data.foreground_share", -0.01, "between 0 and 1"),
    ("data.cache_gb", -1.0, ">= 0"),
    ("data.cache_gb", float("inf"), "finite"),
    ("data.spacing_mm", [1.0, 0.0, 1.0], "> 0 on every axis"),
    ("data.spacing_mm", [1.0, float("nan"), 1.0], "> 0 on every axis"),
    ("augment.scale", [1.4, 0.7], "low <= high"),
    ("augment.scale", [0.0, 0.7], "low <= high"),
    ("augment.scale", [1.2, float("inf")], "finite"),
    ("augment.rotation_deg", -1.0, "between 0 and 180"),
    ("augment.rotation_deg", 180.5, "between 0 and 180"),
    ("augment.rotation_deg", float("inf"), "between 0 and 180"),
    ("augment.rotation_deg", float("nan"), "between 0 and 180"),
    *[
        (f"augment.{name}_p", value, "between 0 and 1")
        for name in ("spatial", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
        for value in (-0.1, 1.1)
    ],
    ("optim.lr", 0.0, "> 0"),
    ("optim.lr", float("nan"), "> 0"),
    ("optim.lr", float("inf"), "finite"),
    ("optim.weight_decay", -1e-9, ">= 0"),
    ("optim.weight_decay", float("inf"), "finite"),
    ("optim.warmup", 1.0, r"in \[0, 1\)"),
    ("optim.clip_norm", 0.0, "> 0"),
    ("optim.clip_norm", float("inf"), "finite"),
    ("optim.ema_decay", 1.0, r"in \(0, 1\)"),
    ("optim.ema_decay", 0.0, "set optim.average to none"),
    ("train.max_steps", 0, ">= 1"),
    ("train.seed", -1, "between 0 and"),
    ("train.seed", 2**31, "between 0 and"),
    ("train.validations", 0, ">= 1"),
    ("train.patience", 0, ">= 1"),
]


def _whole_numbers(section=ExperimentConfig, place=""):
    """Return the settings that are declared as whole numbers."""
    names = []
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            names += _whole_numbers(kind, f"{place}{name}.")
        elif kind in (int, int | None):
            names.append(f"{place}{name}")
    return names


def _nest(dotted, value):
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def _write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


class TestValues:
    @pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
    def test_a_value_out_of_range_names_the_setting_the_value_and_what_is_allowed(self, name, value, allowed):
        with pytest.raises(InputError, match=rf"{name} must be .*{allowed}.*, got "):
            load_config(_nest(name, value))

    def test_a_value_out_of_range_in_a_file_names_the_file(self, tmp_path):
        one = _write(tmp_path / "a.yaml", {"optim": {"lr": 1e-3}})
        two = _write(tmp_path / "b.yaml", {"model": {"base_features": 2}})
        with pytest.raises(
            InputError, match=r"a\.yaml, .*b\.yaml: model\.base_features must be >= 4, got 2\. See config"
        ):
            load_config(one, two)

    @pytest.mark.parametrize("name", _whole_numbers())
    def test_a_whole_number_is_not_rounded(self, tmp_path, name):
        path = _write(tmp_path / "a.yaml", _nest(name, 4096.5))
        with pytest.raises(InputError, match=rf"must be a whole number, got 4096\.5 from .*{path.name}"):
            load_config(path)

    def test_a_whole_number_may_be_written_as_another(self):
        found = load_config({"data": {"max_patch_voxels": 4096.0}}).data.max_patch_voxels
        assert (found, type(found)) == (4096, int)

    def test_no_number_may_be_said_in_words(self):
        assert load_config({"data": {"batch_size": 4}}, {"data": {"batch_size": "none"}}).data.batch_size is None

    @pytest.mark.parametrize(
        ("make", "problem"),
        [
            (lambda: ModelConfig(spatial_dims=4), "model.spatial_dims must be one of 2, 3, got 4"),
            (lambda: ModelConfig(spatial_dims=3.0), "model.spatial_dims must be one of 2, 3, got 3.0"),
            (lambda: ModelConfig(deep_supervision=1), "model.deep_supervision must be True or False, got 1"),
            (lambda: AttentionConfig(encoder=None), "model.attention.encoder must be text, got None"),
            (lambda: DataConfig(modality="MR"), "data.modality must be one of auto, ct, mr, got 'MR'"),
            (
                lambda: DataConfig(spacing_mm=(1, 1)),
                r"data.spacing_mm must be a tuple of 3 numbers or None, got \(1, 1",
            ),
            (lambda: DataConfig(spacing_mm=[1, 1, 1]), "data.spacing_mm must be a tuple of 3 numbers or None"),
            (lambda: DataConfig(batch_size=True), "data.batch_size must be a whole number or None, got True"),
            (lambda: AugmentConfig(mirror=False), "augment.mirror must be one of auto, all, none, got False"),
            (lambda: OptimConfig(schedule="linear"), "optim.schedule must be one of cosine, poly, constant"),
            (lambda: OptimConfig(lr="1e-3"), "optim.lr must be a number or None, got '1e-3'"),
            (lambda: TrainConfig(max_steps=2.5), "train.max_steps must be a whole number or None, got 2.5"),
            (lambda: TrainConfig(budget=20), "train.budget must be text, got 20"),
            (
                lambda: TrainConfig(loggers=("csv",)),
                "train.loggers must be a tuple of one of tensorboard, mlflow, wandb",
            ),
        ],
    )
    def test_kinds_and_choices_are_checked_in_python_too(self, make, problem):
        with pytest.raises(InputError, match=problem):
            make()

    def test_a_whole_number_is_a_number_in_python(self):
        assert OptimConfig(lr=1).lr == DataConfig(spacing_mm=(1, 1, 1)).spacing_mm[0] == 1

    @pytest.mark.parametrize("name", ["train.budget", "train.checkpoint_every"])
    def test_a_duration_is_checked_when_the_configuration_is_made(self, name):
        with pytest.raises(InputError, match=f"{name} must be a duration such as 90s, 20m or 2h, got 'soon'"):
            load_config(_nest(name, "soon"))

    @pytest.mark.parametrize(
        ("name", "value"),
        [("model.spatial_dims", 4), ("model.block", "dense"), ("optim.lr", "fast"), ("augment.scale", [1.0])],
    )
    def test_a_value_of_the_wrong_kind_names_the_file_or_setting(self, tmp_path, name, value):
        path = _write(tmp_path / "a.yaml", _nest(name, value))
        with pytest.raises(InputError, match=name.split(".")[-1].replace("_", ".")):
            load_config(path)

    def test_a_configuration_cannot_be_changed(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            ExperimentConfig().model.base_features = 8


class TestLoading:
    def test_nothing_given_means_the_defaults(self):
        assert load_config() == ExperimentConfig()

    def test_an_empty_file_means_the_defaults(self, tmp_path):
        (tmp_path / "a.yaml").write_text("# nothing\n")
        assert load_config(tmp_path / "a.yaml") == ExperimentConfig()

    def test_an_unknown_key_names_the_file_and_the_closest_key(self, tmp_path):
        path = _write(tmp_path / "a.yaml", {"model": {"base_feature": 8}})
        with pytest.raises(InputError, match=r"base.features") as caught:
            load_config(path)
        assert "a.yaml" in str(caught.value)
        assert "base_feature" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("values", "name"),
        [({"model": 3}, "model"), ({"optim": None}, "optim"), ({"model": {"attention": "scse"}}, r"model\.attention")],
    )
    def test_a_single_value_in_place_of_a_section_is_refused(self, tmp_path, values, name):
        with pytest.raises(InputError, match=rf"a\.yaml: {name} must hold settings, got"):
            load_config(_write(tmp_path / "a.yaml", values))
        with pytest.raises(InputError, match=f"^{name} must hold settings"):
            load_config(values)

    def test_a_list_of_the_wrong_length_names_setting_and_file(self, tmp_path):
        with pytest.raises(InputError, match=r"--augment\.scale from .*a\.yaml: Incorrect number of arguments"):
            load_config(_write(tmp_path / "a.yaml", {"augment": {"scale": [1.0]}}))

    def test_an_unknown_section_is_refused(self, tmp_path):
        with pytest.raises(InputError, match="modle"):
            load_config(_write(tmp_path / "a.yaml", {"modle": {"base_features": 8}}))

    def test_later_files_win_and_overrides_win_over_all_key_by_key(self, tmp_path):
        first = _write(tmp_path / "a.yaml", {"model": {"base_features": 8, "max_features": 64}, "optim": {"lr": 0.1}})
        second = _write(tmp_path / "b.yaml", {"model": {"base_features": 12}})
        config = load_config(first, second, overrides={"optim": {"lr": 0.5}})
        assert config.model.base_features == 12
        assert config.model.max_features == 64
        assert config.optim.lr == 0.5
        assert load_config(second, first).model.base_features == 8

    def test_a_file_is_blamed_for_its_own_values_and_not_for_overrides(self, tmp_path):
        good, bad = (_write(tmp_path / f"{n}.yaml", {"data": {"folds": n}}) for n in (5, 1))
        with pytest.raises(InputError, match=r"1\.yaml: data\.folds must be >= 2, got 1"):
            load_config(bad)
        with pytest.raises(InputError, match=r"^data\.folds must be >= 2, got 1"):
            load_config(good, overrides={"data": {"folds": 1}})

    def test_a_mapping_stands_for_a_file_and_is_not_changed(self):
        values = {"train": {"budget": "90s"}, "data": {"spacing_mm": [1, 1, 2.5]}}
        config = load_config(values)
        assert config.train.budget == "90s"
        assert config.data.spacing_mm == (1.0, 1.0, 2.5)
        assert values == {"train": {"budget": "90s"}, "data": {"spacing_mm": [1, 1, 2.5]}}

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
    def test_every_configuration_that_is_shipped_loads(self, path):
        assert isinstance(load_config(path), ExperimentConfig)

    def test_what_is_saved_loads_equal(self, tmp_path):
        config = load_config(
            {
                "model": {"spatial_dims": 2, "attention": {"encoder": "eca", "reduction": 4}},
                "data": {"spacing_mm": [0.5, 0.5, 3.0], "batch_size": 7},
                "augment": {"scale": [0.9, 1.1], "mirror": "none"},
                "train": {"max_steps": 10, "budget": "1.5h", "patience": 3},
            }
        )
        save_config(tmp_path / "a.yaml", config)
        assert load_config(tmp_path / "a.yaml") == config
        save_config(tmp_path / "b.yaml", ExperimentConfig())
        assert load_config(tmp_path / "b.yaml") == ExperimentConfig()

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(InputError, match=r"a\.yaml: cannot be read"):
            load_config(tmp_path / "a.yaml")

    @pytest.mark.parametrize("text", ["model: [", "\x00", "a: b: c"])
    def test_a_file_that_is_no_yaml_is_named(self, tmp_path, text):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(InputError, match=r"a\.yaml: is not valid YAML"):
            read_yaml(tmp_path / "a.yaml")

    def test_a_list_is_no_configuration(self, tmp_path):
        (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
        with pytest.raises(InputError, match="must hold settings"):
            read_yaml(tmp_path / "a.yaml")

    @pytest.mark.parametrize(
        ("text", "name"), [("1: 2", "'1' in line 1"), ("train:\n  on: 3", "'on' in line 2"), ("[a]: 1", "a list")]
    )
    def test_a_name_that_is_no_text_is_refused_with_its_line(self, tmp_path, text, name):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(InputError, match=rf"a\.yaml: is not valid YAML \({name}.* is no name of a setting"):
            load_config(tmp_path / "a.yaml")

    def test_yaml_cannot_run_code(self, tmp_path):
        canary = tmp_path / "canary"
        (tmp_path / "a.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {canary}']\n")
        with pytest.raises(InputError, match="is not valid YAML"):
            load_config(tmp_path / "a.yaml")
        assert not canary.exists()


class TestDurations:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0), ("45", 45.0), ("0.5", 0.5)]
    )
    def test_units_are_seconds_minutes_hours(self, text, seconds):
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "s", "0", "-5m", "nan", "inf", "infh", "5 d", "1e400s"])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(InputError, match="pause must be a duration"):
            parse_duration(text, "pause")


def test_one_line_joins_what_a_library_breaks():
    assert one_line("a\n  b\tc ") == "a b c"


def test_nested_values_become_plain_ones():
    assert to_builtin({1: (1, [2, "ab"]), "b": {"c": None}}) == {"1": [1, [2, "ab"]], "b": {"c": None}}
