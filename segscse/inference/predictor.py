"""Predictor: a trained model that segments scans on their own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from segscse.data.network_grid import Prepared, prepare_files, preprocess_array
from segscse.data.plan import Plan
from segscse.errors import InputError
from segscse.files import digest
from segscse.hardware import pick_precision
from segscse.inference.engines import Engine, TorchEngine
from segscse.inference.manifest import folder_digest
from segscse.inference.model_folder import find_members, load_model
from segscse.inference.remembered import Trial
from segscse.inference.segment import Member, Options, Segmentation, segment
from segscse.inference.select import describe, load_engine, trained_precision
from segscse.inference.sliding_window import Network, mirrored, predict_volume, tensor_axes
from segscse.inference.weights import weights_digest

ArrayImage = tuple[np.ndarray, np.ndarray] | list[np.ndarray]


class Segmenter:
    """What a single network and an ensemble have in common: scans in, label maps out.

    Args:
        members: networks with the same labels and channels.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.plan = members[0].plan

    def predict(
        self,
        image: str | Path | Sequence[str | Path] | ArrayImage,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        foreground_only: bool = False,
    ) -> Segmentation:
        """Segment one scan on its own grid.

        Args:
            image: a file, the channel files of a case, or `(array, affine)` with `(X, Y, Z)` or `(X, Y, Z, C)` voxels
                and a `(4, 4)` RAS affine in mm.
            probabilities: also return the class probabilities, `(X, Y, Z, K)` float32.
            uncertainty: also return the entropy of every voxel and, of an ensemble, the members' disagreement.
            foreground_only: leave out windows of nothing but background air.

        Raises:
            InputError: the scan cannot be used or has other channels than the model.
        """
        options = Options(probabilities=probabilities, uncertainty=uncertainty, foreground_only=foreground_only)
        return segment(self.members, self.prepare(image), options)

    def prepare(self, image: str | Path | Sequence[str | Path] | ArrayImage) -> list[Prepared]:
        """Return a scan on each member's grid; members that prepare alike share it.

        Raises:
            InputError: the scan cannot be used or has other channels than the model.
        """
        plans = {member.plan.key: member.plan for member in self.members}
        if isinstance(image, (tuple, list)) and len(image) == 2 and isinstance(image[0], np.ndarray):
            array, affine = image[0], np.asarray(image[1], np.float64)
            made = {key: preprocess_array(array, affine, plan) for key, plan in plans.items()}
        else:
            made = prepare_files(_files(image), plans)
        return [made[member.plan.key] for member in self.members]


def _files(image: Any) -> list[Path]:
    """Return a case's files; whatever else is given is refused."""
    files = [image] if isinstance(image, (str, PathLike)) else image
    if not isinstance(files, Sequence) or not all(isinstance(file, (str, PathLike)) for file in files):
        alone = isinstance(image, np.ndarray)
        given = "an array without its affine, which says where and how large the voxels are"
        raise InputError(
            f"an image must be a file, a list of channel files or (array, affine), got "
            f"{given if alone else type(image).__name__}",
            remedy="Give (array, affine) with a (4, 4) RAS affine in mm",
        )
    return [Path(file) for file in files]


