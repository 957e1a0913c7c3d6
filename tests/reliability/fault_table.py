"""The table of single faults: what each is, and how every verb that it concerns has to end.

R: refused with one line that names file, problem and remedy. W: processed, with a warning that names the file.
A: accepted. The numbers are those of the battery in the design notes; E04, E07 to E11 and E14 (kills, full disks,
workers, shared memory) have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import broken_files as broken
import numpy as np
import set_faults
from broken_files import Builder, with_affine, with_array, with_bytes, with_header

if TYPE_CHECKING:
    from stand import Stand

VERBS = ("check", "train", "predict", "evaluate")
READ = ("check", "train", "predict")
LEARN = ("check", "train")
LABELLED = ("check", "train", "evaluate")
# What a damaged stream is called depends on where the damage lies.
DAMAGED = r"damaged or cut short|is cut short|cannot be read|not a NIfTI|unpacks to more"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        id: group letter and number; faults that share them are drawn several times (F07).
        what: in words.
        expected: verb to `R`, `W` or `A`.
        says: what the line or warning must say, as a regular expression.
        scope: what the builder is applied to: the `image`, the `label` map, or the whole `case` alike; in
            `evaluate` these are the prediction, the prediction, and prediction and reference.
        builder: writes the file.
        make: prepares the whole stand, in place of a builder.
        names: what a line must name, when it is not the case.
        whole: verbs that refuse everything, because the fault is not that of one case.
    """

    id: str
    what: str
    expected: Mapping[str, str]
    says: str = ""
    scope: str = "case"
    builder: Builder | None = None
    make: Callable[[Stand], None] | None = None
    names: str = "case_1"
    whole: tuple[str, ...] = ()


def _on(outcome: str, verbs: tuple[str, ...] = VERBS, **others: str) -> dict[str, str]:
    return {**dict.fromkeys(verbs, outcome), **others}


def _image(id_: str, what: str, builder: Builder, outcome: str = "R", says: str = "", **more: Any) -> Fault:
    return Fault(id_, what, more.pop("expected", _on(outcome)), says, "image", builder, **more)


def _case(id_: str, what: str, builder: Builder, outcome: str = "R", says: str = "", **more: Any) -> Fault:
    return Fault(id_, what, more.pop("expected", _on(outcome)), says, "case", builder, **more)


def _voxels(id_: str, what: str, builder: Builder, outcome: str = "R", says: str = "", **more: Any) -> Fault:
    return Fault(id_, what, _on(outcome, READ), says, "image", builder, **more)


def _label(id_: str, what: str, builder: Builder, outcome: str = "R", says: str = "", **more: Any) -> Fault:
    return Fault(id_, what, more.pop("expected", _on(outcome, LABELLED)), says, "label", builder, **more)


def _set(
    id_: str, what: str, make: Callable[[Stand], None], outcomes: Mapping[str, str], says: str, **more: Any
) -> Fault:
    return Fault(id_, what, outcomes, says, make=make, **more)


