"""Plan: what the data imply for a network, as numbers and names; deterministic, readable, and kept with every model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segscse.config import ExperimentConfig
from segscse.data.fingerprint import ChannelStats, Fingerprint
from segscse.data.plan_check import plan_problem
from segscse.errors import InputError
from segscse.files import digest, read_json, write_json

PLAN_VERSION = 2
READABLE_VERSIONS = (1, 2)  # 1: zeros count as content of a scan; see `segscse.data.content`
ANISOTROPY = 3.0
MIN_EDGE = 4
MAX_STAGES = 6
MAX_SLICE_EDGE = 512
STEP_VOXELS = 180_000
# Scans whose content takes less of them than this are normalised within it: nnU-Net's rule.
MASKED_BELOW = 0.75
# Share of the median scan that a patch should see, and below which a coarser spacing is proposed.
CONTEXT, LITTLE_CONTEXT = 0.1, 0.05
AXIS_NAMES = ("right-left", "anterior-posterior", "superior-inferior")
SIDES = (
    frozenset({"left", "right", "lh", "rh", "l", "r"}),
    frozenset({"anterior", "posterior", "ventral", "dorsal"}),
    frozenset({"superior", "inferior", "upper", "lower", "cranial", "caudal"}),
)
# Single letters count alone only: L1 is a vertebra.
WORD = re.compile(r"[a-z]{2,}|(?<![a-z0-9])[a-z](?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How one channel becomes zero-mean, unit-variance.

    `ct`: clip to [low, high], subtract `mean`, divide by `std`, all of the training foreground.
    `zscore`: subtract each image's own mean and divide by its own standard deviation.
    `zscore_nonzero`: the same of the voxels that are not exactly zero, before resampling; the others stay zero. For
    scans with wide empty surroundings, such as skull-stripped ones.
    """

    scheme: Literal["ct", "zscore", "zscore_nonzero"]
    mean: float
    std: float
    low: float
    high: float

    @property
    def before_resampling(self) -> bool:
        """Whether it comes before resampling, because interpolation would blur what it goes by."""
        return self.scheme == "zscore_nonzero"


@dataclass(frozen=True, slots=True)
class Plan:
    """What preprocessing, network and output need to know about the data.

    Axes are those of the canonical orientation (R, A, S). Sequences of axes that the network sees have
    `spatial_dims` entries: all three in 3D, the two in-slice axes in 2D.

    Attributes:
        spacing_mm: voxel size to resample to; NaN-free even in 2D, where the slice axis keeps its own spacing.
        slice_axis: the axis that 2D slices are stacked along; None in 3D.
        patch_size: training and inference window in voxels.
        batch_size: patches a training step.
        strides: per stage, per axis; the first stage has stride one.
        kernel_sizes: per stage, per axis; 1 across an axis still too coarse to mix.
        labels: `(id, name)` in the order of the network's output channels; ids may have gaps.
        mirror_axes: axes (0, 1, 2 of RAS) along which mirroring makes another plausible image.
        reasons: why the choices are as they are, one sentence each.
    """

    dataset: str
    spatial_dims: int
    spacing_mm: tuple[float, float, float]
    slice_axis: int | None
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    channels: tuple[str, ...]
    normalisation: tuple[Normalisation, ...]
    labels: tuple[tuple[int, str], ...]
    mirror_axes: tuple[int, ...]
    reasons: tuple[str, ...]
    version: int = PLAN_VERSION

    @property
    def window_axes(self) -> tuple[int, ...]:
        """Canonical axes that the network sees, in order."""
        return tuple(axis for axis in range(3) if axis != self.slice_axis)

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Label id of each output channel."""
        return tuple(label for label, _ in self.labels)

    @property
    def zeros_are_content(self) -> bool:
        """Whether voxels of exactly zero count as content of a scan, as when the first models were trained."""
        return self.version < 2

    @property
    def key(self) -> str:
        """Digest over everything that decides the preprocessed data; caches are keyed by it."""
        return digest([self.spacing_mm, self.slice_axis, asdict(self)["normalisation"], self.labels, self.version])

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready value; `from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], file: str | Path | None = None) -> Plan:
        """Build a plan from its JSON value.

        Raises:
            InputError: fields are missing, unknown, of another version, or have values that no plan has.
        """
        fields = set(cls.__dataclass_fields__)
        if not isinstance(value, Mapping) or set(value) != fields:
            wrong = sorted(set(value) ^ fields) if isinstance(value, Mapping) else value
            raise InputError(
                f"is no plan; missing or unknown: {wrong}", file=file, remedy="Make it with `segscse plan`"
            )
        if value["version"] not in READABLE_VERSIONS:
            raise InputError(
                f"is of version {value['version']}, this segscse reads {' and '.join(map(str, READABLE_VERSIONS))}",
                file=file,
                remedy="Plan again",
            )
        try:
            plan = cls(**{name: _tuples(item) for name, item in value.items()})
            plan = replace(plan, normalisation=tuple(Normalisation(**item) for item in value["normalisation"]))
        except (TypeError, ValueError) as error:
            raise InputError(f"is no plan ({error})", file=file, remedy="Make it with `segscse plan`") from error
        if problem := plan_problem(plan):
            raise InputError(f"is no plan ({problem})", file=file, remedy="Make it with `segscse plan`")
        return plan


def save_plan(path: str | Path, plan: Plan) -> None:
    """Write a plan as JSON, atomically."""
    write_json(path, plan.to_json())


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        InputError: the file cannot be read or is no plan.
    """
    return Plan.from_json(read_json(path), path)


