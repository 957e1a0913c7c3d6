import hashlib
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from segscse.errors import InputError
from segscse.files import atomic_folder, atomic_path, digest, read_json, write_json, write_text


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_file_appears_under_its_name_and_nothing_else_is_left(tmp_path):
    with atomic_path(tmp_path / "deep" / "er" / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"whole")
        assert not (tmp_path / "deep" / "er" / "a.nii.gz").exists()
    assert _names(tmp_path / "deep" / "er") == ["a.nii.gz"]
    assert (tmp_path / "deep" / "er" / "a.nii.gz").read_bytes() == b"whole"


@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt(), InputError("refused")])
def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def write():
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert _names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_in_place_of_the_output_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"out: cannot create the output folder .* Choose another folder\."):
        write_text(tmp_path / "out" / "a.txt", "x")


def test_a_folder_in_place_of_the_output_file_is_named_and_left_alone(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "a.txt", "x")
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files, which Linux enforces")
def test_a_full_disk_in_the_middle_of_a_write_leaves_the_old_file_and_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(InputError, match=r"cannot be written .* Check permissions and free disk space"):
            write_text(tmp_path / "a.txt", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert _names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_killed_writer_never_leaves_half_a_file_under_the_final_name(tmp_path):
    code = (
        "import sys\nfrom segscse.files import write_text\n"
        "print('go', flush=True)\n"
        "while True: write_text(sys.argv[1], 'x' * 3_000_000)"
    )
    target = tmp_path / "a.txt"
    for pause in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        while not target.exists() and writer.poll() is None:
            time.sleep(0.001)
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert target.stat().st_size == 3_000_000
        target.unlink()


def test_json_returns_as_it_was_written_with_letters_of_any_alphabet(tmp_path):
    value = {"name": "Hippokampus, größer 海馬", "sizes": [1, 2.5], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "海馬" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_refuses_nan_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert _names(tmp_path) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"", b"[" * 200_000])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(No such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_a_digest_is_sha256_of_canonical_json_and_ignores_the_order_of_keys():
    expected = hashlib.sha256(b'{"a":[1,2],"b":null}').hexdigest()[:16]
    assert digest({"b": None, "a": (1, 2)}) == digest({"a": [1, 2], "b": None}) == expected
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "a.txt", "x")


def test_the_folder_that_one_is_in_may_be_filled(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_folder(".") as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["file"]