def _repeat(axes: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a change that stacks five copies along a new last axis, behind axes of one voxel."""
    return lambda array: np.stack([array.reshape(array.shape + (1,) * (axes - 1))] * 5, axis=-1)


SHAPE = (
    _image("S01", "4D of five volumes", with_array(_repeat(1)), says="5 channels|must be 3D"),
    _case("S02", "(x, y, z, 1)", with_array(lambda a: a[..., None]), "A"),
    _image("S03", "5D vectors", with_array(_repeat(2)), says="must be 3D"),
    _image("S04", "RGB24", with_array(broken.structured(broken.RGB)), says="real numbers"),
    _image("S05", "RGBA32", with_array(broken.structured(broken.RGBA)), says="real numbers"),
    _image("S06", "complex64", with_array(lambda a: a.astype(np.complex64)), says="real numbers"),
    _case("S07", "a 2D file", with_array(lambda a: a[:, :, 5].copy()), "W", "2D"),
    _case("S08", "(x, y, 1)", with_array(lambda a: a[:, :, 5:6].copy()), "A"),
    _case("S09", "(1, y, z)", with_array(lambda a: a[5:6].copy()), "A"),
    _case("S10", "smaller than the patch in one axis", with_array(broken.cropped(16, 20, 3)), "A"),
    _case("S11", "smaller than the patch in all axes", with_array(broken.cropped(5, 5, 3)), "A"),
    _case("S12", "1 x 1 x 1", with_array(broken.cropped(1, 1, 1)), "A"),
    _image("S13", "an axis of zero voxels", with_header(dim_2=0), says="has no voxels"),
    _image("S14", "an axis of -3 voxels", with_header(dim_2=-3), says="has no voxels|negative"),
    _image("S15", "32767 cubed announced before 1000 bytes", broken.huge_header, says="cut short"),
    _image(
        "S16", "no axes at all", with_header(dim_0=0), says="number of axes|has no voxels|not a NIfTI|cannot be read"
    ),
    _image("S16", "nine axes", with_header(dim_0=9), says="number of axes|has no voxels|not a NIfTI|cannot be read"),
)

VOXELS = (
    _voxels("V01", "one NaN", with_array(broken.one_voxel(np.nan)), says="NaN"),
    _voxels("V02", "all NaN", with_array(lambda a: np.full(a.shape, np.nan, np.float32)), says="NaN"),
    _voxels("V03", "one infinity", with_array(broken.one_voxel(np.inf)), says="infinity"),
    _voxels("V04", "all zero", with_array(np.zeros_like), "A"),
    _voxels("V05", "constant", with_array(lambda a: np.full_like(a, 7)), "A"),
    # The battery allows a warning. But nothing after it would be right: the other voxels' z-scores are all zero.
    _voxels("V06", "1e300 in 64 bits", with_array(broken.one_voxel(1e300, np.float64)), says="32-bit"),
    _voxels("V07", "int64", with_array(lambda a: a.astype(np.int64)), "A"),
    _voxels(
        "V08",
        "uint64 above 2^53",
        with_array(lambda a: a.astype(np.uint64) * np.uint64(2**50) + np.uint64(1)),
        "W",
        r"2\^53",
    ),
    _voxels("V09", "big-endian", broken.big_endian, "A"),
    _voxels("V10", "slope 0", broken.scaled(0.0), "A"),
    _voxels("V11", "slope NaN", broken.scaled(np.nan), "A"),
    _voxels("V12", "intercept infinite", broken.scaled(1.0, np.inf), says="inter|infinity"),
    _voxels("V13", "negative slope", broken.scaled(-0.5, 100.0), "A"),
    _voxels("V14", "fractional slope", broken.scaled(0.37), "A"),
    _voxels("V15", "float128", broken.float128, says="float128|data type|data code"),
)

GEOMETRY = (
    _case("G01", "pixdim 0, sform good", with_header(pixdim_2=0), "W", "pixdim"),
    _case("G01", "pixdim 0, no sform", with_header(pixdim_2=0, sform=0), says="pixdim"),
    _case("G02", "pixdim negative", with_header(pixdim_2=-1.0), "W", "pixdim"),
    _case("G03", "pixdim NaN", with_header(pixdim_3=np.nan), says="pixdim"),
    _case("G04", "qfac 0", with_affine(lambda a: a @ np.diag([-1.0, 1, 1, 1]), pixdim_0=0), "A"),
    _case("G05", "neither form coded", with_header(qform=0, sform=0), "W", "neither qform nor sform"),
    _case("G06", "qform and sform differ, both coded", with_header(qoffset_x=17.0), says="qform and sform disagree"),
    _case("G07", "pixdim is not the sform's", with_header(qform=0, pixdim_3=4.0), "W", "pixdim"),
    _case("G08", "singular sform", with_header(qform=0, srow_y=(0, 0, 0, 5)), says="singular"),
    _case("G09", "NaN in the sform", with_header(qform=0, srow_y=(0, np.nan, 0, 5)), says="NaN"),
    _case("G10", "5 degrees of shear", with_affine(broken.sheared(np.tan(np.radians(5))), qform=0), says="sheared"),
    _case("G11", "1e-6 of shear, rounding", with_affine(broken.sheared(1e-6)), "A"),
    _case("G12", "30 degrees oblique", with_affine(broken.turned(30)), "A"),
    _case("G13", "left-handed", with_affine(lambda a: a @ np.diag([-1.0, -1, 1, 1])), "A"),
    _case("G14", "axes permuted", with_affine(lambda a: a[:, [2, 0, 1, 3]]), "A"),
    _case("G15", "0.5 x 0.5 x 12 mm", with_affine(broken.spaced(0.5, 0.5, 8)), "A"),
    _case("G16", "units unknown", with_header(units="unknown"), "W", "units"),
    _case("G16", "micrometres", with_header(units="micron"), "W", "micrometres"),
    _case(
        "G17", "quaternion longer than 1", with_header(quatern_b=0.9, quatern_c=0.9, quatern_d=0.9), says="quaternion"
    ),
)

CONTAINER = (
    _image("F01", "empty", with_bytes(lambda c, r: b""), says="is empty"),
    _image("F02", "header cut at 200 bytes", with_bytes(lambda c, r: c[:200], ".nii"), says="not a NIfTI"),
    _image("F03", ".nii cut at half", with_bytes(lambda c, r: c[: len(c) // 2], ".nii"), says="cut short"),
    _image("F04", ".nii.gz cut at half", with_bytes(lambda c, r: c[: len(c) // 2]), says="cut short"),
    _image("F05", "the last 8 bytes missing", with_bytes(lambda c, r: c[:-8]), says="cut short"),
    _image("F06", "a wrong checksum", with_bytes(broken.flip_byte(-6)), says="CRC"),
    *(
        _image("F07", f"one bit flipped at {place:.0%} of the stream", broken.flipped_bit(number), says=DAMAGED)
        for number, place in enumerate(broken.FLIP_PLACES)
    ),
    _case("F08", "plain, named .gz", lambda s, a, m, r: broken.write(s, ".nii.gz", broken.nifti(a, m)), "A"),
    _image(
        "F09",
        "gzip, named .nii",
        lambda s, a, m, r: broken.write(s, ".nii", broken.packed(broken.nifti(a, m))),
        says="gzip",
    ),
    _image("F10", "garbage after the stream", with_bytes(lambda c, r: c + r.bytes(64)), says="damaged"),
    _case("F10", "garbage after the voxels", with_bytes(lambda c, r: c + r.bytes(64), ".nii"), "W", "64 bytes"),
    _case("F11", "two gzip members", broken.two_members, "A"),
    _image("F12", "a thousandfold bomb", broken.bomb, says="unpacks to more"),
    _image("F13", "a gzip file name without end", broken.endless_name, says="damaged"),
    _image("F14", "a web page", broken.pointer(b"<!DOCTYPE html><html>404</html>" * 40), says="not a NIfTI|web page"),
    _image(
        "F15",
        "a git-lfs pointer",
        broken.pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        says="git-lfs",
    ),
    _image("F15", "a git-annex pointer", broken.pointer(b"/annex/objects/SHA256E-s9--0.nii.gz\n"), says="git-annex"),
    _image("F16", ".img without .hdr", broken.headerless_pair, says="pair"),
    _case("F17", "NIfTI-2", broken.nifti2, "A"),
    _image("F18", "a wrong magic", with_header(magic=b"n?1"), says="not a NIfTI|magic"),
    _image("F19", "an extension longer than the file", broken.bad_extension, says="extension"),
    _image(
        "F20",
        "a folder of that name",
        broken.folder,
        says="folder|DICOM",
    ),
    _image(
        "F21",
        "a dangling link",
        broken.dangling_link,
        says="missing|no such file|cannot be read",
    ),
    _image("F22", "a file that cannot be read", broken.unreadable, says="cannot be read|outside the data set"),
)

LABELS = (
    _label("L01", "float 1.0", with_array(lambda a: a.astype(np.float32)), "A"),
    _label("L02", "0.9882 where 1 is meant", with_array(lambda a: a.astype(np.float32) * 0.9882), says="whole numbers"),
    _label("L03", "one 0.5", with_array(broken.one_voxel(0.5)), says="whole numbers"),
    _label("L04", "int64", with_array(lambda a: a.astype(np.int64)), "A"),
    _label("L05", "bytes with a slope of 1/127", broken.scaled(1 / 127, 0.0, np.uint8), "A"),
    _label("L06", "-1", with_array(broken.one_voxel(-1, np.int16)), says="-1", expected=_on("R", LEARN)),
    _label(
        "L07",
        "255 in a task of 0, 1, 2",
        with_array(broken.one_voxel(255, np.uint8)),
        says="255",
        expected=_on("R", LEARN),
    ),
    _label(
        "L08",
        "an id that is not declared",
        with_array(broken.one_voxel(3, np.uint8)),
        says=r"\[3\]",
        expected=_on("R", LEARN),
    ),
    _set("L09", "declared ids with gaps come back", set_faults.ids_with_gaps, _on("A"), ""),
    _set(
        "L10",
        "a declared id that occurs nowhere",
        set_faults.absent_id,
        _on("W", LEARN),
        "occurs in no case",
        names="3",
    ),
    _label("L11", "one case without foreground", with_array(np.zeros_like), "A", expected=_on("A", LABELLED)),
    _set(
        "L12",
        "no case has foreground",
        set_faults.all_empty,
        _on("R", LABELLED),
        "foreground|no label to score",
        names="",
        whole=VERBS,
    ),
    _label("L13", "NaN", with_array(broken.one_voxel(np.nan)), says="NaN"),
    _set("L14", "ids above 65535", set_faults.huge_ids, _on("A"), ""),
    _label("L15", "RGB", with_array(broken.structured(broken.RGB)), says="real numbers"),
    _label("L16", "no background", with_array(lambda a: np.where(a == 0, 1, a).astype(a.dtype)), "A"),
)

PAIRS = (
    _label("P01", "another shape", with_array(lambda a: a[:, :, :-1].copy()), says="different grids.*shape"),
    _label(
        "P02", "spacing off by a thousandth", with_affine(broken.spaced(1.001, 1.001, 1.001)), says="different grids"
    ),
    _label("P03", "spacing off by 1e-7", with_affine(broken.spaced(1 + 1e-7, 1, 1)), "A"),
    _label("P04", "origin one voxel off", with_affine(broken.shifted(1.0, 0, 0)), says="different grids"),
    _label("P05", "origin 1e-4 mm off", with_affine(broken.shifted(1e-4, 0, 0)), "A"),
    _label(
        "P06", "axis flipped, same shape", with_affine(lambda a: a @ np.diag([1.0, -1, 1, 1])), says="different grids"
    ),
    _set("P07", "axes swapped in a cube", set_faults.swapped_cube, _on("R", LABELLED), "different grids"),
    _label("P08", "rotated by 2 degrees", with_affine(broken.turned(2)), says="different grids"),
    _label("P09", "the identity as affine", with_affine(lambda a: np.eye(4)), says="different grids"),
    _label("P10", "another order of axes, same places", broken.reoriented, "A", expected=_on("A", LABELLED)),
    _set(
        "P11", "a modality of another shape", set_faults.modality_shape, _on("R", READ), "another grid", names="case_1"
    ),
    _set(
        "P12",
        "a modality of another geometry",
        set_faults.modality_geometry,
        _on("R", READ),
        "another grid",
        names="case_1",
    ),
    _set(
        "P13",
        "a label map is missing",
        set_faults.label_missing,
        _on("R", LABELLED),
        "missing|no reference",
        whole=("evaluate",),
    ),
    _set(
        "P14",
        "a modality is missing",
        set_faults.modality_missing,
        _on("R", READ),
        "missing|channels",
    ),
    _set(
        "P15",
        "two cases of one id",
        set_faults.same_id,
        _on("R"),
        "more than once|shares the name|are named",
        whole=VERBS,
    ),
    _set("P16", "one file is listed as two cases", set_faults.same_file, _on("W", LEARN), "same voxels"),
    _set("P17", "the same content under two names", set_faults.same_content, _on("W", LEARN), "same voxels"),
    _set(
        "P18",
        "ids that differ in case only",
        set_faults.same_but_case,
        _on("W"),
        "upper and lower case",
        names="CASE_1",
    ),
)

ENVIRONMENT = (
    _set("E01", "names beyond ASCII", set_faults.names("Fälle Ünïcode 病例"), _on("A"), ""),
    _set("E02", "space, quote, shell and newline in names", set_faults.names("a b'\";$(touch x)\n`id`"), _on("A"), ""),
    _set("E02", "a leading dash", set_faults.names("-rf --out"), _on("A"), ""),
    _set("E03", "names of 255 bytes", set_faults.names("n" * (255 - len(".nii.gz"))), _on("A"), ""),
    _set(
        "E05",
        "the output folder is the input's",
        set_faults.output_is_input,
        {"check": "A", "train": "R", "predict": "R", "evaluate": "A"},
        "input|exists|holds",
        names="",
        whole=VERBS,
    ),
    _set(
        "E06",
        "the output exists",
        set_faults.output_exists,
        {"check": "A", "train": "R", "predict": "R", "evaluate": "A"},
        "already exists|is there already",
        names="",
        whole=VERBS,
    ),
    _set("E12", "TMPDIR does not exist", set_faults.no_temporary_folder, _on("A"), ""),
    _set("E13", "nobody reads standard output", set_faults.closed_pipe, _on("A"), ""),
)

FAULTS = (*SHAPE, *VOXELS, *GEOMETRY, *CONTAINER, *LABELS, *PAIRS, *ENVIRONMENT)
# Tested elsewhere in this folder: kills, full disks, workers, shared memory, read-only outputs.
OTHERS = ("E04", "E07", "E08", "E09", "E10", "E11", "E14")
# Faults whose outcome is stricter than the battery asks, and why: see the lines above.
STRICTER = ("V06",)
GROUPS = {
    "S": "shape",
    "V": "voxels",
    "G": "geometry",
    "F": "container",
    "L": "labels",
    "P": "pairs",
    "E": "environment",
}