def make_plan(fingerprint: Fingerprint, config: ExperimentConfig, dataset: str) -> Plan:
    """Decide spacing, patch, strides, kernels, batch and normalisation from a fingerprint.

    The rules follow nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, supplementary note 2),
    with a limit on patch voxels in place of a graphics-memory target.
    """
    dims = config.model.spatial_dims
    reasons: list[str] = []
    spacing = config.data.spacing_mm or _target_spacing(fingerprint, reasons)
    shape = _median_shape(fingerprint, spacing)
    slice_axis = coarsest_axis(spacing, shape) if dims == 2 else None
    axes = [axis for axis in range(3) if axis != slice_axis]
    limit = config.data.max_patch_voxels if dims == 3 else MAX_SLICE_EDGE**2
    patch, strides, kernels = plan_topology([shape[a] for a in axes], [spacing[a] for a in axes], limit)
    wide = [axis for axis, size in zip(axes, patch, strict=True) if size > 1]
    batch = config.data.batch_size or _batch_size(patch, dims)
    masked = _content_share(fingerprint) < MASKED_BELOW
    reasons.append(f"median shape at this spacing is {shape}; the patch covers {patch} of axes {axes}")
    plan = Plan(
        dataset=dataset,
        spatial_dims=dims,
        spacing_mm=tuple(float(size) for size in spacing),  # type: ignore[arg-type]
        slice_axis=slice_axis,
        patch_size=patch,
        batch_size=batch,
        strides=strides,
        kernel_sizes=kernels,
        channels=tuple(channel.name for channel in fingerprint.channels),
        normalisation=tuple(_normalisation(channel, config, masked, reasons) for channel in fingerprint.channels),
        labels=tuple(fingerprint.labels.items()),
        mirror_axes=_mirror_axes(fingerprint, wide, config.augment.mirror, reasons),
        reasons=tuple(reasons),
    )
    note = context_note(plan, fingerprint)
    return plan if note is None else replace(plan, reasons=(*plan.reasons, note))


