"""Work out the next item in a thread while this one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Generator[Item, None, None]:
    """Yield what an iterator yields, of which a thread works out one item ahead."""
    ready: queue.Queue[Any] = queue.Queue()
    slots = threading.Semaphore(1)
    end = object()
    stopped = threading.Event()

    def work() -> None:
        try:
            while slots.acquire() and not stopped.is_set():
                ready.put(next(items, end))
        except BaseException as error:
            ready.put(_Raised(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, _Raised):
                raise item.error
            slots.release()
            yield item
    finally:
        stopped.set()
        slots.release()
        thread.join()


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException
