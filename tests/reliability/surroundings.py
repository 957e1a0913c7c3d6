"""The streams, the environment and the warnings that a verb meets in a stand."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stand import Stand


@contextmanager
def captured(stand: Stand) -> Iterator[dict[str, str]]:
    """Run in a stand's surroundings; then both streams are there, with warnings as a process shows them."""
    streams: dict[str, str] = {}
    root = Path(tempfile.gettempdir()) if not stand.environment else stand.root
    old_out, old_err, old_environment = sys.stdout, sys.stderr, dict(os.environ)
    log = logging.getLogger("nibabel.global")
    folder = tempfile.mkdtemp(dir=root)
    out, err = (open(Path(folder) / name, "w+", encoding="utf-8") for name in ("out", "err"))  # noqa: SIM115
    if stand.closed_stdout:
        reader, writer = os.pipe()
        os.close(reader)
        sys.stdout = os.fdopen(writer, "w")
    else:
        sys.stdout = out
    sys.stderr = err
    os.environ.update(stand.environment)
    if stand.environment:
        tempfile.tempdir = None
    handlers = [handler for handler in log.handlers if isinstance(handler, logging.StreamHandler)]
    previous = [handler.setStream(err) for handler in handlers]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield streams
        hidden = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
        for item in caught:
            if not issubclass(item.category, hidden):
                err.write(f"{item.filename}:{item.lineno}: {item.category.__name__}: {item.message}\n")
    finally:
        sys.stdout, sys.stderr = old_out, old_err
        for handler, stream in zip(handlers, previous, strict=True):
            handler.setStream(stream)
        os.environ.clear()
        os.environ.update(old_environment)
        tempfile.tempdir = None
        for name, stream in (("stdout", out), ("stderr", err)):
            stream.flush()
            stream.seek(0)
            streams[name] = stream.read()
            stream.close()
        shutil.rmtree(folder)