def context_note(plan: Plan, fingerprint: Fingerprint) -> str | None:
    """Return what to do where a 3D patch sees little of a scan, in a sentence; None where it sees enough.

    nnU-Net plans a second, coarser network below a quarter of the median scan. Here the spacing stays the data's, and
    the one that is named grows likewise: all axes by the same factor, those coarser by more than two only with the
    others.
    """
    if plan.spatial_dims == 2:
        return None
    spacing, patch_voxels = np.array(plan.spacing_mm), math.prod(plan.patch_size)
    share = seen = patch_voxels / math.prod(_median_shape(fingerprint, plan.spacing_mm))
    if share >= LITTLE_CONTEXT:
        return None
    while seen < CONTEXT:
        fine = spacing * 2 < spacing.max()
        spacing = np.where(fine | ~fine.any(), spacing * 1.03, spacing)
        seen = patch_voxels / math.prod(_median_shape(fingerprint, spacing.tolist()))
    coarser = " ".join(f"{size:.2g}" for size in spacing)
    return (
        f"the patch sees {share:.1%} of the median scan: structures that are told apart by their surroundings may do "
        f"better with --data.spacing-mm {coarser}, small ones with a larger --data.max-patch-voxels"
    )


def _target_spacing(fingerprint: Fingerprint, reasons: list[str]) -> tuple[float, ...]:
    """Median voxel size; on a strongly coarser axis the 10th percentile, so that thin-sliced cases keep detail."""
    spacings = np.array(fingerprint.spacings_mm)
    shapes = np.array(fingerprint.content_shapes)
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY * target[others].max()
    thin = np.median(shapes, axis=0)[worst] * ANISOTROPY < np.median(shapes, axis=0)[others].min()
    if coarse and thin:
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
        reasons.append(
            f"the {AXIS_NAMES[worst]} axis is anisotropic: its spacing is the 10th percentile, not the median"
        )
    else:
        reasons.append("spacing is the median of the cases")
    return tuple(float(f"{size:.4g}") if size < 0.1 else round(float(size), 4) for size in target)


def _median_shape(fingerprint: Fingerprint, spacing: Sequence[float]) -> tuple[int, ...]:
    extents = np.array(fingerprint.content_shapes) * np.array(fingerprint.spacings_mm)
    return tuple(int(size) for size in np.maximum(1, np.rint(np.median(extents / np.array(spacing), axis=0))))


def _content_share(fingerprint: Fingerprint) -> float:
    """Return the share of a scan that its content's box takes, in the median case."""
    pairs = zip(fingerprint.content_shapes, fingerprint.shapes, strict=True)
    return float(np.median([np.prod(content) / np.prod(shape) for content, shape in pairs]))


def coarsest_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> int:
    """Return the axis along which slices lie; the last one (superior-inferior, axial slices) among equals.

    Images that are a single slice lie across the axis of one voxel, whatever size their files give it.
    """
    return max(range(3), key=lambda axis: (shape[axis] == 1, round(spacing_mm[axis], 3), axis))


