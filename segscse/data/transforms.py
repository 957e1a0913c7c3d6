"""From files to network input: MONAI transforms that load, orient, crop, resample and normalise as a plan says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    LoadImaged,
    MapTransform,
    Orientationd,
    Spacingd,
    Transform,
)

from segscse.data.examine import read_channels
from segscse.data.geometry import affine_problem
from segscse.data.io import Volume, read_labels
from segscse.data.plan import Normalisation, Plan
from segscse.errors import InputError

# Goes into the key of cached cases: raise it when the result of `preprocess` changes.
PREPROCESSING_VERSION = 1
CANONICAL = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A case as the network sees it.

    Attributes:
        image: `(C, X, Y, Z)` float32, canonical orientation, at the plan's spacing, normalised.
        label: `(X, Y, Z)` output-channel numbers (not ids), or None.
        affine: `(4, 4)` of this grid, RAS mm.
        source: the first file's volume; its grid and header are the way back.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    affine: np.ndarray
    source: Volume


class VolumeReader(ImageReader):
    """MONAI's reader interface over `segscse.data.io`, so that `LoadImaged` refuses what segscse refuses.

    Attributes:
        source: the volume behind the last image read; its grid and header are the way back.
    """

    def __init__(self) -> None:
        self.source: Volume | None = None

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: unknown suffixes are refused, with a reason, on reading."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read channel files `[path, ...]` as one image, or a single path as a label map."""
        if isinstance(data, (list, tuple)):
            channels, self.source = read_channels([Path(str(item)) for item in data])
            return channels, self.source
        volume = read_labels(Path(str(data)))
        return volume.array[None], volume

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return `(C, X, Y, Z)` float32 and the metadata that MONAI's transforms read."""
        array, volume = img
        if not np.isfinite(array).all():
            raise InputError("intensities hold NaN or infinity", file=volume.path, remedy="Replace those voxels")
        return np.ascontiguousarray(array, np.float32), {
            "affine": volume.affine,
            "original_affine": volume.affine,
            "spatial_shape": array.shape[1:],
            "original_channel_dim": 0,
            "space": "RAS",
        }


