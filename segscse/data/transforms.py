"""From files to training cases: MONAI transforms that load, orient, crop, resample and normalise as a plan says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import cache, partial
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
)

from segscse.data.content import content_mask
from segscse.data.examine import read_channels
from segscse.data.geometry import canonical_grid, orthogonal, same_grid
from segscse.data.io import Volume, read_labels
from segscse.data.network_grid import Prepared, check_channels, normalise
from segscse.data.plan import Normalisation, Plan
from segscse.errors import InputError

# Goes into the key of cached cases: raise it when the result of `preprocess` changes.
PREPROCESSING_VERSION = 2
CANONICAL = (("L", "R"), ("P", "A"), ("I", "S"))


class ChannelReader(ImageReader):
    """Reads a case's channel files for MONAI's `LoadImaged`, by `segscse.data.io`, which refuses damaged ones.

    Handed over at the call, not at construction: there `LoadImaged` would try its other readers on a file that
    this one refuses.

    Args:
        plan: the channels that a case must have.

    Attributes:
        source: the first file's volume, once read.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.source: Volume | None = None

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Return True: what cannot be read is refused, with a reason, on reading."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[np.ndarray, Volume]:
        """Return `(C, X, Y, Z)` intensities and the first file's volume."""
        channels, self.source = read_channels([Path(str(path)) for path in cast(Sequence[PathLike], data)])
        return check_channels(channels, self.source, self.plan), self.source

    def get_data(self, img: tuple[np.ndarray, Volume]) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the array and the metadata that MONAI's transforms go by."""
        array, volume = img
        affine = orthogonal(volume.affine)
        return np.array(array, np.float32, order="C"), {
            "affine": affine,
            "original_affine": affine,
            "spatial_shape": np.array(array.shape[1:]),
            "original_channel_dim": 0,
            "space": "RAS",
        }


class LabelReader(ChannelReader):
    """Reads a label map as `(1, X, Y, Z)` numbers of output channels.

    Args:
        plan: the labels.
        image: the volume whose grid the label map must share, apart from the order and direction of axes.
    """

    def __init__(self, plan: Plan, image: Volume) -> None:
        super().__init__(plan)
        self.image = image

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[np.ndarray, Volume]:
        """Return the channel numbers and the label map's volume."""
        volume = read_labels(Path(str(cast(Sequence[PathLike], data)[0])))
        grids = [canonical_grid(item.array.shape[:3], item.affine) for item in (self.image, volume)]
        if difference := same_grid(*grids[0], *grids[1]):
            raise InputError(
                f"label and image lie on different grids ({difference})",
                file=volume.path,
                remedy="Resample the label map onto the image",
            )
        return label_channels(volume, self.plan.label_ids)[None], volume


class Normalised(MapTransform):
    """Normalise each channel as the plan's `Normalisation` says, if it says so for this side of the resampling."""

    def __init__(self, keys: Sequence[str], schemes: Sequence[Normalisation], *, before_resampling: bool) -> None:
        super().__init__(keys)
        self.schemes = tuple(schemes)
        self.before_resampling = before_resampling

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the images normalised."""
        out = dict(data)
        for key in self.key_iterator(out):
            for number, scheme in enumerate(self.schemes):
                if scheme.before_resampling == self.before_resampling:
                    out[key][number] = normalise(out[key][number], scheme)
        return out


def preprocessing(plan: Plan, *, with_label: bool) -> Compose:
    """Return the transforms that make a loaded `{"image", "label"}` ready for the network."""
    keys = ["image", "label"] if with_label else ["image"]
    modes = ["bilinear", "nearest"][: len(keys)]
    content = partial(_content, zeros=plan.zeros_are_content)
    # MONAI keeps an axis's own spacing where the target is not positive: slices are not mixed in 2D.
    target = [-1.0 if axis == plan.slice_axis else size for axis, size in enumerate(plan.spacing_mm)]
    return Compose(
        [
            Orientationd(keys, axcodes="RAS", labels=CANONICAL),
            CropForegroundd(keys, source_key="image", select_fn=content, margin=1, allow_smaller=True),
            Normalised(["image"], plan.normalisation, before_resampling=True),
            Spacingd(keys, pixdim=target, mode=modes, padding_mode="border", dtype=np.float32),
            Normalised(["image"], plan.normalisation, before_resampling=False),
        ]
    )


def preprocess(images: Sequence[Path], label: Path | None, plan: Plan) -> Prepared:
    """Load one case and bring it to the plan's grid and intensities.

    Raises:
        InputError: a file cannot be used.
    """
    reader = ChannelReader(plan)
    data = {"image": _load([str(path) for path in images], reader)}
    assert reader.source is not None  # it has read the image
    if label is not None:
        data["label"] = _load(str(label), LabelReader(plan, reader.source))
    return _run(data, reader.source, plan)


def _load(files: str | list[str], reader: ImageReader) -> MetaTensor:
    return cast(MetaTensor, _loader()({"file": files}, reader)["file"])


@cache
def _loader() -> LoadImaged:
    """Return MONAI's loader, without what its own readers, of which none is used, have to say of this machine."""
    log = logging.getLogger("monai.data")
    level = log.level
    with warnings.catch_warnings(action="ignore"):
        log.setLevel(logging.ERROR)
        try:
            return LoadImaged(["file"], image_only=True, ensure_channel_first=True, expanduser=False)
        finally:
            log.setLevel(level)


def _run(data: dict[str, MetaTensor], source: Volume, plan: Plan) -> Prepared:
    labelled = "label" in data
    with torch.no_grad():
        out = cast(dict[str, MetaTensor], preprocessing(plan, with_label=labelled)(data))
    image = out["image"]
    return Prepared(
        image=image.as_tensor().contiguous(),
        label=out["label"].as_tensor()[0].to(label_dtype(len(plan.labels))) if labelled else None,
        affine=np.asarray(image.affine, np.float64),
        source=source,
    )


def label_channels(label: Volume, ids: Sequence[int]) -> np.ndarray:
    """Return the number of the output channel of every voxel; `ids`, one per channel, may have gaps.

    Raises:
        InputError: the label map holds an id that is not among `ids`.
    """
    order = np.argsort(ids)
    known = np.asarray(ids)[order]
    values = np.unique(label.array)
    if not (found := np.isin(values, known)).all():
        raise InputError(
            f"holds label ids {[int(value) for value in values[~found]][:10]}, the plan has {sorted(ids)}",
            file=label.path,
            remedy="Correct the label map or plan again",
        )
    numbers = order[np.searchsorted(known, values)].astype(np.uint8 if len(ids) <= 256 else np.int16)
    if values[-1] >= 2**16 or values[0] < 0:  # no table of all ids below the largest
        return numbers[np.searchsorted(values, label.array)]
    table = np.zeros(int(values[-1]) + 1, numbers.dtype)
    table[values] = numbers
    return table[label.array]


def label_dtype(n_labels: int) -> torch.dtype:
    """Return the smallest type that the channel numbers of so many labels fit into."""
    return torch.uint8 if n_labels <= 256 else torch.int16


def _content(image: torch.Tensor, *, zeros: bool) -> torch.Tensor:
    return torch.from_numpy(content_mask(np.asarray(image), zeros=zeros))[None]
