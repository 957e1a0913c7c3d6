import gzip
import os
import struct
import threading

import numpy as np
import pytest

from segscse.data.container import MAX_GZIP_HEADER, SLACK_BYTES, first_bytes, read_content
from segscse.errors import InputError


def _read(path, announced=None):
    return read_content(path, compressed=True, announced=lambda start: announced)


def test_a_stream_is_read_as_far_as_its_header_says_and_a_little_more(tmp_path):
    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    assert _read(tmp_path / "a.nii.gz") == content
    assert _read(tmp_path / "a.nii.gz", 5000) == content
    assert _read(tmp_path / "a.nii.gz", 4000) == content


@pytest.mark.parametrize(("extra", "good"), [(SLACK_BYTES, True), (SLACK_BYTES + 1, False)])
def test_what_unpacks_to_more_than_its_header_and_the_slack_is_refused(tmp_path, extra, good):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"\0" * (3000 + extra)))
    if good:
        assert len(_read(tmp_path / "a.nii.gz", 3000)) == 3000 + extra
    else:
        with pytest.raises(InputError, match="unpacks to more than the 3000 bytes of its header"):
            _read(tmp_path / "a.nii.gz", 3000)


def test_a_header_that_announces_more_than_deflate_can_pack_is_refused_before_unpacking(tmp_path):
    packed = gzip.compress(b"\0" * 5000)
    (tmp_path / "a.nii.gz").write_bytes(packed)
    assert len(_read(tmp_path / "a.nii.gz", 1032 * len(packed))) == 5000
    with pytest.raises(InputError, match=f"announces {1032 * len(packed) + 1} bytes, more than its {len(packed)} can"):
        _read(tmp_path / "a.nii.gz", 1032 * len(packed) + 1)


class TestGzipHeaders:
    """RFC 1952, section 2.3: flags 4 extra field, 8 name, 16 comment."""

    def _member(self, flags, fields):
        packed = gzip.compress(b"content" * 100, mtime=0)
        return packed[:3] + bytes([flags]) + packed[4:10] + fields + packed[10:]

    @pytest.mark.parametrize(
        ("flags", "fields"),
        [
            (8, b"scan.nii\0"),
            (16, b"a comment\0"),
            (28, struct.pack("<H", 5) + b"extra" + b"name\0" + b"comment\0"),
            (8, b"n" * (MAX_GZIP_HEADER - 1) + b"\0"),
        ],
    )
    def test_names_comments_and_extra_fields_are_passed_over(self, tmp_path, flags, fields):
        (tmp_path / "a.nii.gz").write_bytes(self._member(flags, fields))
        assert _read(tmp_path / "a.nii.gz") == b"content" * 100

    @pytest.mark.parametrize("flags", [8, 16])
    def test_one_without_end_is_refused(self, tmp_path, flags):
        (tmp_path / "a.nii.gz").write_bytes(self._member(flags, b"n" * MAX_GZIP_HEADER + b"\0"))
        with pytest.raises(InputError, match=r"a\.nii\.gz: .*damaged.*has no end"):
            _read(tmp_path / "a.nii.gz")


def test_a_stream_under_a_plain_name_is_refused_with_the_name_to_give_it(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(b"x" * 500))
    with pytest.raises(InputError, match=r"gzip stream without \.gz in its name\. Rename it to a\.nii\.gz"):
        read_content(tmp_path / "a.nii", compressed=False, announced=lambda start: None)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    found = []
    reader = threading.Thread(target=lambda: found.append(first_bytes(tmp_path / "a.nii.gz")), daemon=True)
    reader.start()
    reader.join(20)
    assert found == [b""]


def test_first_bytes_are_unpacked_and_none_where_there_are_none(tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    (tmp_path / "b").write_bytes(content)
    (tmp_path / "c").write_bytes(b"\x1f\x8bbroken")
    assert first_bytes(tmp_path / "a.gz", 700) == first_bytes(tmp_path / "b", 700) == content[:700]
    assert first_bytes(tmp_path / "c") == first_bytes(tmp_path / "none") == b""
