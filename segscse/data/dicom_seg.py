"""DICOM SEG: a label map as a DICOM segmentation object that refers to its series, by highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segscse import __version__
from segscse.data.io import Volume
from segscse.errors import InputError
from segscse.files import atomic_path


def write_seg(path: Path, array: np.ndarray, like: Volume, labels: Mapping[int, str]) -> None:
    """Write a label map `(X, Y, Z)` as DICOM SEG, one binary segment per label id above 0 of `labels`.

    Segments are numbered 1, 2, ... in the order of the ids; a segment's label is its name and its description tells
    the id. The property is coded as "tissue" (SNOMED CT 85756007): names are free text, and no code is made up.

    Args:
        path: the `.dcm` file.
        array: label ids.
        like: the series that the label map is of, as `read_image` gave it.
        labels: id to name.

    Raises:
        InputError: highdicom is not installed, `like` is no DICOM series, or there is no label.
    """
    try:
        import highdicom as hd
        import pydicom
    except ImportError as error:
        raise InputError(
            f"DICOM SEG needs highdicom ({error})", remedy="pip install 'segscse[dicom]', or write NIfTI"
        ) from error
    if not like.files:
        raise InputError("DICOM SEG refers to a DICOM series, and the scan is none", file=path, remedy="Write NIfTI")
    ids = sorted(number for number in labels if number > 0)
    if not ids:
        raise InputError("DICOM SEG needs at least one label", file=path, remedy="Write NIfTI")
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in like.files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's notes on names in the source that are not to the letter
        segmentation = hd.seg.Segmentation(
            source_images=slices,
            pixel_array=_segment_numbers(array, ids),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(hd, number, place, labels) for place, number in enumerate(ids, start=1)],
            series_instance_uid=hd.UID(),
            series_number=300,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="segscse",
            manufacturer_model_name="segscse",
            software_versions=__version__,
            device_serial_number="0",
            series_description="segscse segmentation",
            omit_empty_frames=True,
        )
        with atomic_path(path) as temporary:
            segmentation.save_as(temporary)


def _segment_numbers(array: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Return `(slices, rows, columns)` with the place of each label in `ids`, from 1; 0 where it is none of them."""
    frames = array.transpose(2, 1, 0)
    numbers = np.empty(frames.shape, np.uint8 if len(ids) < 2**8 else np.uint16)
    known = np.array(ids)
    for target, frame in zip(numbers, frames, strict=True):  # places are in 64 bits: a slice at a time
        places = np.searchsorted(known, frame).clip(max=len(ids) - 1)
        target[...] = np.where(known[places] == frame, places + 1, 0)
    return numbers


def _segment(hd: Any, number: int, place: int, labels: Mapping[int, str]) -> Any:
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    return hd.seg.SegmentDescription(
        segment_number=place,
        segment_label=labels[number][:64],
        segmented_property_category=tissue,
        segmented_property_type=tissue,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="segscse", version=__version__, family=hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence")
        ),
        tracking_id=f"label {number}: {labels[number]}"[:64],
        tracking_uid=hd.UID(),
    )
