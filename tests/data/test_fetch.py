import hashlib
import io
import json
import os
import tarfile

import pytest
from loopback import Server

from segscse.data import fetch as fetch_module
from segscse.data.fetch import Connection, fetch, fetch_archive
from segscse.errors import InputError

TASK = "Task99_Toy"
QUICK = Connection(timeout_s=5.0, retries=2, pause_s=0.01)
CANARY = b"escaped"


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def _file(name, data=b"x", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def _toy_members():
    content = {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}
    folder, _ = _file(TASK, b"", type=tarfile.DIRTYPE, mode=0o755)
    return [
        (folder, b""),
        _file(f"{TASK}/dataset.json", json.dumps(content).encode()),
        _file(f"{TASK}/imagesTr/a.nii.gz", os.urandom(40_000)),
        _file(f"{TASK}/labelsTr/a.nii.gz", b"label"),
    ]


def _tar(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _get(server, out, *, md5=None, **options):
    options.setdefault("connection", QUICK)
    return fetch_archive(f"{server.url}/data/{TASK}.tar", md5 or _md5(server.payload), out, **options)


def _names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestDownload:
    def test_the_data_set_is_unpacked_and_nothing_else_is_left(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        seen = []
        folder = _get(server, tmp_path, progress=lambda done, total: seen.append((done, total)))
        assert folder == tmp_path / TASK
        assert [path.name for path in tmp_path.iterdir()] == [TASK]
        assert (folder / "labelsTr" / "a.nii.gz").read_bytes() == b"label"
        assert seen[-1] == (len(server.payload), len(server.payload))

    def test_a_finished_data_set_is_not_fetched_again(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        assert _get(server, tmp_path) == _get(server, tmp_path)
        assert len(server.requests) == 1

    def test_an_incomplete_data_set_is_reported_not_overwritten(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        (_get(server, tmp_path) / "labelsTr" / "a.nii.gz").unlink()
        with pytest.raises(InputError, match=r"1 of the 2 files in dataset.json are missing, first './labelsTr"):
            _get(server, tmp_path)

    def test_a_cut_connection_is_resumed_without_sending_bytes_again(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.cuts = [10_000, 15_000]
        assert _get(server, tmp_path).is_dir()
        assert [wanted for wanted, _ in server.requests] == [None, "bytes=10000-", "bytes=25000-"]
        assert sum(sent for _, sent in server.requests) == len(server.payload)

    def test_a_later_run_resumes_what_an_earlier_one_left(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        (tmp_path / f"{TASK}.tar.part").write_bytes(server.payload[:20_000])
        assert _get(server, tmp_path).is_dir()
        assert server.requests == [("bytes=20000-", len(server.payload) - 20_000)]

    def test_a_whole_part_is_not_downloaded_again(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        (tmp_path / f"{TASK}.tar.part").write_bytes(server.payload)
        assert _get(server, tmp_path).is_dir()
        assert server.requests == [(f"bytes={len(server.payload)}-", 0)]

    def test_a_part_longer_than_the_file_is_started_over(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        (tmp_path / f"{TASK}.tar.part").write_bytes(server.payload + b"more")
        assert _get(server, tmp_path).is_dir()
        assert [wanted for wanted, _ in server.requests][1:] == [None]

    def test_a_server_without_ranges_is_started_over(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.supports_range = False
        server.cuts = [10_000]
        assert _get(server, tmp_path).is_dir()
        assert server.requests == [(None, 10_000), ("bytes=10000-", len(server.payload))]

    def test_a_server_that_sends_another_range_is_started_over(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.cuts = [10_000]
        server.shift = 7
        assert _get(server, tmp_path).is_dir()
        assert [wanted for wanted, _ in server.requests] == [None, "bytes=10000-", None]

    def test_a_server_that_does_not_say_the_length_works(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.says_length = False
        seen = []
        assert _get(server, tmp_path, progress=lambda done, total: seen.append((done, total))).is_dir()
        assert seen[-1] == (len(server.payload), None)

    def test_a_server_without_ranges_that_always_cuts_is_given_up(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.supports_range = False
        server.cuts = [10_000] * 99
        with pytest.raises(InputError, match=r"cut after 10000 of \d+ bytes\); 10000 bytes are kept.*to resume"):
            _get(server, tmp_path)
        assert len(server.requests) == 4  # one brought something new, then three in a row did not
        assert _names(tmp_path) == [f"{TASK}.tar.part"]

    def test_errors_that_may_pass_are_retried(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.statuses = [503, 500]
        assert _get(server, tmp_path).is_dir()
        assert len(server.requests) == 3

    def test_a_missing_file_is_reported_at_once(self, server, tmp_path):
        server.statuses = [404] * 9
        with pytest.raises(InputError, match=r"HTTP 404 Not Found. Check the address"):
            _get(server, tmp_path)
        assert len(server.requests) == 1
        assert _names(tmp_path) == []

    def test_a_silent_server_times_out(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.hang_s = 0.5
        with pytest.raises(InputError, match=r"the download failed .*timed out"):
            _get(server, tmp_path, connection=Connection(timeout_s=0.1, retries=0))

    def test_no_network_is_one_line_with_a_remedy(self, server, tmp_path):
        server.close()
        with pytest.raises(InputError, match="Check the network and run it again to resume") as caught:
            _get(server, tmp_path, md5="0" * 32)
        assert "\n" not in str(caught.value)
        assert f"{TASK}.tar by hand" in str(caught.value)

    def test_an_endless_download_is_stopped_at_the_limit(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        server.says_length = False
        with pytest.raises(InputError, match="more than 5000 bytes, the limit"):
            _get(server, tmp_path, max_bytes=5_000)

    def test_a_declared_length_over_the_limit_is_refused_before_downloading(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        with pytest.raises(InputError, match=r"has \d+ bytes; the limit is 5000"):
            _get(server, tmp_path, max_bytes=5_000)
        assert _names(tmp_path) == []


class TestChecksum:
    def test_a_damaged_download_is_removed(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        with pytest.raises(InputError, match=rf"wrong checksum: MD5 {_md5(server.payload)}, expected 0000.*removed"):
            _get(server, tmp_path, md5="0" * 32)
        assert _names(tmp_path) == []

    def test_an_archive_brought_by_hand_is_used_without_the_network_and_kept(self, server, tmp_path):
        payload = _tar(_toy_members())
        (tmp_path / f"{TASK}.tar").write_bytes(payload)
        assert _get(server, tmp_path, md5=_md5(payload).upper()).is_dir()
        assert server.requests == []
        assert (tmp_path / f"{TASK}.tar").exists()

    def test_a_wrong_archive_brought_by_hand_is_refused_and_kept(self, server, tmp_path):
        (tmp_path / f"{TASK}.tar").write_bytes(b"something else")
        with pytest.raises(InputError, match=r"wrong checksum.*Delete or replace it"):
            _get(server, tmp_path, md5="0" * 32)
        assert _names(tmp_path) == [f"{TASK}.tar"]


UNSAFE = {
    "parent": ([_file(f"{TASK}/../../canary", CANARY)], "climbs out"),
    "parent at the start": ([_file("../canary", CANARY)], "climbs out"),
    "absolute": ([_file("ABSOLUTE", CANARY)], "absolute path"),
    "drive letter": ([_file("C:canary", CANARY)], "colon"),
    "back-slash": ([_file(f"{TASK}\\..\\canary", CANARY)], "back-slash"),
    "control character": ([_file(f"{TASK}/a\nb", CANARY)], "control character"),
    "beside the folder": ([_file("canary", CANARY)], "lies outside the folder"),
    "folder's name as a file": ([_file(TASK, CANARY)], "lies outside the folder"),
    "symlink, then a file through it": (
        [
            _file(f"{TASK}/link", b"", type=tarfile.SYMTYPE, linkname="../.."),
            _file(f"{TASK}/link/canary", CANARY),
        ],
        "is a link",
    ),
    "hard link": ([_file(f"{TASK}/link", b"", type=tarfile.LNKTYPE, linkname="../canary")], "is a link"),
    "device": (
        [_file(f"{TASK}/null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        "neither a file nor",
    ),
    "pipe": ([_file(f"{TASK}/pipe", b"", type=tarfile.FIFOTYPE)], "neither a file nor"),
    "duplicate": ([_file(f"{TASK}/dataset.json", b"{}")], "appears twice"),
    "duplicate but for case": ([_file(f"{TASK}/DATASET.json", b"{}")], "appears twice"),
    "too large": ([_file(f"{TASK}/big", b"0" * 400_000)], "exceeds the limit of 300000 bytes"),
}


class TestUnpack:
    @pytest.mark.parametrize("kind", UNSAFE)
    def test_an_unsafe_archive_is_refused_and_nothing_is_left(self, server, tmp_path, kind):
        members, reason = UNSAFE[kind]
        out = tmp_path / "deep" / "out"
        if kind == "absolute":
            members = [_file(str(tmp_path / "canary"), CANARY)]
        server.payload = _tar(_toy_members() + members)
        limit = 300_000 if kind == "too large" else 10**6
        (out).mkdir(parents=True)
        archive = out / f"{TASK}.tar"
        archive.write_bytes(server.payload)  # its own size is not at issue here
        with pytest.raises(InputError, match=f"the archive is unsafe: .*{reason}.*nothing was unpacked"):
            _get(server, out, max_bytes=limit)
        assert _names(tmp_path) == ["deep", "deep/out", f"deep/out/{TASK}.tar"]

    def test_a_downloaded_unsafe_archive_is_removed(self, server, tmp_path):
        server.payload = _tar([*_toy_members(), _file("../canary", CANARY)])
        out = tmp_path / "out"
        with pytest.raises(InputError, match="unsafe"):
            _get(server, out)
        assert _names(tmp_path) == ["out"]

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_the_payloads_do_escape_from_a_careless_extractor(self, tmp_path):
        inner = tmp_path / "deep" / "out"
        inner.mkdir(parents=True)
        payload = _tar(UNSAFE["symlink, then a file through it"][0] + UNSAFE["parent"][0])
        with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
            tar.extractall(inner, filter="fully_trusted")
        assert (tmp_path / "deep" / "canary").read_bytes() == CANARY

    def test_a_sparse_bomb_counts_with_its_unpacked_size(self, server, tmp_path):
        headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
        headers["GNU.sparse.size"] = str(2**40)
        bomb = _file(f"{TASK}/bomb", b"0", pax_headers=headers)
        server.payload = _tar([*_toy_members(), bomb])
        with pytest.raises(InputError, match="exceeds the limit"):
            _get(server, tmp_path)
        assert _names(tmp_path) == []

    def test_macos_resource_forks_are_skipped(self, server, tmp_path):
        forks = [_file(f"._{TASK}"), _file(f"{TASK}/._dataset.json"), _file(f"{TASK}/imagesTr/._a.nii.gz")]
        server.payload = _tar(forks + _toy_members())
        assert not [name for name in _names(_get(server, tmp_path)) if "._" in name]

    def test_a_leading_dot_and_repeated_folders_are_harmless(self, server, tmp_path):
        members = [_file(".", b"", type=tarfile.DIRTYPE), *_toy_members(), _toy_members()[0]]
        for member, _ in members[1:]:
            member.name = f"./{member.name}"
        server.payload = _tar(members)
        assert _get(server, tmp_path).is_dir()

    @pytest.mark.parametrize("payload", [b"<html>not a tar</html>" * 100, b""])
    def test_something_that_is_no_tar_is_reported(self, server, tmp_path, payload):
        server.payload = payload
        with pytest.raises(InputError, match="is not a sound tar archive"):
            _get(server, tmp_path)
        assert _names(tmp_path) == []

    def test_an_archive_cut_before_its_checksum_was_taken_is_reported(self, server, tmp_path):
        server.payload = _tar(_toy_members())[:20_000]
        with pytest.raises(InputError, match="is not a sound tar archive"):
            _get(server, tmp_path)
        assert _names(tmp_path) == []

    def test_an_archive_without_the_files_it_lists_is_refused(self, server, tmp_path):
        server.payload = _tar(_toy_members()[:-1])
        with pytest.raises(InputError, match="1 of the 2 files"):
            _get(server, tmp_path)
        assert _names(tmp_path) == []

    def test_an_archive_without_dataset_json_is_refused(self, server, tmp_path):
        server.payload = _tar(_toy_members()[2:])
        with pytest.raises(InputError, match=r"dataset.json: cannot be read"):
            _get(server, tmp_path)
        assert _names(tmp_path) == []

    def test_what_a_killed_run_left_is_cleaned(self, server, tmp_path):
        server.payload = _tar(_toy_members())
        stale = tmp_path / f".{TASK}.unpacking" / TASK / "half.nii.gz"
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"half")
        _get(server, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [TASK]

    def test_a_full_disk_is_reported_and_the_archive_kept(self, server, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        server.payload = _tar(_toy_members())
        monkeypatch.setattr(fetch_module.tarfile.TarFile, "extract", full)
        with pytest.raises(InputError, match=r"No space left on device.*free disk space"):
            _get(server, tmp_path)
        assert _names(tmp_path) == [f"{TASK}.tar.whole"]
        monkeypatch.undo()
        assert _get(server, tmp_path).is_dir()
        assert len(server.requests) == 1
        assert [path.name for path in tmp_path.iterdir()] == [TASK]

    def test_a_folder_that_cannot_be_made_is_reported(self, server, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InputError, match="cannot be written"):
            _get(server, tmp_path / "file" / "out")

    def test_a_second_process_is_told_to_wait(self, server, tmp_path):
        fcntl = pytest.importorskip("fcntl")
        with (tmp_path / f".{TASK}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="another process is fetching this"):
                _get(server, tmp_path)
        assert server.requests == []


class TestNames:
    @pytest.fixture
    def archives(self, monkeypatch):
        asked = []
        monkeypatch.setattr(fetch_module, "fetch_archive", lambda url, md5, out, **_: asked.append((url, md5)) or out)
        return asked

    @pytest.mark.parametrize("name", ["hippocampus", "Hippocampus", "Task04_Hippocampus", "task04_hippocampus"])
    def test_short_and_full_names_in_any_case_mean_the_same(self, archives, tmp_path, name):
        fetch(name, tmp_path)
        ((url, md5),) = archives
        assert url.startswith("https://")
        assert url.endswith("/Task04_Hippocampus.tar")
        assert md5 == "9d24dba78a72977dbd1d2e110310f31b"

    def test_a_mirror_changes_the_address_not_the_checksum(self, archives, tmp_path):
        fetch("spleen", tmp_path, source="http://mirror.example/msd/")
        ((url, md5),) = archives
        assert url == "http://mirror.example/msd/Task09_Spleen.tar"
        assert md5 == "410d4a301da4e5b2f6f86ec3ddba524e"

    @pytest.mark.parametrize("name", ["hipocampus", "Task05_Hippocampus", ""])
    def test_unknown_names_are_refused_with_the_known_ones(self, tmp_path, name):
        with pytest.raises(InputError, match=r"unknown data set .*hippocampus, hepaticvessel|hippocampus"):
            fetch(name, tmp_path)

    @pytest.mark.parametrize(
        "url",
        [
            "file:///etc/passwd",
            "ftp://host/a.tar",
            "http://host/",
            "http://host/..tar",
            "http://host/%2e%2e%2fa.tar",
        ],
    )
    def test_addresses_that_name_no_archive_are_refused(self, tmp_path, url):
        with pytest.raises(InputError, match="the address must"):
            fetch_archive(url, "0" * 32, tmp_path)

    def test_importing_the_module_imports_neither_torch_nor_monai(self):
        import subprocess
        import sys

        code = "import sys, segscse.data.fetch; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