class Predictor(Segmenter):
    """Segments scans with a trained network.

    Args:
        network: the U-Net, with its weights, or an engine that computes it.
        plan: preprocessing, window and labels.
        provenance: what the training run recorded.
        device: where PyTorch runs; an engine knows its own.
        mirror: average over mirrored inputs (test-time augmentation); 8 times the work in 3D.
        folder: the model folder that it comes from.
        trials: the engines that were compared, when this one was chosen among several.
        postprocessing: steps after the arg max; see `segscse.inference.postprocess`.
    """

    def __init__(
        self,
        network: torch.nn.Module | Engine,
        plan: Plan,
        *,
        provenance: Mapping[str, Any],
        device: torch.device,
        mirror: bool = False,
        folder: Path | None = None,
        trials: Sequence[Trial] = (),
        postprocessing: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.members: tuple[Predictor, ...] = (self,)
        self.folder = folder
        self.provenance = provenance
        if not isinstance(network, Engine):
            precision = pick_precision(trained_precision(provenance), device)
            network = TorchEngine(network, device, precision, plan.spatial_dims)
        self.engine = network
        self.device = network.device
        self.mirror = mirror
        self.trials = tuple(trials)
        self.postprocessing = tuple(postprocessing)

    @property
    def network(self) -> torch.nn.Module | None:
        """The U-Net; None where another engine than PyTorch computes it."""
        return self.engine.network if isinstance(self.engine, TorchEngine) else None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the label map: the model and how it is run; another one each time where the model is unknown."""
        if self.folder is not None:
            model = folder_digest(self.folder)
        elif self.network is not None:
            kind, weights = type(self.network).__name__, weights_digest(self.network.state_dict())
            model = digest([kind, weights, self.plan.to_json(), self.postprocessing])
        else:
            model = uuid4().hex
        how = {"engine": self.engine.name, "precision": self.engine.precision}
        return {"model": model, "mirror": self.mirror, **how}

    @property
    def chosen(self) -> str:
        """The engine and, when it was chosen among several, what each of them took, in one line."""
        return f"{self.engine} ({describe(self.trials)})" if self.trials else str(self.engine)

    def network_call(self, batch_size: int) -> Network:
        """Return what maps windows `(B, C, *window)` to logits `(B, K, *window)`, averaged over mirroring if asked for.

        Args:
            batch_size: windows a call of the network at most, mirrored copies among them.
        """
        axes = tensor_axes(self.plan.mirror_axes, self.plan.slice_axis) if self.mirror else []
        return mirrored(self.engine, axes, batch_size)

    @torch.inference_mode()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return all logits `(K, X, Y, Z)` of a preprocessed image `(C, X, Y, Z)`, where they fit in memory."""
        return predict_volume(
            image.to(self.device),
            self.network_call(self.plan.batch_size),
            window=self.plan.patch_size,
            n_classes=len(self.plan.labels),
            slice_axis=self.plan.slice_axis,
            batch_size=self.plan.batch_size,
        )


class Ensemble(Segmenter):
    """Averages the probabilities of several trained networks, such as the folds of a cross-validation.

    Each network takes the scan on its own grid, so patches and spacings may differ.

    Args:
        members: the networks.

    Raises:
        InputError: they differ in labels or channels.
    """

    def __init__(self, members: Sequence[Predictor]) -> None:
        for member in members:
            for name in ("labels", "channels"):
                own, first = getattr(member.plan, name), getattr(members[0].plan, name)
                if own != first:
                    raise InputError(
                        f"has the {name} {own}, the first model of the ensemble {first}",
                        file=member.folder,
                        remedy="Give models that were trained for the same task",
                    )
        super().__init__(members)
        self.members: tuple[Predictor, ...] = tuple(members)


def load(
    path: str | Path, *more: str | Path, device: str = "auto", engine: str = "auto", mirror: bool = False
) -> Predictor | Ensemble:
    """Load a model from a run folder or a model folder; reads safetensors, JSON and graphs, executes no code of them.

    Args:
        path: the folder. That of a cross-validation stands for the models of its folds.
        *more: further folders. The probabilities of several models are averaged.
        device: `auto`, `cpu`, `cuda` or `mps`.
        engine: `auto`, `torch`, `openvino` or `onnxruntime` (or `onnx`); see `segscse.inference.select.load_engine`.
        mirror: average over mirrored inputs.

    Raises:
        InputError: no model there, its weights do not fit its description, the engine cannot be used, or the models
            differ in labels or channels.
    """
    folders = [member for one in (path, *more) for member in find_members(one)]
    models = [load_one(folder, device=device, engine=engine, mirror=mirror) for folder in folders]
    return models[0] if len(models) == 1 else Ensemble(models)


def load_one(path: str | Path, *, device: str = "auto", engine: str = "auto", mirror: bool = False) -> Predictor:
    """Load a single model; arguments and errors as for `load`."""
    model = load_model(path)
    chosen, trials = load_engine(model, engine, device)
    return Predictor(
        chosen,
        model.plan,
        provenance=model.provenance,
        device=chosen.device,
        mirror=mirror,
        folder=model.folder,
        trials=trials,
        postprocessing=model.postprocessing,
    )