class _ArrayReader(VolumeReader):
    """Hands an image that is in memory to the transforms that files go through."""

    def __init__(self, volume: Volume) -> None:
        super().__init__()
        self.source = volume

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Return the image in memory, whatever name is asked for."""
        assert self.source is not None  # set above
        array = self.source.array if self.source.array.ndim == 4 else self.source.array[..., None]
        return np.moveaxis(array, -1, 0), self.source


class Normalised(MapTransform):
    """Normalise each channel as the plan's `Normalisation` says."""

    def __init__(self, keys: Sequence[str], schemes: Sequence[Normalisation]) -> None:
        super().__init__(keys)
        self.schemes = tuple(schemes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images normalised."""
        out = dict(data)
        for key in self.key_iterator(out):
            if len(out[key]) != len(self.schemes):
                raise InputError(
                    f"the image has {len(out[key])} channels, the plan has {len(self.schemes)}",
                    remedy="Give all channels of the case, in the plan's order",
                )
            for number, scheme in enumerate(self.schemes):
                out[key][number] = normalise(out[key][number], scheme)
        return out


class LabelsToChannels(MapTransform):
    """Replace label ids, which may have gaps, by the numbers of the network's output channels."""

    def __init__(self, keys: Sequence[str], ids: Sequence[int]) -> None:
        super().__init__(keys)
        self.ids = torch.tensor(sorted(ids), dtype=torch.float32)
        self.channels = torch.tensor(np.argsort(ids))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with `(1, X, Y, Z)` labels as channel numbers."""
        out = dict(data)
        for key in self.key_iterator(out):
            position = torch.searchsorted(self.ids, out[key].as_tensor().contiguous())
            out[key].set_array(self.channels[position].float())
        return out


def normalise(channel: torch.Tensor, scheme: Normalisation) -> torch.Tensor:
    """Return one channel normalised; a constant image becomes zero."""
    if scheme.scheme == "ct":
        return (channel.clamp(scheme.low, scheme.high) - scheme.mean) / max(scheme.std, 1e-8)
    mean = channel.mean(dtype=torch.float64)
    std = (channel.double() - mean).square().mean().sqrt()
    return ((channel - mean) / std.clamp(min=1e-8)).to(channel.dtype)


def preprocessing(plan: Plan, reader: ImageReader, *, with_label: bool) -> Compose:
    """Return the transforms that make `{"image": [paths], "label": path}` ready for the network."""
    keys = ["image", "label"] if with_label else ["image"]
    modes = ["bilinear", "nearest"][: len(keys)]
    # MONAI keeps an axis's own spacing where the target is not positive: slices are not mixed in 2D.
    target = [-1.0 if axis == plan.slice_axis else size for axis, size in enumerate(plan.spacing_mm)]
    steps: list[Transform] = [
        LoadImaged(keys, reader=cast(Any, reader), image_only=True, ensure_channel_first=True),
        Orientationd(keys, axcodes="RAS", labels=CANONICAL),
        CropForegroundd(keys, source_key="image", select_fn=_above_minimum, margin=1, allow_smaller=True),
        Spacingd(keys, pixdim=target, mode=modes, padding_mode="border", dtype=np.float32),
        Normalised(["image"], plan.normalisation),
    ]
    if with_label:
        steps.append(LabelsToChannels(["label"], plan.label_ids))
    return Compose(steps)


def preprocess(images: Sequence[Path], label: Path | None, plan: Plan) -> Prepared:
    """Load one case and bring it to the plan's grid and intensities.

    Raises:
        InputError: a file cannot be used.
    """
    files: dict[str, Any] = {"image": list(images)}
    if label is not None:
        files["label"] = label
    return _run(files, VolumeReader(), plan)


def preprocess_array(array: np.ndarray, affine: np.ndarray, plan: Plan) -> Prepared:
    """Bring an image in memory to the plan's grid and intensities.

    Args:
        array: `(X, Y, Z)` or `(X, Y, Z, C)`.
        affine: `(4, 4)`, RAS mm.
        plan: spacing and normalisation.

    Raises:
        InputError: the array or the affine cannot be used.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(f"an image must be (X, Y, Z) or (X, Y, Z, C), got shape {array.shape}")
    if affine.shape != (4, 4) or affine_problem(affine):
        raise InputError(f"the affine cannot be used: {affine_problem(affine) or affine.shape}")
    return _run({"image": ["array"]}, _ArrayReader(Volume(array, affine)), plan)


def _run(files: Mapping[str, Any], reader: VolumeReader, plan: Plan) -> Prepared:
    with torch.no_grad():
        out = run_transforms(preprocessing(plan, reader, with_label="label" in files), files)
    image: MetaTensor = out["image"]
    channels = out["label"].as_tensor()[0].to(_label_dtype(len(plan.labels))) if "label" in files else None
    if reader.source is None:
        raise ValueError("the transforms read no image")
    return Prepared(
        image=image.as_tensor().contiguous(),
        label=channels,
        affine=np.asarray(image.affine, np.float64),
        source=reader.source,
    )


def run_transforms(transforms: Compose, files: Mapping[str, Any]) -> dict[str, Any]:
    """Apply MONAI transforms; an InputError inside them comes out as itself, not wrapped."""
    try:
        return transforms(files)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def _label_dtype(n_labels: int) -> torch.dtype:
    return torch.uint8 if n_labels <= 256 else torch.int16


def _above_minimum(image: torch.Tensor) -> torch.Tensor:
    """Select what is not background padding: above the minimum in any channel; everything in a constant image."""
    flat = image.flatten(1).amin(dim=1).reshape(-1, *[1] * (image.ndim - 1))
    above = image > flat
    return above if above.any() else torch.ones_like(above)
