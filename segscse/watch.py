"""Watch over the processes of a job: each says every second that it lives, or why it ends; none waits for the dead.

A collective operation with a process that was killed fails at once where the connection is closed with it. Where it is
not (NCCL on one machine, a machine without power), or where a process is busy and asks nobody, this thread finds out.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any

from segscse.ranks import OtherRankError, Ranks

# Beats are counted by a process' own beats and not in seconds: a machine that slept has not lost anybody.
BEAT_S = 1.0
SILENT_S = 40.0
GRACE_S = 5.0
# After an operation has failed, so many beats tell who is gone.
SOON = 4
LEAVE_S = 10.0
_LEFT = "left "


class Watch:
    """What this process knows of the others, by a store that all can reach.

    Args:
        ranks: which process this is.
        store: a client of torch's key-value store, of this thread's own.
    """

    def __init__(self, ranks: Ranks, store: Any) -> None:
        self.ranks = ranks
        self.store = store
        # The store is one process': let it have no more than some dozen of visitors a second.
        self.beat_s = max(BEAT_S, ranks.world / 16)
        self.others = [rank for rank in range(ranks.world) if rank != ranks.rank]
        self._last = dict.fromkeys(self.others, "")
        self._silent = dict.fromkeys(self.others, 0)
        self._unreachable = 0
        self._binding = 0
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="segscse-watch", daemon=True)
        self._say("0")

    def start(self) -> None:
        """Begin; every process must have made its watch."""
        self._thread.start()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Mark that this process cannot go on without the others: if one is lost, it ends, whatever it waits for."""
        self._binding += 1
        try:
            yield
        finally:
            self._binding -= 1

    def explain(self, error: BaseException) -> OtherRankError | None:
        """Return which other process an error comes from, or None for one of our own."""
        from segscse.errors import SegscseError
        from segscse.ranks import Terminated

        if isinstance(error, SegscseError) and not isinstance(error, Terminated):
            return None
        if not isinstance(error, RuntimeError | Terminated):
            return None
        until = monotonic() + (SOON + 2) * self.beat_s
        while (lost := self.lost(SOON)) is None and monotonic() < until:
            sleep(self.beat_s / 4)
        return lost

    def lost(self, beats: int) -> OtherRankError | None:
        """Return the process that ended with an error, or that has been silent for so many beats."""
        world = self.ranks.world
        with self._lock:
            for rank, value in self._last.items():
                if value.startswith(_LEFT) and value != _LEFT:
                    told, reason = value[len(_LEFT)] == "1", value[len(_LEFT) + 1 :]
                    message = f"process {rank} of {world} ended ({reason})"
                    return OtherRankError(message, told=told or not self._speaks_without([rank]))
            if self._unreachable >= min(beats, SOON):
                return self._vanished([0])
            silent = [rank for rank, count in self._silent.items() if count >= beats]
        return self._vanished(silent) if silent else None

    def leave(self, reason: str, *, told: bool = True) -> None:
        """Tell the others that this process ends, and why, or `""`, and whether it says so to people itself."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(RuntimeError):
            self._say(_LEFT + (f"{told:d}{reason}" if reason else ""))

    def close(self) -> None:
        """Let the others read what was said: the first process often holds the store.

        It looks more often than they beat, so that only those who were silent before are taken for lost.
        """
        until = monotonic() + LEAVE_S
        while self.ranks.rank == 0 and monotonic() < until:
            with suppress(RuntimeError):
                self._look(beat=False)
            if all(value.startswith(_LEFT) or self._silent[rank] >= SOON for rank, value in self._last.items()):
                return
            sleep(0.2)

    def _vanished(self, ranks: list[int]) -> OtherRankError:
        world = self.ranks.world
        number = ", ".join(str(rank) for rank in ranks)
        message = (
            f"process {number} of {world} has vanished: it was killed, or its machine or the network failed. "
            "Start the job again with --resume."
        )
        return OtherRankError(message, told=not self._speaks_without(ranks))

    def _speaks_without(self, lost: list[int]) -> bool:
        """Return whether it falls to this process to say so: to the first that is left."""
        return self.ranks.rank == min(rank for rank in range(self.ranks.world) if rank not in lost)

    def _run(self) -> None:
        number, overdue = 0, 0.0
        while not self._done.wait(self.beat_s):
            number += 1
            try:
                self._say(str(number))
                self._look()
                self._unreachable = 0
            except RuntimeError:
                self._unreachable += 1
            found = self.lost(max(SOON + 1, int(SILENT_S / self.beat_s))) if self._binding else None
            overdue = overdue + self.beat_s if found is not None else 0.0
            if found is not None and overdue > GRACE_S:
                self._end(found)

    def _end(self, error: OtherRankError) -> None:
        """End this process, which waits for one that will not come, with the cause."""
        if not error.told:
            sys.stderr.write(f"segscse: {error}\n")
            sys.stderr.flush()
        os._exit(2)

    def _say(self, what: str) -> None:
        self.store.set(f"segscse/{self.ranks.rank}", what)

    def _look(self, *, beat: bool = True) -> None:
        """Read what the others say; at a beat, count those who have said nothing new."""
        values = self.store.multi_get([f"segscse/{rank}" for rank in self.others])
        with self._lock:
            for rank, value in zip(self.others, (value.decode() for value in values), strict=True):
                same = value == self._last[rank] and not value.startswith(_LEFT)
                self._silent[rank] = self._silent[rank] + beat if same else 0
                self._last[rank] = value
