"""Damaged NRRD and MetaImage files: every one is refused in one line that names it."""

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813, the field's idiom

from segscse.data.io import read_image
from segscse.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 999, (12, 14, 16)).astype(np.int16)


@pytest.fixture
def write(tmp_path):
    def make(name, *, compressed=True):
        sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / name), compressed)
        return tmp_path / name

    return make


def _refused(path, problem):
    with pytest.raises(InputError, match=problem) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nhdr", "a.mhd"])
@pytest.mark.parametrize("compressed", [True, False])
def test_whole_files_are_read(write, name, compressed):
    volume = read_image(write(name, compressed=compressed))
    np.testing.assert_array_equal(volume.array, ARRAY.transpose(2, 1, 0))
    assert volume.notes == ()


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("place", [-600, -6])
def test_one_wrong_byte_in_a_compressed_stream_is_found(write, name, place):
    path = write(name)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    _refused(path, "cannot be read .*stream")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize(("compressed", "cut"), [(True, 1), (True, 9), (True, 2000), (False, 1), (False, 2000)])
def test_a_missing_end_is_found(write, name, compressed, cut):
    path = write(name, compressed=compressed)
    path.write_bytes(path.read_bytes()[:-cut])
    _refused(path, "are announced" if compressed else "is cut short")


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        ("a.nrrd", b"sizes: 16 14 12", b"sizes: 16 14 13", "are announced"),
        ("a.nrrd", b"sizes: 16 14 12", b"sizes: 16 14 11", "are announced"),
        ("a.nrrd", b"sizes: 16 14 12", b"sizes: 99999 99999 99999", "unpacks to more than 64 GiB"),
        ("a.nrrd", b"sizes: 16 14 12", b"sizes: 16 -4 12", "sizes is '16 -4 12'"),
        ("a.nrrd", b"sizes: 16 14 12", b"sizes: 1 1 16 14 12", "must be 3D, got 5D"),
        ("a.nrrd", b"type: short", b"type: block", "voxels must be real numbers"),
        ("a.nrrd", b"encoding: gzip", b"encoding: bzip2", "encoding 'bzip2' is not supported"),
        ("a.nrrd", b"encoding: gzip", b"byte skip: 4\nencoding: gzip", "line or byte skip is not supported"),
        ("a.nrrd", b"encoding: gzip", b"data file: ../../x.raw\nencoding: gzip", "only one file in the same folder"),
        ("a.nrrd", b"encoding: gzip", b"data file: /etc/passwd\nencoding: gzip", "only one file in the same folder"),
        ("a.nrrd", b"encoding: gzip", b"data file: LIST\nencoding: gzip", "only one file in the same folder"),
        ("a.nrrd", b"encoding: gzip", b"data file: gone.raw\nencoding: gzip", "voxels' file gone.raw is missing"),
        ("a.mha", b"DimSize = 16 14 12", b"DimSize = 16 14 13", "are announced"),
        ("a.mha", b"DimSize = 16 14 12", "DimSize = 16 14 ²".encode(), "DimSize is"),
        ("a.mha", b"DimSize = 16 14 12", b"DimSize = 16 14 " + b"9" * 5000, "DimSize is"),
        ("a.mha", b"DimSize = 16 14 12", b"DimSize = 16 14", "must be 3D, got 2D"),
        ("a.mha", b"MET_SHORT", b"MET_STRING", "voxels must be real numbers"),
        ("a.mha", b"BinaryData = True", b"BinaryData = False", "of text is not supported"),
        ("a.mha", b"NDims = 3", b"NDims = 3\nHeaderSize = 9", "HeaderSize is not supported"),
        ("a.mha", b"= LOCAL", b"= ../x.raw", "only one file in the same folder"),
        ("a.mha", b"= LOCAL", b"= slice%03d.raw", "only one file in the same folder"),
        ("a.mha", b"ElementDataFile = LOCAL", b"", "it is no MetaImage"),
    ],
)
def test_headers_that_do_not_fit_are_refused(write, name, old, new, problem):
    path = write(name)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    _refused(path, re.escape(problem))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nhdr"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a git-lfs pointer"),
        (b"hello", "cannot be read"),
        (b"NRRD0004\ntype: short\nsizes: 2 2 2\nencoding: raw", "its header has no end"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    if content.startswith(b"NRRD") and name == "a.mha":
        problem = "its header has no end"
    _refused(tmp_path / name, problem)


def test_a_missing_detached_file_is_named(write):
    path = write("a.mhd")
    path.with_suffix(".zraw").unlink()
    _refused(path, "its voxels' file a.zraw is missing")


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_a_detached_file_that_cannot_be_read_is_an_input_error(write, monkeypatch, name):
    path = write(name)
    opened = Path.open

    def denied(self, *arguments):
        if self.parent == path.parent and self != path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", denied)
    _refused(path, r"cannot be read \(Permission denied\)")


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_random_damage_gives_a_volume_or_an_input_error(write, name, seed):
    path = write(name, compressed=bool(seed % 2))
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, 500, 3):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content)
    try:
        shape = read_image(path).array.shape
    except InputError as error:
        problem = str(error)
    else:
        problem = "" if len(shape) in (3, 4) else f"{shape}\n"
    assert "\n" not in problem
