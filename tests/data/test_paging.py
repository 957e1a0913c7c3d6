import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from segscse.data.paging import GAP_BYTES, byte_ranges, read_ahead

PAGE = mmap.PAGESIZE


def _covered(view, base):
    found = np.zeros(base.nbytes, bool)
    for address, length in byte_ranges(view):
        start = address - base.data_ptr()
        assert 0 <= start < start + length <= base.nbytes
        found[start : start + length] = True
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1)])
def test_the_ranges_cover_every_byte_of_the_view_and_little_else(dtype, order):
    base = torch.zeros(2, 40, 300, 500, dtype=dtype)
    view = base.permute(order)[:, 3:9, 20:30, 7:11]
    covered = _covered(view, base)
    view.fill_(1)
    touched = np.repeat(base.numpy().reshape(-1) != 0, base.element_size())
    assert not (touched & ~covered).any()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], touched, [0]])))
    gaps = edges[2::2] - edges[1:-1:2]
    assert covered.sum() - touched.sum() == gaps[gaps < GAP_BYTES].sum()


def test_a_view_in_one_piece_is_one_range():
    base = torch.zeros(4, 5, 6)
    assert list(byte_ranges(base)) == [(base.data_ptr(), 4 * 5 * 6 * 4)]
    assert list(byte_ranges(base[2, 3, 1])) == [(base[2, 3, 1].data_ptr(), 4)]


def _in_page_cache(path):
    """Ask the system which pages of a file are in memory, by mincore through a mapping of its own."""
    import ctypes

    array = np.memmap(path, np.uint8, "r")
    pages = np.zeros(-(-array.size // PAGE), np.uint8)
    address = array.__array_interface__["data"][0]
    call = ctypes.CDLL(None, use_errno=True).mincore
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert call(address, array.size, pages.ctypes.data) == 0
    return pages & 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what it holds in memory")
def test_the_pages_of_the_view_come_into_memory_and_others_do_not(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((64, 256, 1024), np.uint8))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _in_page_cache(path).any():
        pytest.skip("this file system keeps its files in memory")
    array = torch.from_numpy(np.load(path, mmap_mode="c"))
    wanted = {(128 + (x * 256 + y) * 1024 + 50) // PAGE for x in (10, 40) for y in range(100, 120)}
    read_ahead(array[10:41:30, 100:120, 50:60])
    for _ in range(500):  # the system reads on its own; nothing here touches the pages
        found = set(np.flatnonzero(_in_page_cache(path)).tolist())
        if wanted <= found:
            break
        time.sleep(0.01)
    assert wanted <= found
    assert len(found) < 0.2 * array.numel() / PAGE


def test_it_does_nothing_for_an_empty_view_or_without_madvise(monkeypatch):
    read_ahead(torch.zeros(0, 3))
    monkeypatch.setattr("segscse.data.paging._madvise", lambda: None)
    read_ahead(torch.zeros(2, 3))
