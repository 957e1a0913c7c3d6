"""ExperimentConfig: what a person chooses; strict, typed, frozen. What the data imply is the plan's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import cyclopts
import yaml
from cyclopts.config import Dict

from segscse.errors import InputError, one_line
from segscse.files import write_text
from segscse.yaml_file import read_yaml


def _whole(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    """Convert a whole number, refusing a fraction, which cyclopts would round.

    Raises:
        ValueError: it has one.
    """
    for token in tokens:
        if _has_fraction(token.value):
            origin = "" if token.source == "cli" else f" from {token.source}"
            raise ValueError(f"must be a whole number, got {token.value}{origin}")
    return cyclopts.convert(kind, tokens)


def _whole_or_none(kind: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    return _whole(kind | None, tokens)


def _has_fraction(text: str) -> bool:
    try:
        return float(text) % 1 != 0
    except ValueError:  # of another kind, which is said later, or hexadecimal
        return False


Whole = Annotated[int, cyclopts.Parameter(converter=_whole)]
WholeOrNone = Annotated[int | None, cyclopts.Parameter(converter=_whole_or_none)]


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Attention block by position: a name that `segscse.attention.ATTENTION` lists, with options after colons.

    So `scse:aggregation=max:reduction=4`, or `cbam:kernel_size=7x7x3`; `segscse.attention.block_options` tells them.
    """

    encoder: str = "scse"
    """After the last non-linearity of every encoder stage, before pooling and skip."""
    bottleneck: str = "none"
    """After the deepest stage."""
    decoder: str = "scse"
    """After the last non-linearity of every decoder stage."""
    decoder_concat: str = "none"
    """Before the convolutions of every decoder stage: on the skip connection beside the map from below."""
    skip: str = "none"
    """On every skip connection, before concatenation."""
    reduction: WholeOrNone = None
    """Reduction of the blocks that have one (SE, scSE, CBAM, ...) and name none; each block's own if not given."""

    def __post_init__(self) -> None:
        _require_kinds(self, "model.attention")
        _require(self.reduction is None or self.reduction >= 1, "model.attention.reduction", self.reduction, ">= 1")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The network."""

    spatial_dims: Literal[2, 3] = 3
    """2 trains on slices, 3 on volumes."""
    block: Literal["plain", "residual", "selective"] = "plain"
    """Two convolutions a stage, or two with a shortcut, or a convolution and a selective kernel (`sk`)."""
    base_features: Whole = 16
    """Channels of the first stage; they double from stage to stage."""
    max_features: Whole = 320
    """Upper limit to the channels of a stage."""
    deep_supervision: bool = True
    """Also learn from the coarser decoder stages."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        _require_kinds(self, "model")
        _require(self.base_features >= 4, "model.base_features", self.base_features, ">= 4")
        _require(
            self.max_features >= self.base_features,
            "model.max_features",
            self.max_features,
            ">= base_features",
        )


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What planning takes as given, and how cases are split and sampled."""

    modality: Literal["auto", "ct", "mr"] = "auto"
    """`ct` clips and scales by the data set's intensities, `mr` normalises each image by itself."""
    spacing_mm: tuple[float, float, float] | None = None
    """Voxel size to train at, in canonical axis order (R, A, S); planned from the data if not given."""
    max_patch_voxels: Whole = 300_000
    """Size that a 3D patch may have, give or take a quarter for rounding; 2D patches take slices up to 512 x 512."""
    batch_size: WholeOrNone = None
    """Patches a step; planned if not given."""
    folds: Whole = 5
    """Number of cross-validation folds (fewer when there are fewer subjects)."""
    split_seed: Whole = 12345
    """Seed of the shuffle before the split; nnU-Net's, so that folds compare."""
    foreground_share: float = 0.33
    """Share of patches that are centred on a foreground voxel; unless 0, one at least of a batch of two or more."""
    cache_gb: float = 4.0
    """Decoded cases stay in memory up to this size, on disk beyond."""

    def __post_init__(self) -> None:
        _require_kinds(self, "data")
        _require(self.max_patch_voxels >= 4096, "data.max_patch_voxels", self.max_patch_voxels, ">= 4096")
        _require(self.batch_size is None or self.batch_size >= 1, "data.batch_size", self.batch_size, ">= 1")
        _require(self.folds >= 2, "data.folds", self.folds, ">= 2")
        _require(0 <= self.split_seed < 2**32, "data.split_seed", self.split_seed, "between 0 and 2**32 - 1")
        _require(0 <= self.foreground_share <= 1, "data.foreground_share", self.foreground_share, "between 0 and 1")
        _require(0 <= self.cache_gb < float("inf"), "data.cache_gb", self.cache_gb, ">= 0 and finite")
        if self.spacing_mm is not None:
            _require(
                all(0 < mm < float("inf") for mm in self.spacing_mm),
                "data.spacing_mm",
                self.spacing_mm,
                "> 0 on every axis",
            )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Random changes to training patches; a probability of 0 switches one off."""

    rotation_deg: float = 30.0
    """Largest rotation about each axis in the plane of equal spacing."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Range of the zoom factor."""
    spatial_p: float = 0.3
    """Probability of a rotation, and of a zoom."""
    mirror: Literal["auto", "all", "none"] = "auto"
    """Axes to mirror along, in training and with --tta: all, or those whose two directions look alike in the data."""
    noise_p: float = 0.1
    """Probability of Gaussian noise."""
    blur_p: float = 0.1
    """Probability of Gaussian blur."""
    brightness_p: float = 0.15
    """Probability of a brightness factor."""
    contrast_p: float = 0.15
    """Probability of a contrast factor."""
    low_resolution_p: float = 0.15
    """Probability of simulated low resolution."""
    gamma_p: float = 0.3
    """Probability of a gamma curve."""

    def __post_init__(self) -> None:
        _require_kinds(self, "augment")
        for name in ("spatial", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma"):
            value = getattr(self, f"{name}_p")
            _require(0 <= value <= 1, f"augment.{name}_p", value, "between 0 and 1")
        _require(0 <= self.rotation_deg <= 180, "augment.rotation_deg", self.rotation_deg, "between 0 and 180")
        good = 0 < self.scale[0] <= self.scale[1] < float("inf")
        _require(good, "augment.scale", self.scale, "low <= high, both > 0 and finite")


@dataclass(frozen=True, slots=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: Literal["muon", "adamw", "sgd"] = "muon"
    """Muon with AdamW for vectors, AdamW for all, or SGD with Nesterov momentum 0.99."""
    lr: float | None = None
    """Peak learning rate; 8e-3 for Muon, 3e-3 for AdamW and 1e-2 for SGD if not given."""
    weight_decay: float | None = None
    """Decoupled (Muon, AdamW) or L2 (SGD) weight decay; 1e-2, and 3e-5 for SGD, if not given."""
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup: float = 0.05
    """Share of the run in which the rate rises linearly."""
    clip_norm: float = 12.0
    """Largest norm of the gradient."""
    average: Literal["polynomial", "ema", "none"] = "polynomial"
    """Which average of the weights over the steps is validated and exported; none takes the last weights."""
    ema_decay: float = 0.998
    """Decay of the moving average, of `average: ema`."""

    def __post_init__(self) -> None:
        _require_kinds(self, "optim")
        _require(self.lr is None or 0 < self.lr < float("inf"), "optim.lr", self.lr, "> 0 and finite")
        good = self.weight_decay is None or 0 <= self.weight_decay < float("inf")
        _require(good, "optim.weight_decay", self.weight_decay, ">= 0 and finite")
        _require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "in [0, 1)")
        _require(0 < self.clip_norm < float("inf"), "optim.clip_norm", self.clip_norm, "> 0 and finite")
        allowed = "in (0, 1); without an average, set optim.average to none"
        _require(0 < self.ema_decay < 1, "optim.ema_decay", self.ema_decay, allowed)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The length of a run and the hardware that it uses."""

    budget: str = "30m"
    """Time for training with its validations, such as 90s, 20m or 2h; the schedule is sized to it."""
    max_steps: WholeOrNone = None
    """Number of optimiser steps; when given, it takes the place of the budget and makes runs repeatable."""
    validations: Whole = 5
    """How often the validation cases are segmented whole; less often, or fewer of them, where that would take more than
    5 % of the budget. The scores that follow the training are of all."""
    patience: WholeOrNone = None
    """Stop after this many validations without a better Dice, and keep the best model instead of the last; or never."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 mixed precision where the hardware computes in it, else 32 bit."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    seed: Whole = 0
    """Seed of the weights, the sampling and the augmentation."""
    checkpoint_every: str = "5m"
    """A resumable checkpoint is written at least this often."""
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Who gets the curves, the settings and example pictures, beside metrics.csv; kept in the run folder, offline."""

    def __post_init__(self) -> None:
        _require_kinds(self, "train")
        parse_duration(self.budget, "train.budget")
        parse_duration(self.checkpoint_every, "train.checkpoint_every")
        _require(self.max_steps is None or self.max_steps >= 1, "train.max_steps", self.max_steps, ">= 1")
        _require(0 <= self.seed < 2**31, "train.seed", self.seed, "between 0 and 2**31 - 1")
        _require(self.validations >= 1, "train.validations", self.validations, ">= 1")
        _require(self.patience is None or self.patience >= 1, "train.patience", self.patience, ">= 1")
        _require(len(set(self.loggers)) == len(self.loggers), "train.loggers", self.loggers, "different names")


@dataclass(frozen=True, slots=True)
class ExperimentConfig:
    """Everything that a person chooses about an experiment."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


# On the command line the sections stand at the top: `--model.block`, not `--config.model.block`.
FlatConfig = Annotated[ExperimentConfig, cyclopts.Parameter(name="*")]


def parse_duration(text: str, name: str = "duration") -> float:
    """Return seconds for `90s`, `20m`, `1.5h` or a bare number of seconds.

    Raises:
        InputError: the text is no positive duration.
    """
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        seconds = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{name} must be a duration such as 90s, 20m or 2h, got {text!r}")
    return seconds


def load_config(*paths: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Read configurations and merge them left to right, then apply `overrides`.

    Args:
        *paths: YAML files, or nested mappings in their place.
        overrides: nested mapping that wins over all files.

    Raises:
        InputError: a file cannot be read, a key is unknown, or a value is not allowed; the file is named
            where `overrides` cannot be the cause.
    """
    sources = [(path, path) if isinstance(path, Mapping) else (read_yaml(path), path) for path in paths]
    if overrides:
        sources.append((overrides, overrides))
    for values, origin in sources:
        _require_sections(values, ExperimentConfig(), None if isinstance(origin, Mapping) else origin)
    readers = [
        Dict(dict(values), source="overrides" if isinstance(origin, Mapping) else str(origin))
        for values, origin in reversed(sources)
    ]
    app = cyclopts.App(config=readers, result_action="return_value", help_flags=[], version_flags=[])

    @app.default
    def build(*, config: FlatConfig = ExperimentConfig()) -> ExperimentConfig:
        return config

    try:
        return app([], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        message, argument = one_line(error), getattr(error, "argument", None)
        if argument is not None and message.startswith("Incorrect number"):  # all that this one says
            message = f"{argument.name} from {', '.join({token.source for token in argument.tokens})}: {message}"
        raise InputError(message, remedy="See configs/ for examples") from error
    except InputError as error:  # of a section's own check
        files = ", ".join(str(origin) for _, origin in sources if not isinstance(origin, Mapping))
        if not files or overrides or error.file is not None:
            raise
        raise InputError(error.problem, file=files, remedy=error.remedy or "See configs/ for examples") from error


def save_config(path: str | Path, config: ExperimentConfig) -> None:
    """Write the whole configuration as YAML, atomically; `load_config` reads it back equal."""
    write_text(path, yaml.safe_dump(to_builtin(asdict(config)), sort_keys=False))


def to_builtin(value: Any) -> Any:
    """Return nested dataclass values as plain lists, dicts and scalars, for YAML and JSON."""
    if isinstance(value, Mapping):
        return {str(key): to_builtin(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_builtin(item) for item in value]
    return value


def _require_sections(values: Mapping[str, Any], section: Any, file: str | Path | None, name: str = "") -> None:
    """Refuse a single value in place of a section, which cyclopts would pass over in silence."""
    for key, value in values.items():
        inner = getattr(section, str(key), None)
        if not is_dataclass(inner):
            continue
        if not isinstance(value, Mapping):
            raise InputError(f"{name}{key} must hold settings, got {value!r}", file=file, remedy="See configs/")
        _require_sections(value, inner, file, f"{name}{key}.")


def _require_kinds(section: Any, name: str) -> None:
    """Refuse values that are not of their setting's kind, as Python lets them be given."""
    for key, kind in get_type_hints(type(section)).items():
        value = getattr(section, key)
        _require(_is_of(kind, value), f"{name}.{key}", value, _kind_text(kind))


def _is_of(kind: Any, value: Any) -> bool:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if get_origin(kind) is UnionType:
        return any(_is_of(part, value) for part in inner)
    if get_origin(kind) is tuple:
        wanted = (inner[0],) * len(value) if isinstance(value, tuple) and inner[-1] is ... else inner
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_is_of, wanted, value))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _kind_text(kind: Any) -> str:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(kind) is UnionType:
        return " or ".join(_kind_text(part) for part in inner)
    if get_origin(kind) is tuple:
        return f"a tuple of {_kind_text(inner[0]) if inner[-1] is ... else f'{len(inner)} numbers'}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _require(good: bool, name: str, got: Any, allowed: str) -> None:
    if not good:
        raise InputError(f"{name} must be {allowed}, got {got!r}")
