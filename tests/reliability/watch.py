"""What a piece of work does to the machine: commands, connections and files it writes, seen by Python's audit hook.

The hook sees what goes through the interpreter; a test that a canary file is absent covers the rest.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
)
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
CHANGES = {
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
}
CHANGES |= {"os.chmod": (0,), "os.truncate": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """The record of one piece of work."""

    def __init__(self, *writable: Path) -> None:
        self.writable = [Path(os.path.abspath(path)) for path in (*writable, "/dev/null")]
        self.events: list[str] = []

    def see(self, event: str, arguments: tuple) -> None:
        if event in NETWORK:
            self.events.append(f"{event} {arguments[1:]}")
            raise ConnectionRefusedError("the network is closed in this test")
        if event in COMMANDS:
            self.events.append(f"{event} {arguments}")
        for path in self._changed(event, arguments):
            if not any(path == allowed or path.is_relative_to(allowed) for allowed in self.writable):
                self.events.append(f"{event} {path}")

    @staticmethod
    def _changed(event: str, arguments: tuple) -> list[Path]:
        if event == "open":
            path, mode, flags = arguments
            writing = any(letter in mode for letter in "wax+") if isinstance(mode, str) else (flags or 0) & WRITING
            if not isinstance(path, (str, bytes)) or not writing or "__pycache__" in os.fsdecode(path):
                return []
            return [Path(os.path.abspath(os.fsdecode(path)))]
        places = (arguments[number] for number in CHANGES.get(event, ()))
        return [
            Path(os.path.abspath(os.fsdecode(path))) for path in places if isinstance(path, (str, bytes, os.PathLike))
        ]


_active: list[Watch] = []
_installed = threading.Event()


def _hook(event: str, arguments: tuple) -> None:
    for watch in _active:
        watch.see(event, arguments)


@contextmanager
def watched(*writable: Path) -> Iterator[Watch]:
    """Close the network and record commands, and changes of files outside `writable`, of every thread."""
    if not _installed.is_set():
        sys.addaudithook(_hook)  # for good: a hook cannot be removed
        _installed.set()
    watch = Watch(*writable)
    _active.append(watch)
    try:
        yield watch
    finally:
        _active.remove(watch)
