"""Making the next batches in the background while the current one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
# One batch is being read while another waits; more would only take memory.
AHEAD = 2


def prefetched(make: Callable[[int], T], first: int, ahead: int = AHEAD) -> Generator[T]:
    """Yield `make(first)`, `make(first + 1)`, ... without end; the next ones are made by a thread in the meantime.

    A thread, not a process: reading and copying arrays let go of the interpreter, and nothing has to be sent. What
    `make` raises is raised here, in its turn. Closing the iterator ends the thread after the batch that it is making.
    """
    pool = ThreadPoolExecutor(1, "patches")
    try:
        waiting = deque(pool.submit(make, first + number) for number in range(ahead))
        following = first + ahead
        while True:
            batch = waiting.popleft().result()
            waiting.append(pool.submit(make, following))
            following += 1
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
