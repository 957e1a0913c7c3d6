"""Predictor: a trained model that segments scans on their own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segscse.data.index import find_inputs
from segscse.data.io import Volume, as_labels, write_image
from segscse.data.output import OutputFormat, output_suffix, write_labels
from segscse.data.plan import Plan
from segscse.data.transforms import Prepared, preprocess, preprocess_array
from segscse.errors import InputError
from segscse.hardware import pick_precision
from segscse.inference.engines import Engine, TorchEngine
from segscse.inference.model_folder import load_model
from segscse.inference.restore import restore, restore_probabilities
from segscse.inference.select import Trial, load_engine, trained_precision
from segscse.inference.sliding_window import predict_volume
from segscse.types import Progress

ArrayImage = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A label map on the scan's own grid.

    Attributes:
        array: label ids `(X, Y, Z)` in the smallest integer type that holds them.
        affine: `(4, 4)`, RAS mm, as the scan's.
        labels: id to name.
        probabilities: `(X, Y, Z, K)` in the order of `labels`, when asked for.
        source: the scan.
    """

    array: np.ndarray
    affine: np.ndarray
    labels: Mapping[int, str]
    probabilities: np.ndarray | None
    source: Volume

    def save(self, path: str | Path) -> None:
        """Write the label map on the scan's grid, atomically: NIfTI, or another format by the suffix of `path`.

        See `segscse.data.output.write_labels`.
        """
        write_labels(path, self.array, self.source, self.labels)


class Predictor:
    """Segments scans with a trained network.

    Args:
        network: the U-Net, with its weights, or an engine that runs it.
        plan: preprocessing, window and labels.
        provenance: what the training run recorded.
        device: where PyTorch runs; an engine knows its own.
        mirror: average over mirrored inputs (test-time augmentation); 8 times the work in 3D.
    """

    def __init__(
        self,
        network: torch.nn.Module | Engine,
        plan: Plan,
        *,
        provenance: Mapping[str, Any],
        device: torch.device,
        mirror: bool = False,
    ) -> None:
        self.plan = plan
        self.provenance = provenance
        if not isinstance(network, Engine):
            precision = pick_precision(trained_precision(provenance), device)
            network = TorchEngine(network, device, precision, plan.spatial_dims)
        self.engine = network
        self.device = network.device
        self.mirror = mirror
        self.trials: tuple[Trial, ...] = ()

    def predict(
        self, image: str | Path | Sequence[str | Path] | ArrayImage, *, probabilities: bool = False
    ) -> Segmentation:
        """Segment one scan.

        Args:
            image: a file, a list of channel files, or `(array, affine)` with `(X, Y, Z)` or `(X, Y, Z, C)` voxels
                and a `(4, 4)` RAS affine in mm.
            probabilities: also return the class probabilities.

        Raises:
            InputError: the scan cannot be used or has other channels than the model.
        """
        prepared = self._prepare(image)
        logits = self.logits(prepared.image)
        kept = None
        if probabilities:
            numbers, kept = restore_probabilities(logits, prepared)
            ids = np.array(self.plan.label_ids)[numbers]
        else:
            ids = restore(logits, prepared, self.plan.label_ids)
        source = prepared.source
        return Segmentation(as_labels_of(ids, self.plan), source.affine, dict(self.plan.labels), kept, source)

    @torch.inference_mode()
    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits `(K, X, Y, Z)` of a preprocessed image `(C, X, Y, Z)`."""
        return predict_volume(
            image.to(self.device),
            self.engine,
            window=self.plan.patch_size,
            slice_axis=self.plan.slice_axis,
            mirror_axes=self.plan.mirror_axes if self.mirror else (),
            batch_size=self.plan.batch_size,
        )

    def _prepare(self, image: str | Path | Sequence[str | Path] | ArrayImage) -> Prepared:
        if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], np.ndarray):
            prepared = preprocess_array(image[0], np.asarray(image[1], np.float64), self.plan)
        else:
            files = [image] if isinstance(image, (str, Path)) else list(image)
            prepared = preprocess([Path(str(file)) for file in files], None, self.plan)
        return prepared


def load(path: str | Path, *, device: str = "auto", engine: str = "auto", mirror: bool = False) -> Predictor:
    """Load a model from a run folder or a model folder; reads safetensors, JSON and graphs, executes no code of them.

    Args:
        path: the folder.
        device: `auto`, `cpu`, `cuda` or `mps`.
        engine: `auto`, `torch`, `openvino` or `onnxruntime`; see `segscse.inference.select.load_engine`.
        mirror: average over mirrored inputs.

    Raises:
        InputError: no model there, or its weights do not fit its description.
    """
    model = load_model(path)
    chosen, trials = load_engine(model, engine, device)
    predictor = Predictor(chosen, model.plan, provenance=model.provenance, device=chosen.device, mirror=mirror)
    predictor.trials = trials
    return predictor


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that could not be predicted, and why."""

    case: str
    reason: str


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    probabilities: bool = False,
    form: OutputFormat = "nifti",
    progress: Progress | None = None,
) -> tuple[list[Path], list[Failure]]:
    """Segment files and folders into `out/<case>.nii.gz`; a bad case does not stop the others.

    With `form="input"` each label map has its scan's format; see `segscse.data.output.output_suffix`.

    Probabilities go to `out/probabilities/<case>.nii.gz`, `(X, Y, Z, K)` float32.

    Raises:
        InputError: no inputs, or `out` is where the inputs lie.
    """
    cases = find_inputs(list(inputs), len(predictor.plan.channels))
    _refuse_overwriting(cases, out)
    written, failures = [], []
    for done, (name, files) in enumerate(cases.items(), start=1):
        try:
            segmentation = predictor.predict(list(files), probabilities=probabilities)
            label_map = out / f"{name}{output_suffix(segmentation.source, form)}"
            segmentation.save(label_map)
            if segmentation.probabilities is not None:
                file = out / "probabilities" / f"{name}.nii.gz"
                write_image(file, segmentation.probabilities, segmentation.source)
            written.append(label_map)
        except (InputError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError when memory runs out
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            failures.append(Failure(name, reason))
        if progress is not None:
            progress(done, len(cases))
    return written, failures


def as_labels_of(ids: np.ndarray, plan: Plan) -> np.ndarray:
    """Return ids in the type that all of the plan's labels need, so that every case of a model has the same."""
    dtype = as_labels(np.array(plan.label_ids)).dtype
    return ids.astype(dtype)


def _refuse_overwriting(cases: Mapping[str, Sequence[Path]], out: Path) -> None:
    for files in cases.values():
        for file in files:
            if out.resolve() in (file.resolve(), file.resolve().parent):
                raise InputError(
                    "the output folder holds the inputs", file=out, remedy="Give another folder with --out"
                )