def plan_topology(
    shape: Sequence[int], spacing_mm: Sequence[float], max_voxels: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return patch size, strides and kernel sizes for a median shape.

    An axis is halved while its edge stays at least 4 and its spacing is within a factor of two of the
    finest; kernels are 1 across an axis of one voxel, and across one whose spacing is still more than twice the
    finest. The patch is the median shape, its longest axis in mm shrunk until it has at most `max_voxels`, and rounded
    so that every halving divides it.
    """
    patch = _shrink(np.array(shape, float), np.array(spacing_mm, float), max_voxels)
    for _ in range(20):
        strides, kernels = _pooling(patch, np.array(spacing_mm, float))
        factor = np.prod(strides, axis=0)
        rounded = np.maximum(1, np.ceil(patch / factor)).astype(int) * factor
        for less in (np.rint, np.floor):
            if rounded.prod() > max_voxels * 1.25:
                rounded = np.maximum(1, less(patch / factor)).astype(int) * factor
        if (rounded == patch).all():
            break
        patch = rounded
    return tuple(int(size) for size in patch), strides, kernels


def _shrink(shape: np.ndarray, spacing: np.ndarray, max_voxels: int) -> np.ndarray:
    patch = np.minimum(shape, MAX_SLICE_EDGE)
    while patch.prod() > max_voxels:
        longest = int(np.where(patch > 1, patch * spacing, 0).argmax())
        patch[longest] = max(1.0, np.floor(patch[longest] * 0.95))
    return patch.astype(int)


def _pooling(patch: np.ndarray, spacing: np.ndarray) -> tuple[tuple[tuple[int, ...], ...], ...]:
    edges, sizes = patch.astype(float), spacing.copy()
    strides = [(1,) * len(edges)]
    kernels = [_kernel(edges, sizes)]
    while len(strides) < MAX_STAGES:
        halve = (edges >= 2 * MIN_EDGE) & (sizes <= 2 * sizes[edges >= 2 * MIN_EDGE].min(initial=np.inf))
        if not halve.any():
            break
        stride = tuple(2 if axis else 1 for axis in halve)
        edges, sizes = np.ceil(edges / stride), sizes * stride
        strides.append(stride)
        # An axis too short to be halved stays fine; the others go on being looked across all the same.
        kernels.append(tuple(map(max, kernels[-1], _kernel(edges, sizes))))
    return tuple(strides), tuple(kernels)


def _kernel(edges: np.ndarray, sizes: np.ndarray) -> tuple[int, ...]:
    finest = sizes[edges > 1].min(initial=np.inf)
    return tuple(3 if edge > 1 and size <= 2 * finest else 1 for edge, size in zip(edges, sizes, strict=True))


def _batch_size(patch: Sequence[int], dims: int) -> int:
    fitting = round(STEP_VOXELS / float(np.prod(patch)))
    return int(np.clip(fitting, 2, 4 if dims == 3 else 48))


def _normalisation(channel: ChannelStats, config: ExperimentConfig, masked: bool, reasons: list[str]) -> Normalisation:
    modality = config.data.modality
    if modality == "auto":
        modality = "ct" if _looks_like_ct(channel) else "mr"
    scheme: Literal["ct", "zscore", "zscore_nonzero"] = "ct"
    if modality == "mr":
        scheme = "zscore_nonzero" if masked else "zscore"
    how = "set by data.modality" if config.data.modality != "auto" else "judged by its name and intensities"
    where = ", within its voxels that are not zero" if scheme == "zscore_nonzero" else ""
    reasons.append(f"channel {channel.name} is normalised as {modality.upper()}{where}, {how}")
    spread = channel.std or 1.0
    return Normalisation(scheme, channel.mean, spread, channel.percentile_00_5, channel.percentile_99_5)


def _looks_like_ct(channel: ChannelStats) -> bool:
    if channel.name.lower() in ("ct", "hu"):
        return True
    unnamed = channel.name.startswith("channel_")
    hounsfield = -5000 < channel.minimum <= -200 and 200 < channel.maximum < 35_000
    return unnamed and hounsfield and channel.whole_numbers


def _mirror_axes(
    fingerprint: Fingerprint, axes: Sequence[int], mirror: Literal["auto", "all", "none"], reasons: list[str]
) -> tuple[int, ...]:
    """Mirror along every axis, except where labels tell its two directions apart or scans have only one of them.

    nnU-Net mirrors along all axes; a network then cannot tell left structures from right ones, and spends its time on
    anatomy that is upside down: ten minutes on Task04 gave Dice 0.882 mirrored along two axes, 0.886 along none.
    """
    if mirror != "auto":
        return tuple(axes) if mirror == "all" else ()
    labels = fingerprint.labels
    mirrored = []
    for axis in axes:
        words = SIDES[axis]
        sided = next((name for name in labels.values() if words & set(WORD.findall(name.lower()))), None)
        if sided is not None:
            reasons.append(f"no mirroring along {AXIS_NAMES[axis]}: the label {sided!r} names a side")
        elif pair := fingerprint.sided.get(axis):
            first, second = (labels.get(label, label) for label in pair)
            problem = f"{first!r} and {second!r} lie beside each other, always the same way around"
            reasons.append(f"no mirroring along {AXIS_NAMES[axis]}: {problem}")
        elif further := fingerprint.directed.get(axis):
            problem = f"the scans show it one way around, mirrored they lie {further:g} times as far from their mean"
            reasons.append(f"no mirroring along {AXIS_NAMES[axis]}: {problem}")
        else:
            mirrored.append(axis)
    return tuple(mirrored)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
