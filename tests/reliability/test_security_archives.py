"""T6, archives: ten tar files that a stranger made, brought to `fetch`; nothing of them is unpacked."""

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import PureWindowsPath

import pytest
from watch import watched

from segscse.data.fetch import fetch_archive
from segscse.errors import InputError

TASK = "Task99_Toy"
BOMB = 2**40


def _file(name, data=b"x", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def _sound():
    content = {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}
    return [
        _file(TASK, b"", type=tarfile.DIRTYPE, mode=0o755),
        _file(f"{TASK}/dataset.json", json.dumps(content).encode()),
        _file(f"{TASK}/imagesTr/a.nii.gz", b"image"),
        _file(f"{TASK}/labelsTr/a.nii.gz", b"label"),
    ]


def _through_a_link(place):
    link = _file(f"{TASK}/imagesTr/link", b"", type=tarfile.SYMTYPE, linkname=str(place))
    return [link, _file(f"{TASK}/imagesTr/link/canary")]


def _through_a_hard_link(place):
    link = _file(f"{TASK}/b", b"", type=tarfile.LNKTYPE, linkname="../secret")
    return [link, _file(f"{TASK}/b", b"overwritten")]


def _sparse_file(place):
    """A file of 1 TiB, all hole: a kilobyte in the archive."""
    name = f"{TASK}/imagesTr/b.nii.gz"
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(BOMB)}
    member, data = _file(f"{TASK}/GNUSparseFile.0/b.nii.gz", b"1\n0\n0\n".ljust(512, b"\0"))
    member.pax_headers = {**headers, "GNU.sparse.name": name}
    return [(member, data)]


ATTACKS = {
    "parent folder": (lambda place: [_file(f"{TASK}/../../canary")], "climbs out"),
    "absolute path": (lambda place: [_file(f"{place}/canary")], "absolute path"),
    "drive letter": (lambda place: [_file("C:/canary")], "a colon"),
    "back-slash": (lambda place: [_file(f"{TASK}\\..\\..\\canary")], "back-slash"),
    "symbolic link": (_through_a_link, "is a link"),
    "hard link": (_through_a_hard_link, "is a link"),
    "device": (lambda place: [_file(f"{TASK}/pipe", b"", type=tarfile.FIFOTYPE)], "neither a file nor a folder"),
    "a name twice": (lambda place: [_file(f"{TASK}/labelsTr/a.nii.gz", b"other")], "appears twice"),
    "bomb": (_sparse_file, "exceeds the limit"),
    "wrong checksum": (lambda place: [], "wrong checksum"),
}


@pytest.fixture
def place(tmp_path):
    """Return a folder with a secret, and beside it the folder to unpack in."""
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "out").mkdir()
    return tmp_path


def _archive(name, place):
    path = place / "out" / f"{TASK}.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in [*_sound(), *ATTACKS[name][0](place)]:
            tar.addfile(member, io.BytesIO(data))
    return path


def _escaped(name, place):
    """Return whether an archive that was unpacked in `place/out` reached its aim."""
    folder = place / "out" / TASK
    if name in ("drive letter", "back-slash"):  # file names here, paths on Windows
        landed = next(path.name for path in (place / "out").rglob("*canary") if path.is_file())
        inside = PureWindowsPath("D:/out") / landed
        return inside.drive != "D:" or ".." in inside.parts
    return {
        "hard link": lambda: (place / "secret").read_text() == "overwritten",
        "device": lambda: stat.S_ISFIFO(os.stat(folder / "pipe").st_mode),
        "a name twice": lambda: (folder / "labelsTr" / "a.nii.gz").read_bytes() == b"other",
        "bomb": lambda: os.stat(folder / "imagesTr" / "b.nii.gz").st_size == BOMB,
        "wrong checksum": lambda: (folder / "dataset.json").is_file(),
    }.get(name, (place / "canary").exists)()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_works_on_an_extractor_that_trusts(name, place):
    target = place / "out"
    with tarfile.open(_archive(name, place)) as tar:
        for member in tar:
            if name == "drive letter" and member.name == "C:/canary":
                member.name = "C:canary"  # one file here, as the whole is one path on Windows
            tar.extract(member, target, filter="fully_trusted")
    assert _escaped(name, place)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_unpacked(name, place):
    path = _archive(name, place)
    content = path.read_bytes()
    md5 = "0" * 32 if name == "wrong checksum" else hashlib.md5(content, usedforsecurity=False).hexdigest()
    with watched(place / "out") as seen, pytest.raises(InputError, match=ATTACKS[name][1]) as caught:
        fetch_archive(f"https://example.org/{TASK}.tar", md5, place / "out")
    assert "\n" not in str(caught.value)
    assert seen.events == []
    assert sorted(item.name for item in (place / "out").iterdir()) == [path.name]
    assert path.read_bytes() == content
    assert sorted(item.name for item in place.iterdir()) == ["out", "secret"]
    assert (place / "secret").read_text() == "mine"


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE])
def test_devices_of_other_kinds(kind, place, monkeypatch):
    monkeypatch.setitem(ATTACKS, "device", (lambda _: [_file(f"{TASK}/imagesTr/b", b"", type=kind)], ""))
    md5 = hashlib.md5(_archive("device", place).read_bytes(), usedforsecurity=False).hexdigest()
    if kind == tarfile.CONTTYPE:  # an old name of a plain file
        assert (fetch_archive(f"https://example.org/{TASK}.tar", md5, place / "out") / "imagesTr" / "b").is_file()
        return
    with pytest.raises(InputError, match="neither a file nor a folder"):
        fetch_archive(f"https://example.org/{TASK}.tar", md5, place / "out")


def test_a_sound_archive_is_unpacked(place):
    md5 = hashlib.md5(_archive("wrong checksum", place).read_bytes(), usedforsecurity=False).hexdigest()
    with watched(place / "out") as seen:
        folder = fetch_archive(f"https://example.org/{TASK}.tar", md5, place / "out")
    assert (folder / "imagesTr" / "a.nii.gz").read_bytes() == b"image"
    assert seen.events == []
