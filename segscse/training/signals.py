"""Stopping on request: the first SIGINT or SIGTERM is noted and acted on between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """The signal that asked to stop, or None."""

    signum: int | None = None


@contextmanager
def stop_on_signals(request: StopRequest) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM in `request` instead of dying by it; the second one has its usual effect.

    Outside the main thread, where Python cannot set handlers, signals keep their usual effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
