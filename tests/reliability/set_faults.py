"""Faults of more than one file: pairs, whole data sets, names and surroundings. Each prepares a stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import broken_files as broken
import numpy as np
from broken_files import healthy, with_affine, with_array

if TYPE_CHECKING:
    from stand import Stand


def _map_labels(stand: Stand, change: Callable[[np.ndarray], np.ndarray], names: dict[int, str]) -> None:
    """Change the label maps of all cases, and what is declared."""
    stand.declared = names
    for case in stand.cases:
        for role in ("label", "pred", "ref"):
            if role in stand.roles:
                stand.put(role, case, with_array(change))


def ids_with_gaps(stand: Stand) -> None:
    """Use the ids 0, 1 and 5; the model of `predict` was trained on them."""
    stand.use_model("gaps")
    _map_labels(stand, lambda a: np.where(a == 2, 5, a).astype(np.uint8), {0: "background", 1: "front", 5: "back"})


def huge_ids(stand: Stand) -> None:
    """Use the ids 0, 1 and 70000; the model of `predict` was trained on them."""
    stand.use_model("huge")
    _map_labels(stand, lambda a: np.where(a == 2, 70000, a.astype(np.int32)), {0: "background", 1: "a", 70000: "b"})


def absent_id(stand: Stand) -> None:
    """Declare a label that no map holds."""
    stand.declared = {**stand.declared, 3: "never"}


def all_empty(stand: Stand) -> None:
    """Leave background only, everywhere."""
    _map_labels(stand, np.zeros_like, stand.declared)


def swapped_cube(stand: Stand) -> None:
    """Store a label map of a cube with two of its axes exchanged, voxels and sizes alike, directions not."""
    image, label = (item[:12, :12, :12].copy() for item in stand.arrays(1))
    affine = np.diag([1.0, 1.0, 1.5, 1.0])
    swapped = with_affine(lambda _: np.diag([1.5, 1.0, 1.0, 1.0]))
    if stand.verb == "evaluate":
        stand.write("ref", "case_1", healthy, label, affine)
        stand.write("pred", "case_1", swapped, label.transpose(2, 1, 0).copy(), affine)
    else:
        stand.write("image", "case_1", healthy, image, affine)
        stand.write("label", "case_1", swapped, label.transpose(2, 1, 0).copy(), affine)


def _two_channels(stand: Stand, second: broken.Builder) -> None:
    """Give every case two channel files, the second of case_1 as the builder writes it."""
    stand.use_model("two")
    for case in stand.cases:
        stand.add_channel(case, second if case == "case_1" else healthy)


def modality_shape(stand: Stand) -> None:
    """Give a second channel one slice less."""
    _two_channels(stand, with_array(lambda a: a[:, :, :-1].copy()))


def modality_geometry(stand: Stand) -> None:
    """Give a second channel another place."""
    _two_channels(stand, with_affine(broken.shifted(0, 3.0, 0)))


def modality_missing(stand: Stand) -> None:
    """Leave out a second channel."""
    _two_channels(stand, healthy)
    stand.remove_channel("case_1")


def label_missing(stand: Stand) -> None:
    """Remove the label map or the reference of a case."""
    stand.remove("ref" if stand.verb == "evaluate" else "label", "case_1")


def same_id(stand: Stand) -> None:
    """Store a second file that makes the same case."""
    role = {"predict": "image", "evaluate": "pred"}.get(stand.verb, "image")
    stand.twin(role, "case_1", suffix=".nii")


def same_file(stand: Stand) -> None:
    """List the files of a case under a second id, in a CSV."""
    stand.as_csv([*((case, case) for case in stand.cases), ("case_1_again", "case_1")])


def same_content(stand: Stand) -> None:
    """Copy a case under a second name."""
    stand.copy_case("case_1", "case_1_copy")


def same_but_case(stand: Stand) -> None:
    """Add a case whose id is another one's in capitals."""
    stand.copy_case("case_1", "CASE_1", fresh=True)


def names(name: str) -> Callable[[Stand], None]:
    """Return a fault that renames a case and, where it can be, the folder that all lies in."""

    def make(stand: Stand) -> None:
        stand.rename("case_1", name)
        if len(name) < 60:
            stand.rename_root(name)

    return make


def output_is_input(stand: Stand) -> None:
    """Write where the inputs lie."""
    stand.out = stand.input_folder()


def output_exists(stand: Stand) -> None:
    """Write where an earlier run, or for `predict` somebody else, left results."""
    stand.fill_output()


def no_temporary_folder(stand: Stand) -> None:
    """Point TMPDIR at nothing."""
    stand.environment["TMPDIR"] = str(stand.root / "no such folder")


def closed_pipe(stand: Stand) -> None:
    """Let nobody read standard output."""
    stand.closed_stdout = True
